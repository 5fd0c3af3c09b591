"""The master of a connection: one per connection, private, replaced when it fails, ended with its owner."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
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
from lazycluster.testing import LocalSshd, write_config
from tests.client_programs import (
    BackgroundCommand,
    ClientProgram,
    MasterProcess,
    assert_becomes_idle,
    call_in_parallel,
    count_connections,
    count_log_ins,
    find_host_pids,
    find_master,
    find_masters,
)
from tests.processes import child_pids, command_line, is_alive
from tests.waiting import assert_eventually, wait_until

if TYPE_CHECKING:
    from tests.sshd_fixtures import MakeSshd


@pytest.fixture(scope="module")
def host(require_sshd: None, run_directory: Path) -> Iterator[LocalSshd]:
    with LocalSshd(environment={"TMPDIR": str(run_directory)}) as server:
        yield server


@pytest.fixture(autouse=True)
def host_becomes_idle(host: LocalSshd) -> Iterator[None]:
    yield
    assert_becomes_idle(host)


@pytest.fixture
def connection(host: LocalSshd) -> Iterator[Connection]:
    with Connection(host.host, **host.connection_kwargs) as connection:
        yield connection


@pytest.fixture
def master(host: LocalSshd, connection: Connection) -> MasterProcess:
    """Return the master of the connection, which has logged in."""
    connection.run("true")
    return find_master(host.port)


# One master per connection -------------------------------------------------------------------------------------------


def test_connection_logs_in_at_first_use(host: LocalSshd) -> None:
    before = count_connections(host)
    connection = Connection(host.host, **host.connection_kwargs)
    assert find_masters(host.port) == []
    assert count_connections(host) == before

    with connection:
        assert connection.run("echo here").stdout == "here\n"
        assert count_connections(host) == before + 1
        assert host.connections() == 1


def test_connection_many_threads_make_one_connection(host: LocalSshd, connection: Connection) -> None:
    before = count_connections(host)

    results = call_in_parallel([lambda n=n: connection.run(f"echo {n}; sleep 0.05") for n in range(16)])  # type: ignore[misc]

    assert [result.stdout for result in results] == [f"{n}\n" for n in range(16)]
    assert {result.stderr for result in results} == {""}
    assert count_connections(host) == before + 1
    assert host.connections() == 1


def test_connection_two_to_one_host_have_two_masters(
    host: LocalSshd, connection: Connection, master: MasterProcess
) -> None:
    with Connection(host.host, **host.connection_kwargs) as other:
        other.run("true")
        (second,) = set(find_masters(host.port)) - {master}
        assert second.socket_path != master.socket_path
        assert host.connections() == 2
    assert connection.run("echo still").stdout == "still\n"
    assert_eventually(lambda: host.connections() == 1, "the closed connection has ended")


def test_connection_close_ends_master_and_removes_files(
    host: LocalSshd, connection: Connection, master: MasterProcess
) -> None:
    connection.close()
    connection.close()

    assert not master.socket_path.parent.exists()
    assert_eventually(lambda: not is_alive(master.pid), "the master has ended")
    with pytest.raises(RuntimeClosedError):
        connection.run("true")
    assert not connection.is_alive()


def test_connection_close_ends_running_command(host: LocalSshd, connection: Connection) -> None:
    command = BackgroundCommand(connection, "echo up; sleep 1001")
    command.wait_output(b"up")

    connection.close()

    with pytest.raises(LazyclusterError):
        command.join(30)
    assert_becomes_idle(host)


# The socket ----------------------------------------------------------------------------------------------------------


def test_control_socket_is_in_private_directory(master: MasterProcess, run_directory: Path) -> None:
    path = master.socket_path

    assert path.parent.parent == run_directory
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.parent.stat().st_uid == os.geteuid()
    assert stat.S_ISSOCK(path.stat().st_mode)


# A master that fails -------------------------------------------------------------------------------------------------


EndMaster = Callable[[MasterProcess, LocalSshd], object]


def kill_master(master: MasterProcess, host: LocalSshd) -> None:
    os.kill(master.pid, signal.SIGKILL)


def terminate_master(master: MasterProcess, host: LocalSshd) -> None:
    os.kill(master.pid, signal.SIGTERM)


def exit_master(master: MasterProcess, host: LocalSshd) -> None:
    argv = ("ssh", "-F", str(host.config_file), "-o", f"ControlPath={master.socket_path}", "-O", "exit", host.host)
    subprocess.run(argv, check=True, capture_output=True, timeout=30)


def break_connection(master: MasterProcess, host: LocalSshd) -> None:
    host.kill_connections()


@pytest.mark.parametrize("end_master", [kill_master, terminate_master, exit_master, break_connection])
def test_master_ended_between_commands_is_replaced(
    host: LocalSshd, connection: Connection, master: MasterProcess, end_master: EndMaster
) -> None:
    end_master(master, host)
    assert_eventually(lambda: not is_alive(master.pid), "the master has ended")
    assert_eventually(lambda: host.connections() == 0, "its connection has ended")

    assert connection.run("echo again").stdout == "again\n"

    assert find_master(host.port).pid != master.pid
    assert not master.socket_path.parent.exists()
    assert host.connections() == 1


def test_master_without_socket_file_is_replaced(host: LocalSshd, connection: Connection, master: MasterProcess) -> None:
    for path in master.socket_path.parent.iterdir():
        path.unlink()

    assert connection.run("echo again").stdout == "again\n"

    assert_eventually(lambda: not is_alive(master.pid), "the unreachable master has ended")
    assert_eventually(lambda: host.connections() == 1, "its connection has ended")


def test_master_dead_many_threads_make_one(host: LocalSshd, connection: Connection, master: MasterProcess) -> None:
    before = count_connections(host)
    os.kill(master.pid, signal.SIGKILL)

    results = call_in_parallel([lambda n=n: connection.run(f"echo {n}") for n in range(16)])  # type: ignore[misc]

    assert [result.stdout for result in results] == [f"{n}\n" for n in range(16)]
    assert count_connections(host) == before + 1


def test_master_stopped_is_killed_by_close(connection: Connection, master: MasterProcess) -> None:
    os.kill(master.pid, signal.SIGSTOP)

    connection.close()

    assert_eventually(lambda: not is_alive(master.pid), "the stopped master has ended")


def test_master_stopped_run_timeout_holds(host: LocalSshd, connection: Connection, master: MasterProcess) -> None:
    command = BackgroundCommand(connection, "echo up; sleep 1003", timeout=2)
    command.wait_output(b"up")
    os.kill(master.pid, signal.SIGSTOP)

    with pytest.raises(CommandTimeoutError):
        command.join(60)

    connection.close()
    assert_becomes_idle(host)


# Commands that may have started --------------------------------------------------------------------------------------


@pytest.mark.parametrize("end_master", [kill_master, break_connection])
def test_command_started_is_not_run_again(
    host: LocalSshd, connection: Connection, master: MasterProcess, end_master: EndMaster
) -> None:
    counter = host.home / "counter"
    counter.unlink(missing_ok=True)
    command = BackgroundCommand(connection, "echo x >>counter; echo up; sleep 1004")
    command.wait_output(b"up")
    end_master(master, host)

    with pytest.raises(ConnectionLostError) as caught:
        command.join(30)

    assert caught.value.started is True
    assert isinstance(caught.value, ConnectionError)
    assert_becomes_idle(host, 20)
    assert counter.read_text() == "x\n"
    assert connection.run("cat counter").stdout == "x\n"


def test_master_killed_at_any_time_runs_command_once(host: LocalSshd, connection: Connection) -> None:
    counter = host.home / "counter-any"
    for attempt in range(12):
        counter.unlink(missing_ok=True)
        connection.run("true")
        assert wait_until(lambda: len(find_masters(host.port)) == 1, 10)
        pid = find_master(host.port).pid
        command = BackgroundCommand(connection, "echo x >>counter-any; sleep 0.02; echo ran")
        time.sleep(0.0025 * attempt)  # waits for nothing: the moment of the kill varies
        os.kill(pid, signal.SIGKILL)
        try:
            succeeded = command.join(30).stdout == "ran\n"
        except ConnectionLostError:
            succeeded = False
        assert_eventually(lambda: not find_host_pids(host, "sleep 0.02"), "the command has ended")
        ran = counter.read_text().count("x") if counter.exists() else 0
        assert ran <= 1
        assert ran == 1 or not succeeded


def test_session_process_killed_raises_connection_lost(host: LocalSshd, connection: Connection) -> None:
    command = BackgroundCommand(connection, "echo up; sleep 1005")
    command.wait_output(b"up")
    (pid,) = (pid for pid in child_pids(os.getpid()) if "sleep 1005" in command_line(pid))

    os.kill(pid, signal.SIGKILL)

    with pytest.raises(ConnectionLostError):
        command.join(30)
    assert_eventually(lambda: not find_host_pids(host, "sleep 1005"), "the command has ended", 20)


# The user's own configuration ----------------------------------------------------------------------------------------


def test_master_of_user_is_not_used(host: LocalSshd, tmp_path: Path, run_directory: Path) -> None:
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
            assert find_master(host.port).socket_path != path
        assert_eventually(lambda: host.connections() == 1, "only the user's connection is left")

        ended = subprocess.run((*plain, host.host, "echo theirs"), capture_output=True, timeout=20, check=True)
        assert ended.stdout == b"theirs\n"
        assert count_log_ins(host) == before + 1
    finally:
        subprocess.run((*plain, "-O", "exit", host.host), capture_output=True, timeout=20, check=False)
    assert_eventually(lambda: not path.exists(), "the user's master has ended")


def test_control_path_of_user_is_not_created(host: LocalSshd, tmp_path: Path, run_directory: Path) -> None:
    path = run_directory / "never"
    extra = f"Host *\n    ControlMaster auto\n    ControlPath {path}\n    ControlPersist yes\n"

    with Connection(host.host, config_file=write_config(tmp_path / "config", host, extra=extra)) as connection:
        assert connection.run("echo ours").stdout == "ours\n"
        assert not path.exists()


TERMINAL_OPTIONS = {
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
    "options that change little": "ForwardAgent yes\n    Compression yes\n    BatchMode no\n    UpdateHostKeys ask\n"
    "    ProxyUseFdpass yes\n    SetEnv FOO=bar\n    SendEnv *\n    EscapeChar x\n    EnableEscapeCommandline yes",
    "ForwardX11": "ForwardX11 yes\n    ForwardX11Trusted yes\n    XAuthLocation /bin/false",
}


@pytest.mark.parametrize("lines", TERMINAL_OPTIONS.values(), ids=TERMINAL_OPTIONS.keys())
def test_ssh_config_for_terminals_is_overridden(
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


def test_banner_and_motd_are_not_output(make_sshd: MakeSshd, tmp_path: Path) -> None:
    (tmp_path / "banner").write_text("No trespassing!\n" * 100)
    server = make_sshd(options={"Banner": str(tmp_path / "banner"), "PrintMotd": "yes", "PrintLastLog": "yes"})

    with Connection(server.host, **server.connection_kwargs) as connection:
        result = connection.run("printf out; printf err >&2")
        assert (result.stdout, result.stderr, result.exit_code) == ("out", "err", 0)


# MaxSessions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 3, 10])
def test_max_sessions_more_commands_wait(make_sshd: MakeSshd, limit: int) -> None:
    server = make_sshd(options={"MaxSessions": str(limit)})
    before = count_connections(server)
    with Connection(server.host, max_sessions=limit, **server.connection_kwargs) as connection:
        results = call_in_parallel([lambda n=n: connection.run(f"echo {n}; echo e >&2") for n in range(40)])  # type: ignore[misc]

        assert [(result.stdout, result.stderr) for result in results] == [(f"{n}\n", "e\n") for n in range(40)]
        assert count_connections(server) == before + 1
        assert server.connections() == 1


def test_max_sessions_none_free_times_out(make_sshd: MakeSshd) -> None:
    server = make_sshd(options={"MaxSessions": "1"})
    with Connection(server.host, max_sessions=1, **server.connection_kwargs) as connection:
        command = BackgroundCommand(connection, "echo up; sleep 1006")
        command.wait_output(b"up")

        with pytest.raises(CommandTimeoutError) as caught:
            connection.run("echo never", timeout=0.5)

        assert caught.value.command == "echo never"
        connection.close()
        with pytest.raises(LazyclusterError):
            command.join(30)


def test_max_sessions_above_sshd_limit_raises(make_sshd: MakeSshd) -> None:
    server = make_sshd(options={"MaxSessions": "1"})
    with Connection(server.host, **server.connection_kwargs) as connection:
        command = BackgroundCommand(connection, "echo up; sleep 1006")
        command.wait_output(b"up")

        with pytest.raises(SessionRefusedError):
            connection.run("echo never")

        connection.close()
        with pytest.raises(LazyclusterError):
            command.join(30)


def test_max_sessions_zero_of_sshd_raises(make_sshd: MakeSshd) -> None:
    server = make_sshd(options={"MaxSessions": "0"})
    before = count_connections(server)
    with Connection(server.host, **server.connection_kwargs) as connection:
        with pytest.raises(SessionRefusedError) as caught:
            connection.run("echo never")

        assert (caught.value.host, caught.value.command) == (server.host, "echo never")
        assert count_connections(server) == before + 1
        assert not connection.is_alive()


# The end of the program ----------------------------------------------------------------------------------------------

BUSY_PROGRAM = """
    ready = threading.Event()
    run = lambda: connection.run("echo up; sleep 1007", on_output=lambda stream, data: ready.set())
    threading.Thread(target=run, daemon=True).start()
    ready.wait()
    say("ready")
    sys.stdin.readline()
