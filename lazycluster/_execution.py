"""The executions of tasks: the results of the steps so far, and the thread of a task in the background."""

from __future__ import annotations

import copy
import logging
import os
import signal
import threading
import time
from collections.abc import Generator
from typing import TypeVar

import attrs

from lazycluster._functions.outcome import read_outcome, remote_traceback
from lazycluster._invoke import OutcomeFile
from lazycluster._waiting import CancelToken, Deadline, start_thread, wait_event
from lazycluster.exceptions import (
    CommandStoppedError,
    LazyclusterError,
    RuntimeClosedError,
    TaskExecutionError,
    indented_tail,
)
from lazycluster.executor import Executor
from lazycluster.results import Collector, StepResult
from lazycluster.steps import RunFunction, Step, describe_step

E = TypeVar("E", bound=BaseException)
_log = logging.getLogger("lazycluster.tasks")  # the name that users know


class Execution:
    """One run of a task's steps on one host: the results so far, when it ended and why."""

    def __init__(self, name: str, steps: tuple[Step, ...], executor: Executor) -> None:
        """Prepare the execution; `run()` carries out the steps."""
        self.name = name
        self.host = executor.host
        self.error: LazyclusterError | None = None
        self.error_reported = False
        self.ended_at: float | None = None
        self._steps = steps
        self._executor = executor
        self._lock = threading.Lock()
        self._results: list[StepResult] = []
        self._running_output: Collector | None = None
        self._outcome_files: list[tuple[str, OutcomeFile]] = []
        self._call_count = 0

    @property
    def results(self) -> tuple[StepResult, ...]:
        """The results of the steps that were carried out."""
        return tuple(self._results)

    @property
    def logs(self) -> list[str]:
        """The output of each step that was carried out, and that so far of one that is under way or was interrupted."""
        with self._lock:
            results, running = self.results, self._running_output
        logs = [result.log for result in results]
        return logs if running is None else [*logs, running.result("", 0, 0.0).output]

    @property
    def host_lost(self) -> bool:
        """Whether the execution failed because the host cannot be used."""
        return bool(self._results) and self._results[-1].host_lost

    def run(self) -> None:
        """Carry out the steps, up to the first that fails; then `error` is set."""
        try:
            self._run_steps()
        finally:
            self.ended_at = time.monotonic()

    def _run_steps(self) -> None:
        for index, step in enumerate(self._steps):
            outcome_files: list[OutcomeFile] = []
            self._running_output = Collector()
            try:
                result = self._executor.execute(step, outcome_files.append, self._running_output)
            except BaseException as error:  # such as Ctrl-C in the thread that waits
                self.error = self._task_error(index, step, error)
                raise
            self._outcome_files += [
                (step.name, outcome_file) for outcome_file in outcome_files if isinstance(step, RunFunction)
            ]
            self._call_count += len(outcome_files)
            with self._lock:  # so that a reader sees the step once
                self._results.append(result)
                self._running_output = None
            if result.error is not None:
                self.error = self._task_error(index, step, result.error)
                return

    def _task_error(self, index: int, step: Step, error: BaseException) -> LazyclusterError:
        if isinstance(error, RuntimeClosedError):
            return error
        reason = str(error).removeprefix(f"{self.host}: ") or type(error).__name__
        if not isinstance(error, LazyclusterError):
            reason = f"{type(error).__name__}: {reason}{indented_tail(remote_traceback(error))}"
        failure = TaskExecutionError(self.host, self.name, index, describe_step(step), reason)
        failure.__cause__ = error
        return failure

    def iter_function_returns(self) -> Generator[object, None, None]:
        """Yield the values that the functions returned, in order; raise the error of one that raised, or never ran."""
        self.error_reported = True
        for name, outcome_file in self._outcome_files:
            yield read_outcome(outcome_file, self.host, name).unwrap()
        if self.error is not None and self._call_count < sum(isinstance(step, RunFunction) for step in self._steps):
            raise copy_error(self.error)

    def print_log(self) -> None:
        """Print the output of each step, after its number, and why it failed."""
        for index, result in enumerate(self.results):
            print(f"[{index}] {result.log.rstrip()}")  # noqa: T201
            if result.error is not None:
                print(f"[{index}] failed: {self.error}")  # noqa: T201

    def close(self) -> None:
        """Close the files with the outcomes of the functions."""
        while self._outcome_files:
            self._outcome_files.pop()[1].close()


