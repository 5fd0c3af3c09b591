"""`log_in` against a real sshd: what ssh leaves in the background outlives the terminal on which it was logged in."""

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

PASSPHRASE = "correct horse é"
BACKGROUNDS = pytest.mark.parametrize("background", [(), ("-o", "ControlPersist=4")], ids=["-f", "ControlPersist"])


class Ssh:
    """One attempt to log in, with a master on a socket of its own."""

    def __init__(self, directory: Path, config: Path) -> None:
        self.socket, self.log, self.config = directory / "m", directory / "log", config

    def log_in(self, host: str, password: str, *options: str, names: tuple[str, ...] = ("127.0.0.1",)) -> LoginOutcome:
        argv = ("ssh", "-f", "-N", "-T", "-M", "-S", str(self.socket), "-E", str(self.log), "-F", str(self.config))
        return log_in((*argv, *options, "--", host), password, deadline=time.monotonic() + 20, host_names=names)

    def _through(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = ("ssh", "-F", str(self.config), "-S", str(self.socket), "-o", "ProxyCommand=false", *arguments)
        return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False)

    def echo(self, host: str) -> str:
        """Return what a command through the master prints."""
        return self._through("-T", host, "echo hello").stdout

    def is_alive(self, host: str) -> bool:
        return self._through("-O", "check", host).returncode == 0

    def end(self, host: str) -> None:
        self._through("-O", "exit", host)

    def error(self, outcome: LoginOutcome) -> ConnectError:
        log = self.log.read_text() if self.log.exists() else ""
        return diagnose("dest", log + outcome.text, exit_code=outcome.exit_code, timed_out=outcome.exit_code is None)


@pytest.fixture
def ssh(run_directory: Path) -> Iterator[Callable[[Path], Ssh]]:
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


@BACKGROUNDS
def test_a_passphrase_logs_in_and_the_master_stays(
    sshd: LocalSshd, ssh: Callable[[Path], Ssh], locked_key: Path, tmp_path: Path, background: tuple[str, ...]
) -> None:
    config = sshd.config().replace(str(sshd.identity_file), str(locked_key))
    client = ssh(config_of(tmp_path / "config", config))

    begun = time.monotonic()
    outcome = client.log_in(sshd.host, PASSPHRASE, *background)
    assert (outcome.end_reason, outcome.exit_code) == (LoginEndReason.EXITED, 0)
    assert time.monotonic() - begun < 10
    try:
        assert client.echo(sshd.host) == "hello\n"
        assert client.is_alive(sshd.host)
    finally:
        client.end(sshd.host)


@BACKGROUNDS
def test_a_master_behind_a_jump_host_outlives_the_terminal(
    sshd: LocalSshd, ssh: Callable[[Path], Ssh], locked_key: Path, tmp_path: Path, background: tuple[str, ...]
) -> None:
    """The ssh to the jump host stays in the session of the terminal, which is hung up when the log-in is done."""
    config = sshd.config(name="dest").replace(str(sshd.identity_file), str(locked_key))
    client = ssh(config_of(tmp_path / "config", config, "    ProxyJump jump\n", sshd.config(name="jump")))

    outcome = client.log_in("dest", PASSPHRASE, *background)
    assert (outcome.end_reason, outcome.exit_code) == (LoginEndReason.EXITED, 0)
    try:
        assert client.echo("dest") == "hello\n"
        time.sleep(0.3)  # nothing to wait for: it must not end
        assert client.is_alive("dest")
    finally:
        client.end("dest")


def test_a_wrong_passphrase_is_a_refused_authentication(
    sshd: LocalSshd, ssh: Callable[[Path], Ssh], locked_key: Path, tmp_path: Path
) -> None:
    config = sshd.config().replace(str(sshd.identity_file), str(locked_key))
    client = ssh(config_of(tmp_path / "config", config))
    outcome = client.log_in(sshd.host, "wrong", "-o", "PreferredAuthentications=publickey")

    assert (outcome.end_reason, outcome.exit_code) == (LoginEndReason.EXITED, 255)
    assert type(client.error(outcome)) is AuthenticationError


def test_an_unknown_host_key_is_not_accepted(sshd: LocalSshd, ssh: Callable[[Path], Ssh], tmp_path: Path) -> None:
    known = tmp_path / "known"
    client = ssh(config_of(tmp_path / "config", sshd.config()))
    options = ("-o", "StrictHostKeyChecking=ask", "-o", f"UserKnownHostsFile={known}")
    outcome = client.log_in(sshd.host, PASSPHRASE, *options)
    error = client.error(outcome)

    assert (outcome.end_reason, outcome.exit_code) == (LoginEndReason.UNKNOWN_HOST_KEY, None)
    assert type(error) is UnknownHostKeyError
    assert "SHA256:" in error.reason
    assert not known.exists()


# A throw-away user with a password ----------------------------------------------------------------------------------

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


@BACKGROUNDS
def test_a_password_logs_in(
    server: LocalSshd, user: str, ssh: Callable[[Path], Ssh], tmp_path: Path, background: tuple[str, ...]
) -> None:
    client = ssh(config_for(server, user, tmp_path / "config"))
    outcome = client.log_in("dest", PASSWORD, *background)

    assert (outcome.end_reason, outcome.exit_code) == (LoginEndReason.EXITED, 0)
    assert PASSWORD not in outcome.text
    try:
        assert client.echo("dest") == "hello\n"
    finally:
        client.end("dest")


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_wrong_password_is_typed_once(
    server: LocalSshd, user: str, ssh: Callable[[Path], Ssh], tmp_path: Path, attempts: int
) -> None:
    client = ssh(config_for(server, user, tmp_path / "config"))
    outcome = client.log_in("dest", "wrong", "-o", f"NumberOfPasswordPrompts={attempts}")

    assert outcome.end_reason is (LoginEndReason.EXITED if attempts == 1 else LoginEndReason.REFUSED)
    assert type(client.error(outcome)) is AuthenticationError
    assert server.log.count(f"Failed password for {user}") >= 1


def test_a_jump_host_that_asks_does_not_get_the_password(
    server: LocalSshd, user: str, ssh: Callable[[Path], Ssh], tmp_path: Path
) -> None:
    before = server.log.count(f"password for {user}")
    jump = server.config(name="jump").replace(f"User {server.user}", f"User {user}")
    client = ssh(
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
