"""Commands, with pytest-subprocess in the place of ssh: what ssh says, and what is made of it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from pytest_subprocess.fake_popen import FakePopen
from pytest_subprocess.fake_process import FakeProcess

from lazycluster import (
    AuthenticationError,
    ChangedHostKeyError,
    CommandTimeoutError,
    ConnectError,
    Connection,
    ConnectionThrottledError,
    ConnectTimeoutError,
    HostUnreachableError,
    LazyclusterError,
    PortRefusedError,
    RuntimeClosedError,
    RuntimeTask,
    SessionRefusedError,
    SshConfigurationError,
    SshNotFoundError,
    UnknownHostError,
    UnknownHostKeyError,
)
from lazycluster._model.timeouts import Timeouts
from lazycluster._ssh.shell import SHELL_BOOTSTRAP
from lazycluster._transports.host_context import context_of
from tests.internals import ssh_client_of
from tests.process.fake_ssh import recorded_argvs, register_command, register_log_in

REFUSED = "mux_client_request_session: session request failed: Session open refused by peer\r\n"
STALE = "Control socket connect(/tmp/lazycluster-x/m): Connection refused\r\n"


# The calls ----------------------------------------------------------------------------------------------------------


def test_constructing_runs_nothing(fp: FakeProcess) -> None:
    connection = Connection("web1", user="me", port=22, identity_file="~/id", password="x", env={"A": "1"})
    assert repr(connection) == "<Connection web1>"
    connection.close()
    assert list(fp.calls) == []


def test_one_log_in_for_many_commands(fp: FakeProcess) -> None:
    master = register_log_in(fp)
    session = register_command(fp, "true", occurrences=3)
    with Connection("web1") as connection:
        assert [connection.run("true").exit_code for _ in range(3)] == [0, 0, 0]
    assert (len(master.calls), len(session.calls)) == (1, 3)


def test_threads_share_one_log_in(fp: FakeProcess) -> None:
    master = register_log_in(fp)
    register_command(fp, "true", occurrences=20)
    with Connection("web1") as connection:
        threads = [threading.Thread(target=connection.run, args=("true",)) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert len(master.calls) == 1


def test_master_and_sessions_meet_at_one_private_socket(fp: FakeProcess) -> None:
    recorders = [register_log_in(fp), register_command(fp, "true")]
    connection = Connection("web1", user="me", port=2222, options={"Compression": "yes"})
    connection.run("true")
    (master, session) = recorded_argvs(recorders)
    paths = {word for call in (master, session) for word in call if word.startswith("ControlPath=")}
    assert len(paths) == 1
    directory = Path(paths.pop().removeprefix("ControlPath=")).parent
    assert directory.stat().st_mode & 0o777 == 0o700
    for call in (master, session):
        assert {"User=me", "Port=2222", "Compression=yes"} <= set(call)
    assert master[-2:] == ["--", "web1"]
    assert session[-4:] == ["--", "web1", SHELL_BOOTSTRAP, "true"]
    connection.close()
    assert not directory.exists()


def test_how_processes_are_started(fp: FakeProcess) -> None:
    """Never by a shell, never in reach of a terminal's Ctrl-C, never with our own standard input."""
    recorders = [register_log_in(fp), register_command(fp, "true"), fp.register(["scp", fp.any()])]
    register_command(fp, "'prepare x'", stdout=b"/d\0x\0")
    register_command(fp, "'place x'")
    with Connection("web1") as connection:
        connection.run("true")
        connection.put(__file__, "x")
    calls = [call for recorder in recorders for call in recorder.calls]
    assert len(calls) == 3
    for call in calls:
        assert isinstance(call.args, tuple)
        assert call.kwargs is not None
        assert not call.kwargs.get("shell")
        assert call.kwargs["start_new_session"] is True
        assert call.kwargs["stdin"] is not None


def test_the_script_travels_over_standard_input(fp: FakeProcess) -> None:
    register_log_in(fp)
    session = register_command(fp, "'echo $SECRET'")
    with Connection("web1", env={"SECRET": "hunter2"}) as connection:
        connection.run("echo $SECRET", cwd="/w x", stdin=b"data")
    (call,) = session.calls
    assert not any("hunter2" in str(word) or "/w x" in str(word) for word in call.args)


