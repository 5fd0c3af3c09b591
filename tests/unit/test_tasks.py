"""Tasks: how they are built, and what comes of carrying them out on a stand-in for a host."""

from __future__ import annotations

import functools
import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lazycluster._execution import TaskProcess, state_of
from lazycluster._transports.host_context import HostContext
from lazycluster._waiting import CancelToken
from lazycluster.exceptions import (
    CommandFailedError,
    ConnectionLostError,
    LazyclusterError,
    RuntimeClosedError,
    TaskExecutionError,
    TransferError,
)
from lazycluster.executor import Executor
from lazycluster.steps import GetFile, RunCommand, RunFunction, SendFile
from lazycluster.tasks import RuntimeTask
from lazycluster.testing._process_guard import wait_until
from tests.unit.stub_transport import StubResult, StubTransport, stub_stdout

add = lambda a, b=0: a + b  # noqa: E731
fail = lambda: int("no number")  # noqa: E731


def carry_out(task: RuntimeTask, transport: StubTransport) -> RuntimeTask:
    """Execute a task in the foreground; its failure is left for `join()`."""
    state_of(task).new_execution(Executor(HostContext(transport))).run()
    return task


def in_background(task: RuntimeTask, transport: StubTransport) -> TaskProcess:
    cancel_token = CancelToken()
    return state_of(task).start_in_background(Executor(HostContext(transport, cancel_token=cancel_token)), cancel_token)


# Building -------------------------------------------------------------------------------------------------------------


def test_steps_in_order(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    task = RuntimeTask("t")
    chained = (
        task.run_command("make", timeout=5)
        .send_file(tmp_path / "a", "b")
        .get_file("c", tmp_path / "d")
        .run_function(add, 1, b=2)
    )
    assert chained is task
    assert task.steps == (
        RunCommand("make", 5),
        SendFile(tmp_path / "a", "b"),
        GetFile("c", tmp_path / "d"),
        RunFunction(add, (1,), {"b": 2}),
    )
    assert (task.name, repr(task)) == ("t", "<RuntimeTask t, 4 steps>")


def test_statements_add_steps_too() -> None:
    task = RuntimeTask()
    task.run_command("a")
    task.run_command("b")
    assert task.steps == (RunCommand("a"), RunCommand("b"))


def test_a_name_is_made_up_where_there_is_none() -> None:
    first, second = RuntimeTask(), RuntimeTask()
    assert first.name
    assert first.name != second.name


@pytest.mark.parametrize("command", ["", " ", "\n\t"])
def test_no_command(command: str) -> None:
    task = RuntimeTask()
    with pytest.raises(ValueError, match="command must"):
        task.run_command(command)
    assert task.steps == ()


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), True, "5"])
def test_no_timeout(timeout: Any) -> None:
    with pytest.raises(ValueError, match="a timeout is a positive number of seconds, or None"):
        RuntimeTask().run_command("x", timeout=timeout)


@pytest.mark.parametrize("function", [None, 3, "len", [len]])
def test_no_function(function: Any) -> None:
    with pytest.raises(ValueError, match="a function is needed, not "):
        RuntimeTask().run_function(function)


@pytest.mark.parametrize("function", [add, len, int, functools.partial(add, 1), "text".upper])
def test_a_function(function: Any) -> None:
    assert RuntimeTask().run_function(function).steps == (RunFunction(function),)


def test_a_function_by_name() -> None:
    task = RuntimeTask().run_function(function=add, a=1)
    assert task.steps == (RunFunction(add, (), {"a": 1}),)
    assert list(carry_out(task, StubTransport()).function_returns) == [1]


