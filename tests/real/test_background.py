"""Tasks in the background: many at once, waited for, stopped, read afterwards."""

from __future__ import annotations

import operator
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazycluster import (
    CommandFailedError,
    CommandStoppedError,
    CommandTimeoutError,
    ConnectionLostError,
    Runtime,
    RuntimeTask,
    TaskExecutionError,
)
from lazycluster.testing import LocalSshd
from tests.client_programs import call_in_parallel
from tests.observation import assert_no_leaks, running_relay, unique_sleep_seconds
from tests.processes import command_line
from tests.waiting import assert_eventually

if TYPE_CHECKING:
    from tests.sshd_fixtures import MakeSshd


@pytest.fixture
def runtime(sshd: LocalSshd, resident: bool) -> Iterator[Runtime]:
    with Runtime(sshd.host, resident=resident, **sshd.connection_kwargs) as runtime:
        yield runtime


def sleeping(server: LocalSshd, number: str) -> list[int]:
    return [pid for pid in server.processes() if number in command_line(pid)]


def endless(number: str, *, before: str = "") -> RuntimeTask:
    """Return a task whose command has children in sessions of their own and in the background."""
    command = f"{before}(setsid sleep {number} &) ; sleep {number} & sh -c 'sleep {number}; true'; touch never"
    return RuntimeTask("endless").run_command(command).run_command("touch never")


# Many at once --------------------------------------------------------------------------------------------------------


def test_twenty_tasks_at_once_from_several_threads(sshd: LocalSshd, tmp_path: Path, resident: bool) -> None:
    """Above the ten sessions that sshd allows, with all four kinds of step."""
    (tmp_path / "sent").write_text("content")
    with assert_no_leaks(sshd), Runtime(sshd.host, resident=resident, **sshd.connection_kwargs) as runtime:

        def one(number: int) -> RuntimeTask:
            task = RuntimeTask(f"task {number}").run_command(f"mkdir {number}; sleep 0.05; echo {number}")
            task.send_file(tmp_path / "sent", f"{number}/there").run_function(operator.mul, number, number)
            task.get_file(f"{number}/there", tmp_path / f"back {number}")
            return runtime.execute_task(task)

        tasks = call_in_parallel([lambda number=number: one(number) for number in range(20)])  # type: ignore[misc]
        for task in tasks:
            task.join()

        for number, task in enumerate(tasks):
            assert task.execution_log == [f"{number}\n", "", "", ""]
            assert list(task.function_returns) == [number * number]
            assert (tmp_path / f"back {number}").read_text() == "content"
        assert len(runtime.get_processes()) == len(runtime.task_processes) == 20
        assert {process.exitcode for process in runtime.task_processes} == {0}
        assert runtime.alive_process_count == runtime.alive_task_process_count == 0
        assert sorted(runtime.function_returns) == sorted(number * number for number in range(20))  # type: ignore[type-var]


def test_tasks_run_side_by_side(runtime: Runtime) -> None:
    """Each waits for the file that the next one makes."""
    tasks = [
        runtime.execute_task(
            RuntimeTask().run_command(
                f"touch {number}; while [ ! -e {(number + 1) % 5} ]; do sleep 0.01; done", timeout=20
            )
        )
        for number in range(5)
    ]
    for task in tasks:
        task.join()


def test_execute_task_returns_the_task_before_it_has_ended(runtime: Runtime, tmp_path: Path) -> None:
    go = tmp_path / "go"
    task = RuntimeTask("waiting").run_command(f"while [ ! -e {go} ]; do sleep 0.01; done; echo gone")
    assert (task.process, task.execution_log) == (None, [])

    assert runtime.execute_task(task) is task

    [(key, process)] = runtime.get_processes(only_alive=True).items()
    assert "waiting" in key
    assert task.process is process is runtime.get_process(key)
    assert process.name == "task waiting on local"
    assert process.is_alive()
    assert process.exitcode is None
    assert (runtime.alive_process_count, runtime.alive_task_process_count) == (1, 1)
    process.join(0.05)
    assert process.is_alive()
    go.touch()
    task.join()
    assert task.execution_log == ["gone\n"]
    assert runtime.get_process(key).exitcode == 0
    assert not runtime.get_process(key).is_alive()


