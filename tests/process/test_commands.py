"""Commands with pytest-subprocess in place of ssh: the calls of ssh, and the results and errors of its output."""

from __future__ import annotations

import threading
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
    PortRefusedError,
    Runtime,
    RuntimeClosedError,
    RuntimeTask,
    SshConfigurationError,
    SshNotFoundError,
    UnknownHostError,
    UnknownHostKeyError,
)
from tests.process.fake_ssh import recorded_argvs, register_command, register_log_in

REFUSED = "mux_client_request_session: session request failed: Session open refused by peer\r\n"
STALE = "Control socket connect(/tmp/lazycluster-x/m): Connection refused\r\n"


# The calls -----------------------------------------------------------------------------------------------------------


def test_connection_init_starts_no_program(fp: FakeProcess) -> None:
    connection = Connection("web1", user="me", port=22, identity_file="~/id", password="x", env={"A": "1"})
    assert repr(connection) == "<Connection web1>"
    connection.close()
    assert list(fp.calls) == []


def test_connection_many_commands_log_in_once(fp: FakeProcess) -> None:
    master = register_log_in(fp)
    session = register_command(fp, "true", occurrences=3)
    with Connection("web1") as connection:
        assert [connection.run("true").exit_code for _ in range(3)] == [0, 0, 0]
    assert (len(master.calls), len(session.calls)) == (1, 3)


def test_connection_many_threads_log_in_once(fp: FakeProcess) -> None:
    master = register_log_in(fp)
    register_command(fp, "true", occurrences=20)
    with Connection("web1") as connection:
        threads = [threading.Thread(target=connection.run, args=("true",)) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert len(master.calls) == 1


def test_connection_sessions_use_private_control_socket(fp: FakeProcess) -> None:
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
    assert (session[-4:-2], session[-1]) == (["--", "web1"], "true")
    connection.close()
    assert not directory.exists()


def test_connection_starts_programs_without_shell(fp: FakeProcess) -> None:
    """Ctrl-C at a terminal does not reach the programs, and they do not read the standard input of this process."""
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


def test_run_script_is_not_in_arguments(fp: FakeProcess) -> None:
    register_log_in(fp)
    session = register_command(fp, "'echo $SECRET'")
    with Connection("web1", env={"SECRET": "hunter2"}) as connection:
        connection.run("echo $SECRET", cwd="/w x", stdin=b"data")
    (call,) = session.calls
    assert not any("hunter2" in str(word) or "/w x" in str(word) for word in call.args)


def test_run_result_fields(fp: FakeProcess) -> None:
    register_log_in(fp)
    register_command(fp, "make", stdout=b"out\xff", stderr=b"err", returncode=7)
    with Connection("web1") as connection:
        result = connection.run("make")
    assert (result.command, result.exit_code) == ("make", 7)
    assert (result.stdout, result.stderr, result.stdout_bytes) == ("out\ufffd", "err", b"out\xff")


INVALID_ARGUMENTS: list[tuple[str, dict[str, Any]]] = [
    *((host, {}) for host in ("", "-oProxyCommand=touch x", "-J", "a\nb", "a\0b", "a\x1b[2Jb", "a b", "a;b", "$(id)")),
    *(("web1", {"port": port}) for port in (0, -1, 65536, "22", True)),
    *(("web1", {"user": user}) for user in ("", "-l", "a\nb")),
    *(("web1", {"env": {name: "x"}}) for name in ("A B", "1A", "", "A=B", "A;id", "A\nB", "A-B", "Ä")),
    *(("web1", {"env": {"A": value}}) for value in ("x\0y", 1)),
    *(("web1", {"connect_timeout": timeout}) for timeout in (0, float("nan"))),
    *(("web1", {"max_sessions": number}) for number in (0, -1, True, 2.5, "3", None)),
    ("web1", {"options": {"Bad Key": "x"}}),
    ("web1", {"options": {"Port": "1\nProxyCommand=x"}}),
    ("web1", {"options": {"ControlPath": "/x"}}),
    ("web1", {"options": {"batchmode": "no"}}),
]
PARAMETER_IN_ERROR = {"env": "environment variable", "options": "option|keyword"}


@pytest.mark.parametrize(("host", "keywords"), INVALID_ARGUMENTS)
def test_connection_invalid_argument_starts_no_program(fp: FakeProcess, host: str, keywords: dict[str, Any]) -> None:
    parameter = next(iter(keywords), "host")
    with pytest.raises(ValueError, match=PARAMETER_IN_ERROR.get(parameter, parameter)):
        Connection(host, **keywords)
    with pytest.raises(ValueError, match=PARAMETER_IN_ERROR.get(parameter, parameter)):
        Runtime(host, **keywords)
    assert list(fp.calls) == []


@pytest.mark.parametrize("text", ["", "a\0b"], ids=["empty", "NUL"])
def test_run_invalid_command_starts_no_program(fp: FakeProcess, text: str) -> None:
    with Connection("web1") as connection, pytest.raises(ValueError, match="command"):
        connection.run(text)
    assert list(fp.calls) == []


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), True, "1"])
def test_run_invalid_timeout_starts_no_program(fp: FakeProcess, timeout: Any) -> None:
    with Connection("web1") as connection, pytest.raises(ValueError, match="timeout"):
        connection.run("true", timeout=timeout)
    assert list(fp.calls) == []


