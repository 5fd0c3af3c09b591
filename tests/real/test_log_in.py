"""Log-ins: invalid arguments, the error of each failure, prompts, jump hosts and passwords."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from lazycluster import (
    AuthenticationError,
    ChangedHostKeyError,
    ConnectError,
    Connection,
    ConnectionThrottledError,
    ConnectTimeoutError,
    LazyclusterError,
    LoginShellError,
    PortRefusedError,
    RuntimeTask,
    SshConfigurationError,
    UnknownHostError,
    UnknownHostKeyError,
)
from lazycluster.testing import LocalSshd, Relay, write_config
from tests.client_programs import (
    ClientProgram,
    assert_becomes_idle,
    call_in_parallel,
    count_connections,
    count_log_ins,
    find_master,
)
from tests.processes import command_line, find_local_pids
from tests.reserved_ports import reserve_free_port
from tests.waiting import assert_eventually

if TYPE_CHECKING:
    from tests.sshd_fixtures import MakeSshd


@pytest.fixture(scope="module")
def host(require_sshd: None, run_directory: Path) -> Iterator[LocalSshd]:
    with LocalSshd(environment={"TMPDIR": str(run_directory)}) as server:
        yield server


@pytest.fixture(autouse=True)
def assert_nothing_stays(host: LocalSshd, run_directory: Path) -> Iterator[None]:
    """Assert that each test leaves no connection and no directory of a master."""
    before = set(run_directory.glob("lazycluster-m-*"))  # of programs that other tests have killed
    yield
    assert_becomes_idle(host)
    assert set(run_directory.glob("lazycluster-m-*")) - before == set()


# Failed log-ins ------------------------------------------------------------------------------------------------------


def assert_login_fails(
    config: Path, kind: type[ConnectError], *reasons: str, host: str = "local", **keywords: Any
) -> ConnectError:
    """Assert that commands and tasks fail with an error of this kind, whose reason has these texts; return it."""
    keywords.setdefault("connect_timeout", 20.0)
    with Connection(host, config_file=config, **keywords) as connection:
        with pytest.raises(LazyclusterError) as caught:
            connection.run("true")
        if kind is not ConnectTimeoutError:  # to be quick
            with pytest.raises(kind):
                RuntimeTask().run_command("true").execute(connection)
    error = caught.value
    assert type(error) is kind
    assert isinstance(error, ValueError)
    assert isinstance(error, ConnectError)
    assert error.host == host
    for reason in reasons:
        assert reason in error.reason
    assert error.ssh_arguments.startswith(f"-F {config} ")
    assert error.ssh_arguments.endswith(f" {host}")
    return error


def config_of(server: LocalSshd, directory: Path, *lines: str, port: int | None = None) -> Path:
    """Write a configuration for a server that begins with these lines."""
    return write_config(directory / "config", "\n".join(lines) + "\n", server.config(port=port))


def test_login_unknown_host_key_raises(host: LocalSshd, tmp_path: Path) -> None:
    for answer in ("ask", "yes"):
        known = f"Host *\n UserKnownHostsFile {tmp_path}/none\n StrictHostKeyChecking {answer}"
        config = config_of(host, tmp_path, known)
        assert_login_fails(config, UnknownHostKeyError)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("answer", ["accept-new", "no", "off"])
def test_login_host_key_accepted_by_config(host: LocalSshd, tmp_path: Path, answer: str) -> None:
    config = config_of(
        host,
        tmp_path,
        f"Host *\n UserKnownHostsFile {tmp_path}/known\n StrictHostKeyChecking {answer}\n HashKnownHosts yes",
    )
    for _ in range(2):
        with Connection("local", config_file=config) as connection:
            result = connection.run("echo in")
            assert (result.stdout, result.stderr) == ("in\n", "")
    assert (tmp_path / "known").read_text().count("ssh-ed25519") == 1


def make_other_key(directory: Path) -> str:
    path = directory / "other"
    if not path.exists():
        subprocess.run(("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)), check=True)
    return Path(f"{path}.pub").read_text()


@pytest.mark.parametrize("answer", ["ask", "yes", "accept-new"])
def test_login_changed_host_key_raises(host: LocalSshd, tmp_path: Path, answer: str) -> None:
    (tmp_path / "known").write_text(f"[127.0.0.1]:{host.port} {make_other_key(tmp_path)}")
    config = config_of(host, tmp_path, f"Host *\n UserKnownHostsFile {tmp_path}/known\n StrictHostKeyChecking {answer}")

    assert_login_fails(config, ChangedHostKeyError, str(tmp_path / "known"))


def test_login_revoked_host_key_raises(host: LocalSshd, tmp_path: Path) -> None:
    key = (host.directory / "host_key.pub").read_text()
    (tmp_path / "known").write_text(f"@revoked * {key}")
    assert_login_fails(
        config_of(host, tmp_path, f"Host *\n UserKnownHostsFile {tmp_path}/known"), ChangedHostKeyError, "revoked"
    )


def test_login_changed_host_key_ignored_by_config(host: LocalSshd, tmp_path: Path) -> None:
    (tmp_path / "known").write_text(f"[127.0.0.1]:{host.port} {make_other_key(tmp_path)}")
    config = config_of(host, tmp_path, f"Host *\n UserKnownHostsFile {tmp_path}/known\n StrictHostKeyChecking no")

    with Connection("local", config_file=config) as connection:
        assert connection.run("echo in").stdout == "in\n"


def test_login_refused_key_raises(host: LocalSshd, tmp_path: Path) -> None:
    make_other_key(tmp_path)
    config = config_of(host, tmp_path, f"Host *\n IdentityFile {tmp_path}/other")
    config.write_text(config.read_text().replace(f'IdentityFile "{host.identity_file}"', ""))
    before = count_log_ins(host)

    error = assert_login_fails(config, AuthenticationError, "Permission denied", "127.0.0.1")

    assert error.hop == ""
    assert count_log_ins(host) == before


def test_login_unknown_user_raises(host: LocalSshd, tmp_path: Path) -> None:
    assert_login_fails(host.config_file, AuthenticationError, "Permission denied", "nosuchuser@", user="nosuchuser")


def test_login_missing_identity_file_raises(host: LocalSshd, tmp_path: Path) -> None:
    config = config_of(host, tmp_path)
    config.write_text(config.read_text().replace(f'IdentityFile "{host.identity_file}"', ""))
    assert_login_fails(config, AuthenticationError, f"{tmp_path}/nosuchkey", identity_file=tmp_path / "nosuchkey")


def test_login_too_many_keys_raises(make_sshd: MakeSshd, tmp_path: Path) -> None:
    server = make_sshd(options={"MaxAuthTries": "1"})
    make_other_key(tmp_path)
    config = config_of(server, tmp_path, f"Host *\n IdentityFile {tmp_path}/other")
    assert_login_fails(config, AuthenticationError, "Too many authentication failures")


def test_login_unknown_host_name_raises(host: LocalSshd, tmp_path: Path) -> None:
    config = config_of(host, tmp_path)
    name = "no-such-host.invalid"  # RFC 6761, section 6.4
    assert_login_fails(config, UnknownHostError, name, host=name)


def test_login_closed_port_raises(host: LocalSshd, tmp_path: Path) -> None:
    port = reserve_free_port()
    assert_login_fails(config_of(host, tmp_path, port=port), PortRefusedError, f"port {port}", "127.0.0.1")


def test_login_connection_attempts_end_at_timeout(host: LocalSshd, tmp_path: Path) -> None:
    config = config_of(host, tmp_path, "ConnectionAttempts 1000", port=reserve_free_port())
    assert_login_fails(config, ConnectTimeoutError, connect_timeout=1.0)


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """Listen, and never accept."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@contextlib.contextmanager
def full_port() -> Iterator[int]:
    """Listen with a full backlog: the kernel drops packets, as a firewall would."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as stack:
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(listener.getsockname())
        yield listener.getsockname()[1]


@contextlib.contextmanager
def cut_port() -> Iterator[int]:
    """Listen through a relay that moves no data."""
    with socket.create_server(("127.0.0.1", 0)) as target, Relay(target.getsockname()[1]) as relay:
        relay.cut()
        yield relay.port


@contextlib.contextmanager
def chatty_port() -> Iterator[int]:
    """Send lines without end before the version string (RFC 4253, section 4.2 allows some)."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client, contextlib.suppress(OSError):
                        while not client.recv(1):
                            pass
                        for _ in range(200):
                            client.sendall(b"please wait\r\n")
                            time.sleep(0.05)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize("open_port", [silent_port, full_port, cut_port, chatty_port])
