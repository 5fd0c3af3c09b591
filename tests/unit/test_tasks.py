"""Tasks: their steps, and their execution on a fake host."""

from __future__ import annotations

import copy
import functools
import gc
import math
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from lazycluster._execution import TaskProcess, state_of
from lazycluster._functions.function_call import FunctionCall
from lazycluster._model.command import Command
from lazycluster._model.watch import UNWATCHED, Watch
from lazycluster._transports.host_context import HostContext
from lazycluster._waiting import CancelToken
from lazycluster.exceptions import (
    CommandFailedError,
    CommandStoppedError,
    ConnectionLostError,
    FunctionNotSerializableError,
    LazyclusterError,
    RuntimeClosedError,
    TaskExecutionError,
    TransferError,
)
from lazycluster.executor import Executor
from lazycluster.results import CommandResult
from lazycluster.runtimes import Runtime
from lazycluster.steps import GetFile, RunCommand, RunFunction, SendFile
from lazycluster.tasks import RuntimeTask
from lazycluster.testing import FakeHost
from lazycluster.testing._fake_transport import FakeTransport
from lazycluster.testing.calls import Sent
from tests.unit.fake_transports import connect_to_fake_host
from tests.waiting import wait_until

add = lambda a, b=0: a + b  # noqa: E731
fail = lambda: int("no number")  # noqa: E731


@pytest.fixture
def transport(fake_host: FakeHost) -> FakeTransport:
    """A transport of a fake host; commands print nothing unless a test says otherwise."""
    fake_host.strict = False
    return connect_to_fake_host()


class HeldTransport(FakeTransport):
    """The command `wait` ends when the test sets an event; `FakeHost.on()` has delays only."""

    def __init__(self, transport: FakeTransport) -> None:
        super().__init__(transport.machine, transport.host)
        self.release_event = threading.Event()

    def run(self, command: Command, watch: Watch = UNWATCHED) -> CommandResult:
        result = super().run(command, watch)
        if command.title == "wait":
            assert self.release_event.wait(60)
        return result


class InterruptedTransport(FakeTransport):
    """The function `len` and the sending of files raise an exception of any kind."""

    error: BaseException = KeyboardInterrupt()

    def __init__(self, transport: FakeTransport) -> None:
        super().__init__(transport.machine, transport.host)

    def call(self, call: FunctionCall, outcome: IO[bytes], watch: Watch = UNWATCHED) -> None:
        if call.payload.function == "len":
            raise self.error
        super().call(call, outcome, watch)

    def put(self, *_: object, **__: object) -> None:
        raise self.error


def execute(task: RuntimeTask, transport: FakeTransport) -> RuntimeTask:
    """Execute a task in the foreground; its error is left for `join()`."""
    state_of(task).new_execution(Executor(HostContext(transport))).run()
    return task


def execute_in_background(
    task: RuntimeTask, transport: FakeTransport, cancel_token: CancelToken | None = None, owner: object | None = None
) -> TaskProcess:
    cancel_token = cancel_token or CancelToken()
    executor = Executor(HostContext(transport, cancel_token=cancel_token))
    return state_of(task).start_in_background(executor, cancel_token, owner)


# Building -------------------------------------------------------------------------------------------------------------


def test_task_steps_keep_their_order(tmp_path: Path) -> None:
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


def test_task_statements_add_steps() -> None:
    task = RuntimeTask()
    task.run_command("a")
    task.run_command("b")
    assert task.steps == (RunCommand("a"), RunCommand("b"))


def test_task_default_name_is_unique() -> None:
    first, second = RuntimeTask(), RuntimeTask()
    assert first.name
    assert first.name != second.name


@pytest.mark.parametrize("command", ["", " ", "\n\t"])
def test_run_command_blank_raises_value_error(command: str) -> None:
    task = RuntimeTask()
    with pytest.raises(ValueError, match="command must"):
        task.run_command(command)
    assert task.steps == ()


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), True, "5"])
def test_run_command_bad_timeout_raises_value_error(timeout: Any) -> None:
    with pytest.raises(ValueError, match="timeout must be a positive number of seconds or None"):
        RuntimeTask().run_command("x", timeout=timeout)


