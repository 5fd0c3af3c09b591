"""One master for each connection: made once, private, replaced when it fails, and gone with its owner."""

from __future__ import annotations

import gc
import os
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazycluster import (
    CommandTimeoutError,
    Connection,
    ConnectionLostError,
    LazyclusterError,
    RuntimeClosedError,
    SessionRefusedError,
)
from lazycluster._model.timeouts import DEFAULT_TIMEOUTS, Timeouts
from lazycluster._ssh import master
from lazycluster.testing import LocalSshd, write_config
from tests.client_programs import (
    BackgroundCommand,
    ClientProgram,
    assert_becomes_idle,
    call_in_parallel,
    count_connections,
    count_log_ins,
    find_host_pids,
    master_of,
    master_pid_of,
)
from tests.internals import ssh_client_of
from tests.processes import is_alive
from tests.waiting import assert_eventually

if TYPE_CHECKING:
    from tests.sshd_fixtures import MakeSshd


@pytest.fixture(scope="module")
def host(require_sshd: None, run_directory: Path) -> Iterator[LocalSshd]:
    with LocalSshd(environment={"TMPDIR": str(run_directory)}) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_stays_on_the_host(host: LocalSshd) -> Iterator[None]:
    yield
    assert_becomes_idle(host)


@pytest.fixture
def connection(host: LocalSshd) -> Iterator[Connection]:
    with Connection(host.host, **host.connection_kwargs) as connection:
        yield connection


# Made once -----------------------------------------------------------------------------------------------------------


def test_constructing_does_nothing_and_the_first_use_dials(host: LocalSshd) -> None:
    before = count_connections(host)
    connection = Connection(host.host, **host.connection_kwargs)
    assert not ssh_client_of(connection).is_connected
    assert count_connections(host) == before

    with connection:
        assert connection.run("echo here").stdout == "here\n"
        assert count_connections(host) == before + 1
        assert host.connections() == 1


def test_sixteen_threads_at_once_make_one_connection(host: LocalSshd, connection: Connection) -> None:
    before = count_connections(host)

    results = call_in_parallel([lambda n=n: connection.run(f"echo {n}; sleep 0.05") for n in range(16)])  # type: ignore[misc]

    assert [result.stdout for result in results] == [f"{n}\n" for n in range(16)]
    assert {result.stderr for result in results} == {""}
    assert count_connections(host) == before + 1
    assert host.connections() == 1


def test_two_connections_to_one_host_are_apart(host: LocalSshd, connection: Connection) -> None:
    with Connection(host.host, **host.connection_kwargs) as other:
        assert master_pid_of(connection) != master_pid_of(other)
        assert host.connections() == 2
    assert connection.run("echo still").stdout == "still\n"
    assert_eventually(lambda: host.connections() == 1, "the closed connection is gone")


def test_closing_removes_everything_and_is_final(host: LocalSshd) -> None:
    connection = Connection(host.host, **host.connection_kwargs)
    pid, directory = master_pid_of(connection), master_of(connection).socket_path.parent
    begun = time.monotonic()

    connection.close()
    connection.close()

    assert time.monotonic() - begun < 4
    assert not directory.exists()
    assert_eventually(lambda: not is_alive(pid), "the master is gone")
    with pytest.raises(RuntimeClosedError, match=f"{host.host}: closed already"):
        connection.run("true")
    assert not connection.is_alive()


def test_closing_ends_a_command_under_way(host: LocalSshd, connection: Connection) -> None:
    command = BackgroundCommand(connection, "echo up; sleep 1001")
    command.wait_output(b"up")

    connection.close()

    with pytest.raises(LazyclusterError):
        command.join(5)
    assert_becomes_idle(host)


# The socket ----------------------------------------------------------------------------------------------------------


def test_the_socket_is_in_a_private_directory_of_its_own(connection: Connection, run_directory: Path) -> None:
    path = master_of(connection).socket_path

    assert path.parent.parent == run_directory
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.parent.stat().st_uid == os.geteuid()
    assert stat.S_ISSOCK(path.stat().st_mode)


