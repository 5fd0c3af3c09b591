"""Logging in: what is refused before anything runs, how each failure is told, and that no prompt ever blocks."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
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
    Runtime,
    RuntimeTask,
    SshConfigurationError,
    SshNotFoundError,
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
    master_pid_of,
)
from tests.internals import ssh_client_of
from tests.observation import record_program_starts
from tests.processes import command_line, find_local_pids, is_alive
from tests.reserved_ports import reserve_free_port
from tests.waiting import assert_eventually

if TYPE_CHECKING:
    from tests.sshd_fixtures import MakeSshd


@pytest.fixture(scope="module")
def host(require_sshd: None, run_directory: Path) -> Iterator[LocalSshd]:
    with LocalSshd(environment={"TMPDIR": str(run_directory)}) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_stays(host: LocalSshd, run_directory: Path) -> Iterator[None]:
    """Assert that each test leaves no connection, no directory, and no process that names its files."""
    before = set(run_directory.glob("lazycluster-m-*"))  # of managers that other tests have killed
    yield
    assert_becomes_idle(host)
    assert set(run_directory.glob("lazycluster-m-*")) - before == set()


# Refused before anything runs ----------------------------------------------------------------------------------------

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("", {}, "host must not be empty"),
    ("-oProxyCommand=touch x", {}, "must not begin with a dash"),
    ("-J", {}, "must not begin with a dash"),
    ("a\nb", {}, "control characters"),
    ("a\0b", {}, "control characters"),
    ("a\x1b[2Jb", {}, "control characters"),
    ("a b", {}, "spaces"),
    ("a;b", {}, "must not hold ;"),
    ("$(id)", {}, "must not hold"),
    ("host", {"port": 0}, "1 to 65535"),
    ("host", {"port": -1}, "1 to 65535"),
    ("host", {"port": 65536}, "1 to 65535"),
    ("host", {"port": "22"}, "1 to 65535"),
    ("host", {"port": True}, "1 to 65535"),
    ("host", {"user": ""}, "user must not be empty"),
    ("host", {"user": "-l"}, "dash"),
    ("host", {"user": "a\nb"}, "control characters"),
    ("host", {"env": {"A B": "x"}}, "got 'A B'"),
    ("host", {"env": {"1A": "x"}}, "'1A'"),
    ("host", {"env": {"": "x"}}, "''"),
    ("host", {"env": {"A=B": "x"}}, "'A=B'"),
    ("host", {"env": {"A;id": "x"}}, "'A;id'"),
    ("host", {"env": {"Ä": "x"}}, "'Ä'"),
    ("host", {"env": {"A": "x\0y"}}, "NUL"),
    ("host", {"env": {"A": 1}}, "text"),
    ("host", {"connect_timeout": 0}, "positive number of seconds"),
    ("host", {"connect_timeout": float("nan")}, "positive number of seconds"),
    ("host", {"options": {"Bad Key": "x"}}, "keywords of ssh_config"),
    ("host", {"options": {"Port": "1\nProxyCommand=x"}}, "one line"),
    ("host", {"options": {"ControlPath": "/x"}}, "which lazycluster sets itself"),
    ("host", {"options": {"batchmode": "no"}}, "which lazycluster sets itself"),
]


@pytest.mark.parametrize(("name", "keywords", "text"), WRONG)
def test_what_cannot_be_right_is_refused_before_anything_runs(name: str, keywords: dict[str, Any], text: str) -> None:
    with record_program_starts() as started:
        with pytest.raises(ValueError, match=re.escape(text)):
            Connection(name, **keywords)
        with pytest.raises(ValueError, match=re.escape(text)):
            Runtime(name, **keywords)
    assert started == []


@pytest.mark.parametrize("name", ["A B", "1A", "", "A=B", "A\nB", "A-B"])
def test_environment_names_are_checked_at_every_entrance(host: LocalSshd, name: str) -> None:
    before = count_connections(host)
    connection = Connection(host.host, **host.connection_kwargs)
    with record_program_starts() as started, pytest.raises(ValueError, match="environment variable must be"):
        connection.run("true", env={name: "x"})
    assert started == []
    assert count_connections(host) == before


@pytest.mark.parametrize("command", ["", "a\0b"])
def test_a_command_that_is_none_is_refused_before_anything_runs(host: LocalSshd, command: str) -> None:
    connection = Connection(host.host, **host.connection_kwargs)
    with record_program_starts() as started, pytest.raises(ValueError, match="command must be text"):
        connection.run(command)
    assert started == []


# Each failure is told apart ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def bounded(seconds: float) -> Iterator[None]:
    begun = time.monotonic()
    yield
    taken = time.monotonic() - begun
    assert taken < seconds, f"took {taken:.1f} s"


def refused(config: Path, kind: type[ConnectError], *words: str, host: str = "local", **keywords: Any) -> ConnectError:
    """See that every way in fails in time with that kind of error, whose text has these words; return it."""
    timeout = keywords.setdefault("connect_timeout", 5.0)
    with Connection(host, config_file=config, **keywords) as connection:
        with bounded(timeout + 1), pytest.raises(LazyclusterError) as caught:
            connection.run("true")
        if kind is not ConnectTimeoutError:  # to be quick
            with bounded(timeout + 1), pytest.raises(kind):
                RuntimeTask().run_command("true").execute(connection)
    error = caught.value
    assert type(error) is kind
    assert isinstance(error, ValueError)
    assert isinstance(error, ConnectError)
    text = str(error)
    assert text.startswith(f"{host}: {error.summary}")
    for word in words:
        assert word in text
    assert text.endswith(error.advice.format(host=error.ssh_arguments, hop=error.hop or host))
    assert error.ssh_arguments.startswith(f"-F {config} ")
    assert error.ssh_arguments.endswith(f" {host}")
    return error


def config_of(server: LocalSshd, directory: Path, *lines: str, port: int | None = None) -> Path:
    """Write a configuration for a server whose first lines are these."""
    return write_config(directory / "config", "\n".join(lines) + "\n", server.config(port=port))


def test_an_unknown_host_key(host: LocalSshd, tmp_path: Path) -> None:
    for answer in ("ask", "yes"):
        known = f"Host *\n UserKnownHostsFile {tmp_path}/none\n StrictHostKeyChecking {answer}"
        config = config_of(host, tmp_path, known)
        refused(config, UnknownHostKeyError, f"ssh -F {config} local true", "answer yes")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("answer", ["accept-new", "no", "off"])
def test_a_host_key_is_taken_where_the_configuration_says_so(host: LocalSshd, tmp_path: Path, answer: str) -> None:
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


def _other_key(directory: Path) -> str:
    path = directory / "other"
    if not path.exists():
        subprocess.run(("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)), check=True)
    return Path(f"{path}.pub").read_text()


@pytest.mark.parametrize("answer", ["ask", "yes", "accept-new"])
def test_a_changed_host_key(host: LocalSshd, tmp_path: Path, answer: str) -> None:
    (tmp_path / "known").write_text(f"[127.0.0.1]:{host.port} {_other_key(tmp_path)}")
    config = config_of(host, tmp_path, f"Host *\n UserKnownHostsFile {tmp_path}/known\n StrictHostKeyChecking {answer}")

    refused(config, ChangedHostKeyError, "127.0.0.1", "ssh-keygen -R", str(tmp_path / "known"))


def test_a_revoked_host_key(host: LocalSshd, tmp_path: Path) -> None:
    key = (host.directory / "host_key.pub").read_text()
    (tmp_path / "known").write_text(f"@revoked * {key}")
    refused(config_of(host, tmp_path, f"Host *\n UserKnownHostsFile {tmp_path}/known"), ChangedHostKeyError, "revoked")


def test_a_changed_host_key_that_the_user_chose_to_ignore(host: LocalSshd, tmp_path: Path) -> None:
    (tmp_path / "known").write_text(f"[127.0.0.1]:{host.port} {_other_key(tmp_path)}")
    config = config_of(host, tmp_path, f"Host *\n UserKnownHostsFile {tmp_path}/known\n StrictHostKeyChecking no")

    with Connection("local", config_file=config) as connection:
        assert connection.run("echo in").stdout == "in\n"


def test_refused_authentication(host: LocalSshd, tmp_path: Path) -> None:
    _other_key(tmp_path)
    config = config_of(host, tmp_path, f"Host *\n IdentityFile {tmp_path}/other")
    config.write_text(config.read_text().replace(f'IdentityFile "{host.identity_file}"', ""))
    before = count_log_ins(host)

    error = refused(config, AuthenticationError, "Permission denied", f"ssh-copy-id -F {config} local", "127.0.0.1")

    assert error.hop == ""
    assert count_log_ins(host) == before


def test_a_user_that_does_not_exist(host: LocalSshd, tmp_path: Path) -> None:
    refused(host.config_file, AuthenticationError, "Permission denied", "nosuchuser@", user="nosuchuser")


def test_an_identity_file_that_is_not_there(host: LocalSshd, tmp_path: Path) -> None:
    config = config_of(host, tmp_path)
    config.write_text(config.read_text().replace(f'IdentityFile "{host.identity_file}"', ""))
    refused(config, AuthenticationError, f"{tmp_path}/nosuchkey", identity_file=tmp_path / "nosuchkey")


def test_too_many_keys(make_sshd: MakeSshd, tmp_path: Path) -> None:
    server = make_sshd(options={"MaxAuthTries": "1"})
    _other_key(tmp_path)
    config = config_of(server, tmp_path, f"Host *\n IdentityFile {tmp_path}/other")
    refused(config, AuthenticationError, "Too many authentication failures")


def test_an_unknown_name(host: LocalSshd, tmp_path: Path) -> None:
    config = config_of(host, tmp_path)
    name = "no-such-host.invalid"  # RFC 6761, section 6.4
    refused(config, UnknownHostError, name, "spelling", f"ssh -G -F {config} {name} | grep", host=name)


def test_a_port_where_nobody_listens(host: LocalSshd, tmp_path: Path) -> None:
    port = reserve_free_port()
    refused(config_of(host, tmp_path, port=port), PortRefusedError, f"port {port}", "127.0.0.1", "sshd runs there")


def test_attempts_that_the_user_asked_for_end_with_the_time(host: LocalSshd, tmp_path: Path) -> None:
    config = config_of(host, tmp_path, "ConnectionAttempts 1000", port=reserve_free_port())
    refused(config, ConnectTimeoutError, "allow it more time (connect_timeout)", connect_timeout=1.0)


@contextlib.contextmanager
def _mute() -> Iterator[int]:
    """Listen, and never accept."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@contextlib.contextmanager
