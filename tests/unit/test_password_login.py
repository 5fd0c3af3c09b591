"""`log_in()` with a real sshd: the master in the background outlives the terminal of the log-in."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lazycluster._ssh.diagnosis import diagnose
from lazycluster._ssh.prompts import LoginEndReason, LoginOutcome, log_in
from lazycluster.exceptions import AuthenticationError, ConnectError, UnknownHostKeyError
from lazycluster.testing import LocalSshd
from tests.waiting import wait_until

PASSPHRASE = "correct horse é"
persist_options = pytest.mark.parametrize("options", [(), ("-o", "ControlPersist=4")], ids=["-f", "ControlPersist"])


class Ssh:
    """One attempt to log in, with a master on a socket of its own."""

    def __init__(self, directory: Path, config: Path) -> None:
        self.socket, self.log, self.config = directory / "m", directory / "log", config

    def log_in(self, host: str, password: str, *options: str, names: tuple[str, ...] = ("127.0.0.1",)) -> LoginOutcome:
        argv = ("ssh", "-f", "-N", "-T", "-M", "-S", str(self.socket), "-E", str(self.log), "-F", str(self.config))
        return log_in((*argv, *options, "--", host), password, deadline=time.monotonic() + 60, host_names=names)

    def run_through_master(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = ("ssh", "-F", str(self.config), "-S", str(self.socket), "-o", "ProxyCommand=false", *arguments)
        return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False)

    def echo(self, host: str) -> str:
        """Return what a command through the master prints."""
        return self.run_through_master("-T", host, "echo hello").stdout

    def is_alive(self, host: str) -> bool:
        return self.run_through_master("-O", "check", host).returncode == 0

    def exit_master(self, host: str) -> None:
        self.run_through_master("-O", "exit", host)

    def error(self, outcome: LoginOutcome) -> ConnectError:
        log = self.log.read_text() if self.log.exists() else ""
        return diagnose("dest", log + outcome.text, exit_code=outcome.exit_code, timed_out=outcome.exit_code is None)


@pytest.fixture
def make_ssh(run_directory: Path) -> Iterator[Callable[[Path], Ssh]]:
    directory = run_directory / f"l{secrets.token_hex(3)}"  # short, for the socket in it
    directory.mkdir(mode=0o700)
    yield lambda config: Ssh(directory, config)
    shutil.rmtree(directory)


@pytest.fixture
def locked_key(sshd: LocalSshd, tmp_path: Path) -> Path:
    """Return a copy of the user's key with a passphrase."""
    key = tmp_path / "locked"
    shutil.copy(sshd.identity_file, key)
    key.chmod(0o600)
    argv = ("ssh-keygen", "-q", "-p", "-P", "", "-N", PASSPHRASE, "-f", str(key))
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return key


def config_of(path: Path, *sections: str) -> Path:
    path.write_text("\n".join(sections))
    return path