@pytest.mark.parametrize("function", [None, 3, "len", [len]])
def test_run_function_not_callable_raises_value_error(function: Any) -> None:
    with pytest.raises(ValueError, match="function must be callable, got "):
        RuntimeTask().run_function(function)


@pytest.mark.parametrize("function", [add, len, int, functools.partial(add, 1), "text".upper])
def test_run_function_callable_of_any_kind_adds_step(function: Any) -> None:
    assert RuntimeTask().run_function(function).steps == (RunFunction(function),)


def test_run_function_passed_by_keyword_is_called(transport: FakeTransport) -> None:
    task = RuntimeTask().run_function(function=add, a=1)
    assert task.steps == (RunFunction(add, (), {"a": 1}),)
    assert list(execute(task, transport).function_returns) == [1]


def test_send_file_missing_raises_value_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^no such file or directory: {tmp_path}/no$"):
        RuntimeTask().send_file(tmp_path / "no")


def test_get_file_empty_path_raises_value_error() -> None:
    with pytest.raises(ValueError, match="remote_path must not be empty, got ''"):
        RuntimeTask().get_file("")


def test_local_path_relative_is_fixed_when_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_task_copy_has_steps_without_execution(fake_host: FakeHost, transport: FakeTransport) -> None:
    fake_host.on("a", stdout="x")
    task = execute(RuntimeTask("t").run_command("a"), transport)
    copy = task.copy()
    assert (copy.name, copy.steps, copy.results, copy.execution_log) == ("t", task.steps, (), [])
    copy.run_command("b")
    assert (len(task.steps), len(copy.steps)) == (1, 2)
    assert task.execution_log == ["x"]


# Executing ------------------------------------------------------------------------------------------------------------


def test_task_before_execution_is_empty() -> None:
    task = RuntimeTask().run_command("a").run_function(add, 1)
    task.join()
    assert (task.results, task.execution_log, list(task.function_returns), task.process) == ((), [], [], None)
    task.cleanup()


def test_execution_fills_log_results_and_returns(tmp_path: Path, fake_host: FakeHost, transport: FakeTransport) -> None:
    (tmp_path / "a").touch()
    task = RuntimeTask("t").run_command("a").send_file(tmp_path / "a").run_function(add, 1, b=2).run_function(add, 9)
    steps = task.steps
    fake_host.on("a", stdout="printed\n")
    execute(task, transport)
    task.join()
    assert task.execution_log == ["printed\n", "", "", ""]
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


def test_execution_failed_step_is_the_last(fake_host: FakeHost, transport: FakeTransport) -> None:
    fake_host.on("b", stdout="no rule\n", exit_code=2)
    fake_host.on("a", stdout="fine\n")
    task = RuntimeTask("build").run_command("a").run_command("b").run_command("c")
    execute(task, transport)
    with pytest.raises(TaskExecutionError) as caught:
        task.join()
    error, cause = caught.value, caught.value.__cause__
    assert (error.host, error.task, error.step_index, error.step) == ("web1", "build", 1, "run_command(b)")
    assert isinstance(cause, CommandFailedError)
    assert error.reason == str(cause).removeprefix("web1: ")
    assert (cause.exit_code, cause.output) == (2, "no rule\n")
    assert fake_host.commands == ["a", "b"]
    assert task.execution_log == ["fine\n", "no rule\n"]
    assert [result.ok for result in task.results] == [True, False]


def test_task_join_twice_raises_twice(fake_host: FakeHost, transport: FakeTransport) -> None:
    fake_host.on("a", exit_code=1)
    task = execute(RuntimeTask().run_command("a"), transport)
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
def test_task_join_error_has_reason_and_cause(
    error: Exception, reason: str, fake_host: FakeHost, transport: FakeTransport
) -> None:
    fake_host.on("a", error=error)
    task = execute(RuntimeTask("t").run_command("a"), transport)
    with pytest.raises(TaskExecutionError) as caught:
        task.join()
    assert caught.value.reason == reason
    assert caught.value.__cause__ is error


