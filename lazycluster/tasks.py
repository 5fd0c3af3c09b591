"""Tasks: builders of steps, and what came of carrying them out."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, ParamSpec

from lazycluster._functions.outcome import read_outcome, remote_traceback
from lazycluster._model.checks import absolute_path, check_timeout
from lazycluster._typing import Self
from lazycluster._waiting import CancelToken, Deadline, start_thread, wait_event
from lazycluster.exceptions import (
    CommandStoppedError,
    LazyclusterError,
    RuntimeClosedError,
    TaskExecutionError,
    indented_tail,
)
from lazycluster.executor import Executor, OutcomeFile
from lazycluster.managed import ManagedProcess
from lazycluster.results import StepResult
from lazycluster.steps import GetFile, RunCommand, RunFunction, SendFile, Step, check_callable, describe_step

if TYPE_CHECKING:
    from lazycluster.connection import Connection

_log = logging.getLogger(__name__)
P = ParamSpec("P")


class Execution:
    """One run of a task's steps on one host: what came of each so far, when and why it ended."""

    def __init__(self, name: str, steps: tuple[Step, ...], executor: Executor) -> None:
        """Prepare; `run()` does it."""
        self.name = name
        self.host = executor.transport.host
        self.error: LazyclusterError | None = None
        self.error_reported = False
        self.ended_at: float | None = None
        self._steps = steps
        self._executor = executor
        self._results: list[StepResult] = []
        self._outcome_files: list[tuple[str, OutcomeFile]] = []
        self._call_count = 0

    @property
    def results(self) -> tuple[StepResult, ...]:
        """Return what came of the steps that were carried out."""
        return tuple(self._results)

    @property
    def host_lost(self) -> bool:
        """Tell whether it failed because the host cannot be used."""
        return bool(self._results) and self._results[-1].host_lost

    def run(self) -> None:
        """Carry out the steps, up to the first that fails; `error` tells whether one did."""
        try:
            self._run_steps()
        finally:
            self.ended_at = time.monotonic()

    def _run_steps(self) -> None:
        for index, step in enumerate(self._steps):
            outcome_files: list[OutcomeFile] = []
            try:
                result = self._executor.execute(step, outcome_files.append)
            except BaseException as error:  # such as Ctrl-C in the thread that waits
                self.error = self._task_error(index, step, error)
                raise
            self._outcome_files += [
                (step.name, outcome_file) for outcome_file in outcome_files if isinstance(step, RunFunction)
            ]
            self._call_count += len(outcome_files)
            self._results.append(result)
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
        """Yield what the functions returned, in order; one that raised, or never ran, raises here."""
        self.error_reported = True
        answer_lost = self.host_lost and isinstance(self._steps[len(self._results) - 1], RunFunction)
        for number, (name, outcome_file) in enumerate(self._outcome_files, start=1):
            if answer_lost and number == len(self._outcome_files) and self.error is not None:
                raise self.error  # which says more than what came of the answer
            yield read_outcome(outcome_file, self.host, name).unwrap()
        if self.error is not None and self._call_count < sum(isinstance(step, RunFunction) for step in self._steps):
            raise self.error

    def print_log(self) -> None:
        """Print what each step printed, after its number, and why it failed."""
        for index, result in enumerate(self.results):
            print(f"[{index}] {result.log.rstrip()}")  # noqa: T201
            if result.error is not None:
                print(f"[{index}] failed: {self.error}")  # noqa: T201

    def close(self) -> None:
        """Discard the returns of the functions."""
        while self._outcome_files:
            self._outcome_files.pop()[1].close()