def _full() -> Iterator[int]:
    """Listen with a full backlog: packets are dropped, as a firewall would."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as stack:
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(listener.getsockname())
        yield listener.getsockname()[1]


@contextlib.contextmanager
def _black_hole() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as target, Relay(target.getsockname()[1]) as relay:
        relay.cut()
        yield relay.port


@contextlib.contextmanager
def _chatty() -> Iterator[int]:
    """Send lines before the greeting without end (RFC 4253, section 4.2 allows some)."""
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


@pytest.mark.parametrize("silence", [_mute, _full, _black_hole, _chatty])
def test_a_host_that_does_not_answer(
    host: LocalSshd, tmp_path: Path, silence: Callable[[], contextlib.AbstractContextManager[int]]
) -> None:
    with silence() as port:
        config = config_of(host, tmp_path, port=port)
        refused(
            config,
            ConnectTimeoutError,
            "no answer in time",
            "allow it more time (connect_timeout)",
            connect_timeout=0.5,
        )
    assert find_local_pids(str(tmp_path)) == []


def test_a_proxy_command_that_hangs_is_ended_with_its_children(host: LocalSshd, tmp_path: Path) -> None:
    config = config_of(host, tmp_path, f"Host *\n ProxyCommand sh -c 'sleep 1009; : {tmp_path}'")

    refused(config, ConnectTimeoutError, connect_timeout=1.0)

    assert_eventually(lambda: find_local_pids(str(tmp_path)) == [], "the ProxyCommand is gone")
    assert_eventually(lambda: find_local_pids("sleep 1009") == [], "its child is gone")


def test_a_proxy_command_that_hangs_while_a_password_is_given(host: LocalSshd, tmp_path: Path) -> None:
    config = config_of(host, tmp_path, f"Host *\n ProxyCommand sh -c 'sleep 1010; : {tmp_path}'")

    refused(config, ConnectTimeoutError, connect_timeout=1.0, password="secret")

    assert_eventually(lambda: find_local_pids(str(tmp_path)) == [], "the ProxyCommand is gone")
    assert_eventually(lambda: find_local_pids("sleep 1010") == [], "its child is gone")


def test_a_proxy_command_that_fails_tells_why(host: LocalSshd, tmp_path: Path) -> None:
    config = config_of(host, tmp_path, "Host *\n ProxyCommand sh -c 'echo error: token expired >&2; exit 1'")
    refused(config, ConnectError, "error: token expired")


def test_a_host_that_closes_at_once(host: LocalSshd, tmp_path: Path) -> None:
    with Relay(reserve_free_port()) as relay:  # which closes what it cannot hand on
        config = config_of(host, tmp_path, port=relay.port)
        refused(config, ConnectionThrottledError, "MaxStartups", connect_timeout=1.0)


@contextlib.contextmanager
def held(server: LocalSshd, count: int) -> Iterator[None]:
    """Open connections that do not log in."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        assert_eventually(lambda: server.connections() >= count, "the connections are taken")
        yield