def test_login_silent_host_times_out(
    host: LocalSshd, tmp_path: Path, open_port: Callable[[], contextlib.AbstractContextManager[int]]
) -> None:
    with open_port() as port:
        config = config_of(host, tmp_path, port=port)
        assert_login_fails(config, ConnectTimeoutError, connect_timeout=0.5)
    assert find_local_pids(str(tmp_path)) == []


def test_login_hanging_proxy_command_is_ended(host: LocalSshd, tmp_path: Path) -> None:
    config = config_of(host, tmp_path, f"Host *\n ProxyCommand sh -c 'sleep 1009; : {tmp_path}'")

    assert_login_fails(config, ConnectTimeoutError, connect_timeout=1.0)

    assert_eventually(lambda: find_local_pids(str(tmp_path)) == [], "the ProxyCommand has ended")
    assert_eventually(lambda: find_local_pids("sleep 1009") == [], "its child has ended")


def test_login_hanging_proxy_command_with_password(host: LocalSshd, tmp_path: Path) -> None:
    config = config_of(host, tmp_path, f"Host *\n ProxyCommand sh -c 'sleep 1010; : {tmp_path}'")

    assert_login_fails(config, ConnectTimeoutError, connect_timeout=1.0, password="secret")

    assert_eventually(lambda: find_local_pids(str(tmp_path)) == [], "the ProxyCommand has ended")
    assert_eventually(lambda: find_local_pids("sleep 1010") == [], "its child has ended")