@pytest.mark.parametrize("name", ["x" * 90, "with space", "100%", 'qu"ote'])
def test_a_temporary_directory_that_ssh_cannot_take_is_passed_over(
    host: LocalSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    directory = Path("/tmp", tmp_path.name, name)
    directory.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    try:
        with Connection(host.host, **host.connection_kwargs) as connection:
            path = master_of(connection).socket_path
            assert path.parent.parent == Path("/tmp")
            assert len(os.fsencode(path)) <= master.MAX_SOCKET_PATH_BYTES
            assert connection.run("echo through").stdout == "through\n"
        assert not path.parent.exists()
    finally:
        directory.rmdir()
        directory.parent.rmdir()


def test_the_longest_path_for_a_socket_works(
    host: LocalSshd, monkeypatch: pytest.MonkeyPatch, run_directory: Path
) -> None:
    room = master.MAX_SOCKET_PATH_BYTES - len(f"{run_directory}//lazycluster-m-12345678/m")
    directory = run_directory / ("x" * room)
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))

    with Connection(host.host, **host.connection_kwargs) as connection:
        path = master_of(connection).socket_path
        assert path.parent.parent == directory
        assert len(os.fsencode(path)) == master.MAX_SOCKET_PATH_BYTES
        assert connection.run("echo through").stdout == "through\n"
    directory.rmdir()


# A master that fails -------------------------------------------------------------------------------------------------


def _kill(connection: Connection, host: LocalSshd) -> None:
    os.kill(master_pid_of(connection), signal.SIGKILL)


def _terminate(connection: Connection, host: LocalSshd) -> None:
    os.kill(master_pid_of(connection), signal.SIGTERM)


def _ask_to_exit(connection: Connection, host: LocalSshd) -> None:
    path = master_of(connection).socket_path
    argv = ("ssh", "-F", str(host.config_file), "-o", f"ControlPath={path}", "-O", "exit", host.host)
    subprocess.run(argv, check=True, capture_output=True, timeout=10)


def _break_link(connection: Connection, host: LocalSshd) -> None:
    host.kill_connections()


def _remove_files(connection: Connection, host: LocalSshd) -> None:
    for path in master_of(connection).socket_path.parent.iterdir():
        path.unlink()


@pytest.mark.parametrize("end", [_kill, _terminate, _ask_to_exit, _break_link])
def test_a_master_that_ended_between_calls_is_replaced(host: LocalSshd, connection: Connection, end: object) -> None:
    pid, old = master_pid_of(connection), master_of(connection).socket_path.parent
    assert callable(end)
    end(connection, host)
    assert_eventually(lambda: not is_alive(pid), "the master is gone")
    assert_eventually(lambda: host.connections() == 0, "its connection is gone")

    assert connection.run("echo again").stdout == "again\n"

    assert master_pid_of(connection) != pid
    assert not old.exists()
    assert host.connections() == 1


def test_a_master_whose_socket_was_removed_is_replaced(host: LocalSshd, connection: Connection) -> None:
    pid = master_pid_of(connection)
    _remove_files(connection, host)

    assert connection.run("echo again").stdout == "again\n"

    assert_eventually(lambda: not is_alive(pid), "the useless master is gone")
    assert_eventually(lambda: host.connections() == 1, "its connection is gone")


def test_sixteen_threads_find_a_dead_master_and_make_one(host: LocalSshd, connection: Connection) -> None:
    pid = master_pid_of(connection)
    before = count_connections(host)
    os.kill(pid, signal.SIGKILL)

    results = call_in_parallel([lambda n=n: connection.run(f"echo {n}") for n in range(16)])  # type: ignore[misc]

    assert [result.stdout for result in results] == [f"{n}\n" for n in range(16)]
    assert count_connections(host) == before + 1


