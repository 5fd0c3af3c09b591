"""The first contact at a terminal, with a program in the place of ssh-copy-id and answers typed in advance."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import attrs
import pytest
from click.testing import CliRunner, Result

from lazycluster._cli import first_connection, lazycluster
from lazycluster._cli.first_connection import KeyNotInstalledError
from lazycluster._ssh.destination import Destination
from lazycluster.exceptions import AuthenticationError, HostUnreachableError, UnknownHostKeyError

ASKS = """\
import getpass, json, os, sys, time
here = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(here, "argv"), "w") as file:
    json.dump(sys.argv[1:], file)
"""
INSTALLS = "print('INFO: hello'); assert getpass.getpass(\"me@h's password: \") == 's3cret'"

pytestmark = pytest.mark.skipif(shutil.which("ssh") is None, reason="ssh looks at what is written")


@attrs.define
class Machine:
    """Where the command line runs: which programs there are, and what becomes of each log-in."""

    directory: Path
    outcomes: list[Exception | None] = attrs.field(factory=list)
    dialled: list[Destination] = attrs.field(factory=list)

    def dial(self, to: Destination) -> None:
        self.dialled.append(to)
        outcome = self.outcomes.pop(0)
        if outcome is not None:
            raise outcome

    def has_ssh_copy_id(self, body: str) -> None:
        program = self.directory / "ssh-copy-id"
        program.write_text(f"#!{sys.executable}\n{ASKS}{body}")
        program.chmod(0o700)

    @property
    def argv(self) -> list[str]:
        return [str(word) for word in json.loads((self.directory / "argv").read_text())]

    def add(self, *options: str, typed: str = "") -> Result:
        words = ["add-runtime", "web", "me@h", "--config", str(self.directory / "config"), *options]
        return CliRunner().invoke(lazycluster, words, input=typed, standalone_mode=False)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path)
    ssh = shutil.which("ssh")
    assert ssh is not None
    (tmp_path / "ssh").symlink_to(ssh)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(first_connection, "_is_interactive", lambda: True)
    monkeypatch.setattr(first_connection, "_run_true", machine.dial)
    return machine


REFUSED = AuthenticationError("web", "Permission denied (publickey)")


def test_the_user_is_asked_and_may_say_no(machine: Machine) -> None:
    result = machine.add(typed="n\n")

    assert result.exception is None
    assert result.output.endswith("Try the connection now? [Y/n]: n\n")
    assert machine.dialled == []


def test_the_user_is_asked_and_says_yes(machine: Machine) -> None:
    machine.outcomes = [None]
    result = machine.add("--connect-timeout", "7", typed="y\n")

    assert result.output.endswith("web can be reached.\n")
    assert machine.dialled == [Destination("web", config_file=machine.directory / "config", connect_timeout=7.0)]


@pytest.mark.parametrize("option", ["--try", "--no-try"])
def test_who_has_said_it_is_not_asked(machine: Machine, option: str) -> None:
    machine.outcomes = [None]
    result = machine.add(option)

    assert "Try the connection" not in result.output
    assert len(machine.dialled) == (option == "--try")


def test_a_missing_key_is_installed_after_a_question(machine: Machine) -> None:
    machine.outcomes = [REFUSED, None]
    machine.has_ssh_copy_id(INSTALLS)
    key = machine.directory / "key"
    key.touch()
    result = machine.add("--try", "--id-file", str(key), typed="y\ns3cret\n")

    assert result.exception is None
    assert "authentication refused (Permission denied (publickey))" in result.output
    assert "INFO: hello\nme@h's password:" in result.output
    assert result.output.endswith("Your public key is installed on web.\nweb can be reached.\n")
    assert "s3cret" not in result.output
    argv = machine.argv
    assert (argv[:4], argv[-1]) == (["-i", str(key), "-F", str(machine.directory / "config")], "web")
    assert {"ControlPath=none", "RemoteCommand=none", "ClearAllForwardings=yes"} <= set(argv)
    assert not any("StrictHostKeyChecking" in word or "BatchMode" in word for word in argv)


@pytest.mark.parametrize(("options", "typed"), [((), "n\n"), (("--no-copy-key",), "")])
def test_a_missing_key_need_not_be_installed(machine: Machine, options: tuple[str, ...], typed: str) -> None:
    machine.outcomes = [REFUSED]
    result = machine.add("--try", *options, typed=typed)

    assert result.exception is REFUSED
    assert ("Install your public key" in result.output) == (typed != "")


def test_another_failure_is_no_reason_to_install_a_key(machine: Machine) -> None:
    machine.outcomes = [HostUnreachableError("web", "no route")]
    result = machine.add("--try")

    assert isinstance(result.exception, HostUnreachableError)
    assert "Install your public key" not in result.output


@pytest.mark.parametrize(("options", "log_ins"), [((), 1), (("--try",), 1), (("--no-try",), 0)])
def test_a_key_is_installed_first_and_then_tried(machine: Machine, options: tuple[str, ...], log_ins: int) -> None:
    machine.outcomes = [None]
    machine.has_ssh_copy_id(INSTALLS)
    result = machine.add("--copy-key", *options, typed="s3cret\n")

    assert result.exception is None
    assert "-i" not in machine.argv  # which key that is, ssh-copy-id finds out
    assert len(machine.dialled) == log_ins


def test_a_key_that_is_there_is_told(machine: Machine) -> None:
    machine.has_ssh_copy_id("print('WARNING: All keys were skipped because they already exist on the remote system.')")

    assert machine.add("--copy-key", "--no-try").output.endswith("Your public key was there already on web.\n")


@pytest.mark.parametrize(
    ("body", "options", "typed", "said"),
    [
        ("print('ERROR: No identities found'); sys.exit(1)", (), "", "make one with `ssh-keygen -t ed25519`"),
        (
            "print('line\\r\\nPermission denied'); sys.exit(1)",
            (),
            "",
            "ended with 1). Try `ssh-copy-id web` in a terminal.",
        ),
        ("time.sleep(60)", ("--connect-timeout", "0.1"), "", "no answer in time"),
        (INSTALLS, (), "\x01\n", "password must not hold control characters"),
    ],
)
def test_a_key_that_is_not_installed(
    machine: Machine, body: str, options: tuple[str, ...], typed: str, said: str
) -> None:
    machine.has_ssh_copy_id(body)
    result = machine.add("--copy-key", *options, typed=typed)

    assert isinstance(result.exception, KeyNotInstalledError)
    assert said in str(result.exception)
    assert "\r" not in str(result.exception)
    assert machine.dialled == []


def test_without_ssh_copy_id(machine: Machine) -> None:
    result = machine.add("--copy-key")

    assert "there is no ssh-copy-id" in str(result.exception)
    assert "openssh-client" in str(result.exception)


@pytest.mark.parametrize("answer", ["yes", "no"])
def test_whether_a_host_key_is_trusted_is_for_the_user_to_say(machine: Machine, answer: str) -> None:
    """ssh is replaced once the configuration is written: it asks, and gets what was typed."""
    asks = (
        f"#!{sys.executable}\nimport sys\n"
        "sys.stdout.write('key fingerprint is SHA256:x.\\nAre you sure you want to continue connecting (yes/no)? ')\n"
        "sys.stdout.flush()\n"
        f"open({str(machine.directory / 'answer')!r}, 'w').write(sys.stdin.readline())\n"
    )

    def dial(to: Destination) -> None:
        if not machine.dialled:
            (machine.directory / "ssh").unlink()
            (machine.directory / "ssh").write_text(asks)
            (machine.directory / "ssh").chmod(0o700)
        machine.outcomes = [None if machine.dialled and answer == "yes" else UnknownHostKeyError("web", "?")]
        Machine.dial(machine, to)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(first_connection, "_run_true", dial)
        result = machine.add("--try", typed=f"{answer}\n")

    assert "key fingerprint is SHA256:x.\nAre you sure" in result.output
    assert (machine.directory / "answer").read_text().strip() == answer
    assert len(machine.dialled) == 2
    assert (result.exception is None) == (answer == "yes")


@pytest.mark.parametrize("attempt", [(), ("--try",)])
def test_where_there_is_no_terminal_nothing_is_asked(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, attempt: tuple[str, ...]
) -> None:
    monkeypatch.setattr(first_connection, "_is_interactive", lambda: False)
    machine.outcomes = [REFUSED]
    result = machine.add(*attempt)

    assert "?" not in result.output
    assert len(machine.dialled) == len(attempt)
    assert result.exception is (REFUSED if attempt else None)