def test_login_failed_proxy_command_is_quoted(host: LocalSshd, tmp_path: Path) -> None:
    config = config_of(host, tmp_path, "Host *\n ProxyCommand sh -c 'echo error: token expired >&2; exit 1'")
    assert_login_fails(config, ConnectError, "error: token expired")


def test_login_host_that_closes_at_once_raises(host: LocalSshd, tmp_path: Path) -> None:
    with Relay(reserve_free_port()) as relay:  # it closes connections that it cannot pass on
        config = config_of(host, tmp_path, port=relay.port)
        assert_login_fails(config, ConnectionThrottledError, connect_timeout=4.0)


@contextlib.contextmanager
def connections_without_login(server: LocalSshd, count: int) -> Iterator[None]:
    """Open connections that do not log in."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        assert_eventually(lambda: server.connections() >= count, "sshd has the connections")
        yield


def test_login_max_startups_until_timeout_raises(make_sshd: MakeSshd) -> None:
    server = make_sshd(options={"MaxStartups": "1:100:1"})
    with connections_without_login(server, 1):
        error = assert_login_fails(server.config_file, ConnectionThrottledError, connect_timeout=4.0)
    assert "kex_exchange_identification" in error.reason or "Exceeded MaxStartups" in error.reason


def test_login_max_startups_is_tried_again(make_sshd: MakeSshd) -> None:
    server = make_sshd(options={"MaxStartups": "1:100:1"})
    with Connection(server.host, **server.connection_kwargs) as connection:
        with connections_without_login(server, 1):
            waiting = threading.Thread(target=connection.run, args=("true",))
            before = server.log.count("MaxStartups")
            waiting.start()
            assert_eventually(lambda: server.log.count("MaxStartups") > before, "a log-in was refused")
        waiting.join(30)
        assert not waiting.is_alive()
        assert connection.run("echo in").stdout == "in\n"


def test_login_max_startups_many_connections_succeed(make_sshd: MakeSshd) -> None:
    server = make_sshd(options={"MaxStartups": "3:50:6"})
    with contextlib.ExitStack() as stack:
        connections = [
            stack.enter_context(Connection(server.host, **server.connection_kwargs, connect_timeout=60))
            for _ in range(10)
        ]
        results = call_in_parallel([lambda c=c: c.run("echo in").stdout for c in connections])  # type: ignore[misc]
    assert results == ["in\n"] * 10


def test_login_invalid_ssh_config_raises(host: LocalSshd, tmp_path: Path) -> None:
    assert_login_fails(config_of(host, tmp_path, "NoSuchKeyword yes"), SshConfigurationError, "NoSuchKeyword".lower())
    assert_login_fails(tmp_path / "nosuchfile", SshConfigurationError, str(tmp_path / "nosuchfile"))
    assert_login_fails(
        host.config_file, SshConfigurationError, "cipher spec 'nonsense'", options={"Ciphers": "nonsense"}
    )


def test_login_succeeds_after_failure(host: LocalSshd, tmp_path: Path) -> None:
    known = tmp_path / "known"
    config = config_of(host, tmp_path, f"Host *\n UserKnownHostsFile {known}")
    with Connection("local", config_file=config) as connection:
        assert not connection.is_alive()
        with pytest.raises(UnknownHostKeyError):
            connection.run("true")
        known.write_text(host.known_hosts.read_text())
        assert connection.is_alive()
        assert connection.run("echo in").stdout == "in\n"


# Prompts -------------------------------------------------------------------------------------------------------------

TERMINAL_PREFIX = (sys.executable, "-c", "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)")
LOG_IN_PROGRAM = """
    from lazycluster import Connection
    assert os.isatty(0) and open("/dev/tty")
    for keywords in CASES:
        with Connection("local", **keywords) as connection:
            try:
                connection.run("true")
                say("in")
            except ValueError as error:
                say(type(error).__name__)
