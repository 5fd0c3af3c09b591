"""Tasks: executed in the foreground and in the background, again, and on several runtimes."""

from __future__ import annotations

import math
import operator
import os
import threading
import time
from pathlib import Path

import pytest

from lazycluster import CommandFailedError, Runtime, RuntimeTask, StepResult, TaskExecutionError
from tests.contract.conftest import HOST_ALIAS, TransportCase, execute_and_wait
from tests.waiting import assert_eventually


def failing() -> None:
    raise LookupError("not found")


def wait_for_file(path: str) -> str:
    for _ in range(6000):
        if os.path.exists(path):  # noqa: PTH110 - one import less on the host
            return "found"
        time.sleep(0.01)
    return "not found within a minute"


# Execution -----------------------------------------------------------------------------------------------------------


def test_execute_task_in_both_modes_returns_the_task(case: TransportCase, runtime: Runtime) -> None:
    task = RuntimeTask("named").run_command(case.script("echo done", stdout="done\n"))
    assert (task.name, task.process, task.results, task.execution_log) == ("named", None, (), [])

    assert runtime.execute_task(task, execute_async=False) is task
    assert [task.process] == [None]
    assert runtime.task_processes == []
    assert runtime.execute_task(task) is task
    task.join()
    task.join()

    [process] = runtime.task_processes
    assert process is task.process
    assert (process.exitcode, process.is_alive()) == (0, False)
    assert process.name == f"task named on {HOST_ALIAS}"
    assert task.execution_log == ["done\n"]


def test_execute_task_returns_before_the_end(case: TransportCase, tmp_path: Path) -> None:
    runtime, file = case.runtime(), tmp_path / "file"
    task = RuntimeTask("waiting").run_function(wait_for_file, str(file))

    assert runtime.execute_task(task) is task

    [(key, process)] = runtime.get_processes(only_alive=True).items()
    assert key.startswith("waiting-")
    assert task.process is process is runtime.get_process(key)
    assert (process.is_alive(), process.exitcode) == (True, None)
    assert (runtime.alive_process_count, runtime.alive_task_process_count) == (1, 1)
    process.join(0.05)
    assert process.is_alive()
    file.touch()
    task.join()
    assert list(task.function_returns) == ["found"]
    assert runtime.get_process(key) is process
    assert (process.is_alive(), process.exitcode) == (False, 0)


def test_execute_task_without_steps_has_no_results(runtime: Runtime) -> None:
    task = execute_and_wait(runtime, RuntimeTask())

    assert (task.execution_log, list(task.function_returns), task.results) == ([], [], ())


def test_task_failed_in_background_is_raised_by_join(case: TransportCase, runtime: Runtime) -> None:
    task = RuntimeTask("wrong").run_command(case.script("exit 3", exit_code=3)).run_function(len, "never")

    runtime.execute_task(task)

    for _ in range(2):
        with pytest.raises(TaskExecutionError) as caught:
            task.join()
        assert (caught.value.host, caught.value.task, caught.value.step_index) == (HOST_ALIAS, "wrong", 0)
        assert isinstance(caught.value.__cause__, CommandFailedError)
    assert task.process is not None
    assert task.process.exitcode == 1
    with pytest.raises(TaskExecutionError):
        list(task.function_returns)


def test_function_returns_error_of_function_is_raised(runtime: Runtime) -> None:
    runtime.execute_task(RuntimeTask().run_function(int, "1").run_function(int, "x"))
    returns = runtime.function_returns
    assert next(returns) == 1
    with pytest.raises(ValueError):
        next(returns)


def test_function_returns_wait_for_the_task(case: TransportCase, runtime: Runtime) -> None:
    task = RuntimeTask().run_command(case.script("sleep 0.2", delay=0.2)).run_function(len, "four")

    runtime.execute_task(task)

    assert list(task.function_returns) == [4]


