"""Completion: the words that the command line offers, and the scripts for bash, zsh and fish in real shells."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pexpect
import pytest

from tests.command_line import main

Complete = Callable[..., list[str]]

CONFIG = """\
Include more/*
Host gpu-1 gpu-2
Host web *.example.org !not
Match exec "touch matched"
    User me
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Return an ssh configuration in a directory where no file has the name of a host."""
    directory = tmp_path / ".ssh"
    directory.mkdir()
    path = directory / "config"
    path.write_text(CONFIG.replace("more/", f"{directory}/more/"))
    (directory / "more").mkdir()
    (directory / "more" / "file").write_text("Host gpu-3\n")
    return path


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Complete:
    """Return the completions of the last word, asked for as the script for bash does."""

    def complete(*words: str) -> list[str]:
        with monkeypatch.context() as patch:
            patch.setenv("_LAZYCLUSTER_COMPLETE", "bash_complete")
            patch.setenv("COMP_WORDS", shlex.join(("lazycluster", *words)))
            patch.setenv("COMP_CWORD", str(len(words)))
            with pytest.raises(SystemExit):
                main([])
        return [line.partition(",")[2] for line in capsys.readouterr().out.splitlines() if line]

    return complete


def test_completion_of_commands_and_options(complete: Complete) -> None:
    assert set(complete("")) >= {"demo", "explain", "completion"}
    assert complete("expla") == ["explain"]
    assert set(complete("explain", "--")) >= {"--host", "--task", "--working-dir", "--config", "--json"}
    assert complete("completion", "") == ["bash", "zsh", "fish"]
    filters = ["gpu", "min-memory=", "min-cores=", "installed=", "true="]
    assert complete("run", "--group-filter", "") == filters
    assert complete("run", "--group-filter", "gpu", "--group-filter", "min-") == filters[1:3]


@pytest.mark.parametrize(
    ("incomplete", "expected"),
    [
        ("", ["gpu-3", "gpu-1", "gpu-2", "web"]),
        ("gpu-", ["gpu-3", "gpu-1", "gpu-2"]),
        ("me@w", ["me@web"]),
        ("x", []),
    ],
)
def test_completion_of_hosts_reads_given_config(
    complete: Complete, config: Path, incomplete: str, expected: list[str]
) -> None:
    assert complete("explain", "--config", str(config), "--host", incomplete) == expected
    assert complete("--config", str(config), "explain", "--host", incomplete) == expected
    assert list(config.parent.rglob("matched")) == []


def test_completion_of_hosts_reads_users_configuration(
    complete: Complete, monkeypatch: pytest.MonkeyPatch, config: Path
) -> None:
    monkeypatch.setattr(pwd, "getpwuid", lambda _uid: SimpleNamespace(pw_dir=str(config.parent.parent)))
    assert complete("explain", "--host", "g") == ["gpu-3", "gpu-1", "gpu-2"]


def test_completion_of_host_arguments(complete: Complete, config: Path) -> None:
    assert complete("delete-runtime", "--config", str(config), "we") == ["web"]


def test_completion_unreadable_config_has_no_hosts(complete: Complete, tmp_path: Path, config: Path) -> None:
    for path in (tmp_path / "none", tmp_path, config.parent / "more"):
        assert complete("explain", "--config", str(path), "--host", "gpu") == []
    config.write_bytes(b"\xff\xfe\x00Host \xe4 x\nHost gpu-9\nInclude " + str(config).encode() + b"\n")
    assert complete("explain", "--config", str(config), "--host", "gpu") == ["gpu-9"]


def test_completion_of_hosts_hides_errors(complete: Complete, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_uid: int) -> None:
        raise RuntimeError("on purpose")

    monkeypatch.setattr(pwd, "getpwuid", fail)
    assert complete("explain", "--host", "") == []


# The scripts ---------------------------------------------------------------------------------------------------------


def print_script(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["completion", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_for_each_shell(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = print_script(capsys, shell)
    assert f"_LAZYCLUSTER_COMPLETE={shell}_complete" in text
    monkeypatch.setenv("SHELL", f"/usr/local/bin/{shell}")
    assert print_script(capsys) == text
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    subprocess.run((shell, "-n"), input=text.encode(), check=True)


@pytest.mark.parametrize("shell", ["/bin/tcsh", ""])
def test_completion_script_for_unknown_shell_is_an_error(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHELL", shell)
    assert main(["completion"]) == 2
    assert "bash, zsh, fish" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [("bash", "--norc"), ("zsh", "-f")], ids=lambda argv: argv[0])
def test_completion_in_real_shell(argv: tuple[str, ...], config: Path) -> None:
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
            # For bash @ ends a word.
            **({} if argv[0] == "bash" else {"lazycluster explain --config config --host me@w\t": "--host me@web "}),
            "lazycluster explain --config config --host gpu\t": "--host gpu\x07?-",  # bash rings for several hosts
        }.items():
            shell.send(typed)
            shell.expect(expected)
            shell.send("\x15")  # clears the line
        shell.sendline("exit 0")
        shell.expect(pexpect.EOF)
    finally:
        shell.close(force=True)
    assert list(config.parent.rglob("matched")) == []