def test_task_join_closed_runtime_raises_its_error(fake_host: FakeHost, transport: FakeTransport) -> None:
    fake_host.on("a", error=RuntimeClosedError("web1"))
    with pytest.raises(RuntimeClosedError):
        execute(RuntimeTask().run_command("a"), transport).join()


def test_function_returns_error_of_function_is_raised(transport: FakeTransport) -> None:
    task = execute(RuntimeTask("t").run_function(add, 1).run_function(fail).run_function(add, 2), transport)
    with pytest.raises(TaskExecutionError) as caught:
        task.join()
    assert (caught.value.step_index, type(caught.value.__cause__)) == (1, ValueError)
    returns = task.function_returns
    assert next(returns) == 1
    with pytest.raises(ValueError):
        next(returns)
    assert list(returns) == []


def test_function_returns_not_run_raises_reason(fake_host: FakeHost, transport: FakeTransport) -> None:
    fake_host.on("a", exit_code=3)
    task = execute(RuntimeTask("t").run_function(add, 1).run_command("a").run_function(add, 2), transport)
    returns = task.function_returns
    assert next(returns) == 1
    with pytest.raises(TaskExecutionError) as caught:
        next(returns)
    assert (caught.value.step_index, type(caught.value.__cause__)) == (1, CommandFailedError)
    assert list(returns) == []


def test_function_returns_unserializable_raises_reason(transport: FakeTransport) -> None:
    task = execute(RuntimeTask("t").run_function(add, threading.Lock()), transport)
    with pytest.raises(TaskExecutionError) as caught:
        list(task.function_returns)
    assert isinstance(caught.value.__cause__, FunctionNotSerializableError)


def test_function_returns_lost_host_raises_reason(fake_host: FakeHost) -> None:
    """The reason is the lost connection, not an incomplete outcome."""
    fake_host.strict = False
    transport = InterruptedTransport(connect_to_fake_host())
    transport.error = ConnectionLostError("web1", "f", "cut", started=True)
    task = execute(RuntimeTask("t").run_function(add, 1).run_function(len, "x"), transport)
    returns = task.function_returns
    assert next(returns) == 1
    with pytest.raises(TaskExecutionError) as caught:
        next(returns)
    assert caught.value.__cause__ is transport.error


def test_function_returns_later_failure_is_ignored(fake_host: FakeHost, transport: FakeTransport) -> None:
    fake_host.on("a", exit_code=3)
    task = execute(RuntimeTask("t").run_function(add, 1).run_command("a"), transport)
    assert list(task.function_returns) == [1]


@pytest.fixture
def interrupted(transport: FakeTransport) -> FakeTransport:
    return InterruptedTransport(transport)


def interrupted_task(tmp_path: Path) -> RuntimeTask:
    return RuntimeTask("t").run_command("a").send_file(tmp_path).run_function(add, 1)