def test_execute_task_again_replaces_log_and_returns(case: TransportCase, runtime: Runtime) -> None:
    command = case.script("echo first", stdout="first\n")
    task = RuntimeTask().run_command(command).run_function(len, "four")
    steps = task.steps
    execute_and_wait(runtime, task)
    assert task.execution_log == ["first\n", ""]

    task.run_command(case.script("echo added", stdout="added\n"))
    execute_and_wait(runtime, task)

    assert task.execution_log == ["first\n", "", "added\n"]
    assert list(task.function_returns) == [4]
    assert task.steps[:2] == steps
    assert list(runtime.function_returns) == [4, 4], "the runtime keeps what each execution returned"


def test_execute_task_on_two_runtimes_keeps_them_apart(case: TransportCase) -> None:
    first, second = case.runtime(), case.runtime()
    task = RuntimeTask("getcwd").run_function(os.getcwd)
    copies = [first.execute_task(task.copy()), second.execute_task(task.copy())]

    assert [list(copy.function_returns) for copy in copies] == [[first.working_dir], [second.working_dir]]
    assert list(execute_and_wait(first, task).function_returns) == [first.working_dir]
    assert list(execute_and_wait(second, task).function_returns) == [second.working_dir]
    assert list(first.function_returns) == [first.working_dir] * 2


def test_runtime_function_returns_are_in_order_of_starts(case: TransportCase, runtime: Runtime) -> None:
    slow = RuntimeTask().run_command(case.script("sleep 0.2", delay=0.2)).run_function(len, "1")
    quick = RuntimeTask().run_function(len, "22").run_function(len, "333")

    runtime.execute_task(slow)
    runtime.execute_task(RuntimeTask().run_command(case.script("true")))
    execute_and_wait(runtime, RuntimeTask().run_function(len, ""))
    runtime.execute_task(quick)

    assert list(runtime.function_returns) == [1, 0, 2, 3]
    assert list(runtime.function_returns) == [1, 0, 2, 3]
    assert list(quick.function_returns) == [2, 3]


def test_clear_tasks_discards_ended_and_keeps_running(case: TransportCase, capsys: pytest.CaptureFixture[str]) -> None:
    runtime = case.runtime()
    done = runtime.execute_task(RuntimeTask("in background").run_function(int, "1"))
    done.join()
    execute_and_wait(runtime, RuntimeTask("in foreground").run_function(int, "2"))
    running = runtime.execute_task(RuntimeTask("running").run_command(case.script("sleep 1000", delay=math.inf)))

    runtime.clear_tasks()

    [key] = runtime.get_processes()
    assert runtime.get_process(key) is running.process
    runtime.print_log()
    assert capsys.readouterr().out == f"{HOST_ALIAS}: running\n"
    assert list(done.function_returns) == [1], "the task itself keeps its returns"
    runtime.stop_process(key)
    runtime.clear_tasks()
    assert (runtime.get_processes(), runtime.task_processes) == ({}, [])
    assert list(runtime.function_returns) == []


# Results, log, output ------------------------------------------------------------------------------------------------


def test_task_results_have_output_and_exit_codes(case: TransportCase, runtime: Runtime) -> None:
    case.script("echo out; echo err >&2; exit 7", stdout="out\n", stderr="err\n", exit_code=7)
    task = RuntimeTask().run_function(operator.add, 1, 2).run_command("echo out; echo err >&2; exit 7")

    with pytest.raises(TaskExecutionError):
        execute_and_wait(runtime, task)

    called, ran = task.results
    assert all(isinstance(result, StepResult) and result.duration >= 0 for result in task.results)
    assert (called.step, called.exit_code, called.error, called.ok) == ("run_function(add)", None, None, True)
    assert (ran.step, ran.exit_code, ran.ok) == ("run_command(echo out; echo err >&2; exit 7)", 7, False)
    assert (ran.stdout, ran.stderr) == ("out\n", "err\n")
    assert ran.error is not None
    assert sorted(ran.log.splitlines()) == ["err", "out"]