def test_too_many_log_ins_at_once_are_an_error_when_the_time_is_up(make_sshd: MakeSshd) -> None:
    server = make_sshd(options={"MaxStartups": "1:100:1"})
    with held(server, 1):
        error = refused(server.config_file, ConnectionThrottledError, "try again later", connect_timeout=1.0)
    assert "kex_exchange_identification" in error.reason or "Exceeded MaxStartups" in error.reason


def test_too_many_log_ins_at_once_are_tried_again(make_sshd: MakeSshd) -> None:
    server = make_sshd(options={"MaxStartups": "1:100:1"})
    with Connection(server.host, **server.connection_kwargs) as connection:
        with held(server, 1):
            waiting = threading.Thread(target=connection.run, args=("true",))
            before = server.log.count("MaxStartups")
            waiting.start()
            assert_eventually(lambda: server.log.count("MaxStartups") > before, "a log-in was refused")
        waiting.join(10)
        assert not waiting.is_alive()
        assert connection.run("echo in").stdout == "in\n"


def test_connections_of_which_sshd_drops_many_all_come_in(make_sshd: MakeSshd) -> None:
    server = make_sshd(options={"MaxStartups": "3:50:6"})
    with contextlib.ExitStack() as stack:
        connections = [
            stack.enter_context(Connection(server.host, **server.connection_kwargs, connect_timeout=20))
            for _ in range(10)
        ]
        results = call_in_parallel([lambda c=c: c.run("echo in").stdout for c in connections])  # type: ignore[misc]
    assert results == ["in\n"] * 10