def test_a_result(fp: FakeProcess) -> None:
    register_log_in(fp)
    register_command(fp, "make", stdout=b"out\xff", stderr=b"err", returncode=7)
    with Connection("web1") as connection:
        result = connection.run("make")
    assert (result.command, result.exit_code) == ("make", 7)
    assert (result.stdout, result.stderr, result.stdout_bytes) == ("out\ufffd", "err", b"out\xff")


@pytest.mark.parametrize("text", ["", "a\0b"])
def test_no_command(fp: FakeProcess, text: str) -> None:
    with Connection("web1") as connection, pytest.raises(ValueError, match="command must be text"):
        connection.run(text)
    assert list(fp.calls) == []


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_no_timeout(fp: FakeProcess, timeout: float) -> None:
    with Connection("web1") as connection, pytest.raises(ValueError, match="timeout must be a positive number"):
        connection.run("true", timeout=timeout)
    assert list(fp.calls) == []


def test_no_environment(fp: FakeProcess) -> None:
    with Connection("web1") as connection, pytest.raises(ValueError, match="environment variable must be"):
        connection.run("true", env={"1": ""})
    with pytest.raises(ValueError, match="the name of an environment variable must be"):
        Connection("web1", env={"a-b": ""})
    assert list(fp.calls) == []


def test_after_the_end(fp: FakeProcess) -> None:
    register_log_in(fp)
    register_command(fp, "true")
    connection = Connection("web1")
    connection.run("true")
    connection.close()
    connection.close()
    with pytest.raises(RuntimeClosedError, match="web1: closed already"):
        connection.run("true")
    assert not connection.is_alive()
    assert len(fp.calls) == 2


def test_is_alive(fp: FakeProcess) -> None:
    register_log_in(fp)
    register_command(fp, "true")
    with Connection("web1") as connection:
        assert connection.is_alive()
        register_command(fp, "true", returncode=1)
        assert not connection.is_alive()


def test_is_alive_never_raises(fp: FakeProcess) -> None:
    fp.register(["ssh", "-f", fp.any()], stderr="ssh: connect to host web1 port 22: No route to host\n", returncode=255)
    with Connection("web1") as connection:
        assert not connection.is_alive()


def test_a_task_over_a_connection(fp: FakeProcess) -> None:
    register_log_in(fp)
    register_command(fp, "nproc", stdout="8\n", occurrences=2)
    task = RuntimeTask("t").run_command("nproc")
    with Connection("web1") as connection:
        assert task.execute(connection) is task
        assert task.copy().execute(connection).execution_log == ["8\n"]


# Logging in ---------------------------------------------------------------------------------------------------------

# What OpenSSH 9.2 prints; the terms of the system are those of glibc.
LOG_IN_FAILURES: list[tuple[type[ConnectError], str]] = [
    (PortRefusedError, "ssh: connect to host web1 port 22: Connection refused"),
    (ConnectTimeoutError, "ssh: connect to host web1 port 22: Connection timed out"),
    (HostUnreachableError, "ssh: connect to host web1 port 22: No route to host"),
    (UnknownHostError, "ssh: Could not resolve hostname web1: Name or service not known"),
    (
        UnknownHostKeyError,
        "No ED25519 host key is known for web1 and you have requested strict checking.\nHost key verification failed.",
    ),
    (
        ChangedHostKeyError,
        "Host key for web1 has changed and you have requested strict checking.\r\nHost key verification failed.",
    ),
    (AuthenticationError, "me@web1: Permission denied (publickey,password)."),
    (SshConfigurationError, "command-line: line 0: Bad configuration option: nonsense"),
    (ConnectError, "something that nobody ever saw"),
    (ConnectError, ""),
]


@pytest.mark.parametrize(("kind", "said"), LOG_IN_FAILURES)
def test_a_log_in_that_fails(fp: FakeProcess, kind: type[ConnectError], said: str) -> None:
    fp.register(["ssh", "-f", fp.any()], stderr=said + "\r\n", returncode=255)
    with Connection("web1") as connection, pytest.raises(ConnectError) as caught:
        connection.run("true")
    assert type(caught.value) is kind
    assert isinstance(caught.value, ValueError)
    assert str(caught.value).startswith("web1: ")
    assert len(fp.calls) == 1


def test_a_log_in_that_fails_leaves_no_directory(fp: FakeProcess, run_directory: Path) -> None:
    before = set(run_directory.iterdir())
    fp.register(["ssh", "-f", fp.any()], stderr="x\n", returncode=255)
    with pytest.raises(ConnectError):
        Connection("web1").run("true")
    assert set(run_directory.iterdir()) == before


