"""The history of tasks on a runtime: each execution with its process, log, returns and failure."""

from __future__ import annotations

import threading
from collections.abc import Generator

import attrs

from lazycluster._execution import Execution, TaskProcess, state_of
from lazycluster._resources import ResourceRegistry
from lazycluster._waiting import CancelToken
from lazycluster.exceptions import LazyclusterError
from lazycluster.executor import Executor
from lazycluster.tasks import RuntimeTask


class TaskHistory:
    """The executions of tasks on one runtime, in the order of their starts. Any thread may use it."""

    def __init__(self, resources: ResourceRegistry) -> None:
        """Begin empty; `resources` keeps the processes of the tasks in the background."""
        self._resources = resources
        self._lock = threading.RLock()
        self._executions: list[tuple[RuntimeTask, Execution]] = []

    def run(self, task: RuntimeTask, executor: Executor) -> None:
        """Carry out a task and wait for its end.

        Raises:
            TaskExecutionError: If a step failed.
        """
        execution = state_of(task).new_execution(executor)
        with self._lock:
            self._executions.append((task, execution))
        execution.run()
        task.join()

    def start(self, task: RuntimeTask, executor: Executor, owner: object) -> None:
        """Start a task in the background; the owner lives as long as the task runs.

        Raises:
            RuntimeClosedError: If the resources were released already.
        """
        cancel_token = CancelToken()
        try:
            with self._lock:
                context = attrs.evolve(executor.context, cancel_token=cancel_token)
                process = state_of(task).start_in_background(
                    attrs.evolve(executor, context=context), cancel_token, owner
                )
                self._executions.append((task, process.execution))
                self._resources.register(self._resources.new_key(task.name), process)
        except BaseException:  # also Ctrl-C: the task may have begun, and no other object knows its process
            cancel_token.cancel()
            raise

    @property
    def processes(self) -> dict[str, TaskProcess]:
        """The processes of tasks in the background by key, also of those that have ended."""
        processes = self._resources.get_processes(only_alive=False)
        return {key: process for key, process in processes.items() if isinstance(process, TaskProcess)}

    def last_lost(self, last_success: float) -> float | None:
        """Return when the last task failed because of the host; None if a task or command has succeeded since.

        Args:
            last_success: The end of the last command that the host ran. Like the result it is by `time.monotonic()`.
        """
        ended = [(execution.ended_at, execution) for _, execution in self._snapshot() if execution.ended_at]
        ended_at, last = max(ended, key=lambda pair: pair[0], default=(0.0, None))
        return ended_at if last is not None and last.host_lost and ended_at > last_success else None

    def print_logs(self, host: str) -> None:
        """Print the log of each execution after the host and the name of its task."""
        for task, execution in self._snapshot():
            print(f"{host}: {task.name}")  # noqa: T201 - the user asks for it
            execution.print_log()

    def iter_function_returns(self) -> Generator[object, None, None]:
        """Wait for the tasks, then yield the returns of their functions, in the order of the starts."""
        executions = self._snapshot()
        for process in self.processes.values():
            process.join()
        for _, execution in executions:
            yield from execution.iter_function_returns()

    def join(self) -> list[LazyclusterError]:
        """Wait for the tasks in the background and return their errors; these count as reported."""
        processes = self.processes.values()
        for process in processes:
            process.join()
        failed = [process.execution for process in processes if process.execution.error is not None]
        for execution in failed:
            execution.error_reported = True
        return [execution.error for execution in failed if execution.error is not None]

    def clear(self) -> None:
        """Discard the executions that have ended, with their processes."""
        with self._lock:
            processes = self.processes
            self._resources.discard(key for key, process in processes.items() if not process.is_alive())
            running = {id(process.execution) for process in processes.values() if process.is_alive()}
            self._executions = [(task, execution) for task, execution in self._executions if id(execution) in running]

    def _snapshot(self) -> list[tuple[RuntimeTask, Execution]]:
        with self._lock:
            return list(self._executions)