def test_a_stopped_master_is_found_killed_and_replaced(host: LocalSshd, connection: Connection) -> None:
    assert DEFAULT_TIMEOUTS.control_socket <= 5
    ssh_client_of(connection).timeouts = Timeouts(control_socket=1.0)
    pid, old = master_pid_of(connection), master_of(connection).socket_path.parent
    os.kill(pid, signal.SIGSTOP)
    begun = time.monotonic()

    assert connection.run("echo again").stdout == "again\n"

    assert 0.9 < time.monotonic() - begun < 5
    assert master_pid_of(connection) != pid
    assert_eventually(lambda: not is_alive(pid), "the stopped master is gone")
    assert not old.exists()
    assert_eventually(lambda: host.connections() == 1, "its connection is gone")


def test_a_stopped_master_does_not_hold_up_closing(host: LocalSshd, connection: Connection) -> None:
    pid = master_pid_of(connection)
    os.kill(pid, signal.SIGSTOP)
    begun = time.monotonic()

    connection.close()

    assert time.monotonic() - begun < 5
    assert_eventually(lambda: not is_alive(pid), "the stopped master is gone")


def test_a_master_stopped_during_a_command_is_an_error_in_bounded_time(host: LocalSshd, connection: Connection) -> None:
    assert DEFAULT_TIMEOUTS.master_check_interval + DEFAULT_TIMEOUTS.control_socket < 20
    ssh_client_of(connection).timeouts = Timeouts(master_check_interval=0.5, control_socket=1.0)
    pid = master_pid_of(connection)
    command = BackgroundCommand(connection, "echo up; sleep 1002")
    command.wait_output(b"up")
    os.kill(pid, signal.SIGSTOP)

    with pytest.raises(ConnectionLostError) as caught:
        command.join(5)

    assert "does not answer" in str(caught.value)
    assert "sleep 1002" in str(caught.value)
    assert host.host in str(caught.value)
    assert_eventually(lambda: not is_alive(pid), "the stopped master is gone")
    assert_becomes_idle(host)
    assert connection.run("echo again").stdout == "again\n"


def test_a_timeout_holds_with_a_stopped_master(host: LocalSshd, connection: Connection) -> None:
    pid = master_pid_of(connection)
    command = BackgroundCommand(connection, "echo up; sleep 1003", timeout=0.5)
    command.wait_output(b"up")
    os.kill(pid, signal.SIGSTOP)

    with pytest.raises(CommandTimeoutError):
        command.join(3)

    connection.close()
    assert_becomes_idle(host)


def test_a_slow_command_that_prints_nothing_is_not_taken_for_a_wedged_master(connection: Connection) -> None:
    ssh_client_of(connection).timeouts = Timeouts(master_check_interval=0.1)

    assert connection.run("sleep 1; echo done").stdout == "done\n"


# Never twice ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [_kill, _break_link])
def test_a_command_that_had_started_is_not_run_again(host: LocalSshd, connection: Connection, end: object) -> None:
    counter = host.home / "counter"
    counter.unlink(missing_ok=True)
    command = BackgroundCommand(connection, "echo x >>counter; echo up; sleep 1004")
    command.wait_output(b"up")
    assert callable(end)
    end(connection, host)

    with pytest.raises(ConnectionLostError) as caught:
        command.join(5)

    assert caught.value.started is True
    assert isinstance(caught.value, ConnectionError)
    assert "It had started on the host" in str(caught.value)
    assert_becomes_idle(host, 10)
    assert counter.read_text() == "x\n"
    assert connection.run("cat counter").stdout == "x\n"


def test_a_master_killed_at_any_moment_never_makes_a_command_run_twice(host: LocalSshd, connection: Connection) -> None:
    counter = host.home / "counter-any"
    for attempt in range(12):
        counter.unlink(missing_ok=True)
        pid = master_pid_of(connection)
        command = BackgroundCommand(connection, "echo x >>counter-any; sleep 0.02; echo ran")
        time.sleep(0.0025 * attempt)  # not a wait for anything: the moment of the kill is what is varied
        os.kill(pid, signal.SIGKILL)
        try:
            succeeded = command.join(10).stdout == "ran\n"
        except ConnectionLostError:
            succeeded = False
        becomes_idle_but_one(host)
        ran = counter.read_text().count("x") if counter.exists() else 0
        assert ran <= 1
        assert ran == 1 or not succeeded


