"""The resident supervisor on a real host: one channel for everything, its loss, and what is left after it."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazycluster import (
    CommandResult,
    CommandTimeoutError,
    ConnectionLostError,
    InvalidRuntimeError,
    PythonNotFoundError,
    RemoteFunctionError,
    Runtime,
    RuntimeTask,
    SupervisorError,
    TaskExecutionError,
    WorkingDirectoryError,
)
from lazycluster._runtime_core import core_of
from lazycluster._transports.resident import ResidentTransport
from lazycluster._transports.supervisor_client import SupervisorClient
from lazycluster.testing import LocalSshd
from tests.client_programs import ClientProgram, assert_becomes_idle, call_in_parallel, master_pid_of
from tests.client_programs import find_host_pids as commands_running
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


def transport(runtime: Runtime) -> ResidentTransport:
    transport = core_of(runtime).transport
    assert isinstance(transport, ResidentTransport)
    return transport


def supervisor(runtime: Runtime) -> SupervisorClient:
    return transport(runtime).ensure_supervisor()


def supervisor_pid(runtime: Runtime) -> int:
    return supervisor(runtime).wait_until_ready(1).pid


def started(number: str, count: int = 1) -> None:
    assert_eventually(lambda: len(find_local_pids(number)) >= count, f"{count} processes of {number}")


def test_a_start_that_takes_too_long_says_how_far_it_has_come_and_leaves_nothing(
    make_sshd: MakeSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lazycluster._transports.resident.SET_UP_TIMEOUT_SECONDS", -6.0)
    sleeper = tmp_path / "python"
    sleeper.write_text("#!/bin/sh\nexec sleep 1000\n")
    sleeper.chmod(0o755)
    mute, usual = make_sshd(options={"ForceCommand": "exec cat >/dev/null"}), make_sshd()
    for server, how_far in ((mute, "the login shell has not begun"), (usual, "Python has not begun")):
        keywords = {**server.connection_kwargs, "connect_timeout": 8.0}
        with pytest.raises(InvalidRuntimeError, match=rf"no hello within 2 s: {how_far}"):
            Runtime(server.host, python=str(sleeper), **keywords)  # type: ignore[arg-type]
        assert_becomes_idle(server)


# One channel ----------------------------------------------------------------------------------------------------------


def test_resident_runtime_uses_one_log_in_and_session(sshd: LocalSshd, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("here")
    before = count_sessions(sshd)
    with (
        assert_no_leaks(sshd),
        record_program_starts() as programs,
        Runtime(sshd.host, **sshd.connection_kwargs) as runtime,
    ):
        at_first = len(programs)
        runtime.run("true")
        runtime.call(os.getpid)
        runtime.create_dir("sub/sub")
        runtime.create_tempdir()
        runtime.has_free_port(40000)
        assert runtime.is_valid_runtime()
        task = RuntimeTask().send_file(file, "there").run_command("cat there").get_file("there", tmp_path / "back")
        runtime.execute_task(task).join()
        assert runtime.delete_dir("sub")
        assert len(programs) == at_first == 2  # the log-in, and the supervisor's session
        assert count_sessions(sshd) == before + 1


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
    """All of them under way at the same time: each waits for a file that is made when the last one has begun."""
    with assert_no_leaks(sshd), Runtime(sshd.host, **sshd.connection_kwargs) as runtime:
        wait = "until [ -e go ]; do sleep 1; done; exit 3"
        tasks = [runtime.execute_task(RuntimeTask().run_command(f": {number}; {wait}")) for number in range(1000)]
        script = "grep -alsF 'until [ -e go ]' /proc/[0-9]*/cmdline | wc -l"
        assert_eventually(lambda: int(runtime.run(script).stdout) >= 1000, "a thousand shells", timeout=90)
        runtime.run("touch go")
        for task in tasks:
            with pytest.raises(TaskExecutionError, match="exit status 3"):
                task.join()
        runtime.clear_tasks()


@pytest.mark.soak
def test_run_large_output_does_not_delay_others(sshd: LocalSshd, capsys: pytest.CaptureFixture[str]) -> None:
    """One prints 1 GB, and another asks every 10 ms for a small answer."""
    with assert_no_leaks(sshd), Runtime(sshd.host, **sshd.connection_kwargs) as runtime:
        ended = threading.Event()

        def print_much() -> None:
            result = runtime.run("head -c 1000000000 /dev/zero")
            assert len(result.stdout_bytes) == 1_000_000_000
            ended.set()

        thread = threading.Thread(target=print_much, daemon=True)
        thread.start()
        took = []
        while not ended.wait(0.01):
            begun = time.perf_counter()
            assert runtime.run("echo ok").stdout == "ok\n"
            took.append(time.perf_counter() - begun)
        thread.join()
    with capsys.disabled():
        print(f"\n{len(took)} small commands beside 1 GB: median {statistics.median(took) * 1e3:.0f} ms", end=", ")
        print(f"longest {max(took) * 1e3:.0f} ms")
    assert len(took) > 5
    assert max(took) < 5  # it would be as long as the whole if it waited in the same queue


def test_run_blocked_on_output_does_not_delay_others(sshd: LocalSshd) -> None:
    """The caller's `on_output` blocks; what is on its way for it is bounded, and the host stops there."""
    with assert_no_leaks(sshd), Runtime(sshd.host, **sshd.connection_kwargs) as runtime:
        go_on = threading.Event()
        sizes: list[int] = []

        def on_output(_stream: object, data: bytes) -> None:
            go_on.wait()
            sizes.append(len(data))

        def read_slowly() -> None:
            runtime.run("head -c 50000000 /dev/zero; touch printed", on_output=on_output)

        thread = threading.Thread(target=read_slowly, daemon=True)
        thread.start()
        for _ in range(50):
            assert runtime.run("true").ok
        assert not runtime.run("test -e printed").ok
        go_on.set()
        thread.join(60)
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
    """The supervisor has the only one; a large file, which scp would take, then goes through it."""
    server = make_sshd(options={"MaxSessions": str(sessions)})
    large = tmp_path / "large"
    large.write_bytes(os.urandom(1 << 20) * 20)
    with (
        assert_no_leaks(server),
        Runtime(server.host, max_sessions=max_sessions, **server.connection_kwargs) as runtime,
    ):
        task = RuntimeTask().send_file(large, "there").get_file("there", tmp_path / "back").run_function(os.getpid)
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


