"""Tasks: how they are built, and what comes of carrying them out on a fake host."""

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
    ConnectionLostError,
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
from tests.waiting import wait_until

add = lambda a, b=0: a + b  # noqa: E731
fail = lambda: int("no number")  # noqa: E731


@pytest.fixture
def transport(fake_host: FakeHost) -> FakeTransport:
    """A fake host on which a command prints nothing unless a test says otherwise."""
    fake_host.strict = False
    return fake_host._connect("web1", {})


class HeldTransport(FakeTransport):
    """The command `wait` ends when the test sets an event; `FakeHost.on()` has delays only."""

    def __init__(self, fake_host: FakeHost) -> None:
        super().__init__(fake_host._state, "web1")
        fake_host.strict = False
        self.release_event = threading.Event()

    def run(self, command: Command, watch: Watch = UNWATCHED) -> CommandResult:
        result = super().run(command, watch)
        if command.title == "wait":
            assert self.release_event.wait(10)
        return result


class InterruptedTransport(FakeTransport):
    """A host on which `len` and the sending of files raise something, also where it is no ordinary exception."""

    error: BaseException = KeyboardInterrupt()

    def call(self, call: FunctionCall, outcome: IO[bytes], watch: Watch = UNWATCHED) -> None:
        if call.payload.function == "len":
            raise self.error
        super().call(call, outcome, watch)

    def put(self, *_: object, **__: object) -> None:
        raise self.error


def carry_out(task: RuntimeTask, transport: FakeTransport) -> RuntimeTask:
    """Execute a task in the foreground; its failure is left for `join()`."""
    state_of(task).new_execution(Executor(HostContext(transport))).run()
    return task


def in_background(task: RuntimeTask, transport: FakeTransport) -> TaskProcess:
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
    with pytest.raises(ValueError, match="timeout must be a positive number of seconds or None"):
        RuntimeTask().run_command("x", timeout=timeout)


@pytest.mark.parametrize("function", [None, 3, "len", [len]])
def test_no_function(function: Any) -> None:
    with pytest.raises(ValueError, match="function must be callable, got "):
        RuntimeTask().run_function(function)


@pytest.mark.parametrize("function", [add, len, int, functools.partial(add, 1), "text".upper])
def test_a_function(function: Any) -> None:
    assert RuntimeTask().run_function(function).steps == (RunFunction(function),)


def test_a_function_by_name(transport: FakeTransport) -> None:
    task = RuntimeTask().run_function(function=add, a=1)
    assert task.steps == (RunFunction(add, (), {"a": 1}),)
    assert list(carry_out(task, transport).function_returns) == [1]


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


def test_a_copy_has_the_steps_and_nothing_of_the_execution(fake_host: FakeHost, transport: FakeTransport) -> None:
    fake_host.on("a", stdout="x")
    task = carry_out(RuntimeTask("t").run_command("a"), transport)
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


def test_log_results_and_returns(tmp_path: Path, fake_host: FakeHost, transport: FakeTransport) -> None:
    (tmp_path / "a").touch()
    task = RuntimeTask("t").run_command("a").send_file(tmp_path / "a").run_function(add, 1, b=2).run_function(add, 9)
    steps = task.steps
    fake_host.on("a", stdout="said\n")
    carry_out(task, transport)
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


def test_a_step_that_fails_is_the_last(fake_host: FakeHost, transport: FakeTransport) -> None:
    fake_host.on("b", stdout="no rule\n", exit_code=2)
    fake_host.on("a", stdout="fine\n")
    task = RuntimeTask("build").run_command("a").run_command("b").run_command("c")
    carry_out(task, transport)
    with pytest.raises(TaskExecutionError) as caught:
        task.join()
    assert str(caught.value) == (
        "web1: task 'build' failed at step 1, run_command(b): `b` ended with exit status 2.\n    no rule"
    )
    assert isinstance(caught.value.__cause__, CommandFailedError)
    assert fake_host.commands == ["a", "b"]
    assert task.execution_log == ["fine\n", "no rule\n"]
    assert [result.ok for result in task.results] == [True, False]