def test_a_task_that_waits_does_not_run_in_the_background(runtime: Runtime) -> None:
    task = runtime.execute_task(RuntimeTask().run_command("echo done"), execute_async=False)
    assert task.execution_log == ["done\n"]
    assert task.process is None
    assert runtime.get_processes() == {}


# What came of it -----------------------------------------------------------------------------------------------------


def test_joining_raises_what_failed(runtime: Runtime) -> None:
    task = RuntimeTask("failing").run_command("echo first").run_command("echo out; echo err >&2; exit 3")
    task.run_command("touch never")

    runtime.execute_task(task)
    with pytest.raises(TaskExecutionError):
        task.join()
    with pytest.raises(TaskExecutionError) as caught:
        task.join()

    error = caught.value
    assert (error.host, error.task, error.step_index) == ("local", "failing", 1)
    assert "ended with exit status 3" in str(error)
    assert "out" in str(error)
    assert isinstance(error.__cause__, CommandFailedError)
    assert [result.exit_code for result in task.results] == [0, 3]
    assert sorted(task.execution_log[1].split()) == ["err", "out"]
    assert task.process is not None
    assert task.process.exitcode == 1
    assert runtime.run("ls").stdout == ""


def test_a_timeout_in_the_background(sshd: LocalSshd, runtime: Runtime) -> None:
    number = unique_sleep_seconds()
    task = RuntimeTask().run_command(f"echo begun; setsid sleep {number} & sleep {number}", timeout=0.5)
    runtime.execute_task(task)
    begun = time.monotonic()
    with pytest.raises(TaskExecutionError) as caught:
        task.join()
    assert time.monotonic() - begun < 4
    assert isinstance(caught.value.__cause__, CommandTimeoutError)
    assert task.execution_log == ["begun\n"]
    assert_eventually(lambda: not sleeping(sshd, number), "its processes are gone")


def test_function_returns_wait_and_are_in_the_order_of_the_tasks(runtime: Runtime, tmp_path: Path) -> None:
    go = tmp_path / "go"

    def slow() -> str:
        while not go.exists():
            time.sleep(0.01)
        return "slow"

    first = runtime.execute_task(RuntimeTask().run_function(slow).run_function(int, "1"))
    runtime.execute_task(RuntimeTask().run_command("true"))
    runtime.execute_task(RuntimeTask().run_function(int, "2"), execute_async=False)
    second = runtime.execute_task(RuntimeTask().run_function(int, "3"))
    timer = threading.Timer(0.1, go.touch)
    timer.start()

    assert list(runtime.function_returns) == ["slow", 1, 2, 3]
    assert list(runtime.function_returns) == ["slow", 1, 2, 3]
    assert list(first.function_returns) == ["slow", 1]
    assert list(second.function_returns) == [3]
    timer.join()


def test_function_returns_of_a_failure_raise(runtime: Runtime) -> None:
    runtime.execute_task(RuntimeTask().run_function(int, "1").run_function(int, "x"))
    returns = runtime.function_returns
    assert next(returns) == 1
    with pytest.raises(ValueError, match="invalid literal"):
        next(returns)


def test_the_log_is_printed(runtime: Runtime, capsys: pytest.CaptureFixture[str]) -> None:
    first = RuntimeTask("first").run_command("echo one").run_command("printf two").run_function(int)
    second = RuntimeTask("second").run_command("echo three; exit 1")
    runtime.execute_task(first, execute_async=False)
    with pytest.raises(TaskExecutionError):
        runtime.execute_task(second, execute_async=False)
    capsys.readouterr()

    first.print_log()
    assert capsys.readouterr().out == "[0] one\n[1] two\n[2] \n"
    runtime.print_log()
    failed = "`echo three; exit 1` ended with exit status 1."
    assert capsys.readouterr().out.splitlines() == [
        "local: first", "[0] one", "[1] two", "[2] ", "local: second", "[0] three",
        f"[0] failed: local: task 'second' failed at step 0, run_command(echo three; exit 1): {failed}", "    three",
    ]  # fmt: skip