def copy_error(error: E) -> E:
    """Return a copy to raise. Its traceback will hold the variables of the caller, such as the runtime."""
    raised = copy.copy(error)
    raised.__cause__ = error.__cause__
    return raised


class TaskProcess:
    """A `ManagedProcess` that is a task in the background: a thread that waits for the host."""

    def __init__(self, execution: Execution, cancel_token: CancelToken, owner: object | None) -> None:
        """Start the task. The owner lives as long as the task runs."""
        self.name = f"task {execution.name} on {execution.host}"
        self.pid: int | None = None
        self.execution = execution
        self._cancel_token = cancel_token
        self._owner = owner
        # Not Thread.is_alive(): after Ctrl-C in Thread.join() it is False too early (CPython up to 3.12, gh-90882).
        self._ended = threading.Event()
        self._creator_pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        start_thread(self._thread)

    def _run(self) -> None:
        try:
            self.execution.run()
        except BaseException:  # noqa: BLE001 - `execution.error` keeps it for `join()`
            _log.debug("%s ended", self.name, exc_info=True)
        finally:
            self._cancel_token.close()
            self._owner = None
            self._ended.set()

    def __repr__(self) -> str:
        """Return the name and the state."""
        state = "alive" if self.is_alive() else f"ended with {self.exitcode}"
        return f"<TaskProcess {self.name}, {state}>"

    @property
    def exitcode(self) -> int | None:
        """None while the task runs; then 0, 1 if a step failed, or -15 if it was stopped."""
        if self.is_alive():
            return None
        error = self.execution.error
        if error is None:
            return 0
        return -signal.SIGTERM if isinstance(error.__cause__, CommandStoppedError) else 1

    def is_alive(self) -> bool:
        """Return whether it still runs."""
        return not self._ended.is_set() and self._creator_pid == os.getpid()  # a forked child does not have the thread

    def join(self, timeout: float | None = None) -> None:
        """Wait until the task has ended, at most `timeout` seconds. Unlike `RuntimeTask.join()` it raises nothing."""
        if threading.current_thread() is not self._thread and self.is_alive():
            wait_event(self._ended, Deadline(timeout))

    def log_failure(self) -> None:
        """Log a failure that was not reported, once."""
        if self.execution.error is not None and not self.execution.error_reported:
            self.execution.error_reported = True
            stopped = isinstance(self.execution.error.__cause__, CommandStoppedError)
            _log.log(logging.INFO if stopped else logging.WARNING, "%s", self.execution.error)

    def request_stop(self) -> None:
        """Ask it to end, and do not wait."""
        self._cancel_token.cancel()

    def terminate(self) -> None:
        """End the step under way on the host, with its children, and wait for that. No further step begins."""
        self.request_stop()
        self.join()

    def kill(self) -> None:
        """Do what `terminate()` does: the host sends SIGKILL to every process that outlives the grace period."""
        self.terminate()


@attrs.define
class TaskState:
    """The steps of a task, and its last execution."""

    name: str
    steps: list[Step] = attrs.field(factory=list)
    execution: Execution | None = None
    process: TaskProcess | None = None

    def new_execution(self, executor: Executor) -> Execution:
        """Prepare an execution, which replaces the last one."""
        self.process = None
        self.execution = Execution(self.name, tuple(self.steps), executor)
        return self.execution

    def start_in_background(
        self, executor: Executor, cancel_token: CancelToken, owner: object | None = None
    ) -> TaskProcess:
        """Start an execution, which replaces the last one, in a thread; the owner lives as long as the thread."""
        self.process = TaskProcess(self.new_execution(executor), cancel_token, owner)
        return self.process

    def join(self) -> None:
        """Wait until the last execution has ended.

        Raises:
            TaskExecutionError: If a step failed.
        """
        execution, process = self.execution, self.process
        if process is not None:
            process.join()
        if execution is not None and execution.error is not None:
            execution.error_reported = True
            raise copy_error(execution.error)


def state_of(task: object) -> TaskState:
    """Return the steps and the last execution of a task.

    They are in the task itself: an error among them may lead back to the task, a cycle that the collector must see.
    """
    state: TaskState = vars(task)["_state"]
    return state
