"""`lazycluster shell` and `run --tty` in a pseudo-terminal, and configurations that ssh does not accept."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pexpect
import pytest

from lazycluster.testing import write_config
from tests.command_line import main
from tests.pseudo_terminal import strip_escape_sequences
from tests.reserved_ports import reserve_free_port

if TYPE_CHECKING:
    from pathlib import Path

    from lazycluster.testing import LocalSshd
    from tests.sshd_fixtures import MakeSshd

ASK = "stty -echo; printf 'secret: '; read -r word; stty echo; echo; echo \"heard $word\"; tty; exit 7"
"""A command that asks for a secret in a terminal, as sudo does."""


def spawn(*arguments: str) -> pexpect.spawn:
    return pexpect.spawn(
        sys.executable, ["-m", "lazycluster", *arguments], encoding="utf-8", timeout=30, dimensions=(40, 110)
    )


def finish(child: pexpect.spawn) -> str:
    """Wait for the end of a program, and return the rest of its output."""
    child.expect(pexpect.EOF)
    child.close()
    assert isinstance(child.before, str)
    return child.before


@pytest.mark.parametrize("command", ["shell", "run"])
def test_terminal_command_asks_and_keeps_status(command: str, sshd: LocalSshd) -> None:
    config = str(sshd.config_file)
    words = ["shell", "--config", config, sshd.host] if command == "shell" else ["--config", config, "run", "--tty"]
    child = spawn(*words, *(["--hosts", sshd.host] if command == "run" else []), "--", ASK)
    child.expect("secret: ")
    child.sendline("hunter2")
    child.expect(r"heard hunter2\r\n/dev/\S+\r\n")
    assert "hunter2" not in finish(child)
    assert child.exitstatus == 7


def test_shell_is_interactive_and_keeps_status(sshd: LocalSshd) -> None:
    child = spawn("-vv", "--config", str(sshd.config_file), "shell", sshd.host)
    child.expect("become .*'ssh', '-t'")
    child.sendline("echo $((6 * 7))-answer; stty size")
    child.expect("42-answer\r\n")
    child.expect("40 110\r\n")
    child.sendline("kill -TERM $PPID-nothing; exit 9")
    finish(child)
    assert child.exitstatus == 9


def test_shell_ctrl_c_reaches_remote_command(sshd: LocalSshd) -> None:
    child = spawn("shell", "--config", str(sshd.config_file), sshd.host, "--", "trap 'exit 5' INT; echo on; sleep 1000")
    child.expect("on\r\n")
    child.send("\x03")
    finish(child)
    assert child.exitstatus == 5


def test_shell_command_replaces_remote_command(make_sshd: MakeSshd, tmp_path: Path) -> None:
    server = make_sshd()
    config = tmp_path / "config"
    config.write_text(
        f"Host {server.host}\n    RemoteCommand echo from-configuration\n" + server.config_file.read_text()
    )
    child = spawn("shell", "--config", str(config), server.host)
    assert "from-configuration" in finish(child)
    child = spawn("shell", "--config", str(config), server.host, "--", "echo", "own")
    text = finish(child)
    assert "own" in text
    assert "from-configuration" not in text


def test_run_tty_only_host_of_configuration(sshd: LocalSshd) -> None:
    child = spawn("run", "--config", str(sshd.config_file), "--tty", "--", "test -t 0 && echo a terminal")
    assert "a terminal" in finish(child)
    assert child.exitstatus == 0


# A broken configuration ----------------------------------------------------------------------------------------------

BROKEN = {
    "no host is named": ("Hots web-1\n    HostName 127.0.0.1\n", "line 1: Bad configuration option: hots"),
    "a quote is open": ('Host "web-1\n    HostName 127.0.0.1\n', "line 1"),
    "a host is named": ("Host web-1\n    Bogus yes\n", "line 2: Bad configuration option: bogus"),
}


@pytest.mark.parametrize(("text", "expected"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize(
    ("command", "exit_code"), [(("run", "true"), 3), (("list-runtimes",), 1), (("put", "/dev/null"), 1)]
)
def test_broken_config_shows_line_of_ssh(
    text: str,
    expected: str,
    command: tuple[str, ...],
    exit_code: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tmp_path / "broken"
    config.write_text(text)
    assert main(["--config", str(config), *command]) == exit_code
    said = "".join(capsys.readouterr())
    assert expected in said
    assert str(config) in said
    assert "names none" not in said


def test_broken_config_json_shows_line_of_ssh(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "broken"
    config.write_text("Hots web-1\n")
    assert main(["list-runtimes", "--json", "--config", str(config)]) == 1
    assert "Bad configuration option: hots" in json.loads(capsys.readouterr().err)["message"]


# Commands to copy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("directory", ["d", "a-directory-with-a-long-name/" * 4])
@pytest.mark.parametrize(
    "command",
    [
        ("list-runtimes",),
        ("run", "true"),
        ("run", "--hosts", "local,dead", "true"),
        ("put", "/dev/null"),
        ("info", "dead"),
        ("doctor", "dead"),
        ("doctor", "unknown"),
        ("expose", "dead", "80"),
        ("--config", "{broken}", "run", "true"),
        ("--config", "{broken}", "list-runtimes"),
        ("--config", "{broken}", "doctor", "web-1"),
    ],
    ids=" ".join,
)
def test_terminal_never_breaks_commands_to_copy(
    command: tuple[str, ...], directory: str, sshd: LocalSshd, short_tmpdir: Path
) -> None:
    """Each command that the output in a pipe advises is on one line of a terminal of 80 columns, too."""
    folder = short_tmpdir / directory
    folder.mkdir(parents=True)
    broken = folder / "broken"
    broken.write_text("Host web-1\n    Bogus yes\n")
    hosts = f"\nHost dead\n    HostName 127.0.0.1\n    Port {reserve_free_port()}\n"
    hosts += "Host unknown\n    HostName a-name-that-does-not-resolve.invalid\n"
    config = write_config(folder / "config", sshd, extra=hosts)
    words = [word.format(broken=broken) for word in command]
    environment = {**os.environ, "LAZYCLUSTER_CONFIG": str(config)}
    argv = [sys.executable, "-m", "lazycluster", *words]
    piped = subprocess.run(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, timeout=120
    ).stdout
    advised = {*re.findall(r"`[^`\n]+`", piped), *re.findall(r"lazycluster doctor \S.*", piped)}
    assert advised, piped
    child = pexpect.spawn(argv[0], argv[1:], encoding="utf-8", timeout=120, dimensions=(40, 80), env=environment)
    shown = strip_escape_sequences(finish(child))
    assert [text for text in advised if text not in shown] == [], shown


def test_explain_terminal_has_lines_of_pipe(tmp_path: Path) -> None:
    file = tmp_path / "task.py"
    file.write_text(f"from lazycluster import RuntimeTask\ntask = RuntimeTask().run_command('echo {'word ' * 60}')\n")
    argv = [sys.executable, "-m", "lazycluster", "explain", str(file), "--host", "web-1"]
    piped = subprocess.run(argv, capture_output=True, text=True, timeout=60).stdout
    child = pexpect.spawn(argv[0], argv[1:], encoding="utf-8", timeout=60, dimensions=(40, 80))
    assert strip_escape_sequences(finish(child)).replace("\r", "") == piped
