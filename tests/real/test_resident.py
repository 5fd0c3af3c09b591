"""Resident runtimes on a real host: one session for everything, the loss of it, and the end."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazycluster import (
    CommandFailedError,
    CommandResult,
    CommandTimeoutError,
    ConnectionLostError,
    Error,
    InvalidRuntimeError,
    LazyclusterError,
    PythonNotFoundError,
    RemoteFunctionError,
    Runtime,
    RuntimeGroup,
    RuntimeTask,
    SupervisorError,
    TaskExecutionError,
    WorkingDirectoryError,
)
from lazycluster.testing import LocalSshd
from tests.client_programs import ClientProgram, assert_becomes_idle, call_in_parallel, find_host_pids, find_master
from tests.observation import (
    EchoServer,
    assert_no_leaks,
    count_sessions,
    listening_addresses,
    record_program_starts,
    running_relay,
    unique_sleep_seconds,
)
from tests.processes import find_local_pids, is_alive
from tests.reserved_ports import reserve_free_port
from tests.waiting import assert_eventually

if TYPE_CHECKING:
    from tests.sshd_fixtures import MakeSshd


def supervisor_pid(runtime: Runtime) -> int:
    """Return the process of the supervisor, which forks the processes of functions."""
    return runtime.call(os.getppid)


def supervisor_threads(runtime: Runtime) -> list[threading.Thread]:
    """Return the threads that read from the supervisors of a host; each ends when its supervisor is lost."""
    return [thread for thread in threading.enumerate() if thread.name == f"supervisor of {runtime.host}"]


def wait_for_processes(number: str, count: int = 1) -> None:
    """Wait until this many processes have a number in their command line."""
    assert_eventually(lambda: len(find_local_pids(number)) >= count, f"{count} processes of {number}")


# One channel ----------------------------------------------------------------------------------------------------------


def test_resident_runtime_uses_one_log_in_and_session(sshd: LocalSshd, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("content")
    before = count_sessions(sshd)
    with (
        assert_no_leaks(sshd),
        record_program_starts() as programs,
        Runtime(sshd.host, **sshd.connection_kwargs) as runtime,
    ):
        programs_at_start = len(programs)
        runtime.run("true")
        runtime.call(os.getpid)
        runtime.create_dir("sub/sub")
        runtime.create_tempdir()
        runtime.has_free_port(40000)
        assert runtime.is_valid_runtime()
        task = RuntimeTask().send_file(file, "sent").run_command("cat sent").get_file("sent", tmp_path / "back")
        runtime.execute_task(task).join()
        assert runtime.delete_dir("sub")
        assert len(programs) == programs_at_start == 2  # the log-in, and the supervisor's session
        assert count_sessions(sshd) == before + 1


def file_operations(runtime: Runtime) -> list[Callable[[], object]]:
    return [
        lambda: runtime.write_bytes("file", bytes(100_000)),
        lambda: runtime.read_bytes("file"),
        lambda: runtime.read_text("file"),
        lambda: runtime.write_text("file", "x"),
        lambda: runtime.exists("file"),
        runtime.listdir,
        lambda: runtime.glob("*"),
    ]


@pytest.mark.parametrize("resident", [True, False])
def test_file_operations_take_one_session_or_child_each(sshd: LocalSshd, resident: bool) -> None:
    """A session of its own without a supervisor, and with one a child in the session that is there."""
    with assert_no_leaks(sshd), Runtime(sshd.host, resident=resident, **sshd.connection_kwargs) as runtime:
        for operation in file_operations(runtime):
            sessions = count_sessions(sshd)
            with record_program_starts() as programs:
                operation()
            assert len(programs) == count_sessions(sshd) - sessions == (0 if resident else 1)


def test_run_hundred_at_once_uses_one_session(sshd: LocalSshd) -> None:
    with assert_no_leaks(sshd), Runtime(sshd.host, **sshd.connection_kwargs) as runtime:
        with record_program_starts() as programs:
            commands: list[Callable[[], CommandResult]] = [
                functools.partial(runtime.run, f"echo {number}") for number in range(100)
            ]
            assert [result.stdout for result in call_in_parallel(commands)] == [f"{number}\n" for number in range(100)]
        assert programs == []


@pytest.mark.soak
def test_execute_task_thousand_at_once(sshd: LocalSshd) -> None:
    """All tasks run at the same time: each waits for a file that is made when the last one has started."""
    with assert_no_leaks(sshd), Runtime(sshd.host, **sshd.connection_kwargs) as runtime:
        wait = "until [ -e go ]; do sleep 1; done; exit 3"
        tasks = [runtime.execute_task(RuntimeTask().run_command(f": {number}; {wait}")) for number in range(1000)]
        script = "grep -alsF 'until [ -e go ]' /proc/[0-9]*/cmdline | wc -l"
        assert_eventually(lambda: int(runtime.run(script).stdout) >= 1000, "a thousand shells", timeout=90)
        runtime.run("touch go")
        for task in tasks:
            with pytest.raises(TaskExecutionError) as caught:
                task.join()
            assert isinstance(caught.value.__cause__, CommandFailedError)
            assert caught.value.__cause__.exit_code == 3
        runtime.clear_tasks()


@pytest.mark.soak
def test_run_large_output_does_not_delay_others(sshd: LocalSshd) -> None:
    """One command prints 1 GB; small commands run, one after the other, until it ends."""
    with assert_no_leaks(sshd), Runtime(sshd.host, **sshd.connection_kwargs) as runtime:
        ended = threading.Event()

        def print_much() -> None:
            result = runtime.run("head -c 1000000000 /dev/zero")
            assert len(result.stdout_bytes) == 1_000_000_000
            ended.set()

        thread = threading.Thread(target=print_much, daemon=True)
        thread.start()
        count = 0
        while not ended.wait(0.01):
            assert runtime.run("echo ok").stdout == "ok\n"
            count += 1
        thread.join()
    assert count > 5, "small commands waited for the large output"


def test_run_blocked_on_output_does_not_delay_others(sshd: LocalSshd) -> None:
    """The caller's `on_output` blocks. The data under way is bounded, so the command stops on the host."""
    with assert_no_leaks(sshd), Runtime(sshd.host, **sshd.connection_kwargs) as runtime:
        may_read = threading.Event()
        sizes: list[int] = []

        def on_output(_stream: object, data: bytes) -> None:
            may_read.wait()
            sizes.append(len(data))

        def read_slowly() -> None:
            runtime.run("head -c 50000000 /dev/zero; touch printed", on_output=on_output)

        thread = threading.Thread(target=read_slowly, daemon=True)
        thread.start()
        for _ in range(50):
            assert runtime.run("true").ok
        assert not runtime.run("test -e printed").ok
        may_read.set()
        thread.join(110)
        assert sum(sizes) == 50_000_000