class TaskProcess:
    """A task in the background: a thread that waits for the host; a `ManagedProcess`."""

    def __init__(self, execution: Execution, cancel_token: CancelToken, owner: object | None = None) -> None:
        """Start it. The owner lives as long as it runs."""
        self.name = f"task {execution.name} on {execution.host}"
        self.pid: int | None = None
        self.execution = execution
        self._cancel_token = cancel_token
        self._owner = owner
        # Not the end of the thread: Ctrl-C in Thread.join() has it taken for ended (CPython up to 3.12).
        self._ended = threading.Event()
        self._creator_pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        start_thread(self._thread)

    def _run(self) -> None:
        try:
            self.execution.run()
        except BaseException:  # noqa: BLE001 - it is in `execution.error`, for whoever joins
            _log.debug("%s ended", self.name, exc_info=True)
        finally:
            self._cancel_token.close()
            self._owner = None
            self._ended.set()

    def __repr__(self) -> str:
        """Return what it is and how it stands."""
        state = "alive" if self.is_alive() else f"ended with {self.exitcode}"
        return f"<TaskProcess {self.name}, {state}>"

    @property
    def exitcode(self) -> int | None:
        """Return None while it runs; then 0, 1 where a step failed, and -15 where it was stopped."""
        if self.is_alive():
            return None
        error = self.execution.error
        if error is None:
            return 0
        return -signal.SIGTERM if isinstance(error.__cause__, CommandStoppedError) else 1

    def is_alive(self) -> bool:
        """Tell whether it still runs."""
        return not self._ended.is_set() and self._creator_pid == os.getpid()  # a fork has none of the threads

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, at most so many seconds; raises nothing, see `RuntimeTask.join()`."""
        if threading.current_thread() is not self._thread and self.is_alive():
            wait_event(self._ended, Deadline(timeout))

    def log_failure(self) -> None:
        """Log a failure that nobody has asked for, once."""
        if self.execution.error is not None and not self.execution.error_reported:
            self.execution.error_reported = True
            stopped = isinstance(self.execution.error.__cause__, CommandStoppedError)
            _log.log(logging.INFO if stopped else logging.WARNING, "%s", self.execution.error)

    def request_stop(self) -> None:
        """Ask it to end, and do not wait."""
        self._cancel_token.cancel()

    def terminate(self) -> None:
        """End the step under way on the host, with its children, and wait for it; no further step begins."""
        self.request_stop()
        self.join()

    def kill(self) -> None:
        """Do what `terminate()` does: the host sends SIGKILL to what ignores SIGTERM for 5 s."""
        self.terminate()


class RuntimeTask:
    """A chain of steps to carry out on a host.

    The methods that add steps return the task itself, so that they can be chained or written one a line. Carrying out
    a task does not change its steps: it may be done again, and on other hosts. Each time replaces log, results and
    returns.

    Args:
        name: What to call it in logs and errors; default: something unique.
    """

    def __init__(self, name: str | None = None) -> None:
        self._name = name or f"task-{id(self)}"
        self._steps: list[Step] = []
        self._execution: Execution | None = None
        self._process: TaskProcess | None = None

    def __repr__(self) -> str:
        """Return the name and the number of steps."""
        return f"<RuntimeTask {self._name}, {len(self._steps)} steps>"

    @property
    def name(self) -> str:
        """Return the name of the task."""
        return self._name

    @property
    def steps(self) -> tuple[Step, ...]:
        """Return the steps added so far."""
        return tuple(self._steps)

    @property
    def process(self) -> ManagedProcess | None:
        """Return the process in which the task runs or ran in the background; None where it did not."""
        return self._process

    @property
    def results(self) -> tuple[StepResult, ...]:
        """Return a record for each step that was carried out; the last one may be a failure."""
        return () if self._execution is None else self._execution.results

    @property
    def execution_log(self) -> list[str]:
        """Return what each step printed, in order, `''` for none; empty before the execution."""
        return [result.log for result in self.results]

    @property
    def function_returns(self) -> Generator[object, None, None]:
        """Wait for the task, then yield what its functions returned, in order, unpickled one at a time.

        A function that raised raises its exception here.
        """
        execution, process = self._execution, self._process
        if process is not None:
            process.join()
        if execution is not None:
            yield from execution.iter_function_returns()

    def copy(self) -> RuntimeTask:
        """Return a task with the same steps that was never carried out."""
        copy = RuntimeTask(self._name)
        copy._steps = list(self._steps)
        return copy

    def run_command(self, command: str, *, timeout: float | None = None) -> Self:
        """Add a step that runs a shell command; the task fails where its exit status is not 0.

        Args:
            command: Any text that a POSIX shell takes; see `Connection.run()`.
            timeout: Seconds after which it is ended on the host with its children, and the task fails.

        Raises:
            ValueError: The command is empty, or the timeout is not positive.
        """
        if not command or not command.strip():
            raise ValueError("the command must not be empty")
        self._steps.append(RunCommand(command, check_timeout(timeout)))
        return self

    def send_file(self, local_path: str | os.PathLike[str], remote_path: str | None = None) -> Self:
        """Add a step that sends a file or directory to the host.

        Args:
            local_path: The file or directory here; a relative path is fixed now.
            remote_path: Where it goes; default: its own name in the working directory. See `Connection.put()`.

        Raises:
            ValueError: There is no such file here.
        """
        local = absolute_path(local_path)
        if not local.exists():
            raise ValueError(f"no such file or directory: {local}")
        self._steps.append(SendFile(local, remote_path or None))
        return self

    def get_file(self, remote_path: str, local_path: str | os.PathLike[str] | None = None) -> Self:
        """Add a step that fetches a file or directory from the host.

        Args:
            remote_path: The file or directory there; a relative path starts in the working directory.
            local_path: Where it goes here; default: its own name in the current directory, which is fixed now. `{host}`
                in it stands for the host, as in `results/{host}/out.csv`, and missing directories are then made: so a
                group can fetch it from each host.

        Raises:
            ValueError: The remote path is empty.
        """
        if not remote_path:
            raise ValueError("the remote path must not be empty")
        self._steps.append(GetFile(remote_path, absolute_path("." if local_path is None else local_path)))
        return self

    def run_function(self, /, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> Self:
        """Add a step that calls a function on the host; `function_returns` gives what it returned.

        Lambdas, closures, partials, methods, callables and classes will do. What they import must be there, modules
        that are not installed here (such as one beside your script) travel along.

        Raises:
            ValueError: The function is None or cannot be called.
        """
        check_callable(function)
        self._steps.append(RunFunction(function, args, kwargs))
        return self

    def execute(self, connection: Connection, debug: bool = False) -> Self:
        """Carry out the steps over a connection, in the home directory, and wait for the end.

        Args:
            connection: The host.
            debug: Print the output while it is produced; otherwise it goes to the logger, at DEBUG.

        Raises:
            ValueError: The connection cannot be made (`ConnectError`).
            TaskExecutionError: A step failed; the steps after it were not begun.
        """
        connection.ssh_client.master()
        self.new_execution(Executor(connection, debug=debug)).run()
        self.join()
        return self

    def new_execution(self, executor: Executor) -> Execution:
        """Prepare an execution, which replaces the last one; a runtime runs it."""
        self._process = None
        self._execution = Execution(self._name, self.steps, executor)
        return self._execution

    def start_in_background(
        self, executor: Executor, cancel_token: CancelToken, owner: object | None = None
    ) -> TaskProcess:
        """Start an execution, which replaces the last one, in a thread; the owner lives as long as it runs."""
        self._process = TaskProcess(self.new_execution(executor), cancel_token, owner)
        return self._process

    def join(self) -> None:
        """Wait until the task has ended.

        Raises:
            TaskExecutionError: A step failed.
        """
        execution, process = self._execution, self._process
        if process is not None:
            process.join()
        if execution is not None and execution.error is not None:
            execution.error_reported = True
            raise execution.error

    def print_log(self) -> None:
        """Print what each step printed, after its number, and why it failed."""
        if self._execution is not None:
            self._execution.print_log()

    def cleanup(self) -> None:
        """Wait until the task has ended, then discard the returns of its functions. A second call does nothing."""
        with contextlib.suppress(LazyclusterError):
            self.join()
        if self._execution is not None:
            self._execution.close()

    def close(self) -> None:
        """Do what `cleanup()` does."""
        self.cleanup()