def test_output_of_tasks_with_debug_is_printed_as_it_comes(
    runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    runtime.execute_task(RuntimeTask().run_command("echo out; echo err >&2"), debug=True).join()
    assert sorted(capsys.readouterr().out.split()) == ["err", "out"]


def test_a_task_may_be_executed_again_and_elsewhere(runtime: Runtime, make_sshd: MakeSshd, resident: bool) -> None:
    other = make_sshd(name="other")
    task = RuntimeTask("again").run_command("pwd").run_function(os.getcwd)
    copy = task.copy()
    with Runtime(other.host, resident=resident, **other.connection_kwargs) as second:
        runtime.execute_task(task).join()
        first_log = task.execution_log
        second.execute_task(copy).join()
        assert task.execution_log == first_log == [f"{runtime.working_dir}\n", ""]
        assert copy.execution_log == [f"{second.working_dir}\n", ""]
        assert copy.name == task.name
        assert copy.steps == task.steps

        second.execute_task(task).join()
        assert task.execution_log == copy.execution_log
        assert list(task.function_returns) == [second.working_dir]
        assert list(runtime.function_returns) == [runtime.working_dir], "each runtime keeps what it executed"
        assert list(second.function_returns) == [second.working_dir] * 2
        copy.run_command("true")
        assert len(task.steps) == 2


def test_clearing_forgets_what_has_ended_and_keeps_what_runs(
    sshd: LocalSshd, runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    number = unique_sleep_seconds()
    done = runtime.execute_task(RuntimeTask("done").run_function(int, "1"))
    done.join()
    runtime.execute_task(RuntimeTask("waited for").run_function(int, "2"), execute_async=False)
    running = runtime.execute_task(RuntimeTask("running").run_command(f"echo up; sleep {number}"))
    assert_eventually(lambda: bool(sleeping(sshd, number)), "it runs")

    runtime.clear_tasks()

    [key] = runtime.get_processes()
    assert "running" in key
    assert runtime.get_process(key) is running.process
    capsys.readouterr()
    runtime.print_log()
    assert "waited for" not in capsys.readouterr().out
    assert list(done.function_returns) == [1], "the task itself keeps what it has"
    runtime.stop_process(key)
    runtime.clear_tasks()
    assert runtime.get_processes() == {}
    assert list(runtime.function_returns) == []
    assert_eventually(lambda: not sleeping(sshd, number), "it is gone")


def test_everything_can_be_read_after_the_end_of_the_runtime(
    sshd: LocalSshd, capsys: pytest.CaptureFixture[str], resident: bool
) -> None:
    with Runtime(sshd.host, resident=resident, **sshd.connection_kwargs) as runtime:
        task = runtime.execute_task(RuntimeTask("read").run_command("echo kept").run_function(bytes, 3_000_000))
        task.join()

    assert task.execution_log == ["kept\n", ""]
    assert [result.exit_code for result in task.results] == [0, None]
    assert list(task.function_returns) == list(runtime.function_returns) == [bytes(3_000_000)]
    runtime.print_log()
    assert "[0] kept" in capsys.readouterr().out
    assert runtime.working_dir
    assert runtime.info["host"] == "local"
    assert [process.exitcode for process in runtime.get_processes().values()] == [0]
    task.cleanup()
    assert task.execution_log == ["kept\n", ""]


# Stopped -------------------------------------------------------------------------------------------------------------


def test_stopping_a_task_ends_its_command_with_its_children(sshd: LocalSshd, runtime: Runtime) -> None:
    number = unique_sleep_seconds()
    task = runtime.execute_task(endless(number, before="echo begun; "))
    assert_eventually(lambda: len(sleeping(sshd, number)) >= 3, "it has its children")
    [key] = runtime.get_processes()
    other = runtime.execute_task(RuntimeTask("other").run_command(f"sleep 0.3; echo {number} other"))

    begun = time.monotonic()
    runtime.stop_process(key)
    assert time.monotonic() - begun < 4

    process = runtime.get_process(key)
    assert (process.is_alive(), process.exitcode) == (False, -signal.SIGTERM)
    assert_eventually(lambda: not sleeping(sshd, f"sleep {number}"), "its processes are gone")
    with pytest.raises(TaskExecutionError, match="was stopped before it ended") as caught:
        task.join()
    assert isinstance(caught.value.__cause__, CommandStoppedError)
    [log] = task.execution_log  # no further step began
    assert log.removesuffix("Terminated\n") == "begun\n", "what it had printed is kept; its shell may tell of its child"
    runtime.stop_process(key)
    other.join()
    assert runtime.run("ls").stdout == ""
    assert runtime.execute_task(task.copy().run_command("true")) is not task


def test_a_command_that_ignores_sigterm_is_killed(sshd: LocalSshd, resident: bool) -> None:
    number = unique_sleep_seconds()
    with Runtime(sshd.host, resident=resident, grace=1, **sshd.connection_kwargs) as runtime:
        runtime.execute_task(RuntimeTask().run_command(f"trap '' TERM HUP INT; sleep {number}; sleep {number}"))
        assert_eventually(lambda: bool(sleeping(sshd, f"sleep {number}")), "it runs")
        [key] = runtime.get_processes()
        runtime.stop_process(key)
        assert_eventually(lambda: not sleeping(sshd, number), "it is gone after the grace", timeout=5)


def test_a_task_that_waits_for_a_free_session_can_be_stopped(make_sshd: MakeSshd) -> None:
    server = make_sshd(options={"MaxSessions": "1"})
    number = unique_sleep_seconds()
    with (
        assert_no_leaks(server),
        Runtime(server.host, resident=False, max_sessions=1, **server.connection_kwargs) as runtime,
    ):
        running = runtime.execute_task(RuntimeTask("running").run_command(f"sleep {number}"))
        assert_eventually(lambda: bool(sleeping(server, number)), "it runs")
        waiting = runtime.execute_task(RuntimeTask("waiting").run_command("touch never"))
        [first, second] = runtime.get_processes()
        begun = time.monotonic()
        runtime.stop_process(second)
        assert time.monotonic() - begun < 10
        with pytest.raises(TaskExecutionError, match="stopped"):
            waiting.join()
        assert running.process is not None
        assert running.process.is_alive()
        runtime.stop_process(first)
        assert not Path(runtime.working_dir, "never").exists()


def test_an_unknown_key_is_named_with_those_that_there_are(runtime: Runtime) -> None:
    with pytest.raises(ValueError, match=re.escape("local: no process with the key 'nonsense' (there are: none)")):
        runtime.get_process("nonsense")
    runtime.execute_task(RuntimeTask("known").run_command("true")).join()
    for use in (runtime.get_process, runtime.stop_process):
        with pytest.raises(ValueError, match=r"there are: known"):
            use("nonsense")


def test_a_link_that_breaks_is_raised_by_join(sshd: LocalSshd, tmp_path: Path, resident: bool) -> None:
    number = unique_sleep_seconds()
    with (
        assert_no_leaks(sshd),
        running_relay(sshd, tmp_path) as (relay, keywords),
        Runtime(sshd.host, str(tmp_path / "work"), resident=resident, **keywords) as runtime,
    ):
        task = runtime.execute_task(endless(number))
        assert_eventually(lambda: len(sleeping(sshd, number)) >= 3, "it runs")
        runtime.run("true")  # what the host says is said in order: by now also that the other has started
        relay.drop()
        with pytest.raises(TaskExecutionError, match="connection lost") as caught:
            task.join()
        assert isinstance(caught.value.__cause__, ConnectionLostError)
        assert caught.value.__cause__.started is True
        assert_eventually(lambda: not sleeping(sshd, number), "the host has ended its processes")
        assert runtime.run("echo again").stdout == "again\n"