def test_a_configuration_that_ssh_does_not_take(host: LocalSshd, tmp_path: Path) -> None:
    refused(config_of(host, tmp_path, "NoSuchKeyword yes"), SshConfigurationError, "NoSuchKeyword".lower())
    refused(tmp_path / "nosuchfile", SshConfigurationError, str(tmp_path / "nosuchfile"))
    refused(host.config_file, SshConfigurationError, "cipher spec 'nonsense'", options={"Ciphers": "nonsense"})


def test_without_ssh(host: LocalSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(host.config_file, SshNotFoundError, "openssh-client")
    refused(host.config_file, SshNotFoundError, "openssh-client", password="secret")


def test_a_log_in_that_failed_may_succeed_later(host: LocalSshd, tmp_path: Path) -> None:
    known = tmp_path / "known"
    config = config_of(host, tmp_path, f"Host *\n UserKnownHostsFile {known}")
    with Connection("local", config_file=config) as connection:
        assert not connection.is_alive()
        with pytest.raises(UnknownHostKeyError):
            connection.run("true")
        known.write_text(host.known_hosts.read_text())
        assert connection.is_alive()
        assert connection.run("echo in").stdout == "in\n"


# No prompt ever blocks -----------------------------------------------------------------------------------------------

_ON_A_TERMINAL = (sys.executable, "-c", "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)")
_TRY_ALL = """
    from lazycluster import Connection
    assert os.isatty(0) and open("/dev/tty")
    for keywords in CASES:
        begun = time.monotonic()
        with Connection("local", **keywords) as connection:
            try:
                connection.run("true")
                say("in", True)
            except ValueError as error:
                say(type(error).__name__, time.monotonic() - begun < 4)
"""


def _passphrase_key(server: LocalSshd, passphrase: str = "open sesame") -> Path:
    """Make a key with a passphrase, and let it in."""
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


def test_no_prompt_blocks_where_there_is_a_terminal_and_a_window_to_ask_in(make_sshd: MakeSshd, tmp_path: Path) -> None:
    server = make_sshd(options={"PasswordAuthentication": "yes", "KbdInteractiveAuthentication": "yes"})
    key = _passphrase_key(server)
    cases = []
    for number, (keywords, lines, _) in enumerate(PROMPTING):
        given = {name: value.format(key=key) for name, value in keywords.items()}
        config = config_of(server, tmp_path, lines.format(tmp=tmp_path))
        without_key = config.read_text().replace(f'IdentityFile "{server.identity_file}"', "")
        config = write_config(tmp_path / f"config-{number}", without_key)
        cases.append({**given, "config_file": str(config)})
    environment = {**_window(tmp_path), "SSH_AUTH_SOCK": ""}
    text = f"CASES = {cases!r}" + textwrap.dedent(_TRY_ALL)

    with ClientProgram(text, environment=environment, prefix=_ON_A_TERMINAL) as program:
        status, stdout, stderr = program.wait(40)

    assert (status, stderr) == (0, "")
    assert stdout.splitlines() == [f"{expected} True" for _, _, expected in PROMPTING]
    assert not (tmp_path / "asked").exists()
    assert find_local_pids("sleep 1011") == []


def _window(directory: Path) -> dict[str, str]:
    """Return an environment in which ssh would ask in a window, which never answers."""
    ask = directory / "ask"
    ask.write_text(f"#!/bin/sh\necho asked >>{directory}/asked\nsleep 1011\n")
    ask.chmod(0o755)
    return {"SSH_ASKPASS": str(ask), "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": ":77"}


def test_a_jump_host_opens_no_window_to_ask_in(
    host: LocalSshd, make_sshd: MakeSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jump = make_sshd(name="jump")
    locked = jump.config().replace(str(jump.identity_file), str(_passphrase_key(jump)))
    for name, value in _window(tmp_path).items():
        monkeypatch.setenv(name, value)

    error = refused(_behind(host, tmp_path, locked), AuthenticationError, "Permission denied", "at 127.0.0.1")

    assert error.hop == "127.0.0.1"
    assert not (tmp_path / "asked").exists()


# Jump hosts ----------------------------------------------------------------------------------------------------------


def _behind(target: LocalSshd, directory: Path, *sections: str, jump: str = "jump") -> Path:
    return write_config(directory / "config", f"Host {target.host}\n ProxyJump {jump}\n", target, *sections)


def test_a_jump_host_just_works(host: LocalSshd, make_sshd: MakeSshd, tmp_path: Path) -> None:
    jump = make_sshd(name="jump")
    before = count_connections(host)
    with Connection("local", config_file=_behind(host, tmp_path, jump.config())) as connection:
        assert connection.run("echo $SSH_CONNECTION >/dev/null; echo behind").stdout == "behind\n"
        (tmp_path / "file").write_text("x")
        connection.put(tmp_path / "file", "through-jump")
        results = call_in_parallel([lambda n=n: connection.run(f"echo {n}").stdout for n in range(20)])  # type: ignore[misc]
        assert results == [f"{n}\n" for n in range(20)]
        assert (count_connections(host) - before, jump.connections()) == (1, 1)
        pid = master_pid_of(connection)
    assert_eventually(lambda: jump.connections() == 0, "the connection to the jump host is gone")
    assert_eventually(lambda: not is_alive(pid), "the master is gone")
    assert find_local_pids(str(tmp_path / "config")) == []


def test_a_jump_host_given_as_an_option(host: LocalSshd, make_sshd: MakeSshd, tmp_path: Path) -> None:
    jump = make_sshd(name="jump")
    config = write_config(tmp_path / "config", host, jump)
    with Connection("local", config_file=config, options={"ProxyJump": "jump"}) as connection:
        assert connection.run("echo behind").stdout == "behind\n"
        assert jump.connections() == 1


def test_two_jump_hosts(host: LocalSshd, make_sshd: MakeSshd, tmp_path: Path) -> None:
    one, two = make_sshd(name="one"), make_sshd(name="two")
    config = _behind(host, tmp_path, one.config(), two.config(), jump="one,two")
    with Connection("local", config_file=config) as connection:
        assert connection.run("echo behind").stdout == "behind\n"
        assert (one.connections(), two.connections()) == (1, 1)


def test_a_jump_host_that_is_down(host: LocalSshd, make_sshd: MakeSshd, tmp_path: Path) -> None:
    jump = make_sshd(name="jump")
    section = jump.config().replace(f"Port {jump.port}", f"Port {reserve_free_port()}")

    error = refused(_behind(host, tmp_path, section), PortRefusedError, "at 127.0.0.1", "connection refused")

    assert error.hop == "127.0.0.1"


def test_a_jump_host_that_is_unknown(host: LocalSshd, tmp_path: Path) -> None:
    error = refused(_behind(host, tmp_path, jump="no-jump.invalid"), UnknownHostError, "at no-jump.invalid")
    assert error.hop == "no-jump.invalid"


def test_a_jump_host_whose_key_is_unknown(host: LocalSshd, make_sshd: MakeSshd, tmp_path: Path) -> None:
    jump = make_sshd(name="jump")
    section = jump.config().replace(str(jump.known_hosts), str(tmp_path / "none"))
    error = refused(_behind(host, tmp_path, section), UnknownHostKeyError)
    assert error.hop


def test_a_jump_host_that_does_not_let_us_in(host: LocalSshd, make_sshd: MakeSshd, tmp_path: Path) -> None:
    jump = make_sshd(name="jump")
    _other_key(tmp_path)
    section = jump.config().replace(str(jump.identity_file), str(tmp_path / "other"))
    error = refused(_behind(host, tmp_path, section), AuthenticationError, "Permission denied", "at 127.0.0.1")
    assert error.hop == "127.0.0.1"


def test_a_jump_host_that_does_not_answer_is_ended_too(host: LocalSshd, make_sshd: MakeSshd, tmp_path: Path) -> None:
    jump = make_sshd(name="jump")
    with _black_hole() as port:
        config = _behind(host, tmp_path, jump.config(port=port))
        refused(config, ConnectTimeoutError, connect_timeout=1.0)
        refused(config, ConnectTimeoutError, connect_timeout=1.0, password="secret")
        assert_eventually(lambda: find_local_pids(str(config)) == [], "the ssh to the jump host is gone")


def test_a_host_that_is_down_behind_its_jump_host(host: LocalSshd, make_sshd: MakeSshd, tmp_path: Path) -> None:
    jump = make_sshd(name="jump")
    section = host.config().replace(f"Port {host.port}", f"Port {reserve_free_port()}")
    config = write_config(tmp_path / "config", "Host local\n ProxyJump jump\n", section, jump.config())
    error = refused(config, PortRefusedError, "Connection refused", "jump host")
    assert error.hop == ""


def test_a_jump_host_that_forbids_forwarding(host: LocalSshd, make_sshd: MakeSshd, tmp_path: Path) -> None:
    jump = make_sshd(name="jump", options={"AllowTcpForwarding": "no"})
    refused(_behind(host, tmp_path, jump.config()), ConnectError, "jump host", "refuses to forward")


# Passwords and passphrases -------------------------------------------------------------------------------------------

PASSWORD = "  pa$$'w\"ö rd%h`~ "
"""Quotes, a space at each end, what shells and ssh expand, and what a terminal's ~ would begin."""


@attrs.frozen
class Account:
    """A throw-away account with a password, on a server that takes it."""

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
def watched_processes() -> Iterator[set[str]]:
    """Collect, as fast as can be, the arguments and environments of all processes."""
    seen: set[str] = set()
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit() and int(entry.name) != os.getpid():
                    seen.add(command_line(int(entry.name)))
                    with contextlib.suppress(OSError):
                        seen.add((entry / "environ").read_text(errors="replace"))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def test_a_password_is_asked_for_once_and_never_seen(account: Account, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server = account.server
    before = server.log.count("Accepted password")
    with watched_processes() as seen, account.connection() as connection:
        results = call_in_parallel([lambda n=n: connection.run(f"echo {n}").stdout for n in range(16)])  # type: ignore[misc]
        assert results == [f"{n}\n" for n in range(16)]
        assert connection.run("id -un; pwd").stdout.split()[0] == account.user
        assert server.log.count("Accepted password") == before + 1
        assert server.connections() == 1
        ssh_client = ssh_client_of(connection)
        looked_at = [repr(connection), repr(ssh_client), repr(ssh_client.destination)]
        looked_at.append(repr(master_pid_of(connection)))
    assert any("ssh" in line and account.user in line for line in seen)
    for text in [*seen, *looked_at, caplog.text, server.log]:
        assert PASSWORD not in text
        assert PASSWORD.strip() not in text


def test_a_password_is_given_again_where_a_master_is_replaced(account: Account) -> None:
    with account.connection() as connection:
        os.kill(master_pid_of(connection), 9)
        assert connection.run("echo again").stdout == "again\n"


def test_a_password_asked_for_in_the_other_way(account: Account) -> None:
    options = {"PreferredAuthentications": "keyboard-interactive"}
    with account.connection(options=options) as connection:
        assert connection.run("echo in").stdout == "in\n"
    assert "Accepted keyboard-interactive" in account.server.log


def test_files_and_tasks_with_a_password(account: Account, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with account.connection() as connection:
        connection.put(tmp_path / "file", "sent")
        task = RuntimeTask().run_command("cat sent").execute(connection)
        assert task.execution_log == ["x"]


def test_a_wrong_password_is_refused_at_once_and_never_shown(
    account: Account, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = "not the right one"
    before = account.server.log.count("Failed ")

    def attempt(method: str) -> str:
        connection = account.connection(password=wrong, options={"PreferredAuthentications": method})
        with pytest.raises(AuthenticationError) as caught:
            connection.run("true")
        assert "local" in str(caught.value)
        assert "ssh-copy-id" in str(caught.value)
        shown = "".join(traceback.format_exception(caught.type, caught.value, caught.tb))
        return "\n".join((str(caught.value), repr(caught.value), shown))

    with bounded(8):
        texts = call_in_parallel([lambda: attempt("password"), lambda: attempt("keyboard-interactive")])

    for text in (*texts, caplog.text):
        assert wrong not in text
    assert account.server.log.count("Failed ") - before <= 2


def test_without_the_password_the_host_is_an_error_at_once(account: Account) -> None:
    with account.connection(password=None) as connection, bounded(3), pytest.raises(AuthenticationError):
        connection.run("true")


@pytest.mark.parametrize("password", ["line\nbreak", "bell\a", "\x03", "\ud800"])
def test_a_password_that_cannot_be_typed_is_refused_and_not_shown(account: Account, password: str) -> None:
    connection = account.connection(password=password)
    with pytest.raises(ValueError, match="password") as caught:
        connection.run("true")
    assert password not in str(caught.value)


def test_a_password_that_must_be_changed_is_an_error_and_no_question(account: Account) -> None:
    subprocess.run(("chage", "-d", "0", account.user), check=True)
    try:
        connection = account.connection(options={"PreferredAuthentications": "keyboard-interactive"}, connect_timeout=5)
        with bounded(8), pytest.raises(AuthenticationError, match="required to change your password") as caught:
            connection.run("true")
        assert PASSWORD not in str(caught.value)
        # This way sshd lets us in, and then no command begins.
        with account.connection(connect_timeout=5) as connection, bounded(8):  # noqa: SIM117
            with pytest.raises(LoginShellError, match="Password change required"):
                connection.run("true")
    finally:
        subprocess.run(("chage", "-d", "20000", account.user), check=True)


def test_the_password_is_not_given_to_a_jump_host(account: Account, host: LocalSshd, tmp_path: Path) -> None:
    jump = account.server.config(name="jump").replace(f"User {account.server.user}", f"User {account.user}")
    jump += "    PubkeyAuthentication no\n    HostKeyAlias jump-host\n"
    jump = jump.replace(str(account.server.known_hosts), str(tmp_path / "known"))
    (tmp_path / "known").write_text(f"jump-host {(account.server.directory / 'host_key.pub').read_text()}")
    before = account.server.log.count("password for")
    config = _behind(host, tmp_path, jump)

    connection = Connection("local", config_file=config, password=PASSWORD)
    with bounded(11), pytest.raises(AuthenticationError, match="jump-host") as caught:
        connection.run("true")

    assert account.server.log.count("password for") == before
    assert PASSWORD not in str(caught.value)
    assert_eventually(lambda: find_local_pids(str(config)) == [], "the ssh to the jump host is gone")


def test_a_password_behind_a_jump_host(account: Account, make_sshd: MakeSshd, tmp_path: Path) -> None:
    jump = make_sshd(name="jump")
    config = _behind(account.server, tmp_path, jump.config())
    with account.connection(config_file=config) as connection:
        assert connection.run("id -un").stdout == f"{account.user}\n"


def test_a_passphrase(make_sshd: MakeSshd, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server = make_sshd()
    key = _passphrase_key(server, "open sesame")
    config = config_of(server, tmp_path)
    config.write_text(config.read_text().replace(f'IdentityFile "{server.identity_file}"', ""))

    connection = Connection("local", config_file=config, identity_file=key, password="open sesame")
    with watched_processes() as seen, connection:
        assert connection.run("echo in").stdout == "in\n"
        assert connection.run("echo still").stdout == "still\n"
        assert count_log_ins(server) == 1
    assert not any("open sesame" in text for text in (*seen, caplog.text))

    refused(config, AuthenticationError, "Permission denied", identity_file=key)
    refused(config, AuthenticationError, "Permission denied", identity_file=key, password="wrong")
    assert_becomes_idle(server)


def test_a_password_that_is_not_needed_does_no_harm(host: LocalSshd) -> None:
    with Connection(host.host, **host.connection_kwargs, password="unneeded") as connection:
        result = connection.run("echo in")
        assert (result.stdout, result.stderr) == ("in\n", "")


def test_an_unknown_host_key_is_not_answered_with_the_password(host: LocalSshd, tmp_path: Path) -> None:
    known = f"Host *\n UserKnownHostsFile {tmp_path}/none\n StrictHostKeyChecking ask"
    refused(config_of(host, tmp_path, known), UnknownHostKeyError, "answer yes", password="secret")
    assert not (tmp_path / "none").exists()


def test_a_changed_host_key_with_a_password(host: LocalSshd, tmp_path: Path) -> None:
    (tmp_path / "known").write_text(f"[127.0.0.1]:{host.port} {_other_key(tmp_path)}")
    config = config_of(host, tmp_path, f"Host *\n UserKnownHostsFile {tmp_path}/known")
    refused(config, ChangedHostKeyError, "ssh-keygen -R", password="secret")