"""


def test_killed_program_leaves_nothing(host: LocalSshd, short_tmpdir: Path) -> None:
    environment = {"TMPDIR": str(short_tmpdir)}
    signals = (signal.SIGKILL, signal.SIGTERM)
    with ExitStack() as stack:
        programs = [
            stack.enter_context(
                ClientProgram(BUSY_PROGRAM + "    time.sleep(1000)", server=host, environment=environment)
            )
            for _ in signals
        ]
        assert [program.read_line() for program in programs] == ["ready", "ready"]
        pids = [master.pid for master in find_masters(host.port)]
        assert len(pids) == 2
        assert_eventually(lambda: len(find_host_pids(host, "sleep 1007")) == 2, "the commands of both run")
        for program, number in zip(programs, signals, strict=True):
            program.process.send_signal(number)
            assert program.wait()[0] == -number

    assert_eventually(lambda: not any(map(is_alive, pids)), "the masters have ended", 20)
    assert_becomes_idle(host, 20)
    assert not list(short_tmpdir.glob("*/m")), "a socket is left"

    # The next program removes the directories of the killed ones.
    with ClientProgram("connection.run('true')", server=host, environment=environment) as program:
        assert program.wait()[0] == 0
    assert list(short_tmpdir.iterdir()) == []


def test_living_program_keeps_its_directory(host: LocalSshd, short_tmpdir: Path) -> None:
    text = "connection.run('true'); say('up'); sys.stdin.readline(); say(connection.run('echo still').stdout.strip())"
    before = count_connections(host)
    with ClientProgram(text, server=host, environment={"TMPDIR": str(short_tmpdir)}) as program:
        assert program.read_line() == "up"
        with ClientProgram("connection.run('true')", server=host, environment={"TMPDIR": str(short_tmpdir)}) as other:
            assert other.wait()[0] == 0
        assert len(list(short_tmpdir.glob("*/m"))) == 1
        assert program.wait()[:2] == (0, "still\n")
    assert count_connections(host) == before + 2


ENDINGS = {
    "end of the text": ("", 0),
    "sys.exit": ("    sys.exit(3)", 3),
    "exception": ("    raise RuntimeError('wanted')", 1),
    "interrupt": ("    signal.raise_signal(signal.SIGINT)", -signal.SIGINT),
}


@pytest.mark.parametrize(("text", "status"), ENDINGS.values(), ids=ENDINGS.keys())
def test_ended_program_leaves_nothing(host: LocalSshd, short_tmpdir: Path, text: str, status: int) -> None:
    with ClientProgram(BUSY_PROGRAM + text, server=host, environment={"TMPDIR": str(short_tmpdir)}) as program:
        assert program.read_line() == "ready"
        pid = find_master(host.port).pid
        ended, _, stderr = program.wait()

    assert ended == status, stderr
    assert "Exception ignored" not in stderr
    assert list(short_tmpdir.iterdir()) == []
    assert_eventually(lambda: not is_alive(pid), "the master has ended")
    assert_becomes_idle(host)


def test_fork_child_uses_its_own_connection(host: LocalSshd) -> None:
    text = """
        connection.run("true")
        child = os.fork()
        if child == 0:
            say(connection.run("echo child").stdout.strip())
            connection.close()
            sys.exit(0)
        say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        say(connection.run("echo parent").stdout.strip())
    """
    before = count_connections(host)
    with ClientProgram(text, server=host) as program:
        status, stdout, stderr = program.wait()

    assert (status, stderr) == (0, "")
    assert stdout.splitlines() == ["child", "0", "parent"]
    assert count_connections(host) == before + 2


def test_fork_idle_child_does_not_hold_master(host: LocalSshd) -> None:
    text = """
        connection.run("true")
        child = os.fork()
        if child == 0:
            sys.exit(0)
        os.waitpid(child, 0)
        say(connection.run("echo parent").stdout.strip())
        child = os.fork()
        if child == 0:
            time.sleep(1000)
        say(child)
        sys.stdin.readline()
    """
    before = count_connections(host)
    with ClientProgram(text, server=host) as program:
        assert program.read_line() == "parent"
        child = int(program.read_line())
        assert count_connections(host) == before + 1
        pid = find_master(host.port).pid
        assert program.process.stdin is not None
        program.process.stdin.close()
        assert program.process.wait(30) == 0
        try:
            assert_eventually(lambda: not is_alive(pid), "the master has ended though the child lives", 20)
        finally:
            os.kill(child, signal.SIGKILL)


def test_fork_during_login_does_not_hang(host: LocalSshd) -> None:
    text = """
        thread = threading.Thread(target=lambda: connection.run("true"))
        thread.start()
        time.sleep(0.05)
        child = os.fork()
        if child == 0:
            say(connection.run("echo child").stdout.strip())
            connection.close()
            os._exit(0)
        say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        thread.join()
    """
    with ClientProgram(text, server=host, environment={"PYTHONWARNINGS": "ignore"}) as program:
        status, stdout, stderr = program.wait(60)

    assert (status, stdout.split(), stderr) == (0, ["child", "0"], "")


def test_run_on_output_error_ends_command(host: LocalSshd, connection: Connection, master: MasterProcess) -> None:
    def fail(stream: object, data: bytes) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        connection.run("echo up; sleep 1008", on_output=fail)

    assert_eventually(lambda: not find_host_pids(host, "sleep 1008"), "the command has ended", 20)
    assert find_master(host.port) == master