def test_no_file_to_send(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^no such file or directory: {tmp_path}/no$"):
        RuntimeTask().send_file(tmp_path / "no")


def test_no_path_to_fetch() -> None:
    with pytest.raises(ValueError, match="the remote path must not be empty"):
        RuntimeTask().get_file("")


def test_relative_local_paths_are_fixed_when_the_step_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").touch()
    (tmp_path / "link").symlink_to("sub")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    task = RuntimeTask().send_file("sub/a").send_file("link/../sub/a", "").send_file("~/link").send_file("link")
    task.get_file("x").get_file("x", "y").get_file("x", "~/z")
    monkeypatch.chdir("/")
    assert task.steps == (
        SendFile(tmp_path / "sub" / "a"),
        SendFile(tmp_path / "sub" / "a"),
        SendFile(tmp_path / "link"),
        SendFile(tmp_path / "link"),
        GetFile("x", tmp_path),
        GetFile("x", tmp_path / "y"),
        GetFile("x", tmp_path / "z"),
    )


def test_a_copy_has_the_steps_and_nothing_of_the_execution() -> None:
    task = carry_out(RuntimeTask("t").run_command("a"), StubTransport(results={"a": stub_stdout("x")}))
    copy = task.copy()
    assert (copy.name, copy.steps, copy.results, copy.execution_log) == ("t", task.steps, (), [])
    copy.run_command("b")
    assert (len(task.steps), len(copy.steps)) == (1, 2)
    assert task.execution_log == ["x"]


# Executing ------------------------------------------------------------------------------------------------------------


def test_before_the_execution() -> None:
    task = RuntimeTask().run_command("a").run_function(add, 1)
    task.join()
    assert (task.results, task.execution_log, list(task.function_returns), task.process) == ((), [], [], None)
    task.cleanup()


def test_log_results_and_returns(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    task = RuntimeTask("t").run_command("a").send_file(tmp_path / "a").run_function(add, 1, b=2).run_function(add, 9)
    steps = task.steps
    carry_out(task, StubTransport(results={"a": stub_stdout("said\n")}))
    task.join()
    assert task.execution_log == ["said\n", "", "", ""]
    assert [result.step for result in task.results] == [
        "run_command(a)",
        f"send_file({tmp_path}/a)",
        "run_function(<lambda>)",
        "run_function(<lambda>)",
    ]
    assert all(result.ok for result in task.results)
    assert list(task.function_returns) == [3, 9]
    assert list(task.function_returns) == [3, 9]
    assert task.steps == steps


def test_a_step_that_fails_is_the_last() -> None:
    transport = StubTransport(results={"b": stub_stdout("no rule\n", 2), "a": stub_stdout("fine\n")})
    task = RuntimeTask("build").run_command("a").run_command("b").run_command("c")
    carry_out(task, transport)
    with pytest.raises(TaskExecutionError) as caught:
        task.join()
    assert str(caught.value) == (
        "web1: task 'build' failed at step 1, run_command(b): `b` ended with exit status 2.\n    no rule"
    )
    assert isinstance(caught.value.__cause__, CommandFailedError)
    assert [call.action for call in transport.calls] == ["a", "b"]
    assert task.execution_log == ["fine\n", "no rule\n"]
    assert [result.ok for result in task.results] == [True, False]


def test_joining_again_raises_again() -> None:
    task = carry_out(RuntimeTask().run_command("a"), StubTransport(results={"a": stub_stdout("", 1)}))
    for _ in range(2):
        with pytest.raises(TaskExecutionError):
            task.join()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TransferError("web1", "fetch", "a", "no such file"), "cannot fetch 'a': no such file"),
        (ValueError("bad"), "ValueError: bad"),
        (KeyError("bad"), "KeyError: 'bad'"),
        (RuntimeError(), "RuntimeError: RuntimeError"),
    ],
)
def test_why_a_task_failed(error: Exception, reason: str) -> None:
    task = carry_out(RuntimeTask("t").run_command("a"), StubTransport(results={"a": StubResult(error=error)}))
    with pytest.raises(TaskExecutionError) as caught:
        task.join()
    assert str(caught.value) == f"web1: task 't' failed at step 0, run_command(a): {reason}"
    assert caught.value.__cause__ is error


def test_a_closed_runtime_is_told_as_such() -> None:
    transport = StubTransport(results={"a": StubResult(error=RuntimeClosedError("web1"))})
    with pytest.raises(RuntimeClosedError):
        carry_out(RuntimeTask().run_command("a"), transport).join()


def test_a_function_that_raises() -> None:
    task = carry_out(RuntimeTask("t").run_function(add, 1).run_function(fail).run_function(add, 2), StubTransport())
    with pytest.raises(
        TaskExecutionError, match=r"failed at step 1, run_function\(<lambda>\): ValueError: .*no number"
    ):
        task.join()
    returns = task.function_returns
    assert next(returns) == 1
    with pytest.raises(ValueError, match="no number"):
        next(returns)
    assert list(returns) == []


def test_a_function_that_never_ran_raises_why() -> None:
    transport = StubTransport(results={"a": stub_stdout("", 3)})
    task = carry_out(RuntimeTask("t").run_function(add, 1).run_command("a").run_function(add, 2), transport)
    returns = task.function_returns
    assert next(returns) == 1
    with pytest.raises(TaskExecutionError, match=r"failed at step 1, run_command\(a\): `a` ended with exit status 3"):
        next(returns)
    assert list(returns) == []


def test_a_function_that_cannot_be_sent_raises_why() -> None:
    task = carry_out(RuntimeTask("t").run_function(add, threading.Lock()), StubTransport())
    with pytest.raises(TaskExecutionError, match=r"failed at step 0, run_function\(<lambda>\)"):
        list(task.function_returns)