def test_interrupt_in_foreground_is_raised_and_kept_for_join(tmp_path: Path, interrupted: FakeTransport) -> None:
    task = interrupted_task(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        execute(task, interrupted)
    assert len(task.results) == 1
    with pytest.raises(TaskExecutionError) as caught:
        task.join()
    assert (caught.value.step_index, caught.value.reason) == (1, "KeyboardInterrupt: KeyboardInterrupt")
    assert isinstance(caught.value.__cause__, KeyboardInterrupt)


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_interrupt_in_background_is_raised_by_join(tmp_path: Path, interrupted: FakeTransport) -> None:
    task = interrupted_task(tmp_path)
    process = execute_in_background(task, interrupted)
    process.join(10)
    assert process.exitcode == 1
    with pytest.raises(TaskExecutionError) as caught:
        task.join()
    assert isinstance(caught.value.__cause__, KeyboardInterrupt)


def test_execution_replaces_the_last_one(fake_host: FakeHost, transport: FakeTransport) -> None:
    fake_host.on("a", stdout="first\n", exit_code=1)
    task = execute(RuntimeTask("t").run_command("a").run_function(add, 5), transport)
    with pytest.raises(TaskExecutionError):
        task.join()
    fake_host.on("a", stdout="second\n")
    execute(task, transport)
    task.join()
    assert task.execution_log == ["second\n", ""]
    assert list(task.function_returns) == [5]


def test_executions_on_many_hosts_stay_apart(fake_host: FakeHost) -> None:
    task = RuntimeTask("t").run_command("hostname")
    executions = []
    for n in range(3):
        fake_host.host(f"web{n}").on("hostname", stdout=f"web{n}\n")
        context = HostContext(connect_to_fake_host(f"web{n}"))
        executions.append(state_of(task).new_execution(Executor(context)))
    for execution in executions:
        execution.run()
    assert [execution.results[0].stdout for execution in executions] == ["web0\n", "web1\n", "web2\n"]
    assert task.execution_log == ["web2\n"]


def test_execution_under_way_ignores_added_step(transport: FakeTransport) -> None:
    task = RuntimeTask("t").run_command("a")
    execution = state_of(task).new_execution(Executor(HostContext(transport)))
    task.run_command("b")
    execution.run()
    assert len(execution.results) == 1
    assert len(execute(task, transport).results) == 2


def test_task_print_log_numbers_the_steps(
    capsys: pytest.CaptureFixture[str], fake_host: FakeHost, transport: FakeTransport
) -> None:
    fake_host.on("a", stdout="1\n2\n\n")
    task = execute(RuntimeTask("t").run_command("a").run_command("quiet"), transport)
    task.print_log()
    assert capsys.readouterr().out == "[0] 1\n2\n[1] \n"


@pytest.mark.parametrize("end", [RuntimeTask.cleanup, RuntimeTask.close])
def test_task_cleanup_discards_returns(
    end: Callable[[RuntimeTask], None], fake_host: FakeHost, transport: FakeTransport
) -> None:
    fake_host.on("a", exit_code=1)
    task = execute(RuntimeTask().run_function(add, 1).run_command("a"), transport)
    end(task)
    end(task)
    assert list(task.function_returns) == []
    assert len(task.results) == 2


# In the background ----------------------------------------------------------------------------------------------------


def test_background_task_process_lives_until_the_end(fake_host: FakeHost, transport: FakeTransport) -> None:
    held = HeldTransport(transport)
    fake_host.on("wait", stdout="waited\n")
    task = RuntimeTask("t").run_command("wait").run_function(add, 1)
    process = execute_in_background(task, held)
    assert task.process is process
    assert wait_until(lambda: fake_host.commands == ["wait"], 10)
    assert (process.is_alive(), process.exitcode, process.pid) == (True, None, None)
    assert repr(process) == "<TaskProcess task t on web1, alive>"
    process.join(0.01)
    assert process.is_alive()
    held.release_event.set()
    assert list(task.function_returns) == [1], "it waits for the end"
    task.join()
    assert (process.is_alive(), process.exitcode, process.name) == (False, 0, "task t on web1")
    assert repr(process) == "<TaskProcess task t on web1, ended with 0>"
    assert task.execution_log == ["waited\n", ""]


def test_background_failure_is_raised_by_join_only(fake_host: FakeHost, transport: FakeTransport) -> None:
    task = RuntimeTask("t").run_command("a")
    fake_host.on("a", exit_code=3)
    process = execute_in_background(task, transport)
    process.join()
    assert process.exitcode == 1
    with pytest.raises(TaskExecutionError) as caught:
        task.join()
    assert isinstance(caught.value.__cause__, CommandFailedError)


@pytest.mark.parametrize("end", [TaskProcess.terminate, TaskProcess.kill])
def test_task_process_terminate_or_kill_stops_step(end: Any, fake_host: FakeHost, transport: FakeTransport) -> None:
    fake_host.on("wait", delay=math.inf)
    task = RuntimeTask("t").run_command("wait").run_command("never")
    process = execute_in_background(task, transport)
    assert wait_until(lambda: fake_host.commands == ["wait"], 10)
    end(process)
    assert (process.is_alive(), process.exitcode) == (False, -15)
    assert fake_host.commands == ["wait"]
    with pytest.raises(TaskExecutionError) as caught:
        task.join()
    assert isinstance(caught.value.__cause__, CommandStoppedError)
    end(process)  # a second time


def test_task_stop_between_steps_skips_the_rest(
    fake_host: FakeHost, transport: FakeTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step that ran did not notice the stop; the next one does not begin."""
    cancel_token, put = CancelToken(), transport.put

    def put_and_cancel(*arguments: Any, **keywords: Any) -> None:
        put(*arguments, **keywords)
        cancel_token.cancel()

    monkeypatch.setattr(transport, "put", put_and_cancel)
    task = RuntimeTask("t").send_file(tmp_path).run_command("b").run_function(add, 1)
    process = execute_in_background(task, transport, cancel_token)
    process.join(10)
    assert process.exitcode == -15
    assert fake_host.calls == [Sent("web1", tmp_path)]
    assert [result.ok for result in task.results] == [True, False]
    with pytest.raises(TaskExecutionError) as caught:
        task.join()
    assert (caught.value.step_index, type(caught.value.__cause__)) == (1, CommandStoppedError)


def test_task_stop_before_first_step_runs_nothing(fake_host: FakeHost, transport: FakeTransport) -> None:
    cancel_token = CancelToken()
    cancel_token.cancel()
    task = RuntimeTask("t").run_command("wait")
    process = execute_in_background(task, transport, cancel_token)
    process.join(10)
    assert (process.exitcode, fake_host.calls) == (-15, [])


def test_task_deepcopy_runs_the_same_steps() -> None:
    task = RuntimeTask("t").run_command("true")
    with FakeHost() as host, Runtime("web1") as runtime:
        host.on("true")
        runtime.execute_task(copy.deepcopy(task), execute_async=False)
        assert host.commands == ["true"]


def test_task_whose_step_refers_to_it_is_collected() -> None:
    def make_task() -> weakref.ref[RuntimeTask]:
        task = RuntimeTask("t")
        task.run_function(lambda: task)
        return weakref.ref(task)

    task = make_task()
    gc.collect()
    assert task() is None


class Owner:
    """An object that would end the process with its own end."""


def test_task_process_keeps_its_owner_alive(fake_host: FakeHost, transport: FakeTransport) -> None:
    held, owner = HeldTransport(transport), Owner()
    reference = weakref.ref(owner)
    task = RuntimeTask("t").run_command("wait")
    process = execute_in_background(task, held, owner=owner)
    del owner
    assert wait_until(lambda: fake_host.commands == ["wait"], 10)
    gc.collect()
    assert reference() is not None
    held.release_event.set()
    process.join(10)
    gc.collect()
    assert reference() is None


def test_task_process_terminate_from_own_thread_does_not_wait(
    fake_host: FakeHost, transport: FakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end_itself(*_: object, **__: object) -> None:
        started.wait(10)
        assert task.process is not None
        task.process.terminate()

    monkeypatch.setattr(transport, "put", end_itself)
    started = threading.Event()
    task = RuntimeTask("t").send_file("/").run_command("never")
    process = execute_in_background(task, transport)
    started.set()
    process.join(10)
    assert (process.exitcode, fake_host.calls) == (-15, [])


def test_execution_in_foreground_discards_the_process(transport: FakeTransport) -> None:
    task = RuntimeTask("t").run_command("a")
    execute_in_background(task, transport).join()
    execute(task, transport)
    assert task.process is None


def test_background_twenty_tasks_keep_their_logs(fake_host: FakeHost, transport: FakeTransport) -> None:
    held = HeldTransport(transport)
    for n in range(20):
        fake_host.on(f"echo {n}", stdout=f"{n}\n")
    tasks = [RuntimeTask(str(n)).run_command(f"echo {n}").run_command("wait") for n in range(20)]
    threads = [threading.Thread(target=execute_in_background, args=(task, held)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert wait_until(lambda: len(fake_host.calls) == 40, 10)
    held.release_event.set()
    for number, task in enumerate(tasks):
        task.join()
        assert task.execution_log == [f"{number}\n", ""]


def test_task_cleanup_waits_for_background(transport: FakeTransport) -> None:
    held = HeldTransport(transport)
    task = RuntimeTask("t").run_command("wait").run_function(fail)
    execute_in_background(task, held)
    held.release_event.set()
    task.cleanup()
    assert len(task.results) == 2
    with pytest.raises(LazyclusterError):
        task.join()