def test_joining_again_raises_again(fake_host: FakeHost, transport: FakeTransport) -> None:
    fake_host.on("a", exit_code=1)
    task = carry_out(RuntimeTask().run_command("a"), transport)
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
def test_why_a_task_failed(error: Exception, reason: str, fake_host: FakeHost, transport: FakeTransport) -> None:
    fake_host.on("a", error=error)
    task = carry_out(RuntimeTask("t").run_command("a"), transport)
    with pytest.raises(TaskExecutionError) as caught:
        task.join()
    assert str(caught.value) == f"web1: task 't' failed at step 0, run_command(a): {reason}"
    assert caught.value.__cause__ is error


def test_a_closed_runtime_is_told_as_such(fake_host: FakeHost, transport: FakeTransport) -> None:
    fake_host.on("a", error=RuntimeClosedError("web1"))
    with pytest.raises(RuntimeClosedError):
        carry_out(RuntimeTask().run_command("a"), transport).join()


def test_a_function_that_raises(transport: FakeTransport) -> None:
    task = carry_out(RuntimeTask("t").run_function(add, 1).run_function(fail).run_function(add, 2), transport)
    with pytest.raises(
        TaskExecutionError, match=r"failed at step 1, run_function\(<lambda>\): ValueError: .*no number"
    ):
        task.join()
    returns = task.function_returns
    assert next(returns) == 1
    with pytest.raises(ValueError, match="no number"):
        next(returns)
    assert list(returns) == []


def test_a_function_that_never_ran_raises_why(fake_host: FakeHost, transport: FakeTransport) -> None:
    fake_host.on("a", exit_code=3)
    task = carry_out(RuntimeTask("t").run_function(add, 1).run_command("a").run_function(add, 2), transport)
    returns = task.function_returns
    assert next(returns) == 1
    with pytest.raises(TaskExecutionError, match=r"failed at step 1, run_command\(a\): `a` ended with exit status 3"):
        next(returns)
    assert list(returns) == []


def test_a_function_that_cannot_be_sent_raises_why(transport: FakeTransport) -> None:
    task = carry_out(RuntimeTask("t").run_function(add, threading.Lock()), transport)
    with pytest.raises(TaskExecutionError, match=r"failed at step 0, run_function\(<lambda>\)"):
        list(task.function_returns)


def test_a_function_whose_host_was_lost_raises_that(fake_host: FakeHost) -> None:
    """And not that its answer is incomplete."""
    transport = InterruptedTransport(fake_host._state, "web1")
    transport.error = ConnectionLostError("web1", "f", "cut", started=True)
    task = carry_out(RuntimeTask("t").run_function(add, 1).run_function(len, "x"), transport)
    returns = task.function_returns
    assert next(returns) == 1
    with pytest.raises(TaskExecutionError, match=r"failed at step 1, run_function\(len\): .*cut"):
        next(returns)


def test_a_failure_after_the_last_function_does_not_concern_the_returns(
    fake_host: FakeHost, transport: FakeTransport
) -> None:
    fake_host.on("a", exit_code=3)
    task = carry_out(RuntimeTask("t").run_function(add, 1).run_command("a"), transport)
    assert list(task.function_returns) == [1]


@pytest.fixture
def interrupted(fake_host: FakeHost) -> FakeTransport:
    fake_host.strict = False
    return InterruptedTransport(fake_host._state, "web1")


def interrupted_task(tmp_path: Path) -> RuntimeTask:
    return RuntimeTask("t").run_command("a").send_file(tmp_path).run_function(add, 1)