def test_runtime_skips_output_of_start_up_files(make_sshd: MakeSshd) -> None:
    server = make_sshd(shell="bash")
    (server.home / ".bashrc").write_text(
        "echo welcome; echo LAZYCLUSTER-SUPERVISOR; head -c 100000 /dev/zero; echo >&2 x"
    )
    with assert_no_leaks(server), Runtime(server.host, **server.connection_kwargs) as runtime:
        assert runtime.run("echo clean").stdout == "clean\n"


@pytest.mark.parametrize(("sessions", "max_sessions"), [(1, 10), (1, 1), (2, 10), (2, 2)])
def test_resident_runtime_needs_one_session_only(
    make_sshd: MakeSshd, tmp_path: Path, sessions: int, max_sessions: int
) -> None:
    """The supervisor has the only session. A large file, which scp sends otherwise, then goes through it."""
    server = make_sshd(options={"MaxSessions": str(sessions)})
    large = tmp_path / "large"
    large.write_bytes(os.urandom(1 << 20) * 20)
    with (
        assert_no_leaks(server),
        Runtime(server.host, max_sessions=max_sessions, **server.connection_kwargs) as runtime,
    ):
        task = RuntimeTask().send_file(large, "sent").get_file("sent", tmp_path / "back").run_function(os.getpid)
        runtime.execute_task(task).join()
        assert (tmp_path / "back").read_bytes() == large.read_bytes()


# Idle -----------------------------------------------------------------------------------------------------------------


def count_wake_ups() -> dict[str, int]:
    """Return how often each other thread of this process has waited for something (proc(5), voluntary switches)."""
    counts = {}
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
            counts[thread.name] = int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return counts


@pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc")
def test_idle_runtime_wakes_for_its_heartbeat_only(sshd: LocalSshd) -> None:
    """A heartbeat comes every 5 s at most, and takes up to three waits: its own, a lock, and the master's answer."""
    with (
        EchoServer() as service,
        assert_no_leaks(sshd),
        Runtime(sshd.host, **sshd.connection_kwargs) as runtime,
    ):
        runtime.expose_port_to_runtime(service.port, reserve_free_port())
        runtime.execute_task(RuntimeTask().run_command("true")).join()
        threads = {f"supervisor of {sshd.host}", f"tunnels to {sshd.host}"}
        assert_eventually(lambda: threads <= count_wake_ups().keys(), "both threads wait")

        before = count_wake_ups()
        time.sleep(5)  # the time is the subject
        after = count_wake_ups()

        assert {name: after[name] - before[name] for name in threads if after[name] - before[name] > 6} == {}


# Failed starts --------------------------------------------------------------------------------------------------------


def test_runtime_missing_python_names_resident_option(sshd: LocalSshd) -> None:
    with assert_no_leaks(sshd):
        with pytest.raises(InvalidRuntimeError) as caught:
            Runtime(sshd.host, python="/no/such/python", **sshd.connection_kwargs)
        assert "resident=False" in str(caught.value)
        assert isinstance(caught.value.__cause__, PythonNotFoundError)
        with Runtime(sshd.host, resident=False, **sshd.connection_kwargs) as runtime:
            assert runtime.run("echo ok").stdout == "ok\n"