@pytest.mark.parametrize("name", ["A B", "1A", "1", "", "A=B", "A\nB", "A-B"])
def test_run_invalid_env_starts_no_program(fp: FakeProcess, name: str) -> None:
    with Connection("web1") as connection, pytest.raises(ValueError, match="environment variable"):
        connection.run("true", env={name: ""})
    assert list(fp.calls) == []


def test_connection_closed_refuses_commands(fp: FakeProcess) -> None:
    register_log_in(fp)
    register_command(fp, "true")
    connection = Connection("web1")
    connection.run("true")
    connection.close()
    connection.close()
    with pytest.raises(RuntimeClosedError):
        connection.run("true")
    assert not connection.is_alive()
    assert len(fp.calls) == 2


def test_connection_is_alive(fp: FakeProcess) -> None:
    register_log_in(fp)
    register_command(fp, "true")
    with Connection("web1") as connection:
        assert connection.is_alive()
        register_command(fp, "true", returncode=1)
        assert not connection.is_alive()


def test_connection_is_alive_login_failure_is_false(fp: FakeProcess) -> None:
    fp.register(["ssh", "-f", fp.any()], stderr="ssh: connect to host web1 port 22: No route to host\n", returncode=255)
    with Connection("web1") as connection:
        assert not connection.is_alive()


def test_task_execute_over_connection(fp: FakeProcess) -> None:
    register_log_in(fp)
    register_command(fp, "nproc", stdout="8\n", occurrences=2)
    task = RuntimeTask("t").run_command("nproc")
    with Connection("web1") as connection:
        assert task.execute(connection) is task
        assert task.copy().execute(connection).execution_log == ["8\n"]


# Logging in ----------------------------------------------------------------------------------------------------------

# The messages of OpenSSH 9.2, with the error texts of glibc.
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
    (ConnectError, "a message of no known kind"),
    (ConnectError, ""),
]


@pytest.mark.parametrize(("kind", "message"), LOG_IN_FAILURES)
def test_login_failure_kind(fp: FakeProcess, kind: type[ConnectError], message: str) -> None:
    fp.register(["ssh", "-f", fp.any()], stderr=message + "\r\n", returncode=255)
    with Connection("web1") as connection, pytest.raises(ConnectError) as caught:
        connection.run("true")
    assert type(caught.value) is kind
    assert isinstance(caught.value, ValueError)
    assert caught.value.host == "web1"
    assert len(fp.calls) == 1


def test_login_failure_leaves_no_directory(fp: FakeProcess, run_directory: Path) -> None:
    before = set(run_directory.iterdir())
    fp.register(["ssh", "-f", fp.any()], stderr="x\n", returncode=255)
    with pytest.raises(ConnectError):
        Connection("web1").run("true")
    assert set(run_directory.iterdir()) == before


def test_login_failure_is_tried_again_at_next_use(fp: FakeProcess) -> None:
    fp.register(["ssh", "-f", fp.any()], stderr="ssh: connect to host web1 port 22: No route to host", returncode=255)
    register_log_in(fp)
    register_command(fp, "true")
    with Connection("web1") as connection:
        with pytest.raises(HostUnreachableError):
            connection.run("true")
        assert connection.run("true").ok


THROTTLED = "kex_exchange_identification: Connection closed by remote host\r\nConnection closed by 10.0.0.1 port 22\r\n"


def test_login_throttled_is_tried_again(fp: FakeProcess) -> None:
    fp.register(["ssh", "-f", fp.any()], stderr=THROTTLED, returncode=255, occurrences=2)
    register_log_in(fp)
    register_command(fp, "true")
    with Connection("web1") as connection:
        assert connection.run("true").ok
    assert len(fp.calls) == 4