def test_an_interrupt_in_the_foreground_is_raised_at_once_and_told_again_by_join(
    tmp_path: Path, interrupted: FakeTransport
) -> None:
    task = interrupted_task(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        carry_out(task, interrupted)
    assert len(task.results) == 1
    with pytest.raises(TaskExecutionError, match=r"failed at step 1, send_file\(.*: KeyboardInterrupt") as caught:
        task.join()
    assert isinstance(caught.value.__cause__, KeyboardInterrupt)


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_interrupt_in_the_background_is_told_by_join(tmp_path: Path, interrupted: FakeTransport) -> None:
    task = interrupted_task(tmp_path)
    process = in_background(task, interrupted)
    process.join(10)
    assert process.exitcode == 1
    with pytest.raises(TaskExecutionError, match="KeyboardInterrupt"):
        task.join()


def test_a_new_execution_replaces_the_last(fake_host: FakeHost, transport: FakeTransport) -> None:
    fake_host.on("a", stdout="first\n", exit_code=1)
    task = carry_out(RuntimeTask("t").run_command("a").run_function(add, 5), transport)
    with pytest.raises(TaskExecutionError):
        task.join()
    fake_host.on("a", stdout="second\n")
    carry_out(task, transport)
    task.join()
    assert task.execution_log == ["second\n", ""]
    assert list(task.function_returns) == [5]


def test_one_task_on_many_hosts_keeps_every_execution_apart(fake_host: FakeHost) -> None:
    task = RuntimeTask("t").run_command("hostname")
    executions = []
    for n in range(3):
        fake_host.host(f"web{n}").on("hostname", stdout=f"web{n}\n")
        context = HostContext(fake_host._connect(f"web{n}", {}))
        executions.append(state_of(task).new_execution(Executor(context)))
    for execution in executions:
        execution.run()
    assert [execution.results[0].stdout for execution in executions] == ["web0\n", "web1\n", "web2\n"]
    assert task.execution_log == ["web2\n"]


def test_a_step_that_is_added_meanwhile_waits_for_the_next_execution(transport: FakeTransport) -> None:
    task = RuntimeTask("t").run_command("a")
    execution = state_of(task).new_execution(Executor(HostContext(transport)))
    task.run_command("b")
    execution.run()
    assert len(execution.results) == 1
    assert len(carry_out(task, transport).results) == 2


def test_print_log(capsys: pytest.CaptureFixture[str], fake_host: FakeHost, transport: FakeTransport) -> None:
    fake_host.on("a", stdout="1\n2\n\n")
    task = carry_out(RuntimeTask("t").run_command("a").run_command("quiet"), transport)
    task.print_log()
    assert capsys.readouterr().out == "[0] 1\n2\n[1] \n"


@pytest.mark.parametrize("end", [RuntimeTask.cleanup, RuntimeTask.close])
def test_cleanup_lets_go_of_the_returns(
    end: Callable[[RuntimeTask], None], fake_host: FakeHost, transport: FakeTransport
) -> None:
    fake_host.on("a", exit_code=1)
    task = carry_out(RuntimeTask().run_function(add, 1).run_command("a"), transport)
    end(task)
    end(task)
    assert list(task.function_returns) == []
    assert len(task.results) == 2


# In the background ----------------------------------------------------------------------------------------------------


def test_in_the_background(fake_host: FakeHost) -> None:
    held = HeldTransport(fake_host)
    fake_host.on("wait", stdout="waited\n")
    task = RuntimeTask("t").run_command("wait").run_function(add, 1)
    process = in_background(task, held)
    assert task.process is process
    assert wait_until(lambda: fake_host.commands == ["wait"], 10)
    assert (process.is_alive(), process.exitcode, process.pid) == (True, None, None)
    assert repr(process) == "<TaskProcess task t on web1, alive>"
    process.join(0.01)
    assert process.is_alive()
    held.release_event.set()
    assert list(task.function_returns) == [1]  # which waits
    task.join()
    assert (process.is_alive(), process.exitcode, process.name) == (False, 0, "task t on web1")
    assert repr(process) == "<TaskProcess task t on web1, ended with 0>"
    assert task.execution_log == ["waited\n", ""]


def test_a_failure_in_the_background_is_raised_by_join_and_only_there(
    fake_host: FakeHost, transport: FakeTransport
) -> None:
    task = RuntimeTask("t").run_command("a")
    fake_host.on("a", exit_code=3)
    process = in_background(task, transport)
    process.join()
    assert process.exitcode == 1
    with pytest.raises(TaskExecutionError, match="exit status 3"):
        task.join()


@pytest.mark.parametrize("end", [TaskProcess.terminate, TaskProcess.kill])
def test_stopping(end: Any, fake_host: FakeHost, transport: FakeTransport) -> None:
    fake_host.on("wait", delay=math.inf)
    task = RuntimeTask("t").run_command("wait").run_command("never")
    process = in_background(task, transport)
    assert wait_until(lambda: fake_host.commands == ["wait"], 10)
    end(process)
    assert (process.is_alive(), process.exitcode) == (False, -15)
    assert fake_host.commands == ["wait"]
    with pytest.raises(TaskExecutionError, match="was stopped before it ended"):
        task.join()
    end(process)  # which is gone already


def test_a_stop_between_two_steps(
    fake_host: FakeHost, transport: FakeTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes after a step that saw nothing of the stop does not begin."""
    cancel_token, put = CancelToken(), transport.put

    def put_and_cancel(*arguments: Any, **keywords: Any) -> None:
        put(*arguments, **keywords)
        cancel_token.cancel()

    monkeypatch.setattr(transport, "put", put_and_cancel)
    task = RuntimeTask("t").send_file(tmp_path).run_command("b").run_function(add, 1)
    process = state_of(task).start_in_background(
        Executor(HostContext(transport, cancel_token=cancel_token)), cancel_token
    )
    process.join(10)
    assert process.exitcode == -15
    assert fake_host.calls == [Sent("web1", tmp_path)]
    assert [result.ok for result in task.results] == [True, False]
    with pytest.raises(TaskExecutionError, match=r"failed at step 1, run_command\(b\): .* was stopped before it ended"):
        task.join()


def test_a_stop_before_the_first_step(fake_host: FakeHost, transport: FakeTransport) -> None:
    cancel_token = CancelToken()
    cancel_token.cancel()
    task = RuntimeTask("t").run_command("wait")
    process = state_of(task).start_in_background(
        Executor(HostContext(transport, cancel_token=cancel_token)), cancel_token
    )
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

    gone = make_task()
    gc.collect()
    assert gone() is None


class Owner:
    """Whose end would end the process, too."""


def test_the_owner_lives_as_long_as_the_process(fake_host: FakeHost) -> None:
    held, owner, cancel_token = HeldTransport(fake_host), Owner(), CancelToken()
    alive = weakref.ref(owner)
    task = RuntimeTask("t").run_command("wait")
    process = state_of(task).start_in_background(
        Executor(HostContext(held, cancel_token=cancel_token)), cancel_token, owner
    )
    del owner
    assert wait_until(lambda: fake_host.commands == ["wait"], 10)
    gc.collect()
    assert alive() is not None
    held.release_event.set()
    process.join(10)
    gc.collect()
    assert alive() is None


def test_a_process_that_is_ended_out_of_its_own_thread_does_not_wait_for_itself(
    fake_host: FakeHost, transport: FakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end_itself(*_: object, **__: object) -> None:
        started.wait(10)
        assert task.process is not None
        task.process.terminate()

    monkeypatch.setattr(transport, "put", end_itself)
    started = threading.Event()
    task = RuntimeTask("t").send_file("/").run_command("never")
    process = in_background(task, transport)
    started.set()
    process.join(10)
    assert (process.exitcode, fake_host.calls) == (-15, [])


def test_foreground_after_background_forgets_the_process(transport: FakeTransport) -> None:
    task = RuntimeTask("t").run_command("a")
    in_background(task, transport).join()
    carry_out(task, transport)
    assert task.process is None


def test_many_tasks_at_once_on_one_host(fake_host: FakeHost) -> None:
    held = HeldTransport(fake_host)
    for n in range(20):
        fake_host.on(f"echo {n}", stdout=f"{n}\n")
    tasks = [RuntimeTask(str(n)).run_command(f"echo {n}").run_command("wait") for n in range(20)]
    threads = [threading.Thread(target=in_background, args=(task, held)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert wait_until(lambda: len(fake_host.calls) == 40, 10)
    held.release_event.set()
    for number, task in enumerate(tasks):
        task.join()
        assert task.execution_log == [f"{number}\n", ""]


def test_cleanup_waits_for_the_background(fake_host: FakeHost) -> None:
    held = HeldTransport(fake_host)
    task = RuntimeTask("t").run_command("wait").run_function(fail)
    in_background(task, held)
    held.release_event.set()
    task.cleanup()
    assert len(task.results) == 2
    with pytest.raises(LazyclusterError):
        task.join()