def test_a_function_whose_host_was_lost_raises_that() -> None:
    """And not that its answer is incomplete."""
    lost = StubResult(error=ConnectionLostError("fake", "f", "cut", started=True))
    task = carry_out(RuntimeTask("t").run_function(add, 1).run_function(len, "x"), StubTransport(results={"len": lost}))
    returns = task.function_returns
    assert next(returns) == 1
    with pytest.raises(TaskExecutionError, match=r"failed at step 1, run_function\(len\): .*cut"):
        next(returns)


def test_a_failure_after_the_last_function_does_not_concern_the_returns() -> None:
    transport = StubTransport(results={"a": stub_stdout("", 3)})
    task = carry_out(RuntimeTask("t").run_function(add, 1).run_command("a"), transport)
    assert list(task.function_returns) == [1]


class Interrupted(StubTransport):
    """A host during whose work something comes that is no ordinary exception."""

    def put(self, *_: object, **__: object) -> None:
        raise KeyboardInterrupt


def interrupted_task(tmp_path: Path) -> RuntimeTask:
    return RuntimeTask("t").run_command("a").send_file(tmp_path).run_function(add, 1)


def test_an_interrupt_in_the_foreground_is_raised_at_once_and_told_again_by_join(tmp_path: Path) -> None:
    task = interrupted_task(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        carry_out(task, Interrupted())
    assert len(task.results) == 1
    with pytest.raises(TaskExecutionError, match=r"failed at step 1, send_file\(.*: KeyboardInterrupt") as caught:
        task.join()
    assert isinstance(caught.value.__cause__, KeyboardInterrupt)


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_interrupt_in_the_background_is_told_by_join(tmp_path: Path) -> None:
    task = interrupted_task(tmp_path)
    process = in_background(task, Interrupted())
    process.join(10)
    assert process.exitcode == 1
    with pytest.raises(TaskExecutionError, match="KeyboardInterrupt"):
        task.join()


def test_a_new_execution_replaces_the_last() -> None:
    transport = StubTransport(results={"a": stub_stdout("first\n", 1)})
    task = carry_out(RuntimeTask("t").run_command("a").run_function(add, 5), transport)
    with pytest.raises(TaskExecutionError):
        task.join()
    transport.results["a"] = stub_stdout("second\n")
    carry_out(task, transport)
    task.join()
    assert task.execution_log == ["second\n", ""]
    assert list(task.function_returns) == [5]


def test_one_task_on_many_hosts_keeps_every_execution_apart() -> None:
    task = RuntimeTask("t").run_command("hostname")
    hosts = [StubTransport(f"web{n}", {"hostname": stub_stdout(f"web{n}\n")}) for n in range(3)]
    executions = [state_of(task).new_execution(Executor(HostContext(host))) for host in hosts]
    for execution in executions:
        execution.run()
    assert [execution.results[0].stdout for execution in executions] == ["web0\n", "web1\n", "web2\n"]
    assert task.execution_log == ["web2\n"]


def test_a_step_that_is_added_meanwhile_waits_for_the_next_execution() -> None:
    task = RuntimeTask("t").run_command("a")
    execution = state_of(task).new_execution(Executor(HostContext(StubTransport())))
    task.run_command("b")
    execution.run()
    assert len(execution.results) == 1
    assert len(carry_out(task, StubTransport()).results) == 2


def test_print_log(capsys: pytest.CaptureFixture[str]) -> None:
    task = carry_out(
        RuntimeTask("t").run_command("a").run_command("quiet"), StubTransport(results={"a": stub_stdout("1\n2\n\n")})
    )
    task.print_log()
    assert capsys.readouterr().out == "[0] 1\n2\n[1] \n"


@pytest.mark.parametrize("end", [RuntimeTask.cleanup, RuntimeTask.close])
def test_cleanup_lets_go_of_the_returns(end: Callable[[RuntimeTask], None]) -> None:
    task = carry_out(
        RuntimeTask().run_function(add, 1).run_command("a"), StubTransport(results={"a": stub_stdout("", 1)})
    )
    end(task)
    end(task)
    assert list(task.function_returns) == []
    assert len(task.results) == 2


# In the background ----------------------------------------------------------------------------------------------------


def test_in_the_background() -> None:
    transport = StubTransport(results={"wait": stub_stdout("waited\n")})
    task = RuntimeTask("t").run_command("wait").run_function(add, 1)
    process = in_background(task, transport)
    assert task.process is process
    assert transport.waiting_event.wait(10)
    assert (process.is_alive(), process.exitcode, process.pid) == (True, None, None)
    assert repr(process) == "<TaskProcess task t on web1, alive>"
    process.join(0.01)
    assert process.is_alive()
    transport.release_event.set()
    assert list(task.function_returns) == [1]  # which waits
    task.join()
    assert (process.is_alive(), process.exitcode, process.name) == (False, 0, "task t on web1")
    assert repr(process) == "<TaskProcess task t on web1, ended with 0>"
    assert task.execution_log == ["waited\n", ""]


def test_a_failure_in_the_background_is_raised_by_join_and_only_there() -> None:
    task = RuntimeTask("t").run_command("a")
    process = in_background(task, StubTransport(results={"a": stub_stdout("", 3)}))
    process.join()
    assert process.exitcode == 1
    with pytest.raises(TaskExecutionError, match="exit status 3"):
        task.join()


@pytest.mark.parametrize("end", [TaskProcess.terminate, TaskProcess.kill])
def test_stopping(end: Any) -> None:
    transport = StubTransport()
    task = RuntimeTask("t").run_command("wait").run_command("never")
    process = in_background(task, transport)
    assert transport.waiting_event.wait(10)
    end(process)
    assert (process.is_alive(), process.exitcode) == (False, -15)
    assert [call.action for call in transport.calls] == ["wait"]
    with pytest.raises(TaskExecutionError, match="was stopped before it ended"):
        task.join()
    end(process)  # which is gone already


def test_a_stop_between_two_steps() -> None:
    """What comes after a step that saw nothing of the stop does not begin."""
    cancel_token = CancelToken()

    class Stopped(StubTransport):
        def put(self, *arguments: Any, **keywords: Any) -> None:
            super().put(*arguments, **keywords)
            cancel_token.cancel()

    transport = Stopped()
    task = RuntimeTask("t").send_file("/").run_command("b").run_function(add, 1)
    process = state_of(task).start_in_background(
        Executor(HostContext(transport, cancel_token=cancel_token)), cancel_token
    )
    process.join(10)
    assert process.exitcode == -15
    assert [call.action for call in transport.calls] == ["put / None"]
    assert [result.ok for result in task.results] == [True, False]
    with pytest.raises(TaskExecutionError, match=r"failed at step 1, run_command\(b\): .* was stopped before it ended"):
        task.join()


def test_a_stop_before_the_first_step() -> None:
    transport, cancel_token = StubTransport(), CancelToken()
    cancel_token.cancel()
    task = RuntimeTask("t").run_command("wait")
    process = state_of(task).start_in_background(
        Executor(HostContext(transport, cancel_token=cancel_token)), cancel_token
    )
    process.join(10)
    assert (process.exitcode, transport.calls) == (-15, [])


class Owner:
    """Whose end would end the process, too."""


def test_the_owner_lives_as_long_as_the_process() -> None:
    transport, owner, cancel_token = StubTransport(), Owner(), CancelToken()
    alive = weakref.ref(owner)
    task = RuntimeTask("t").run_command("wait")
    process = state_of(task).start_in_background(
        Executor(HostContext(transport, cancel_token=cancel_token)), cancel_token, owner
    )
    del owner
    assert transport.waiting_event.wait(10)
    gc.collect()
    assert alive() is not None
    transport.release_event.set()
    process.join(10)
    gc.collect()
    assert alive() is None


def test_a_process_that_is_ended_out_of_its_own_thread_does_not_wait_for_itself() -> None:
    class EndsItself(StubTransport):
        def put(self, *_: object, **__: object) -> None:
            started.wait(10)
            assert task.process is not None
            task.process.terminate()

    started = threading.Event()
    task = RuntimeTask("t").send_file("/").run_command("never")
    process = in_background(task, transport := EndsItself())
    started.set()
    process.join(10)
    assert (process.exitcode, transport.calls) == (-15, [])


def test_foreground_after_background_forgets_the_process() -> None:
    task = RuntimeTask("t").run_command("a")
    in_background(task, StubTransport()).join()
    carry_out(task, StubTransport())
    assert task.process is None


def test_many_tasks_at_once_on_one_host() -> None:
    transport = StubTransport(results={f"echo {n}": stub_stdout(f"{n}\n") for n in range(20)})
    tasks = [RuntimeTask(str(n)).run_command(f"echo {n}").run_command("wait") for n in range(20)]
    threads = [threading.Thread(target=in_background, args=(task, transport)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert wait_until(lambda: len(transport.calls) == 40, 10)
    transport.release_event.set()
    for number, task in enumerate(tasks):
        task.join()
        assert task.execution_log == [f"{number}\n", ""]


def test_cleanup_waits_for_the_background() -> None:
    transport = StubTransport()
    task = RuntimeTask("t").run_command("wait").run_function(fail)
    in_background(task, transport)
    transport.release_event.set()
    task.cleanup()
    assert len(task.results) == 2
    with pytest.raises(LazyclusterError):
        task.join()