def test_runtime_broken_python_raises_supervisor_error(sshd: LocalSshd, tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho it is broken >&2\nexit 7\n")
    program.chmod(0o755)
    with assert_no_leaks(sshd):
        with pytest.raises(InvalidRuntimeError) as caught:
            Runtime(sshd.host, python=str(program), **sshd.connection_kwargs)
        assert isinstance(caught.value.__cause__, SupervisorError)
        assert caught.value.__cause__.output == "it is broken"


# A lost supervisor ----------------------------------------------------------------------------------------------------


def test_supervisor_killed_is_replaced(sshd: LocalSshd, tmp_path: Path) -> None:
    """Commands under way fail at once and are not repeated. The next call goes on in a directory that stays."""
    number = unique_sleep_seconds()
    work = tmp_path / "work"
    with assert_no_leaks(sshd), Runtime(sshd.host, str(work), **sshd.connection_kwargs) as runtime:
        first = supervisor_pid(runtime)
        command = f"echo once >>ran; (setsid sleep {number} &) ; sleep {number}"
        task = runtime.execute_task(RuntimeTask().run_command(command))
        wait_for_processes(number, 2)
        runtime.run("sleep 0.1")  # frames come in order, so the report that the task has started has come, too
        os.kill(first, signal.SIGKILL)
        with pytest.raises(TaskExecutionError) as caught:
            task.join()
        lost = caught.value.__cause__
        assert isinstance(lost, ConnectionLostError)
        assert lost.started is True
        assert "killed by signal 9" in lost.reason
        assert runtime.run("cat ran").stdout == "once\n"
        assert supervisor_pid(runtime) != first
        assert runtime.call(os.getpid) != first
        assert_eventually(lambda: not find_local_pids(number), "its shell ends the processes that it had started")


@pytest.mark.parametrize("kind", ["run", "call", "task", "file"])
def test_supervisor_killed_takes_temp_working_dir(sshd: LocalSshd, kind: str) -> None:
    """The first use says that the old files are gone; then there is a new directory."""
    with assert_no_leaks(sshd), Runtime(sshd.host, **sshd.connection_kwargs) as runtime:
        runtime.run("echo data >file")
        lost = runtime.working_dir
        [thread] = supervisor_threads(runtime)
        os.kill(supervisor_pid(runtime), signal.SIGKILL)
        assert_eventually(lambda: not thread.is_alive(), "the loss is seen")
        assert runtime.is_valid_runtime(), "the host can still be used"

        error = first_error(runtime, kind)

        assert isinstance(error, WorkingDirectoryError)
        assert error.path == lost != runtime.working_dir
        assert "killed by signal 9" in error.reason
        assert runtime.working_dir in error.advice
        assert runtime.env_variables["WORKING_DIR"] == runtime.working_dir
        assert runtime.run('pwd; echo "$WORKING_DIR"; ls').stdout == f"{runtime.working_dir}\n" * 2
        assert runtime.call(os.getcwd) == runtime.working_dir
        task = RuntimeTask().run_command("pwd")
        assert runtime.execute_task(task, execute_async=False).execution_log == [f"{runtime.working_dir}\n"]


def first_error(runtime: Runtime, kind: str) -> BaseException | None:
    """Return the error of the first use of a directory that is gone, or the cause of that error."""
    uses: dict[str, Callable[[], object]] = {
        "run": lambda: runtime.run("cat file"),
        "call": lambda: runtime.call(os.getpid),
        "task": lambda: runtime.execute_task(RuntimeTask().run_command("cat file")).join(),
        "file": lambda: runtime.read_text("file"),
    }
    with pytest.raises(LazyclusterError) as caught:
        uses[kind]()
    return caught.value if kind in {"run", "call"} else caught.value.__cause__


def test_supervisor_killed_twice_gives_a_new_dir_each_time(sshd: LocalSshd) -> None:
    """A task that began in a directory that is gone does not go on in another."""
    with assert_no_leaks(sshd), Runtime(sshd.host, **sshd.connection_kwargs) as runtime:
        used = [runtime.working_dir]
        for _ in range(2):
            [thread] = [thread for thread in supervisor_threads(runtime) if thread.is_alive()]
            os.kill(supervisor_pid(runtime), signal.SIGKILL)
            thread.join(30)
            assert not thread.is_alive()
            with pytest.raises(WorkingDirectoryError):
                runtime.run("true")
            assert runtime.run("true").ok
            used.append(runtime.working_dir)
        assert len(set(used)) == 3
        assert not any(Path(path).exists() for path in used[:2])
    assert not Path(used[2]).exists()


def test_host_lost_comes_back_into_its_group(sshd: LocalSshd) -> None:
    with assert_no_leaks(sshd), RuntimeGroup(hosts=[sshd.host], **sshd.connection_kwargs) as group:
        [runtime] = group
        os.kill(supervisor_pid(runtime), signal.SIGKILL)
        results: list[object] = []
        for _ in range(4):
            results += group.run("pwd", on_error="collect").values()
        errors = [outcome.error for outcome in results if isinstance(outcome, Error)]
        assert [type(error) for error in errors if isinstance(error, WorkingDirectoryError)] == [WorkingDirectoryError]
        assert isinstance(results[-1], CommandResult)
        assert results[-1].stdout == f"{runtime.working_dir}\n"


def test_supervisor_killed_with_its_shell_leaves_nothing(make_sshd: MakeSshd) -> None:
    server = make_sshd()
    with Runtime(server.host, **server.connection_kwargs) as runtime:
        lost = Path(runtime.working_dir)
        number = unique_sleep_seconds()
        runtime.run(f"setsid sleep {number} >/dev/null 2>&1 </dev/null &")
        survivor = find_host_pids(server, f"sleep {number}")
        for pid in {*server.processes()} - {server.pid, *survivor}:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(LazyclusterError):
            runtime.run("true")
        assert lost.exists()
        runtime.create_tempdir()
    assert not lost.exists()
    assert find_host_pids(server, f"sleep {number}") == []


@pytest.mark.parametrize("cause", ["dropped connection", "killed master"])
def test_connection_lost_fails_task_and_is_replaced(
    sshd: LocalSshd, run_directory: Path, tmp_path: Path, cause: str
) -> None:
    """A command, a function or much output may be under way, or nothing."""
    number = unique_sleep_seconds()
    with assert_no_leaks(sshd), running_relay(sshd, tmp_path) as (relay, keywords):
        started = tmp_path / "started"

        def wait() -> None:
            started.touch()
            time.sleep(1000)

        with Runtime(sshd.host, str(tmp_path / "work"), **keywords) as runtime:
            for task in (
                RuntimeTask("command").run_command(f"touch {started}; sleep {number}"),
                RuntimeTask("function").run_function(wait),
                RuntimeTask("output").run_command(f"touch {started}; : {number}; cat /dev/zero"),
                RuntimeTask("background").run_command(f"sleep {number} & touch {started}; cat /dev/zero >/dev/null"),
                None,
            ):
                if task is not None:
                    runtime.execute_task(task)
                    assert_eventually(started.exists, "the task is under way")
                    started.unlink()
                [thread] = supervisor_threads(runtime)
                if cause == "dropped connection":
                    relay.drop()
                else:
                    os.kill(find_master(relay.port).pid, signal.SIGKILL)
                if task is not None:
                    with pytest.raises(TaskExecutionError) as caught:
                        task.join()
                    assert isinstance(caught.value.__cause__, ConnectionLostError)
                assert_eventually(lambda thread=thread: not thread.is_alive(), "the loss is seen")  # type: ignore[misc]
                assert runtime.run("echo again").stdout == "again\n"
            assert_eventually(lambda: not find_local_pids(number), "its processes are ended", timeout=20)


def test_slow_connection_is_not_lost(sshd: LocalSshd, tmp_path: Path) -> None:
    """Only ssh itself may treat a silent connection as lost."""
    with (
        assert_no_leaks(sshd),
        running_relay(sshd, tmp_path) as (relay, keywords),
        Runtime(sshd.host, **keywords) as runtime,
    ):
        task = runtime.execute_task(RuntimeTask().run_command("sleep 1; echo done"))
        relay.delay = 1.5
        assert runtime.run("echo ok").stdout == "ok\n"
        task.join()
        assert task.execution_log == ["done\n"]
        relay.delay = 0.0


JUMPING_CLOCK = """
import itertools, time
real, jumps = time.time, itertools.cycle([86400.0, -86400.0, 0.0])
time.time = lambda: real() + next(jumps)
"""


def test_jumping_clock_changes_no_timeout(make_sshd: MakeSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At both ends, each reading of the clock jumps by a day, forth or back."""
    number = unique_sleep_seconds()
    (tmp_path / "sitecustomize.py").write_text(JUMPING_CLOCK)
    server = make_sshd(environment={"PYTHONPATH": str(tmp_path)})
    jumps, real = itertools.cycle([86400.0, -86400.0, 0.0]), time.time
    with Runtime(server.host, grace=0.5, python=sys.executable, **server.connection_kwargs) as runtime:
        monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
        readings = runtime.call(lambda: [time.time() for _ in range(3)])
        assert max(readings) - min(readings) > 86000, "the clock of the host does not jump"
        assert runtime.run("sleep 0.5; echo done", timeout=60).stdout == "done\n"
        with pytest.raises(CommandTimeoutError):
            runtime.run(f"trap '' TERM; sleep {number}; sleep {number}", timeout=0.3)
        task = runtime.execute_task(RuntimeTask().run_command(f"sleep {number}"))
        wait_for_processes(number, 1)
        assert task.process is not None
        task.process.terminate()
        assert_eventually(lambda: not find_local_pids(number), "both are ended", timeout=10)
        assert runtime.is_valid_runtime()


# The end --------------------------------------------------------------------------------------------------------------

BUSY_PROGRAM = """
from lazycluster import Runtime, RuntimeTask
runtime = Runtime({host!r}, config_file={config!r})
def wait():
    import subprocess
    subprocess.Popen(["sleep", {number!r}])
    subprocess.Popen(["sleep", {number!r}], start_new_session=True)
    while True:
        time.sleep(1)
runtime.expose_port_from_runtime(9, {ports[0]})
runtime.expose_port_to_runtime({ports[0]}, {ports[1]})
runtime.create_tempdir()
runtime.run("mkdir sub; chmod 500 sub; nohup setsid sleep {number} >/dev/null 2>&1 </dev/null &")
runtime.execute_task(RuntimeTask().run_command("trap '' TERM; setsid sleep {number} & sleep {number}; sleep {number}"))
runtime.execute_task(RuntimeTask().run_function(wait))
runtime.execute_task(RuntimeTask().send_file({large!r}, "large"))
runtime.execute_task(RuntimeTask().get_file("/dev/../{large}", {back!r}))
say(runtime.working_dir)
"""


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_local_process_leaves_nothing(
    make_sshd: MakeSshd, tmp_path: Path, short_tmpdir: Path, signal_number: signal.Signals
) -> None:
    """It had tunnels, tasks and files under way. No ssh process, port, process of the host or file is left."""
    server = make_sshd()
    number, ports = unique_sleep_seconds(), [reserve_free_port(), reserve_free_port()]
    large, back = tmp_path / "large", tmp_path / "back"
    back.mkdir()
    with large.open("wb") as file:
        file.truncate(8 << 30)  # its transfer takes longer than the test
    text = BUSY_PROGRAM.format(
        host=server.host, config=str(server.config_file), number=number, ports=ports, large=str(large), back=str(back)
    )
    masters = str(short_tmpdir / "lazycluster-m-")
    environment = {"TMPDIR": str(short_tmpdir)}
    with ClientProgram(text + "\ntime.sleep(1000)", environment=environment) as program:
        working_dir = Path(program.read_line())
        assert find_local_pids(masters)
        wait_for_processes(number, 5)
        assert_eventually(lambda: any(working_dir.glob(".lazycluster-*")), "a file on its way to the host")
        assert_eventually(lambda: any(back.iterdir()), "a file on its way back")
        program.process.send_signal(signal_number)
        program.process.wait(10)
        assert_becomes_idle(server, timeout=10)
        assert_eventually(lambda: not find_local_pids(number), "no process on the host", timeout=10)
        assert_eventually(lambda: not any(listening_addresses(port) for port in ports), "no port", timeout=10)
        assert_eventually(lambda: not find_local_pids(masters), "no ssh process", timeout=10)
        assert not list(working_dir.parent.glob(f"{working_dir.stem}*"))


def test_grace_delays_kill_of_stubborn_command(sshd: LocalSshd) -> None:
    number = unique_sleep_seconds()
    with assert_no_leaks(sshd), Runtime(sshd.host, grace=0.5, **sshd.connection_kwargs) as runtime:
        command = f"trap 'touch noticed; sleep 4; touch cleaned' TERM; setsid sleep {number} & sleep {number}; wait"
        task = runtime.execute_task(RuntimeTask().run_command(command))
        wait_for_processes(number, 2)
        assert task.process is not None
        task.process.terminate()
        assert not find_local_pids(number)
        assert runtime.run("ls").stdout == "noticed\n", "the grace is long enough for one of both only"
        with pytest.raises(CommandTimeoutError):
            runtime.run(f"trap '' TERM; sleep {number}; sleep {number}", timeout=0.2)
        assert_eventually(lambda: not find_local_pids(number), "the command is ended after its grace")


def test_fork_does_not_use_or_end_runtime_of_parent(sshd: LocalSshd) -> None:
    text = f"""
    from lazycluster import Runtime, RuntimeTask
    runtime = Runtime({sshd.host!r}, config_file={str(sshd.config_file)!r})
    task = runtime.execute_task(RuntimeTask().run_command("until [ -e go ]; do sleep 0.1; done; echo parent"))
    child = os.fork()
    if child == 0:
        mine = runtime.call(os.getppid)
        say("child", runtime.run("pwd").stdout.strip() == runtime.working_dir)
        runtime.cleanup()
        os._exit(0)
    os.waitpid(child, 0)
    runtime.run("touch go")
    task.join()
    say(task.execution_log)
    """
    # Python 3.12 and later warn of a fork beside threads.
    environment = {"PYTHONWARNINGS": "ignore::DeprecationWarning"}
    with assert_no_leaks(sshd), ClientProgram(text, environment=environment) as program:
        assert program.wait(30) == (0, "child True\n['parent\\n']\n", "")


def test_fork_does_not_hide_end_of_parent(sshd: LocalSshd, run_directory: Path) -> None:
    """A copy of the channel's descriptor in the child would hide the end from the host."""
    number = unique_sleep_seconds()
    text = f"""
    from lazycluster import Runtime, RuntimeTask
    runtime = Runtime({sshd.host!r}, config_file={str(sshd.config_file)!r})
    runtime.execute_task(RuntimeTask().run_command("sleep {number}"))
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    say(child)
    time.sleep(60)
    """
    with (
        assert_no_leaks(sshd),
        tempfile.TemporaryDirectory(
            prefix="e", dir=run_directory
        ) as temporary,  # the killed process does not remove its socket
        ClientProgram(text, environment={"TMPDIR": temporary}) as program,
    ):
        child = int(program.read_line())
        wait_for_processes(number)
        program.process.kill()
        program.process.wait()
        assert_eventually(lambda: not find_host_pids(sshd, f"sleep {number}"), "the command is ended", timeout=10)
        assert is_alive(child)
        os.kill(child, signal.SIGKILL)


# Functions ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "per command"])
def test_call_dead_process_error_has_printed_output(sshd: LocalSshd, resident: bool) -> None:
    def die() -> None:
        print("the last words", flush=True)
        os._exit(3)

    with assert_no_leaks(sshd), Runtime(sshd.host, resident=resident, **sshd.connection_kwargs) as runtime:
        with pytest.raises(RemoteFunctionError) as caught:
            runtime.call(die)
        assert "exit status 3" in caught.value.reason
        assert "the last words" in f"{caught.value.reason}{caught.value.remote_traceback}"
        assert runtime.call(os.getpid) > 0


def test_runtime_close_after_manual_removal_logs_nothing(sshd: LocalSshd, caplog: pytest.LogCaptureFixture) -> None:
    """A directory that was removed by hand is not reported as left behind."""
    with assert_no_leaks(sshd), caplog.at_level(logging.WARNING):
        runtime = Runtime(sshd.host, **sshd.connection_kwargs)
        runtime.run('rm -rf "$WORKING_DIR"')
        runtime.close()
    assert caplog.messages == []
