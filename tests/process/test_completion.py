"""Completion: what click makes of the command line, and what a real bash, zsh and fish make of that."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pexpect
import pytest
from click.shell_completion import ShellComplete

from lazycluster._cli import lazycluster, main
from lazycluster._cli.options import complete_hosts, config_option

CONFIG = """\
Include more/*
Host gpu-1 gpu-2
Host web *.example.org !not
Match exec "touch matched"
    User me
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Return an ssh configuration; it is in a directory of its own, where nothing else is called like a host."""
    directory = tmp_path / "ssh"
    directory.mkdir()
    path = directory / "config"
    path.write_text(CONFIG.replace("more/", f"{directory}/more/"))
    (directory / "more").mkdir()
    (directory / "more" / "file").write_text("Host gpu-3\n")
    return path


def completed(*words: str, command: click.Command = lazycluster) -> list[str]:
    """Return what the last word may become."""
    completing = ShellComplete(command, {}, "lazycluster", "_LAZYCLUSTER_COMPLETE")
    return [item.value for item in completing.get_completions([*words[:-1]], words[-1])]


def test_commands_and_options() -> None:
    assert set(completed("")) >= {"demo", "explain", "completion"}
    assert completed("expla") == ["explain"]
    assert set(completed("explain", "--")) >= {"--host", "--task", "--working-dir", "--config", "--json"}
    assert completed("completion", "") == ["bash", "zsh", "fish"]
    filters = ["gpu", "min-memory=", "min-cores=", "installed=", "true="]
    assert completed("run", "--group-filter", "") == filters
    assert completed("run", "--group-filter", "gpu", "--group-filter", "min-") == filters[1:3]


@pytest.mark.parametrize(
    ("incomplete", "expected"),
    [
        ("", ["gpu-3", "gpu-1", "gpu-2", "web"]),
        ("gpu-", ["gpu-3", "gpu-1", "gpu-2"]),
        ("me@w", ["me@web"]),
        ("x", []),
    ],
)
def test_hosts_of_the_configuration_named_before(config: Path, incomplete: str, expected: list[str]) -> None:
    assert completed("explain", "--config", str(config), "--host", incomplete) == expected
    assert list(config.parent.rglob("matched")) == []


def test_hosts_of_the_users_own_configuration(monkeypatch: pytest.MonkeyPatch, config: Path) -> None:
    monkeypatch.setattr("lazycluster._ssh.config_hosts.default_config", lambda: config)
    assert completed("explain", "--host", "g") == ["gpu-3", "gpu-1", "gpu-2"]


def test_hosts_as_arguments(config: Path) -> None:
    @click.command
    @click.argument("host", shell_complete=complete_hosts)
    @config_option
    def visit(host: str, config: Path | None) -> None: ...

    assert completed("--config", str(config), "we", command=visit) == ["web"]


def test_a_configuration_that_cannot_be_read_names_nobody(tmp_path: Path, config: Path) -> None:
    for path in (tmp_path / "none", tmp_path, config.parent / "more"):
        assert completed("explain", "--config", str(path), "--host", "gpu") == []
    config.write_bytes(b"\xff\xfe\x00Host \xe4 x\nHost gpu-9\nInclude " + str(config).encode() + b"\n")
    assert completed("explain", "--config", str(config), "--host", "gpu") == ["gpu-9"]


def test_nothing_that_goes_wrong_gets_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_file: object) -> tuple[str, ...]:
        raise RuntimeError("on purpose")

    monkeypatch.setattr("lazycluster._cli.options.configured_hosts", fail)
    assert completed("explain", "--host", "") == []


# The scripts ---------------------------------------------------------------------------------------------------------


def script(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["completion", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = script(capsys, shell)
    assert f"_LAZYCLUSTER_COMPLETE={shell}_complete" in text
    monkeypatch.setenv("SHELL", f"/usr/local/bin/{shell}")
    assert script(capsys) == text
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    subprocess.run((shell, "-n"), input=text.encode(), check=True)


@pytest.mark.parametrize("shell", ["/bin/tcsh", ""])
def test_for_which_shell(shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SHELL", shell)
    assert main(["completion"]) == 2
    assert "bash, zsh, fish" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [("bash", "--norc"), ("zsh", "-f")], ids=lambda argv: argv[0])
def test_a_real_shell_completes_commands_and_hosts(argv: tuple[str, ...], config: Path) -> None:
    if shutil.which(argv[0]) is None:
        pytest.skip(f"there is no {argv[0]}")
    prepare = {"bash": "", "zsh": "autoload -Uz compinit; compinit -D; "}[argv[0]]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TERM": "dumb",
        "INPUTRC": "/dev/null",
        "PS1": "% ",
        "HISTFILE": "/dev/null",
    }
    shell = pexpect.spawn(
        argv[0], list(argv[1:]), cwd=str(config.parent), env=environment, timeout=30, encoding="utf-8"
    )
    try:
        shell.sendline(f'{prepare}eval "$(lazycluster completion {argv[0]})"; echo rea""dy')
        shell.expect("ready\r")
        for typed, expected in {
            "lazycluster expla\t": "lazycluster explain ",
            "lazycluster explain --config config --host web\t": "--host web ",
            # bash takes @ for the end of a word.
            **({} if argv[0] == "bash" else {"lazycluster explain --config config --host me@w\t": "--host me@web "}),
            "lazycluster explain --config config --host gpu\t": "--host gpu\x07?-",  # bash rings, there are several
        }.items():
            shell.send(typed)
            shell.expect(expected)
            shell.send("\x15")  # the line is taken back
        shell.sendline("exit 0")
        shell.expect(pexpect.EOF)
    finally:
        shell.close(force=True)
    assert list(config.parent.rglob("matched")) == []