def test_login_throttled_until_timeout_raises(fp: FakeProcess) -> None:
    fp.register(["ssh", "-f", fp.any()], stderr=THROTTLED, returncode=255, occurrences=50)
    with Connection("web1", connect_timeout=2.0) as connection, pytest.raises(ConnectionThrottledError):
        connection.run("true")
    assert len(fp.calls) >= 2


def test_login_without_ssh_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for password in (None, "hunter2"):
        with Connection("web1", password=password) as connection, pytest.raises(SshNotFoundError) as caught:
            connection.run("true")
        assert isinstance(caught.value.__cause__, FileNotFoundError)
        assert "hunter2" not in str(caught.value)


def test_run_without_ssh_after_login_raises(fp: FakeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register_log_in(fp)
    register_command(fp, "true")
    fp.pass_command(["ssh", "-T", fp.any(), "nproc"])
    with Connection("web1") as connection:
        connection.run("true")
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(SshNotFoundError):
            connection.run("nproc")


# Old versions of ssh -------------------------------------------------------------------------------------------------


def test_run_old_ssh_leaves_out_unsupported_options(fp: FakeProcess) -> None:
    master = register_log_in(fp)
    bad_option = "command-line: line 0: Bad configuration option: {}\r\n"
    sessions = [
        register_command(fp, "nproc", stderr=bad_option.format("forkafterauthentication"), returncode=255),
        register_command(fp, "nproc", stderr=bad_option.format("stdinnull"), returncode=255),
        register_command(fp, "nproc", stderr=bad_option.format("sessiontype"), returncode=255),
        fp.register(["ssh", "-T", fp.any(), "nproc"], stdout="8\n"),
        fp.register(["ssh", "-T", fp.any(), "true"]),
    ]
    with Connection("web1") as connection:
        assert connection.run("nproc").stdout == "8\n"
        assert connection.run("true").ok  # the client remembers them
    options = [
        {word.partition("=")[0] for word in call} & {"SessionType", "StdinNull", "ForkAfterAuthentication"}
        for call in recorded_argvs(sessions)
    ]
    assert options == [
        {"SessionType", "StdinNull", "ForkAfterAuthentication"},
        {"SessionType", "StdinNull"},
        {"SessionType"},
        set(),
        set(),
    ]
    assert len(master.calls) == 1


def test_run_unsupported_user_option_raises(fp: FakeProcess) -> None:
    register_log_in(fp)
    bad_option = "command-line: line 0: Bad configuration option: nonsense\r\n"
    register_command(fp, "true", stderr=bad_option, returncode=255, occurrences=2)
    with Connection("web1", options={"Nonsense": "x"}) as connection, pytest.raises(SshConfigurationError):
        connection.run("true")


# Sessions that the host refuses --------------------------------------------------------------------------------------


def test_max_sessions_bounds_sessions_at_once(fp: FakeProcess) -> None:
    register_log_in(fp)
    is_running, may_end = threading.Event(), threading.Event()

    def wait(process: FakePopen) -> None:
        is_running.set()
        may_end.wait(30)

    register_command(fp, "first", callback=wait)
    with Connection("web1", max_sessions=1) as connection:
        first = threading.Thread(target=connection.run, args=("first",))
        first.start()
        assert is_running.wait(10)
        with pytest.raises(CommandTimeoutError):
            connection.run("second", timeout=0.1)
        may_end.set()
        first.join(10)
    assert len(fp.calls) == 2


def test_run_timeout_bounds_wait_for_session(fp: FakeProcess) -> None:
    register_log_in(fp)
    register_command(fp, "true", stderr=REFUSED, returncode=255, occurrences=100)
    with Connection("web1") as connection, pytest.raises(CommandTimeoutError) as caught:
        connection.run("true", timeout=0.3)
    assert caught.value.timeout == 0.3


# Masters that have ended ---------------------------------------------------------------------------------------------


def test_run_stale_control_socket_logs_in_again(fp: FakeProcess) -> None:
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


def test_run_control_socket_stale_twice_raises(fp: FakeProcess) -> None:
    master = register_log_in(fp, occurrences=2)
    register_command(fp, "true", stderr=STALE, returncode=255, occurrences=2)
    with Connection("web1") as connection, pytest.raises(ConnectError):
        connection.run("true")
    assert len(master.calls) == 2


def test_run_maybe_started_command_is_not_repeated(fp: FakeProcess) -> None:
    register_log_in(fp)
    register_command(
        fp, "true", stderr="mux_client_request_session: read from master failed: Broken pipe\r\n", returncode=255
    )
    with Connection("web1") as connection, pytest.raises(ConnectError):
        connection.run("true")
    assert len(fp.calls) == 2