# Not there at all -----------------------------------------------------------------------------------------------------


def test_runtime_missing_python_names_resident_option(sshd: LocalSshd) -> None:
    with assert_no_leaks(sshd):
        with pytest.raises(InvalidRuntimeError, match="resident=False") as caught:
            Runtime(sshd.host, python="/no/such/python", **sshd.connection_kwargs)
        assert isinstance(caught.value.__cause__, PythonNotFoundError)
        with Runtime(sshd.host, resident=False, **sshd.connection_kwargs) as runtime:
            assert runtime.run("echo ok").stdout == "ok\n"


def test_runtime_broken_python_raises_supervisor_error(sshd: LocalSshd, tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho it is broken >&2\nexit 7\n")
    program.chmod(0o755)
    with assert_no_leaks(sshd):
        with pytest.raises(InvalidRuntimeError, match=r"(?s)exit status 7.*it is broken") as caught:
            Runtime(sshd.host, python=str(program), **sshd.connection_kwargs)
        assert isinstance(caught.value.__cause__, SupervisorError)


def test_a_working_directory_that_cannot_be_made(sshd: LocalSshd) -> None:
    with assert_no_leaks(sshd), pytest.raises(InvalidRuntimeError, match="/dev/null/x"):
        Runtime(sshd.host, "/dev/null/x", **sshd.connection_kwargs)


# Its loss -------------------------------------------------------------------------------------------------------------


def test_supervisor_killed_is_replaced(sshd: LocalSshd, tmp_path: Path) -> None:
    """What was under way fails at once and is not repeated; in a directory that stays, the next call goes on."""
    number = unique_sleep_seconds()
    work = tmp_path / "work"
    with assert_no_leaks(sshd), Runtime(sshd.host, str(work), **sshd.connection_kwargs) as runtime:
        first = supervisor_pid(runtime)
        command = f"echo once >>ran; (setsid sleep {number} &) ; sleep {number}"
        task = runtime.execute_task(RuntimeTask().run_command(command))
        started(number, 2)
        runtime.run("sleep 0.1")  # what the host says is said in order: by now also that the other has started
        begun = time.monotonic()
        os.kill(first, signal.SIGKILL)
        with pytest.raises(TaskExecutionError, match="killed by signal 9") as caught:
            task.join()
        assert time.monotonic() - begun < 5
        lost = caught.value.__cause__
        assert isinstance(lost, ConnectionLostError)
        assert lost.started is True
        assert runtime.run("cat ran").stdout == "once\n"
        assert supervisor_pid(runtime) != first
        assert runtime.call(os.getpid) != first
        assert_eventually(lambda: not find_local_pids(number), "the shell beside it ends what it had started")


def test_supervisor_killed_takes_temp_working_dir(sshd: LocalSshd) -> None:
    """A clear error, not a silent new one."""
    with assert_no_leaks(sshd), Runtime(sshd.host, **sshd.connection_kwargs) as runtime:
        runtime.run("echo data >file")
        current = supervisor(runtime)
        os.kill(supervisor_pid(runtime), signal.SIGKILL)
        assert_eventually(lambda: not current.is_running, "it is gone")
        said = r"(?s)it was temporary, and went when the connection broke: .*Make a new Runtime\.$"
        for use in (lambda: runtime.run("cat file"), lambda: runtime.call(os.getpid)):
            with pytest.raises(WorkingDirectoryError, match=said):
                use()
        assert runtime.is_valid_runtime()  # the host itself is well


@pytest.mark.parametrize("how", ["drop", "master"])
def test_connection_lost_fails_task_and_is_replaced(sshd: LocalSshd, tmp_path: Path, how: str) -> None:
    """In every state: while a command runs, while a function runs, while files move, while nothing happens."""
    number = unique_sleep_seconds()
    with assert_no_leaks(sshd), running_relay(sshd, tmp_path) as (relay, keywords):
        (tmp_path / "large").write_bytes(bytes(1 << 25))
        with Runtime(sshd.host, str(tmp_path / "work"), **keywords) as runtime:
            for task in (
                RuntimeTask("command").run_command(f"sleep {number}"),
                RuntimeTask("function").run_function(time.sleep, int(number)),
                RuntimeTask("output").run_command(f"echo {number} >/dev/null; cat /dev/zero"),
                RuntimeTask("files").run_command(f"sleep {number} & cat /dev/zero >/dev/null"),
                None,
            ):
                if task is not None:
                    runtime.execute_task(task)
                    assert_eventually(lambda: len(transport(runtime)._supervisor._event_queues) > 0, "it is under way")  # type: ignore[union-attr]
                current = supervisor(runtime)
                if how == "drop":
                    relay.drop()
                else:
                    os.kill(master_pid_of(runtime), signal.SIGKILL)
                if task is not None:
                    with pytest.raises(TaskExecutionError) as caught:
                        task.join()
                    assert isinstance(caught.value.__cause__, ConnectionLostError)
                assert_eventually(lambda current=current: not current.is_running, "the loss is seen")  # type: ignore[misc]
                assert runtime.run("echo again").stdout == "again\n"
            assert_eventually(lambda: not find_local_pids(number), "what was under way is ended", timeout=15)


def test_slow_connection_is_not_lost(sshd: LocalSshd, tmp_path: Path) -> None:
    """Nothing comes through for longer than any patience on either side but that of ssh itself."""
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


_JUMPING = """
import itertools, time
real, jumps = time.time, itertools.cycle([86400.0, -86400.0, 0.0])
time.time = lambda: real() + next(jumps)
"""


def test_jumping_clock_changes_no_timeout(make_sshd: MakeSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a day, forth and back, each time that somebody looks, on both ends."""
    number = unique_sleep_seconds()
    (tmp_path / "sitecustomize.py").write_text(_JUMPING)
    server = make_sshd(environment={"PYTHONPATH": str(tmp_path)})
    jumps, real = itertools.cycle([86400.0, -86400.0, 0.0]), time.time
    with Runtime(server.host, grace=0.5, python=sys.executable, **server.connection_kwargs) as runtime:
        monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
        there = runtime.call(lambda: [time.time() for _ in range(3)])
        assert max(there) - min(there) > 86000, "the clock there jumps"
        assert runtime.run("sleep 0.5; echo done", timeout=60).stdout == "done\n"
        begun = time.monotonic()
        with pytest.raises(CommandTimeoutError):
            runtime.run(f"trap '' TERM; sleep {number}; sleep {number}", timeout=0.3)
        task = runtime.execute_task(RuntimeTask().run_command(f"sleep {number}"))
        started(number, 1)
        assert task.process is not None
        task.process.terminate()
        assert time.monotonic() - begun < 20
        assert_eventually(lambda: not find_local_pids(number), "both are ended", timeout=10)
        assert runtime.is_valid_runtime()


# Its end --------------------------------------------------------------------------------------------------------------

_BUSY = """
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
    """With tunnels, tasks and files in flight: within 10 s no ssh here, no port, no process and no file there."""
    server = make_sshd()
    number, ports = unique_sleep_seconds(), [reserve_free_port(), reserve_free_port()]
    large, back, theirs = tmp_path / "large", tmp_path / "back", tmp_path / "theirs"
    theirs.mkdir()
    back.mkdir()
    with large.open("wb") as file:
        file.truncate(8 << 30)  # longer under way than the test
    text = _BUSY.format(
        host=server.host, config=str(server.config_file), number=number, ports=ports, large=str(large), back=str(back)
    )
    masters = str(short_tmpdir / "lazycluster-m-")
    environment = {"TMPDIR": str(short_tmpdir)}
    with ClientProgram(text + "\ntime.sleep(1000)", environment=environment) as program:
        working_dir = Path(program.read_line())
        assert find_local_pids(masters)
        started(number, 5)
        assert_eventually(lambda: any(working_dir.glob(".lazycluster-*")), "a file on its way there")
        assert_eventually(lambda: any(back.iterdir()), "a file on its way back")
        begun = time.monotonic()
        program.process.send_signal(signal_number)
        program.process.wait(10)
        assert_becomes_idle(server, timeout=10)
        assert_eventually(lambda: not find_local_pids(number), "no process of it there", timeout=10)
        assert_eventually(lambda: not any(listening_addresses(port) for port in ports), "no port", timeout=10)
        assert_eventually(lambda: not find_local_pids(masters), "no ssh process here", timeout=10)
        assert time.monotonic() - begun < 10
        assert not list(working_dir.parent.glob(f"{working_dir.stem}*"))


def test_grace_delays_kill_of_stubborn_command(sshd: LocalSshd) -> None:
    number = unique_sleep_seconds()
    with assert_no_leaks(sshd), Runtime(sshd.host, grace=0.5, **sshd.connection_kwargs) as runtime:
        command = f"trap '' TERM; setsid sleep {number} & sleep {number}; sleep {number}"
        task = RuntimeTask().run_command(command)
        runtime.execute_task(task)
        started(number, 2)
        begun = time.monotonic()
        assert task.process is not None
        task.process.terminate()
        assert 0.4 < time.monotonic() - begun < 4
        assert not find_local_pids(number)
        with pytest.raises(CommandTimeoutError):
            runtime.run(command, timeout=0.2)
        assert_eventually(lambda: not find_local_pids(number), "ended after its grace", timeout=3)


@pytest.mark.parametrize("grace", [-1, "5", True, float("nan")])
def test_a_grace_that_is_none(grace: object) -> None:
    with pytest.raises(ValueError, match="grace must be a number of seconds"):
        Runtime("never-dialled", grace=grace)  # type: ignore[arg-type]


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
    with assert_no_leaks(sshd), ClientProgram(text) as program:
        assert program.wait(30) == (0, "child True\n['parent\\n']\n", "")


def test_fork_does_not_hide_end_of_parent(sshd: LocalSshd, run_directory: Path) -> None:
    """A copy of the channel's descriptor would keep the host from seeing it."""
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
        tempfile.TemporaryDirectory(prefix="e", dir=run_directory) as temporary,  # nobody is left to remove its socket
        ClientProgram(text, environment={"TMPDIR": temporary}) as program,
    ):
        child = int(program.read_line())
        started(number)
        program.process.kill()
        program.process.wait()
        assert_eventually(lambda: not commands_running(sshd, f"sleep {number}"), "the command is ended", timeout=10)
        assert is_alive(child)
        os.kill(child, signal.SIGKILL)


# Functions ------------------------------------------------------------------------------------------------------------


def test_no_call_sees_another(sshd: LocalSshd) -> None:
    def leave_a_trace() -> tuple[int, bool, bool, list[int]]:
        import builtins  # noqa: PLC0415
        import threading  # noqa: PLC0415

        seen = hasattr(builtins, "lazycluster_trace"), "LAZYCLUSTER_TRACE" in os.environ
        builtins.lazycluster_trace = 1  # type: ignore[attr-defined]
        os.environ["LAZYCLUSTER_TRACE"] = "1"
        os.chdir("/")
        threading.Thread(target=time.sleep, args=(0.01,)).start()
        descriptors = [number for number in range(3, 100) if Path(f"/proc/self/fd/{number}").exists()]
        os.open("/dev/null", os.O_RDONLY)
        return os.getpid(), *seen, descriptors

    with assert_no_leaks(sshd), Runtime(sshd.host, **sshd.connection_kwargs) as runtime:
        calls = [runtime.call(leave_a_trace) for _ in range(5)]
        assert len({pid for pid, *_ in calls}) == 5
        assert {(builtin, variable) for _, builtin, variable, _ in calls} == {(False, False)}
        assert {len(descriptors) for *_, descriptors in calls} == {1}  # where the outcome is written to
        assert runtime.call(os.getcwd) == runtime.working_dir


@pytest.mark.parametrize(
    ("end", "how"),
    [
        (lambda: os._exit(3), "exit status 3"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "SIGSEGV"),
    ],
)
@pytest.mark.parametrize("resident", [True, False])
def test_a_process_that_dies_is_told_with_what_it_printed(
    sshd: LocalSshd, end: Callable[[], object], how: str, resident: bool
) -> None:
    def die() -> None:
        print("the last words", flush=True)
        end()

    with assert_no_leaks(sshd), Runtime(sshd.host, resident=resident, **sshd.connection_kwargs) as runtime:
        with pytest.raises(RemoteFunctionError, match=f"(?s){how}.*the last words"):
            runtime.call(die)
        assert runtime.call(os.getpid) > 0


def test_a_large_argument_and_a_large_result_stream_through(sshd: LocalSshd) -> None:
    with assert_no_leaks(sshd), Runtime(sshd.host, **sshd.connection_kwargs) as runtime:
        data = os.urandom(1 << 20) * 40
        assert runtime.call(bytes.swapcase, data) == data.swapcase()


def test_runtime_close_after_manual_removal_logs_nothing(sshd: LocalSshd, caplog: pytest.LogCaptureFixture) -> None:
    """A directory that was removed by hand is no such thing."""
    with assert_no_leaks(sshd), caplog.at_level(logging.WARNING):
        runtime = Runtime(sshd.host, **sshd.connection_kwargs)
        runtime.run('rm -rf "$WORKING_DIR"')
        runtime.close()
    assert caplog.messages == []


def test_a_tunnel_beside_it(sshd: LocalSshd) -> None:
    with assert_no_leaks(sshd), EchoServer() as service, Runtime(sshd.host, **sshd.connection_kwargs) as runtime:
        port = reserve_free_port()
        key = runtime.expose_port_to_runtime(service.port, port)

        def ask() -> bytes:
            import socket  # noqa: PLC0415

            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(b"hello")
                return connection.recv(5)

        assert runtime.call(ask) == b"hello"
        runtime.stop_process(key)
