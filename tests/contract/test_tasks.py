"""Tasks: built once, carried out often, here and there, at once and in the background."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest

from lazycluster import Runtime, RuntimeTask, StepResult, TaskExecutionError
from tests.contract.conftest import HOST_ALIAS, TransportCase, execute_and_wait


def failing() -> None:
    raise LookupError("nothing there")


# Executed ------------------------------------------------------------------------------------------------------------


def test_both_ways_to_execute_return_the_task(case: TransportCase, runtime: Runtime) -> None:
    task = RuntimeTask("named").run_command(case.script("echo done", stdout="done\n"))
    assert (task.name, task.process, task.results, task.execution_log) == ("named", None, (), [])

    assert runtime.execute_task(task, execute_async=False) is task
    assert [task.process] == [None]
    assert runtime.execute_task(task) is task
    task.join()
    task.join()

    [process] = runtime.task_processes
    assert process is task.process
    assert (process.exitcode, process.is_alive()) == (0, False)
    assert process.name == f"task named on {HOST_ALIAS}"
    assert task.execution_log == ["done\n"]


def test_a_task_without_steps(runtime: Runtime) -> None:
    task = execute_and_wait(runtime, RuntimeTask())

    assert (task.execution_log, list(task.function_returns), task.results) == ([], [], ())


def test_one_that_fails_in_the_background_raises_where_it_is_joined(case: TransportCase, runtime: Runtime) -> None:
    task = RuntimeTask("wrong").run_command(case.script("exit 3", exit_code=3)).run_function(len, "never")

    runtime.execute_task(task)

    for _ in range(2):
        with pytest.raises(TaskExecutionError, match="task 'wrong' failed at step 0"):
            task.join()
    assert task.process is not None
    assert task.process.exitcode == 1
    with pytest.raises(TaskExecutionError):
        list(task.function_returns)


def test_returns_wait_for_the_task(case: TransportCase, runtime: Runtime) -> None:
    task = RuntimeTask().run_command(case.script("sleep 0.2", delay=0.2)).run_function(len, "four")

    runtime.execute_task(task)

    assert list(task.function_returns) == [4]


def test_it_can_be_executed_again_and_replaces_what_there_was(case: TransportCase, runtime: Runtime) -> None:
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


def test_one_task_on_two_runtimes(case: TransportCase) -> None:
    first, second = case.runtime(), case.runtime()
    task = RuntimeTask("where").run_function(lambda: __import__("os").getcwd())
    copies = [first.execute_task(task.copy()), second.execute_task(task.copy())]

    assert [list(copy.function_returns) for copy in copies] == [[first.working_dir], [second.working_dir]]
    assert list(execute_and_wait(first, task).function_returns) == [first.working_dir]
    assert list(execute_and_wait(second, task).function_returns) == [second.working_dir]
    assert list(first.function_returns) == [first.working_dir] * 2


def test_several_tasks_and_their_returns_in_the_order_of_their_begin(case: TransportCase, runtime: Runtime) -> None:
    case.script("sleep 0.2", delay=0.2)
    slow = RuntimeTask().run_command("sleep 0.2").run_function(len, "1")
    quick = RuntimeTask().run_function(len, "22").run_function(len, "333")

    runtime.execute_task(slow)
    runtime.execute_task(quick)

    assert list(runtime.function_returns) == [1, 2, 3]
    runtime.clear_tasks()
    assert list(runtime.function_returns) == []
    assert runtime.task_processes == []
    assert list(slow.function_returns) == [1], "the task itself has it still"


# What came of it -----------------------------------------------------------------------------------------------------


def test_results(case: TransportCase, runtime: Runtime) -> None:
    case.script("echo out; echo err >&2; exit 7", stdout="out\n", stderr="err\n", exit_code=7)
    task = RuntimeTask().run_function(operator.add, 1, 2).run_command("echo out; echo err >&2; exit 7")

    with pytest.raises(TaskExecutionError):
        execute_and_wait(runtime, task)

    called, ran = task.results
    assert all(isinstance(result, StepResult) and 0 <= result.duration < 10 for result in task.results)
    assert (called.step, called.exit_code, called.error, called.ok) == ("run_function(add)", None, None, True)
    assert (ran.step, ran.exit_code, ran.ok) == ("run_command(echo out; echo err >&2; exit 7)", 7, False)
    assert (ran.stdout, ran.stderr) == ("out\n", "err\n")
    assert ran.error is not None
    assert sorted(ran.log.splitlines()) == ["err", "out"]


def test_the_log_is_printed(case: TransportCase, runtime: Runtime, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_debug_prints_what_comes(case: TransportCase, runtime: Runtime, capsys: pytest.CaptureFixture[str]) -> None:
    task = RuntimeTask().run_command(case.script("echo shown", stdout="shown\n")).run_function(print, "too")

    runtime.execute_task(task, execute_async=False, debug=True)

    assert capsys.readouterr().out == "shown\ntoo\n"
    assert task.execution_log == ["shown\n", "too\n"]


def test_without_debug_it_goes_to_the_logger(
    case: TransportCase, runtime: Runtime, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    task = RuntimeTask().run_command(case.script("echo logged; printf rest", stdout="logged\nrest"))

    with caplog.at_level("DEBUG", logger="lazycluster"):
        execute_and_wait(runtime, task.run_function(print, "too"))

    ours = [record.getMessage() for record in caplog.records if record.name == "lazycluster.executor"]
    assert ours == [f"{HOST_ALIAS}: logged", f"{HOST_ALIAS}: rest", f"{HOST_ALIAS}: too"]
    assert capsys.readouterr().out == ""


def test_cleaning_up_lets_go_of_the_returns(runtime: Runtime) -> None:
    task = execute_and_wait(runtime, RuntimeTask().run_function(len, "four"))

    task.cleanup()

    assert list(task.function_returns) == []
    assert task.execution_log == [""]


@pytest.mark.parametrize("add", [lambda task: task.run_command(""), lambda task: task.run_command(" \n")])
def test_steps_that_cannot_be(add: Callable[[RuntimeTask], object]) -> None:
    with pytest.raises(ValueError, match=r"command must.* empty"):
        add(RuntimeTask())