@persist_options
def test_log_in_passphrase_leaves_master_running(
    sshd: LocalSshd, make_ssh: Callable[[Path], Ssh], locked_key: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    config = sshd.config().replace(str(sshd.identity_file), str(locked_key))
    client = make_ssh(config_of(tmp_path / "config", config))

    outcome = client.log_in(sshd.host, PASSPHRASE, *options)
    assert (outcome.end_reason, outcome.exit_code) == (LoginEndReason.EXITED, 0)
    try:
        assert client.echo(sshd.host) == "hello\n"
        assert client.is_alive(sshd.host)
    finally:
        client.exit_master(sshd.host)


@persist_options
def test_log_in_master_behind_jump_host_survives(
    sshd: LocalSshd, make_ssh: Callable[[Path], Ssh], locked_key: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """The ssh to the jump host stays in the session of the terminal, which hangs up after the log-in."""
    config = sshd.config(name="dest").replace(str(sshd.identity_file), str(locked_key))
    client = make_ssh(config_of(tmp_path / "config", config, "    ProxyJump jump\n", sshd.config(name="jump")))

    outcome = client.log_in("dest", PASSPHRASE, *options)
    assert (outcome.end_reason, outcome.exit_code) == (LoginEndReason.EXITED, 0)
    try:
        assert client.echo("dest") == "hello\n"
        assert not wait_until(lambda: not client.is_alive("dest"), timeout=0.3)
    finally:
        client.exit_master("dest")


def test_log_in_wrong_passphrase_is_refused(
    sshd: LocalSshd, make_ssh: Callable[[Path], Ssh], locked_key: Path, tmp_path: Path
) -> None:
    config = sshd.config().replace(str(sshd.identity_file), str(locked_key))
    client = make_ssh(config_of(tmp_path / "config", config))
    outcome = client.log_in(sshd.host, "wrong", "-o", "PreferredAuthentications=publickey")

    assert (outcome.end_reason, outcome.exit_code) == (LoginEndReason.EXITED, 255)
    assert type(client.error(outcome)) is AuthenticationError


def test_log_in_unknown_host_key_is_not_accepted(
    sshd: LocalSshd, make_ssh: Callable[[Path], Ssh], tmp_path: Path
) -> None:
    known = tmp_path / "known"
    client = make_ssh(config_of(tmp_path / "config", sshd.config()))
    options = ("-o", "StrictHostKeyChecking=ask", "-o", f"UserKnownHostsFile={known}")
    outcome = client.log_in(sshd.host, PASSPHRASE, *options)
    error = client.error(outcome)

    assert (outcome.end_reason, outcome.exit_code) == (LoginEndReason.UNKNOWN_HOST_KEY, None)
    assert type(error) is UnknownHostKeyError
    assert "SHA256:" in error.reason
    assert not known.exists()


# A temporary user with a password ------------------------------------------------------------------------------------

PASSWORD = "pass w0rd é"


@pytest.fixture(scope="module")
def user() -> Iterator[str]:
    if os.geteuid() != 0 or not all(map(shutil.which, ("useradd", "chpasswd", "userdel"))):
        pytest.skip("only root can make a user")
    name = f"lc{secrets.token_hex(4)}"
    subprocess.run(["useradd", "-M", "-d", "/", "-s", "/bin/sh", name], check=True, capture_output=True)
    try:
        subprocess.run(["chpasswd"], input=f"{name}:{PASSWORD}".encode(), check=True, capture_output=True)
        yield name
    finally:
        subprocess.run(["userdel", name], check=True, capture_output=True)


@pytest.fixture(scope="module")
def server(require_sshd: None, user: str, run_directory: Path) -> Iterator[LocalSshd]:
    options = {"PasswordAuthentication": "yes", "KbdInteractiveAuthentication": "no", "UsePAM": "no"}
    with LocalSshd(home=False, options=options) as running:
        yield running


def config_for(server: LocalSshd, user: str, path: Path, *more: str) -> Path:
    section = server.config(name="dest").replace(f"User {server.user}", f"User {user}")
    return config_of(path, section, "    PreferredAuthentications password\n", *more)


@persist_options
def test_log_in_password_leaves_master_running(
    server: LocalSshd, user: str, make_ssh: Callable[[Path], Ssh], tmp_path: Path, options: tuple[str, ...]
) -> None:
    client = make_ssh(config_for(server, user, tmp_path / "config"))
    outcome = client.log_in("dest", PASSWORD, *options)

    assert (outcome.end_reason, outcome.exit_code) == (LoginEndReason.EXITED, 0)
    assert PASSWORD not in outcome.text
    try:
        assert client.echo("dest") == "hello\n"
    finally:
        client.exit_master("dest")


@pytest.mark.parametrize("attempts", [1, 3])
def test_log_in_wrong_password_is_typed_once(
    server: LocalSshd, user: str, make_ssh: Callable[[Path], Ssh], tmp_path: Path, attempts: int
) -> None:
    client = make_ssh(config_for(server, user, tmp_path / "config"))
    outcome = client.log_in("dest", "wrong", "-o", f"NumberOfPasswordPrompts={attempts}")

    assert outcome.end_reason is (LoginEndReason.EXITED if attempts == 1 else LoginEndReason.REFUSED)
    assert type(client.error(outcome)) is AuthenticationError
    assert server.log.count(f"Failed password for {user}") >= 1


def test_log_in_jump_host_gets_no_password(
    server: LocalSshd, user: str, make_ssh: Callable[[Path], Ssh], tmp_path: Path
) -> None:
    before = server.log.count(f"password for {user}")
    jump = server.config(name="jump").replace(f"User {server.user}", f"User {user}")
    client = make_ssh(
        config_for(
            server,
            user,
            tmp_path / "config",
            "    HostName dest.invalid\n    ProxyJump jump\n",
            jump,
            "    PreferredAuthentications password\n",
        )
    )
    outcome = client.log_in("dest", PASSWORD, names=("dest", "dest.invalid"))
    error = client.error(outcome)

    assert (outcome.end_reason, outcome.exit_code) == (LoginEndReason.OTHER_HOST, None)
    assert (type(error), error.hop) == (AuthenticationError, "127.0.0.1")
    assert server.log.count(f"password for {user}") == before