@pytest.mark.parametrize("execute_async", [True, False], ids=["in background", "in other thread"])
def test_execution_log_is_readable_while_task_runs(
    case: TransportCase, runtime: Runtime, host_dir: Path, execute_async: bool
) -> None:
    def wait() -> None:
        print("waiting", flush=True)
        while not Path("seen").exists():
            time.sleep(0.01)
        print("seen")

    task = RuntimeTask().run_command(case.script("echo first", stdout="first\n")).run_function(wait)
    task.run_function(lambda: None)
    thread = threading.Thread(target=runtime.execute_task, args=(task, execute_async))
    thread.start()

    assert_eventually(
        lambda: task.execution_log == ["first\n", "waiting\n"], "output of the step under way", timeout=30
    )
    assert [result.log for result in task.results] == ["first\n"], "of the steps that have ended"
    (host_dir / "seen").touch()
    thread.join()
    task.join()

    assert task.execution_log == ["first\n", "waiting\nseen\n", ""]
    assert len(task.results) == 3


def test_execution_log_of_stopped_task_has_its_output(runtime: Runtime) -> None:
    def wait() -> None:
        print("waiting", flush=True)
        directory = Path.cwd()
        while directory.exists():  # a fake host cannot end a function
            time.sleep(0.01)

    task = runtime.execute_task(RuntimeTask().run_function(wait))
    assert_eventually(lambda: task.execution_log == ["waiting\n"], "its output so far", timeout=30)
    assert task.process is not None
    task.process.terminate()

    assert task.execution_log == ["waiting\n"]
    assert [result.ok for result in task.results] == [False]


def test_print_log_shows_output_and_failure(
    case: TransportCase, runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    task = RuntimeTask("shown").run_command(case.script("echo one", stdout="one\n")).run_function(print, "two")
    task.run_function(failing)
    with pytest.raises(TaskExecutionError):
        execute_and_wait(runtime, task)
    capsys.readouterr()

    task.print_log()
    lines = capsys.readouterr().out.splitlines()
    runtime.print_log()

    assert lines[:3] == ["[0] one", "[1] two", "[2] "]
    assert lines[3].startswith(
        f"[2] failed: {HOST_ALIAS}: task 'shown' failed at step 2, run_function(failing): LookupError"
    )
    assert capsys.readouterr().out.splitlines() == [f"{HOST_ALIAS}: shown", *lines]


def test_execute_task_debug_prints_output(
    case: TransportCase, runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    task = RuntimeTask().run_command(case.script("echo shown", stdout="shown\n")).run_function(print, "too")

    runtime.execute_task(task, execute_async=False, debug=True)

    assert capsys.readouterr().out == "shown\ntoo\n"
    assert task.execution_log == ["shown\n", "too\n"]


def test_execute_task_output_is_logged(
    case: TransportCase, runtime: Runtime, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    task = RuntimeTask().run_command(case.script("echo logged; printf rest", stdout="logged\nrest"))

    with caplog.at_level("DEBUG", logger="lazycluster"):
        execute_and_wait(runtime, task.run_function(print, "too"))

    ours = [record.getMessage() for record in caplog.records if record.name == "lazycluster.executor"]
    assert ours == [f"{HOST_ALIAS}: logged", f"{HOST_ALIAS}: rest", f"{HOST_ALIAS}: too"]
    assert capsys.readouterr().out == ""


def test_task_cleanup_discards_returns(runtime: Runtime) -> None:
    task = execute_and_wait(runtime, RuntimeTask().run_function(len, "four"))

    task.cleanup()

    assert list(task.function_returns) == []
    assert task.execution_log == [""]


@pytest.mark.parametrize("command", ["", " \n"], ids=["empty", "blank"])
def test_run_command_blank_raises_value_error(command: str) -> None:
    with pytest.raises(ValueError):
        RuntimeTask().run_command(command)