def test_after_a_failed_log_in_the_next_use_dials_again(fp: FakeProcess) -> None:
    fp.register(["ssh", "-f", fp.any()], stderr="ssh: connect to host web1 port 22: No route to host", returncode=255)
    register_log_in(fp)
    register_command(fp, "true")
    with Connection("web1") as connection:
        with pytest.raises(HostUnreachableError):
            connection.run("true")
        assert connection.run("true").ok


THROTTLED = "kex_exchange_identification: Connection closed by remote host\r\nConnection closed by 10.0.0.1 port 22\r\n"


def test_above_max_startups_the_log_in_is_tried_again(fp: FakeProcess) -> None:
    fp.register(["ssh", "-f", fp.any()], stderr=THROTTLED, returncode=255, occurrences=2)
    register_log_in(fp)
    register_command(fp, "true")
    with Connection("web1") as connection:
        assert connection.run("true").ok
    assert len(fp.calls) == 4


def test_above_max_startups_for_ever(fp: FakeProcess) -> None:
    fp.register(["ssh", "-f", fp.any()], stderr=THROTTLED, returncode=255, occurrences=50)
    begun = time.monotonic()
    with Connection("web1", connect_timeout=0.5) as connection, pytest.raises(ConnectionThrottledError, match="web1"):
        connection.run("true")
    assert time.monotonic() - begun < 5
    assert len(fp.calls) >= 2


def test_no_ssh_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for password in (None, "hunter2"):
        with Connection("web1", password=password) as connection, pytest.raises(SshNotFoundError) as caught:
            connection.run("true")
        assert isinstance(caught.value.__cause__, FileNotFoundError)
        assert "openssh-client" in str(caught.value)
        assert "hunter2" not in str(caught.value)