def becomes_idle_but_one(host: LocalSshd) -> None:
    """Wait until no command runs; the connection of the next one may be there."""
    assert_eventually(lambda: not find_host_pids(host, "sleep 0.02"), "the command has ended")


def test_the_ssh_process_of_a_session_killed_here_is_a_lost_connection(host: LocalSshd, connection: Connection) -> None:
    command = BackgroundCommand(connection, "echo up; sleep 1005")
    command.wait_output(b"up")
    children = Path("/proc/self/task")
    clients = {int(pid) for task in children.iterdir() for pid in (task / "children").read_text().split()}
    clients -= {host.pid}
    mine = [pid for pid in clients if b"sleep 1005" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(mine) == 1

    os.kill(mine[0], signal.SIGKILL)

    with pytest.raises(ConnectionLostError):
        command.join(5)
    assert_eventually(lambda: not find_host_pids(host, "sleep 1005"), "the command has ended", 10)


# The user's own configuration ----------------------------------------------------------------------------------------


def test_a_users_own_master_is_neither_used_nor_harmed(host: LocalSshd, tmp_path: Path, run_directory: Path) -> None:
    path = run_directory / "user-master"
    extra = f"Host *\n    ControlMaster auto\n    ControlPath {path}\n    ControlPersist 60\n"
    config = write_config(tmp_path / "config", host, extra=extra)
    plain = ("ssh", "-F", str(config))
    try:
        null = subprocess.DEVNULL
        subprocess.run((*plain, "-f", "-N", host.host), check=True, timeout=20, stdin=null, stdout=null, stderr=null)
        before = count_log_ins(host)
        with Connection(host.host, config_file=config) as connection:
            assert connection.run("echo ours").stdout == "ours\n"
            connection.put(config, "put-beside")
            assert count_log_ins(host) == before + 1
            assert host.connections() == 2
            assert master_pid_of(connection)
        assert_eventually(lambda: host.connections() == 1, "only the user's connection is left")

        ended = subprocess.run((*plain, host.host, "echo theirs"), capture_output=True, timeout=20, check=True)
        assert ended.stdout == b"theirs\n"
        assert count_log_ins(host) == before + 1
    finally:
        subprocess.run((*plain, "-O", "exit", host.host), capture_output=True, timeout=20, check=False)
    assert_eventually(lambda: not path.exists(), "the user's master is gone")


def test_a_users_socket_is_not_made(host: LocalSshd, tmp_path: Path, run_directory: Path) -> None:
    path = run_directory / "never"
    extra = f"Host *\n    ControlMaster auto\n    ControlPath {path}\n    ControlPersist yes\n"

    with Connection(host.host, config_file=write_config(tmp_path / "config", host, extra=extra)) as connection:
        assert connection.run("echo ours").stdout == "ours\n"
        assert not path.exists()


PERSONAL = {
    "RemoteCommand": "RemoteCommand echo remote",
    "RequestTTY": "RequestTTY force",
    "RemoteCommand and RequestTTY": "RequestTTY yes\n    RemoteCommand tmux",
    "SessionType none": "SessionType none",
    "SessionType subsystem": "SessionType subsystem",
    "ForkAfterAuthentication": "ForkAfterAuthentication yes",
    "StdinNull": "StdinNull yes",
    "LocalCommand": "PermitLocalCommand yes\n    LocalCommand touch {touched}",
    "LogLevel QUIET": "LogLevel QUIET",
    "LogLevel DEBUG3": "LogLevel DEBUG3",
    "ControlMaster auto": "ControlMaster auto\n    ControlPath {touched}",
    "ControlMaster ask": "ControlMaster ask\n    ControlPath {touched}",
    "LocalForward": "ExitOnForwardFailure yes\n    LocalForward 127.0.0.1:{busy} 127.0.0.1:1",
    "RemoteForward": "ExitOnForwardFailure yes\n    RemoteForward 127.0.0.1:{busy} 127.0.0.1:1",
    "DynamicForward": "ExitOnForwardFailure yes\n    DynamicForward 127.0.0.1:{busy}",
    "VisualHostKey": "VisualHostKey yes",
    "what changes little": "ForwardAgent yes\n    Compression yes\n    BatchMode no\n    UpdateHostKeys ask\n"
    "    ProxyUseFdpass yes\n    SetEnv FOO=bar\n    SendEnv *\n    EscapeChar x\n    EnableEscapeCommandline yes",
    "ForwardX11": "ForwardX11 yes\n    ForwardX11Trusted yes\n    XAuthLocation /bin/false",
}


@pytest.mark.parametrize("lines", PERSONAL.values(), ids=PERSONAL.keys())
def test_what_is_meant_for_a_person_at_a_terminal_disturbs_nothing(
    host: LocalSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str
) -> None:
    monkeypatch.setenv("DISPLAY", "127.0.0.1:77")
    touched = tmp_path / "touched"
    with socket.create_server(("127.0.0.1", 0)) as busy:
        text = lines.format(touched=touched, busy=busy.getsockname()[1])
        ignored = "IgnoreUnknown EnableEscapeCommandline,SessionType,StdinNull,ForkAfterAuthentication"
        config = write_config(tmp_path / "config", ignored, host, extra=f"Host *\n    {text}\n")
        before = count_connections(host)
        with Connection(host.host, config_file=config) as connection:
            result = connection.run("printf 'out\\n'; cat; [ -t 1 ]; printf 'err\\n' >&2; exit 3", stdin=b"~.in")
            assert (result.stdout, result.stderr, result.exit_code) == ("out\n~.in", "err\n", 3)
            (tmp_path / "file").write_text("content")
            connection.put(tmp_path / "file", "personal-file")
            assert (host.home / "personal-file").read_text() == "content"
        assert count_connections(host) == before + 1
    assert not touched.exists()


def test_a_banner_and_a_message_of_the_day_disturb_nothing(make_sshd: MakeSshd, tmp_path: Path) -> None:
    (tmp_path / "banner").write_text("No trespassing!\n" * 100)
    server = make_sshd(options={"Banner": str(tmp_path / "banner"), "PrintMotd": "yes", "PrintLastLog": "yes"})

    with Connection(server.host, **server.connection_kwargs) as connection:
        result = connection.run("printf out; printf err >&2")
        assert (result.stdout, result.stderr, result.exit_code) == ("out", "err", 0)


# MaxSessions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 3, 10])
def test_more_commands_than_the_host_allows_at_once_wait_for_their_turn(make_sshd: MakeSshd, limit: int) -> None:
    server = make_sshd(options={"MaxSessions": str(limit)})
    before = count_connections(server)
    with Connection(server.host, max_sessions=limit, **server.connection_kwargs) as connection:
        results = call_in_parallel([lambda n=n: connection.run(f"echo {n}; echo e >&2") for n in range(40)])  # type: ignore[misc]

        assert [(result.stdout, result.stderr) for result in results] == [(f"{n}\n", "e\n") for n in range(40)]
        assert count_connections(server) == before + 1
        assert server.connections() == 1


def test_a_command_that_finds_no_free_session_in_time_says_so(make_sshd: MakeSshd) -> None:
    server = make_sshd(options={"MaxSessions": "1"})
    with Connection(server.host, max_sessions=1, **server.connection_kwargs) as connection:
        command = BackgroundCommand(connection, "echo up; sleep 1006")
        command.wait_output(b"up")
        begun = time.monotonic()

        with pytest.raises(CommandTimeoutError, match="echo never"):
            connection.run("echo never", timeout=0.5)

        assert time.monotonic() - begun < 5
        connection.close()
        with pytest.raises(LazyclusterError):
            command.join(5)


def test_fewer_sessions_than_max_sessions_are_an_error(make_sshd: MakeSshd) -> None:
    server = make_sshd(options={"MaxSessions": "1"})
    with Connection(server.host, **server.connection_kwargs) as connection:
        command = BackgroundCommand(connection, "echo up; sleep 1006")
        command.wait_output(b"up")

        with pytest.raises(SessionRefusedError, match="Set `max_sessions=` to the MaxSessions"):
            connection.run("echo never")

        connection.close()
        with pytest.raises(LazyclusterError):
            command.join(5)


def test_a_host_that_allows_no_session_is_an_error_in_bounded_time(make_sshd: MakeSshd) -> None:
    server = make_sshd(options={"MaxSessions": "0"})
    before = count_connections(server)
    with Connection(server.host, **server.connection_kwargs) as connection:
        begun = time.monotonic()

        with pytest.raises(SessionRefusedError) as caught:
            connection.run("echo never")

        assert time.monotonic() - begun < 10
        assert str(caught.value).startswith(f"{server.host}: refused a session for `echo never`")
        assert "MaxSessions" in str(caught.value)
        assert count_connections(server) == before + 1
        assert not connection.is_alive()


# The end of the owner ------------------------------------------------------------------------------------------------

_BUSY = """
    ready = threading.Event()
    run = lambda: connection.run("echo up; sleep 1007", on_output=lambda stream, data: ready.set())
    threading.Thread(target=run, daemon=True).start()
    ready.wait()
    say(master().pid)
"""


def test_nothing_outlives_a_manager_that_is_killed(host: LocalSshd, temporary: Path) -> None:
    environment = {"TMPDIR": str(temporary)}
    signals = (signal.SIGKILL, signal.SIGTERM)
    with ExitStack() as stack:
        programs = [
            stack.enter_context(ClientProgram(_BUSY + "    time.sleep(1000)", server=host, environment=environment))
            for _ in signals
        ]
        pids = [int(program.read_line()) for program in programs]
        assert all(map(is_alive, pids))
        assert_eventually(lambda: len(find_host_pids(host, "sleep 1007")) == 2, "the commands of both run")
        for program, number in zip(programs, signals, strict=True):
            program.process.send_signal(number)
            assert program.wait()[0] == -number

    assert_eventually(lambda: not any(map(is_alive, pids)), "the masters are gone", 10)
    assert_becomes_idle(host, 10)
    assert not list(temporary.glob("*/m")), "a socket is left"

    # The directories, which nobody was left to remove, go with the next manager.
    with ClientProgram("connection.run('true')", server=host, environment=environment) as program:
        assert program.wait()[0] == 0
    assert list(temporary.iterdir()) == []


def test_what_a_living_manager_holds_is_not_swept_up(host: LocalSshd, temporary: Path) -> None:
    text = "connection.run('true'); say('up'); sys.stdin.readline(); say(connection.run('echo still').stdout.strip())"
    before = count_connections(host)
    with ClientProgram(text, server=host, environment={"TMPDIR": str(temporary)}) as program:
        assert program.read_line() == "up"
        with ClientProgram("connection.run('true')", server=host, environment={"TMPDIR": str(temporary)}) as other:
            assert other.wait()[0] == 0
        assert len(list(temporary.glob("*/m"))) == 1
        assert program.wait()[:2] == (0, "still\n")
    assert count_connections(host) == before + 2


@pytest.fixture
def temporary(run_directory: Path) -> Iterator[Path]:
    """Return a directory for TMPDIR with a short path, which must be empty in the end."""
    directory = Path(tempfile.mkdtemp(prefix="e", dir=run_directory))
    yield directory
    directory.rmdir()


ENDINGS = {
    "end of the text": ("", 0),
    "sys.exit": ("    sys.exit(3)", 3),
    "exception": ("    raise RuntimeError('wanted')", 1),
    "interrupt": ("    signal.raise_signal(signal.SIGINT)", -signal.SIGINT),
}


@pytest.mark.parametrize(("text", "status"), ENDINGS.values(), ids=ENDINGS.keys())
def test_a_program_that_ends_leaves_nothing(host: LocalSshd, temporary: Path, text: str, status: int) -> None:
    with ClientProgram(_BUSY + text, server=host, environment={"TMPDIR": str(temporary)}) as program:
        pid = int(program.read_line())
        begun = time.monotonic()
        ended, _, stderr = program.wait()

    assert ended == status, stderr
    assert time.monotonic() - begun < 5
    assert "Exception ignored" not in stderr
    assert list(temporary.iterdir()) == []
    assert_eventually(lambda: not is_alive(pid), "the master is gone")
    assert_becomes_idle(host)


def test_a_fork_neither_uses_nor_ends_its_parents_connection(host: LocalSshd) -> None:
    text = """
        connection.run("true")
        pid = master().pid
        child = os.fork()
        if child == 0:
            other = connection.run("echo child")
            say(other.stdout.strip(), master().pid != pid)
            connection.close()
            sys.exit(0)
        say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        say(master().pid == pid, master().socket_path.exists())
        say(connection.run("echo parent").stdout.strip())
    """
    before = count_connections(host)
    with ClientProgram(text, server=host) as program:
        status, stdout, stderr = program.wait()

    assert (status, stderr) == (0, "")
    assert stdout.splitlines() == ["child True", "0", "True True", "parent"]
    assert count_connections(host) == before + 2


def test_a_fork_that_does_nothing_leaves_the_connection_alone(host: LocalSshd) -> None:
    text = """
        connection.run("true")
        pid = master().pid
        child = os.fork()
        if child == 0:
            sys.exit(0)
        os.waitpid(child, 0)
        say(connection.run("echo parent").stdout.strip(), master().pid == pid)
        child = os.fork()
        if child == 0:
            time.sleep(1000)
        say(pid, child)
    """
    with ClientProgram(text, server=host) as program:
        assert program.read_line() == "parent True"
        pid, child = map(int, program.read_line().split())
        assert program.process.wait(10) == 0
        try:
            assert_eventually(lambda: not is_alive(pid), "a living child does not hold the master", 10)
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_fork_while_another_thread_dials_does_not_hang(host: LocalSshd) -> None:
    text = """
        dialling = threading.Thread(target=lambda: connection.run("true"))
        dialling.start()
        time.sleep(0.05)
        child = os.fork()
        if child == 0:
            say(connection.run("echo child").stdout.strip())
            connection.close()
            os._exit(0)
        say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        dialling.join()
    """
    with ClientProgram(text, server=host, environment={"PYTHONWARNINGS": "ignore"}) as program:
        status, stdout, stderr = program.wait(20)

    assert (status, stdout.split(), stderr) == (0, ["child", "0"], "")


def test_a_connection_that_nobody_holds_any_more_ends(host: LocalSshd) -> None:
    connection = Connection(host.host, **host.connection_kwargs)
    connection.run("true")
    pid, directory = master_pid_of(connection), master_of(connection).socket_path.parent

    del connection
    gc.collect()

    assert_eventually(lambda: not is_alive(pid), "the master is gone")
    assert_becomes_idle(host)
    assert not directory.exists()


def test_output_handlers_that_raise_end_the_command_and_not_the_connection(
    host: LocalSshd, connection: Connection
) -> None:
    def fail(stream: object, data: bytes) -> None:
        raise ZeroDivisionError

    pid = master_pid_of(connection)
    with pytest.raises(ZeroDivisionError):
        connection.run("echo up; sleep 1008", on_output=fail)

    assert_eventually(lambda: not find_host_pids(host, "sleep 1008"), "the command has ended", 10)
    assert master_pid_of(connection) == pid