"""


def make_passphrase_key(server: LocalSshd, passphrase: str = "open sesame") -> Path:
    """Make a key with a passphrase, and authorize it."""
    path = server.directory / "locked"
    if not path.exists():
        subprocess.run(("ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", str(path)), check=True)
        with (server.directory / "authorized_keys").open("a") as keys:
            keys.write(Path(f"{path}.pub").read_text())
    return path


UNKNOWN = "Host *\n UserKnownHostsFile {tmp}/none\n StrictHostKeyChecking ask"
PROMPTING: list[tuple[dict[str, str], str, str]] = [
    ({}, UNKNOWN, "UnknownHostKeyError"),
    ({"password": "x", "identity_file": "{key}"}, UNKNOWN, "UnknownHostKeyError"),
    ({"identity_file": "{key}"}, "", "AuthenticationError"),
    ({"identity_file": "{key}", "password": "wrong phrase"}, "", "AuthenticationError"),
    ({"identity_file": "{key}", "password": "open sesame"}, "", "in"),
    ({"user": "nosuchuser"}, "Host *\n PreferredAuthentications password", "AuthenticationError"),
    ({"user": "nosuchuser", "password": "x"}, "Host *\n PreferredAuthentications password", "AuthenticationError"),
]


def test_login_never_prompts_on_terminal_oraskpass_environment(make_sshd: MakeSshd, tmp_path: Path) -> None:
    server = make_sshd(options={"PasswordAuthentication": "yes", "KbdInteractiveAuthentication": "yes"})
    key = make_passphrase_key(server)
    cases = []
    for number, (keywords, lines, _) in enumerate(PROMPTING):
        given = {name: value.format(key=key) for name, value in keywords.items()}
        config = config_of(server, tmp_path, lines.format(tmp=tmp_path))
        without_key = config.read_text().replace(f'IdentityFile "{server.identity_file}"', "")
        config = write_config(tmp_path / f"config-{number}", without_key)
        cases.append({**given, "config_file": str(config)})
    environment = {**askpass_environment(tmp_path), "SSH_AUTH_SOCK": ""}
    text = f"CASES = {cases!r}" + textwrap.dedent(LOG_IN_PROGRAM)

    with ClientProgram(text, environment=environment, prefix=TERMINAL_PREFIX) as program:
        status, stdout, stderr = program.wait(110)

    assert (status, stderr) == (0, "")
    assert stdout.splitlines() == [expected for _, _, expected in PROMPTING]
    assert not (tmp_path / "asked").exists()
    assert find_local_pids("sleep 1011") == []


def askpass_environment(directory: Path) -> dict[str, str]:
    """Return an environment in which ssh would ask in a window that never answers."""
    ask = directory / "ask"
    ask.write_text(f"#!/bin/sh\necho asked >>{directory}/asked\nsleep 1011\n")
    ask.chmod(0o755)
    return {"SSH_ASKPASS": str(ask), "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": ":77"}


def test_jump_host_login_never_asks_by_ssh_askpass(
    host: LocalSshd, make_sshd: MakeSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jump = make_sshd(name="jump")
    locked = jump.config().replace(str(jump.identity_file), str(make_passphrase_key(jump)))
    for name, value in askpass_environment(tmp_path).items():
        monkeypatch.setenv(name, value)

    error = assert_login_fails(
        config_through_jump_host(host, tmp_path, locked), AuthenticationError, "Permission denied"
    )

    assert error.hop == "127.0.0.1"
    assert not (tmp_path / "asked").exists()


# Jump hosts ----------------------------------------------------------------------------------------------------------


def config_through_jump_host(target: LocalSshd, directory: Path, *sections: str, jump: str = "jump") -> Path:
    return write_config(directory / "config", f"Host {target.host}\n ProxyJump {jump}\n", target, *sections)


def test_jump_host_carries_commands_and_files(host: LocalSshd, make_sshd: MakeSshd, tmp_path: Path) -> None:
    jump = make_sshd(name="jump")
    before = count_connections(host)
    with Connection("local", config_file=config_through_jump_host(host, tmp_path, jump.config())) as connection:
        assert connection.run("echo $SSH_CONNECTION >/dev/null; echo behind").stdout == "behind\n"
        (tmp_path / "file").write_text("x")
        connection.put(tmp_path / "file", "through-jump")
        results = call_in_parallel([lambda n=n: connection.run(f"echo {n}").stdout for n in range(20)])  # type: ignore[misc]
        assert results == [f"{n}\n" for n in range(20)]
        assert (count_connections(host) - before, jump.connections()) == (1, 1)
    assert_eventually(lambda: jump.connections() == 0, "the connection to the jump host has ended")
    assert_eventually(lambda: find_local_pids(str(tmp_path / "config")) == [], "the master has ended")


def test_jump_host_as_option(host: LocalSshd, make_sshd: MakeSshd, tmp_path: Path) -> None:
    jump = make_sshd(name="jump")
    config = write_config(tmp_path / "config", host, jump)
    with Connection("local", config_file=config, options={"ProxyJump": "jump"}) as connection:
        assert connection.run("echo behind").stdout == "behind\n"
        assert jump.connections() == 1


def test_jump_hosts_in_a_chain(host: LocalSshd, make_sshd: MakeSshd, tmp_path: Path) -> None:
    one, two = make_sshd(name="one"), make_sshd(name="two")
    config = config_through_jump_host(host, tmp_path, one.config(), two.config(), jump="one,two")
    with Connection("local", config_file=config) as connection:
        assert connection.run("echo behind").stdout == "behind\n"
        assert (one.connections(), two.connections()) == (1, 1)


def test_jump_host_down_raises(host: LocalSshd, make_sshd: MakeSshd, tmp_path: Path) -> None:
    jump = make_sshd(name="jump")
    section = jump.config().replace(f"Port {jump.port}", f"Port {reserve_free_port()}")

    error = assert_login_fails(config_through_jump_host(host, tmp_path, section), PortRefusedError)

    assert error.hop == "127.0.0.1"


def test_jump_host_unknown_name_raises(host: LocalSshd, tmp_path: Path) -> None:
    error = assert_login_fails(config_through_jump_host(host, tmp_path, jump="no-jump.invalid"), UnknownHostError)
    assert error.hop == "no-jump.invalid"


def test_jump_host_unknown_key_raises(host: LocalSshd, make_sshd: MakeSshd, tmp_path: Path) -> None:
    jump = make_sshd(name="jump")
    section = jump.config().replace(str(jump.known_hosts), str(tmp_path / "none"))
    error = assert_login_fails(config_through_jump_host(host, tmp_path, section), UnknownHostKeyError)
    assert error.hop


def test_jump_host_refused_key_raises(host: LocalSshd, make_sshd: MakeSshd, tmp_path: Path) -> None:
    jump = make_sshd(name="jump")
    make_other_key(tmp_path)
    section = jump.config().replace(str(jump.identity_file), str(tmp_path / "other"))
    error = assert_login_fails(
        config_through_jump_host(host, tmp_path, section), AuthenticationError, "Permission denied"
    )
    assert error.hop == "127.0.0.1"


def test_jump_host_silent_times_out(host: LocalSshd, make_sshd: MakeSshd, tmp_path: Path) -> None:
    jump = make_sshd(name="jump")
    with cut_port() as port:
        config = config_through_jump_host(host, tmp_path, jump.config(port=port))
        assert_login_fails(config, ConnectTimeoutError, connect_timeout=1.0)
        assert_login_fails(config, ConnectTimeoutError, connect_timeout=1.0, password="secret")
        assert_eventually(lambda: find_local_pids(str(config)) == [], "the ssh to the jump host has ended")


def test_jump_host_up_host_down_raises(host: LocalSshd, make_sshd: MakeSshd, tmp_path: Path) -> None:
    jump = make_sshd(name="jump")
    section = host.config().replace(f"Port {host.port}", f"Port {reserve_free_port()}")
    config = write_config(tmp_path / "config", "Host local\n ProxyJump jump\n", section, jump.config())
    error = assert_login_fails(config, PortRefusedError, "Connection refused")
    assert error.hop == ""


def test_jump_host_without_forwarding_raises(host: LocalSshd, make_sshd: MakeSshd, tmp_path: Path) -> None:
    jump = make_sshd(name="jump", options={"AllowTcpForwarding": "no"})
    assert_login_fails(config_through_jump_host(host, tmp_path, jump.config()), ConnectError)


# Passwords and passphrases -------------------------------------------------------------------------------------------

PASSWORD = "  pa$$'w\"ö rd%h`~ "
"""With quotes, a space at each end, characters that shells and ssh expand, and the escape character of ssh."""


@attrs.frozen
class Account:
    """A temporary account with a password, on a server that accepts it."""

    user: str
    server: LocalSshd

    def connection(self, **keywords: Any) -> Connection:
        options = {
            "PubkeyAuthentication": "no",
            "PreferredAuthentications": "password",
            **keywords.pop("options", {}),
        }
        keywords = {"user": self.user, "password": PASSWORD, "options": options, **keywords}
        return Connection(self.server.host, **{**self.server.connection_kwargs, **keywords})


@pytest.fixture(scope="module")
def account(require_sshd: None) -> Iterator[Account]:
    if os.geteuid() != 0 or shutil.which("useradd") is None:
        pytest.skip("only root can make an account with a password")
    user = f"lzc{secrets.token_hex(4)}"
    home = Path(tempfile.mkdtemp(prefix="lct-home-", dir="/tmp"))
    home.chmod(0o755)
    options = {"PasswordAuthentication": "yes", "KbdInteractiveAuthentication": "yes", "UsePAM": "yes"}
    subprocess.run(("useradd", "-M", "-d", str(home / "home"), "-s", "/bin/sh", user), check=True)
    try:
        (home / "home").mkdir()
        shutil.chown(home / "home", user)
        subprocess.run(("chpasswd",), input=f"{user}:{PASSWORD}\n".encode(), check=True)
        with LocalSshd(home=False, environment={"TMPDIR": "/tmp"}, options=options) as server:
            yield Account(user, server)
    finally:
        subprocess.run(("userdel", user), check=True, capture_output=True)
        shutil.rmtree(home)


@contextlib.contextmanager
def recorded_processes() -> Iterator[set[str]]:
    """Collect the arguments and environments of all processes without pause."""
    recorded: set[str] = set()
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit() and int(entry.name) != os.getpid():
                    recorded.add(command_line(int(entry.name)))
                    with contextlib.suppress(OSError):
                        recorded.add((entry / "environ").read_text(errors="replace"))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield recorded
    finally:
        stop.set()
        thread.join()


def test_password_is_typed_once_and_never_shown(account: Account, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server = account.server
    before = server.log.count("Accepted password")
    with recorded_processes() as recorded, account.connection() as connection:
        results = call_in_parallel([lambda n=n: connection.run(f"echo {n}").stdout for n in range(16)])  # type: ignore[misc]
        assert results == [f"{n}\n" for n in range(16)]
        assert connection.run("id -un; pwd").stdout.split()[0] == account.user
        assert server.log.count("Accepted password") == before + 1
        assert server.connections() == 1
        shown = repr(connection)
    assert any("ssh" in line and account.user in line for line in recorded)
    for text in [*recorded, shown, caplog.text, server.log]:
        assert PASSWORD not in text
        assert PASSWORD.strip() not in text


def test_password_is_typed_again_for_new_master(account: Account) -> None:
    with account.connection() as connection:
        connection.run("true")
        os.kill(find_master(account.server.port).pid, signal.SIGKILL)
        assert connection.run("echo again").stdout == "again\n"


def test_password_keyboard_interactive(account: Account) -> None:
    options = {"PreferredAuthentications": "keyboard-interactive"}
    with account.connection(options=options) as connection:
        assert connection.run("echo in").stdout == "in\n"
    assert "Accepted keyboard-interactive" in account.server.log


def test_password_files_and_tasks(account: Account, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with account.connection() as connection:
        connection.put(tmp_path / "file", "sent")
        task = RuntimeTask().run_command("cat sent").execute(connection)
        assert task.execution_log == ["x"]


def test_password_wrong_raises_and_is_not_shown(account: Account, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = "not the right one"
    before = account.server.log.count("Failed ")

    def attempt(method: str) -> str:
        connection = account.connection(password=wrong, options={"PreferredAuthentications": method})
        with pytest.raises(AuthenticationError) as caught:
            connection.run("true")
        assert caught.value.host == "local"
        shown = "".join(traceback.format_exception(caught.type, caught.value, caught.tb))
        return "\n".join((str(caught.value), repr(caught.value), shown))

    texts = call_in_parallel([lambda: attempt("password"), lambda: attempt("keyboard-interactive")])

    for text in (*texts, caplog.text):
        assert wrong not in text
    assert account.server.log.count("Failed ") - before <= 2


def test_password_missing_raises(account: Account) -> None:
    with account.connection(password=None) as connection, pytest.raises(AuthenticationError):
        connection.run("true")


@pytest.mark.parametrize("password", ["line\nbreak", "bell\a", "\x03", "\ud800"])
def test_password_untypeable_raises(account: Account, password: str) -> None:
    connection = account.connection(password=password)
    with pytest.raises(ValueError, match="password") as caught:
        connection.run("true")
    assert password not in str(caught.value)


def test_password_expired_raises(account: Account) -> None:
    subprocess.run(("chage", "-d", "0", account.user), check=True)
    try:
        connection = account.connection(options={"PreferredAuthentications": "keyboard-interactive"}, connect_timeout=5)
        with pytest.raises(AuthenticationError) as caught:
            connection.run("true")
        assert "required to change your password" in caught.value.reason
        assert PASSWORD not in str(caught.value)
        # With plain password authentication sshd accepts the log-in, but starts no command.
        with account.connection(connect_timeout=20) as connection, pytest.raises(LoginShellError) as ended:
            connection.run("true")
        assert "Password change required" in ended.value.output
    finally:
        subprocess.run(("chage", "-d", "20000", account.user), check=True)


def test_password_is_not_typed_for_jump_host(account: Account, host: LocalSshd, tmp_path: Path) -> None:
    jump = account.server.config(name="jump").replace(f"User {account.server.user}", f"User {account.user}")
    jump += "    PubkeyAuthentication no\n    HostKeyAlias jump-host\n"
    jump = jump.replace(str(account.server.known_hosts), str(tmp_path / "known"))
    (tmp_path / "known").write_text(f"jump-host {(account.server.directory / 'host_key.pub').read_text()}")
    before = account.server.log.count("password for")
    config = config_through_jump_host(host, tmp_path, jump)

    connection = Connection("local", config_file=config, password=PASSWORD)
    with pytest.raises(AuthenticationError) as caught:
        connection.run("true")

    assert "jump-host" in caught.value.reason
    assert account.server.log.count("password for") == before
    assert PASSWORD not in str(caught.value)
    assert_eventually(lambda: find_local_pids(str(config)) == [], "the ssh to the jump host has ended")


def test_password_through_jump_host(account: Account, make_sshd: MakeSshd, tmp_path: Path) -> None:
    jump = make_sshd(name="jump")
    config = config_through_jump_host(account.server, tmp_path, jump.config())
    with account.connection(config_file=config) as connection:
        assert connection.run("id -un").stdout == f"{account.user}\n"


def test_passphrase_unlocks_key(make_sshd: MakeSshd, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server = make_sshd()
    passphrase = f"open {secrets.token_hex(8)}"  # no other test on this machine has it in its arguments
    key = make_passphrase_key(server, passphrase)
    config = config_of(server, tmp_path)
    config.write_text(config.read_text().replace(f'IdentityFile "{server.identity_file}"', ""))

    connection = Connection("local", config_file=config, identity_file=key, password=passphrase)
    with recorded_processes() as recorded, connection:
        assert connection.run("echo in").stdout == "in\n"
        assert connection.run("echo still").stdout == "still\n"
        assert count_log_ins(server) == 1
    assert not any(passphrase in text for text in (*recorded, caplog.text))

    assert_login_fails(config, AuthenticationError, "Permission denied", identity_file=key)
    assert_login_fails(config, AuthenticationError, "Permission denied", identity_file=key, password="wrong")
    assert_becomes_idle(server)


def test_password_unneeded_is_ignored(host: LocalSshd) -> None:
    with Connection(host.host, **host.connection_kwargs, password="unneeded") as connection:
        result = connection.run("echo in")
        assert (result.stdout, result.stderr) == ("in\n", "")


def test_password_unknown_host_key_raises(host: LocalSshd, tmp_path: Path) -> None:
    known = f"Host *\n UserKnownHostsFile {tmp_path}/none\n StrictHostKeyChecking ask"
    assert_login_fails(config_of(host, tmp_path, known), UnknownHostKeyError, password="secret")
    assert not (tmp_path / "none").exists()


def test_password_changed_host_key_raises(host: LocalSshd, tmp_path: Path) -> None:
    (tmp_path / "known").write_text(f"[127.0.0.1]:{host.port} {make_other_key(tmp_path)}")
    config = config_of(host, tmp_path, f"Host *\n UserKnownHostsFile {tmp_path}/known")
    assert_login_fails(config, ChangedHostKeyError, password="secret")
