"""Tasks: builders of steps."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Sequence
from typing import ParamSpec

from lazycluster._execution import TaskState, state_of
from lazycluster._model.checks import absolute_path, check_program, check_timeout
from lazycluster._transports.host_context import context_of
from lazycluster._typing import Self
from lazycluster._waiting import interrupt_boundary
from lazycluster.connection import Connection
from lazycluster.exceptions import LazyclusterError
from lazycluster.executor import Executor
from lazycluster.managed import ManagedProcess
from lazycluster.results import StepResult
from lazycluster.steps import GetFile, RunCommand, RunFunction, SendFile, Step, check_callable

P = ParamSpec("P")


class RuntimeTask:
    """A chain of steps to carry out on a host.

    The methods that add steps return the task itself, so that they can be chained or written one a line. Carrying out
    a task does not change its steps: it may be done again, and on other hosts. Each execution replaces the log, the
    results and the returns of the last one.

    Args:
        name: The name in logs and errors; default: a unique one.
    """

    def __init__(self, name: str | None = None) -> None:
        self._state = TaskState(name or f"task-{id(self)}")

    def __repr__(self) -> str:
        """Return the name and the number of steps."""
        return f"<RuntimeTask {self.name}, {len(self._state.steps)} steps>"

    @property
    def name(self) -> str:
        """The name of the task."""
        return self._state.name

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps added so far."""
        return tuple(self._state.steps)

    @property
    def process(self) -> ManagedProcess | None:
        """The process in which the task runs or ran in the background; None if it did not."""
        return self._state.process

    @property
    def results(self) -> tuple[StepResult, ...]:
        """A record for each step that was carried out; the last one may be a failure.

        While the task runs, a step has its record as soon as it has ended.
        """
        return () if self._state.execution is None else self._state.execution.results

    @property
    def execution_log(self) -> list[str]:
        """The output of each step, in order, `''` if it printed nothing; an empty list before the execution.

        While the task runs, the last entry is the output so far of the step under way.
        """
        return [] if self._state.execution is None else self._state.execution.logs

    @property
    def function_returns(self) -> Generator[object, None, None]:
        """The values that its functions returned, in order, unpickled one at a time.

        Iterating waits for the task. If a function raised an exception, it is raised here.
        """
        execution, process = self._state.execution, self._state.process
        with interrupt_boundary:
            if process is not None:
                process.join()
            if execution is not None:
                yield from execution.iter_function_returns()

    def copy(self) -> RuntimeTask:
        """Return a task with the same steps that was never carried out."""
        copy = RuntimeTask(self.name)
        state_of(copy).steps.extend(self._state.steps)
        return copy

    def run_command(self, command: str | Sequence[str], *, timeout: float | None = None) -> Self:
        """Add a step that runs a command; the task fails unless the exit status is 0.

        Args:
            command: Any text that a POSIX shell takes, or the words of a program; see `Connection.run()`.
            timeout: Seconds after which it is ended on the host with its children, and the task fails.

        Raises:
            ValueError: If the command is empty, or the timeout is not positive.
        """
        program = check_program(command)
        if isinstance(program, str) and not program.strip():
            raise ValueError(f"command must not be empty or blank, got {program!r}")
        self._state.steps.append(RunCommand(program, check_timeout(timeout)))
        return self

    def send_file(self, local_path: str | os.PathLike[str], remote_path: str | None = None) -> Self:
        """Add a step that sends a file or directory to the host.

        Args:
            local_path: The local file or directory; a relative path is resolved now.
            remote_path: The target; default: its own name in the working directory. See `Connection.put()`.

        Raises:
            ValueError: If the local path does not exist.
        """
        local = absolute_path(local_path)
        if not local.exists():
            raise ValueError(f"no such file or directory: {local}")
        self._state.steps.append(SendFile(local, remote_path or None))
        return self

    def get_file(self, remote_path: str, local_path: str | os.PathLike[str] | None = None) -> Self:
        """Add a step that fetches a file or directory from the host.

        Args:
            remote_path: The file or directory on the host; a relative path starts in the working directory.
            local_path: The local target, resolved now; default: its own name in the current directory. `{host}` in it
                is replaced by the name of the host, as in `results/{host}/out.csv`. Missing directories are then made,
                so that a group can fetch it from each host.

        Raises:
            ValueError: If the remote path is empty.
        """
        if not remote_path:
            raise ValueError(f"remote_path must not be empty, got {remote_path!r}")
        self._state.steps.append(GetFile(remote_path, absolute_path("." if local_path is None else local_path)))
        return self

    def run_function(self, /, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> Self:
        """Add a step that calls a function on the host; `function_returns` yields its value.

        Lambdas, closures, partials, methods, callables and classes will do. The modules that they import must be
        installed on the host. Modules that are not installed locally (such as one beside your script) travel along.

        Raises:
            ValueError: If the function is None or cannot be called.
        """
        check_callable(function)
        self._state.steps.append(RunFunction(function, args, kwargs))
        return self

    def execute(self, connection: Connection, debug: bool = False) -> Self:
        """Carry out the steps over a connection, in the home directory, and wait for the end.

        Args:
            connection: The host.
            debug: Print the output as it comes; otherwise it goes to the logger, at DEBUG.

        Raises:
            ValueError: If the connection cannot be made (`ConnectError`).
            TaskExecutionError: If a step failed; the steps after it were not begun.
        """
        with interrupt_boundary:
            context = context_of(connection)
            context.transport.connect()
            self._state.new_execution(Executor(context, debug=debug)).run()
            self.join()
        return self

    def join(self) -> None:
        """Wait until the task has ended.

        Raises:
            TaskExecutionError: If a step failed.
        """
        with interrupt_boundary:
            self._state.join()

    def print_log(self) -> None:
        """Print the output of each step, after its number, and why it failed."""
        if self._state.execution is not None:
            self._state.execution.print_log()

    def cleanup(self) -> None:
        """Wait until the task has ended, then discard the returns of its functions. A second call does nothing."""
        with contextlib.suppress(LazyclusterError):
            self.join()
        if self._state.execution is not None:
            self._state.execution.close()

    def close(self) -> None:
        """Do what `cleanup()` does."""
        self.cleanup()
