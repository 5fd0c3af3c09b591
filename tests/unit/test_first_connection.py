"""The first contact with a host: log-ins are fakes, ssh-copy-id is a script, and the user's answers are typed ahead."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import attrs
import click
import pytest
from click.testing import CliRunner, Result

from lazycluster._cli.first_connection import KeyNotInstalledError, try_connection
from lazycluster._ssh.destination import Destination
from lazycluster.exceptions import AuthenticationError, HostUnreachableError, UnknownHostKeyError

RECORD_ARGV = """\
import getpass, json, os, sys, time
directory = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(directory, "argv"), "w") as file:
    json.dump(sys.argv[1:], file)
"""
ASK_PASSWORD = "print('INFO: hello'); assert getpass.getpass(\"me@h's password: \") == 's3cret'"
REFUSED = AuthenticationError("web", "Permission denied (publickey)")


@attrs.define
class Client:
    """A machine with the programs of a directory, and one outcome for each log-in to its host."""

    directory: Path
    outcomes: list[Exception | None] = attrs.field(factory=list)
    log_ins: list[Destination] = attrs.field(factory=list)

    def log_in(self, destination: Destination) -> None:
        self.log_ins.append(destination)
        outcome = self.outcomes.pop(0)
        if outcome is not None:
            raise outcome

    def write_program(self, name: str, body: str) -> None:
        program = self.directory / name
        program.write_text(f"#!{sys.executable}\n{body}")
        program.chmod(0o700)

    def write_ssh_copy_id(self, body: str) -> None:
        self.write_program("ssh-copy-id", RECORD_ARGV + body)

    @property
    def ssh_copy_id_argv(self) -> list[str]:
        return [str(word) for word in json.loads((self.directory / "argv").read_text())]

    def try_connection(
        self,
        *,
        attempt: bool | None = None,
        copy_key: bool | None = None,
        key: Path | None = None,
        interactive: bool = True,
        connect_timeout: float = 10.0,
        typed: str = "",
    ) -> Result:
        destination = Destination("web", config_file=self.directory / "config", connect_timeout=connect_timeout)

        @click.command
        def command() -> None:
            try_connection(
                destination, key, attempt=attempt, copy_key=copy_key, interactive=interactive, log_in=self.log_in
            )

        return CliRunner().invoke(command, [], input=typed, standalone_mode=False)


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setenv("PATH", str(tmp_path))
    return Client(tmp_path)


def test_try_connection_declined_does_not_log_in(client: Client) -> None:
    result = client.try_connection(typed="n\n")

    assert result.exception is None
    assert result.output.endswith("Try the connection now? [Y/n]: n\n")
    assert client.log_ins == []


def test_try_connection_accepted_logs_in(client: Client) -> None:
    client.outcomes = [None]
    result = client.try_connection(connect_timeout=7.0, typed="y\n")

    assert result.output.endswith("web can be reached.\n")
    assert client.log_ins == [Destination("web", config_file=client.directory / "config", connect_timeout=7.0)]


@pytest.mark.parametrize("attempt", [True, False], ids=["try", "no try"])
def test_try_connection_explicit_choice_asks_nothing(client: Client, attempt: bool) -> None:
    client.outcomes = [None]
    result = client.try_connection(attempt=attempt)

    assert "Try the connection" not in result.output
    assert len(client.log_ins) == attempt


def test_try_connection_refused_installs_key_if_accepted(client: Client) -> None:
    client.outcomes = [REFUSED, None]
    client.write_ssh_copy_id(ASK_PASSWORD)
    key = client.directory / "key"
    result = client.try_connection(attempt=True, key=key, typed="y\ns3cret\n")

    assert result.exception is None
    assert str(REFUSED) in result.output
    assert "INFO: hello\nme@h's password:" in result.output
    assert result.output.endswith("Your public key is installed on web.\nweb can be reached.\n")
    assert "s3cret" not in result.output
    argv = client.ssh_copy_id_argv
    assert (argv[:4], argv[-1]) == (["-i", str(key), "-F", str(client.directory / "config")], "web")
    assert {"ControlPath=none", "RemoteCommand=none", "ClearAllForwardings=yes"} <= set(argv)
    assert not any("StrictHostKeyChecking" in word or "BatchMode" in word for word in argv)


@pytest.mark.parametrize(("copy_key", "typed"), [(None, "n\n"), (False, "")], ids=["declined", "no copy key"])
def test_try_connection_refused_without_key_raises(client: Client, copy_key: bool | None, typed: str) -> None:
    client.outcomes = [REFUSED]
    result = client.try_connection(attempt=True, copy_key=copy_key, typed=typed)

    assert result.exception is REFUSED
    assert ("Install your public key" in result.output) == (typed != "")


def test_try_connection_other_error_offers_no_key(client: Client) -> None:
    client.outcomes = [HostUnreachableError("web", "no route")]
    result = client.try_connection(attempt=True)

    assert isinstance(result.exception, HostUnreachableError)
    assert "Install your public key" not in result.output


@pytest.mark.parametrize(
    ("attempt", "log_ins"), [(None, 1), (True, 1), (False, 0)], ids=["by default", "try", "no try"]
)
def test_try_connection_copy_key_installs_before_log_in(client: Client, attempt: bool | None, log_ins: int) -> None:
    client.outcomes = [None]
    client.write_ssh_copy_id(ASK_PASSWORD)
    result = client.try_connection(attempt=attempt, copy_key=True, typed="s3cret\n")

    assert result.exception is None
    assert "-i" not in client.ssh_copy_id_argv  # ssh-copy-id finds the key
    assert len(client.log_ins) == log_ins


def test_try_connection_copy_key_reports_installed_key(client: Client) -> None:
    client.write_ssh_copy_id("print('WARNING: All keys were skipped because they already exist on the remote system.')")
    result = client.try_connection(attempt=False, copy_key=True)

    assert result.output.endswith("Your public key was there already on web.\n")


@pytest.mark.parametrize(
    ("body", "connect_timeout", "typed", "reason", "advice"),
    [
        (
            "print('ERROR: No identities found'); sys.exit(1)",
            10.0,
            "",
            "ssh-copy-id ended with 1",
            "You have no key: make one with `ssh-keygen -t ed25519`.",
        ),
        (
            "print('line\\r\\nPermission denied'); sys.exit(1)",
            10.0,
            "",
            "ssh-copy-id ended with 1",
            "Try `ssh-copy-id web` in a terminal.",
        ),
        ("time.sleep(1000)", 0.1, "", "no answer in time", "Try `ssh-copy-id web` in a terminal."),
        (ASK_PASSWORD, 10.0, "\x01\n", "password must not hold control characters", "Try again."),
    ],
    ids=["no key", "refused", "timeout", "control character"],
)
def test_try_connection_failed_ssh_copy_id_is_an_error(
    client: Client, body: str, connect_timeout: float, typed: str, reason: str, advice: str
) -> None:
    client.write_ssh_copy_id(body)
    error = client.try_connection(copy_key=True, connect_timeout=connect_timeout, typed=typed).exception

    assert isinstance(error, KeyNotInstalledError)
    assert error.host == "web"
    assert reason in error.reason
    assert error.advice == advice
    assert "\r" not in error.output
    assert client.log_ins == []


def test_try_connection_without_ssh_copy_id_is_an_error(client: Client) -> None:
    error = client.try_connection(copy_key=True).exception

    assert isinstance(error, KeyNotInstalledError)
    assert isinstance(error.__cause__, FileNotFoundError)


@pytest.mark.parametrize("answer", ["yes", "no"])
def test_try_connection_unknown_host_key_asks_user(client: Client, answer: str) -> None:
    client.write_program(
        "ssh",
        "import sys\n"
        "sys.stdout.write('key fingerprint is SHA256:x.\\nAre you sure you want to continue connecting (yes/no)? ')\n"
        "sys.stdout.flush()\n"
        f"open({str(client.directory / 'answer')!r}, 'w').write(sys.stdin.readline())\n",
    )
    unknown = UnknownHostKeyError("web", "?")
    client.outcomes = [unknown, None if answer == "yes" else unknown]
    result = client.try_connection(attempt=True, typed=f"{answer}\n")

    assert "key fingerprint is SHA256:x.\nAre you sure" in result.output
    assert (client.directory / "answer").read_text().strip() == answer
    assert len(client.log_ins) == 2
    assert result.exception is (None if answer == "yes" else unknown)


@pytest.mark.parametrize("attempt", [None, True], ids=["by default", "try"])
def test_try_connection_without_terminal_asks_nothing(client: Client, attempt: bool | None) -> None:
    client.outcomes = [REFUSED]
    result = client.try_connection(attempt=attempt, interactive=False)

    assert "?" not in result.output
    assert len(client.log_ins) == bool(attempt)
    assert result.exception is (REFUSED if attempt else None)


def test_try_connection_unknown_host_key_without_terminal_raises(client: Client) -> None:
    client.write_program("ssh", "import os\nopen(os.path.join(os.path.dirname(__file__), 'started'), 'w').close()\n")
    unknown = UnknownHostKeyError("web", "?")
    client.outcomes = [unknown]
    result = client.try_connection(attempt=True, interactive=False)

    assert result.exception is unknown
    assert not (client.directory / "started").exists(), "without a terminal ssh would ask a user who is not there"