def test_ssh_vanishes_after_the_log_in(fp: FakeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register_log_in(fp)
    fp.pass_command(["ssh", "-T", fp.any()])
    with Connection("web1") as connection:
        context_of(connection).transport.connect()
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(SshNotFoundError):
            connection.run("true")


# Clients that know less ----------------------------------------------------------------------------------------------


def test_an_older_client_is_asked_again_without_what_it_does_not_know(fp: FakeProcess) -> None:
    master = register_log_in(fp)
    said = "command-line: line 0: Bad configuration option: {}\r\n"
    sessions = [
        fp.register(["ssh", "-T", fp.any(), "nproc"], stderr=said.format("forkafterauthentication"), returncode=255),
        fp.register(["ssh", "-T", fp.any(), "nproc"], stderr=said.format("stdinnull"), returncode=255),
        fp.register(["ssh", "-T", fp.any(), "nproc"], stderr=said.format("sessiontype"), returncode=255),
        fp.register(["ssh", "-T", fp.any(), "nproc"], stdout="8\n"),
        fp.register(["ssh", "-T", fp.any(), "true"]),
    ]
    with Connection("web1") as connection:
        assert connection.run("nproc").stdout == "8\n"
        assert connection.run("true").ok  # and it is remembered
    asked = [
        {word.partition("=")[0] for word in call} & {"SessionType", "StdinNull", "ForkAfterAuthentication"}
        for call in recorded_argvs(sessions)
    ]
    assert asked == [
        {"SessionType", "StdinNull", "ForkAfterAuthentication"},
        {"SessionType", "StdinNull"},
        {"SessionType"},
        set(),
        set(),
    ]
    assert len(master.calls) == 1


def test_an_option_that_the_user_gave_is_not_left_out(fp: FakeProcess) -> None:
    register_log_in(fp)
    said = "command-line: line 0: Bad configuration option: nonsense\r\n"
    register_command(fp, "true", stderr=said, returncode=255, occurrences=2)
    with Connection("web1", options={"Nonsense": "x"}) as connection, pytest.raises(SshConfigurationError):
        connection.run("true")


# Sessions that the host refuses --------------------------------------------------------------------------------------


def test_refused_session_is_tried_once_more(fp: FakeProcess) -> None:
    master = register_log_in(fp)
    register_command(fp, "true", stderr=REFUSED, returncode=255)
    register_command(fp, "true", stdout="at last")
    with Connection("web1") as connection:
        ssh_client_of(connection).timeouts = Timeouts(session_refused=0.01)
        assert connection.run("true").stdout == "at last"
    assert (len(master.calls), len(fp.calls)) == (1, 3)


def test_refused_session_is_tried_when_another_has_ended(fp: FakeProcess) -> None:
    register_log_in(fp)
    inside, leave = threading.Event(), threading.Event()

    def wait(process: FakePopen) -> None:
        inside.set()
        leave.wait(30)

    register_command(fp, "first", callback=wait)
    register_command(fp, "second", stderr=REFUSED, returncode=255)
    register_command(fp, "second", stdout="done")
    with Connection("web1") as connection:
        ssh_client_of(connection).timeouts = Timeouts(session_refused=1000)
        first = threading.Thread(target=connection.run, args=("first",))
        first.start()
        assert inside.wait(10)
        results: list[str] = []
        second = threading.Thread(target=lambda: results.append(connection.run("second").stdout))
        second.start()
        second.join(0.5)
        assert results == []
        assert len(fp.calls) == 3
        leave.set()
        first.join(10)
        second.join(10)
    assert results == ["done"]


def test_session_refused_twice_is_an_error(fp: FakeProcess) -> None:
    register_log_in(fp)
    refused = register_command(fp, "true", stderr=REFUSED, returncode=255, occurrences=50)
    with Connection("web1") as connection:
        ssh_client_of(connection).timeouts = Timeouts(session_refused=0.01)
        with pytest.raises(SessionRefusedError, match=r"refused by peer.*max_sessions=.*MaxSessions"):
            connection.run("true")
    assert len(refused.calls) == 2


@pytest.mark.parametrize("number", [0, -1, True, 2.5, "3", None])
def test_max_sessions_that_is_no_count_is_refused(number: Any) -> None:
    with pytest.raises(ValueError, match=f"max_sessions must be a whole number from 1 on, got {number!r}"):
        Connection("web1", max_sessions=number)


def test_max_sessions_bounds_the_sessions_at_once(fp: FakeProcess) -> None:
    register_log_in(fp)
    inside, leave = threading.Event(), threading.Event()

    def wait(process: FakePopen) -> None:
        inside.set()
        leave.wait(30)

    register_command(fp, "first", callback=wait)
    with Connection("web1", max_sessions=1) as connection:
        first = threading.Thread(target=connection.run, args=("first",))
        first.start()
        assert inside.wait(10)
        with pytest.raises(CommandTimeoutError):
            connection.run("second", timeout=0.1)
        leave.set()
        first.join(10)
    assert len(fp.calls) == 2


def test_a_timeout_bounds_the_wait_for_a_session(fp: FakeProcess) -> None:
    register_log_in(fp)
    register_command(fp, "true", stderr=REFUSED, returncode=255, occurrences=100)
    with Connection("web1") as connection:
        begun = time.monotonic()
        with pytest.raises(CommandTimeoutError, match=r"timeout of 0.3 s"):
            connection.run("true", timeout=0.3)
        assert time.monotonic() - begun < 10


# Masters that are gone ------------------------------------------------------------------------------------------------


def test_a_stale_control_socket_is_replaced_once(fp: FakeProcess) -> None:
    master = register_log_in(fp, occurrences=2)
    session = register_command(fp, "true", stderr=STALE, returncode=255)
    again = register_command(fp, "true", stdout="fresh")
    with Connection("web1") as connection:
        assert connection.run("true").stdout == "fresh"
    assert len(master.calls) == 2
    sockets = [
        next(word for word in call if word.startswith("ControlPath=")) for call in recorded_argvs([session, again])
    ]
    assert sockets[0] != sockets[1]


def test_a_control_socket_that_stays_stale_is_an_error(fp: FakeProcess) -> None:
    master = register_log_in(fp, occurrences=2)
    register_command(fp, "true", stderr=STALE, returncode=255, occurrences=2)
    with Connection("web1") as connection, pytest.raises(LazyclusterError, match="web1: "):
        connection.run("true")
    assert len(master.calls) == 2


def test_a_command_that_may_have_begun_is_not_run_twice(fp: FakeProcess) -> None:
    register_log_in(fp)
    register_command(
        fp, "true", stderr="mux_client_request_session: read from master failed: Broken pipe\r\n", returncode=255
    )
    with Connection("web1") as connection, pytest.raises(LazyclusterError, match="web1: "):
        connection.run("true")
    assert len(fp.calls) == 2
