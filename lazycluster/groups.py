"""A group of runtimes: the same on many hosts at once, and items spread over them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import BinaryIO, Literal, TypeVar, overload

from lazycluster import _group_calls, _group_tasks
from lazycluster._gather import gather, unwrap_all
from lazycluster._group_facts import GroupFacts
from lazycluster._group_files import GroupFiles
from lazycluster._group_ports import GroupPorts
from lazycluster._membership import DEFAULT_MAX_CONNECTIONS, Members, check_runtimes
from lazycluster._model.run_options import DEFAULT_MAX_OUTPUT
from lazycluster._typing import Unpack
from lazycluster._waiting import interrupt_boundary
from lazycluster.group_callers import GroupCallMethods
from lazycluster.managed import CleanupOnExit
from lazycluster.options import RuntimeOptions
from lazycluster.results import CommandResult, Error, OnError, Stream
from lazycluster.runtimes import Runtime
from lazycluster.tasks import RuntimeTask

T = TypeVar("T")
X = TypeVar("X")


class RuntimeGroup(GroupFacts, GroupFiles, GroupPorts, GroupCallMethods, CleanupOnExit):
    """Some hosts that work together: the same command, function or file on all of them, or items spread over them.

    Hosts are connected in parallel. It is a context manager; at its end, or at `close()`, everything that its runtimes
    started and made is ended and removed.

    Args:
        runtimes: Existing runtimes, which belong to the group from now on.
        hosts: Hosts to connect to, as `ssh` understands them.
        working_dir: The working directory on each of these hosts; default: a temporary one each.
        max_connections: Log-ins at once while it connects, also through one jump host. Log-ins that a server refuses
            because there are too many (MaxStartups) are tried again, with growing pauses, until `connect_timeout`.
        on_error: `raise` the errors of hosts that cannot be used, or `skip` these hosts, see `failed_hosts`.
        progress: Show a bar on a terminal while something is under way.
        connection_kwargs: The keywords of `Runtime`.

    Raises:
        HostsFailedError: If some hosts cannot be used; the error lists each with its cause. No host stays connected.
        ValueError: If a host is given twice.
    """

    def __init__(
        self,
        runtimes: Iterable[Runtime] | None = None,
        hosts: Iterable[str] | None = None,
        working_dir: str | None = None,
        *,
        max_connections: int = DEFAULT_MAX_CONNECTIONS,
        on_error: Literal["raise", "skip"] = "raise",
        progress: bool = False,
        **connection_kwargs: Unpack[RuntimeOptions],
    ) -> None:
        if on_error not in {"raise", "skip"}:
            raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        self._members = Members(working_dir, connection_kwargs, max_connections=max_connections, progress=progress)
        for runtime in check_runtimes(runtimes):
            self._members.add(runtime)
        with interrupt_boundary:
            self._members.connect(hosts, skip_failed=on_error == "skip")

    # Hosts -----------------------------------------------------------------------------------------------------------

    def add_runtime(self, host_or_runtime: str | Runtime) -> None:
        """Add a runtime, or connect to a host as the group does with its own.

        A host gets the environment variables of the group; a runtime keeps its own.

        Raises:
            ValueError: If the host is in the group already.
            InvalidRuntimeError: If the host cannot be used.
        """
        with interrupt_boundary:
            self._members.add(host_or_runtime)

    def remove_runtime(self, host: str) -> Runtime:
        """Remove a host from the group and return its runtime, which stays open.

        Raises:
            ValueError: If the host is not in the group.
        """
        return self._members.remove(host)

    def set_env_variables(self, env_variables: Mapping[str, str]) -> None:
        """Replace the environment variables of commands and functions on every host.

        Raises:
            ValueError: If a name is not an identifier.
        """
        self._members.set_env(env_variables)

    def add_env_variables(self, env_variables: Mapping[str, str]) -> None:
        """Add environment variables for commands and functions on every host.

        Raises:
            ValueError: If a name is not an identifier.
        """
        self._members.add_env(env_variables)

    # Work ------------------------------------------------------------------------------------------------------------

    @overload
    def run(
        self,
        command: str | Sequence[str],
        *,
        cwd: str | None = ...,
        env: Mapping[str, str] | None = ...,
        stdin: str | bytes | BinaryIO = ...,
        timeout: float | None = ...,
        check: bool = ...,
        on_error: Literal["raise"] = ...,
        on_output: Callable[[str, Stream, bytes], object] | None = ...,
        on_line: Callable[[str, Stream, str], object] | None = ...,
        max_output: int | None = ...,
        at_once: int | None = ...,
    ) -> dict[str, CommandResult]: ...
    @overload
    def run(
        self,
        command: str | Sequence[str],
        *,
        cwd: str | None = ...,
        env: Mapping[str, str] | None = ...,
        stdin: str | bytes | BinaryIO = ...,
        timeout: float | None = ...,
        check: bool = ...,
        on_error: Literal["collect"],
        on_output: Callable[[str, Stream, bytes], object] | None = ...,
        on_line: Callable[[str, Stream, str], object] | None = ...,
        max_output: int | None = ...,
        at_once: int | None = ...,
    ) -> dict[str, CommandResult | Error]: ...
    def run(
        self,
        command: str | Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str | bytes | BinaryIO = b"",
        timeout: float | None = None,
        check: bool = False,
        on_error: OnError = "raise",
        on_output: Callable[[str, Stream, bytes], object] | None = None,
        on_line: Callable[[str, Stream, str], object] | None = None,
        max_output: int | None = DEFAULT_MAX_OUTPUT,
        at_once: int | None = None,
    ) -> Mapping[str, CommandResult | Error]:
        """Run a command on every host at once and return the results by host; see `Runtime.run()`.

        Args:
            command: Text for a POSIX shell, or the words of a program, which starts without a shell.
            cwd: The directory to run in. A relative path starts in the working directory of each runtime.
            env: Environment variables in addition to those of each runtime.
            stdin: Its standard input, on each host; text is UTF-8. All of a file is read before the command starts.
            timeout: Seconds after which the command and its children are ended.
            check: Whether an exit status other than 0 is an error of its host.
            on_error: `raise` the errors when all have ended, or `collect` them: an `Error` in place of the result.
            on_output: Gets each piece of output with its host, in one thread for all hosts.
            on_line: Gets each line of output with its host, without its newline, in the same thread.
            max_output: The bytes that each stream of each host may have, or None for any number.
            at_once: The number of hosts at once; default: all. A batch begins when the last one has ended. With
                `on_error="raise"` no batch begins after one in which a host failed; the error's `not_started` names
                the hosts of the others.

        Raises:
            HostsFailedError: If `Runtime.run()` raises for some hosts; the error's `values` are the results of others.
            ValueError: If an argument is out of range.
        """
        prepared = _group_calls.GroupCommand(
            command, cwd, env, stdin, timeout, check, on_output, on_line, max_output, at_once
        )
        with interrupt_boundary:
            return prepared.run(self._members, on_error)

    @overload
    def map(
        self,
        function: Callable[[X], T],
        iterable: Iterable[X],
        *,
        ordered: bool = ...,
        retries: int = ...,
        on_error: Literal["raise"] = ...,
    ) -> Generator[T, None, None]: ...
    @overload
    def map(
        self,
        function: Callable[[X], T],
        iterable: Iterable[X],
        *,
        ordered: bool = ...,
        retries: int = ...,
        on_error: Literal["collect"],
    ) -> Generator[T | Error, None, None]: ...
    def map(
        self,
        function: Callable[[X], T],
        iterable: Iterable[X],
        *,
        ordered: bool = True,
        retries: int = 2,
        on_error: OnError = "raise",
    ) -> Generator[T | Error, None, None]:
        """Call a function with each item, each on the next free host, and yield its values.

        A host gets more items when it has done its last ones. Items that take little time are sent several at once, and
        one process works on them one after another. Items that it has not begun within 50 ms come back for the next
        free host. Some items are taken from the iterable before their values are due, more during the wait for a slow
        item. An error of the iterable is raised after the values of the items before it, as with Python's own `map()`.

        When a host or a process on it dies, its items are done again, each by itself. So a function may act twice on
        one item. The group's other hosts continue.

        Args:
            function: Anything that `Runtime.call()` takes, of one argument.
            iterable: The items; it may be endless.
            ordered: Yield in the order of the items; else as the results come.
            retries: How often an item is moved to another host because its host died.
            on_error: `raise` the first error of an item, or yield an `Error` in place of a value.

        Raises:
            HostsFailedError: If no host is left.
        """
        return _group_calls.map_items(self._members, function, iterable, on_error, ordered=ordered, retries=retries)

    @overload
    def execute_task(
        self,
        task: RuntimeTask,
        host: str | None = ...,
        broadcast: Literal[False] = ...,
        execute_async: bool = ...,
        debug: bool = ...,
        *,
        on_error: Literal["raise"] = ...,
    ) -> RuntimeTask: ...
    @overload
    def execute_task(
        self,
        task: RuntimeTask,
        host: str | None = ...,
        broadcast: Literal[False] = ...,
        execute_async: bool = ...,
        debug: bool = ...,
        *,
        on_error: Literal["collect"],
    ) -> RuntimeTask | Error: ...
    @overload
    def execute_task(
        self,
        task: RuntimeTask,
        host: None = ...,
        *,
        broadcast: Literal[True],
        execute_async: bool = ...,
        debug: bool = ...,
        on_error: Literal["raise"] = ...,
    ) -> dict[str, RuntimeTask]: ...
    @overload
    def execute_task(
        self,
        task: RuntimeTask,
        host: None = ...,
        *,
        broadcast: Literal[True],
        execute_async: bool = ...,
        debug: bool = ...,
        on_error: Literal["collect"],
    ) -> dict[str, RuntimeTask | Error]: ...
    @overload
    def execute_task(
        self,
        task: RuntimeTask,
        host: str | None = ...,
        broadcast: bool = ...,
        execute_async: bool = ...,
        debug: bool = ...,
        *,
        on_error: Literal["raise"] = ...,
    ) -> RuntimeTask | dict[str, RuntimeTask]: ...
    @overload
    def execute_task(
        self,
        task: RuntimeTask,
        host: str | None = ...,
        broadcast: bool = ...,
        execute_async: bool = ...,
        debug: bool = ...,
        *,
        on_error: Literal["collect"],
    ) -> RuntimeTask | Error | dict[str, RuntimeTask | Error]: ...
    def execute_task(
        self,
        task: RuntimeTask,
        host: str | None = None,
        broadcast: bool = False,
        execute_async: bool = True,
        debug: bool = False,
        *,
        on_error: OnError = "raise",
    ) -> RuntimeTask | Error | Mapping[str, RuntimeTask | Error]:
        """Carry out a task on one host, or a copy of it on each.

        Args:
            task: The task.
            host: The host; default: the least busy, see `get_runtime()`.
            broadcast: Whether every host carries out a copy, with its own log, results and returns.
            execute_async: Do it in the background; `join()` of a task, or of the group, raises its error.
            debug: Print the output as it comes; with `broadcast` line by line, after the name of the host.
            on_error: `raise` the errors when all have ended, or `collect` them: an `Error` in place of the task, or of
                the copy for a host. `join()` raises the errors of the background with both.

        Returns:
            The task, or with `broadcast` the copies by host.

        Raises:
            TaskExecutionError: If a step failed.
            HostsFailedError: If a step failed with `broadcast`; the error's `values` are the copies that succeeded.
            ValueError: If the host is not in the group, or is given together with `broadcast`. Also if all hosts would
                write a file to the same local path, see `RuntimeTask.get_file()`.
        """
        with interrupt_boundary:
            return _group_tasks.execute_task(
                self._members, task, on_error, host=host, broadcast=broadcast, execute_async=execute_async, debug=debug
            )

    def join(self) -> None:
        """Wait until every task in the background has ended.

        Raises:
            HostsFailedError: If some tasks failed; the error lists each with its host.
        """
        with interrupt_boundary:
            _group_tasks.join(self._members)

    def clear_tasks(self) -> None:
        """Discard the tasks that have ended: their logs, returns and processes."""
        for runtime in self.runtimes:
            runtime.clear_tasks()

    def cleanup(self) -> None:
        """End every process and remove everything temporary on every host, all at once. A second call does nothing."""
        outcomes = gather({host: runtime.cleanup for host, runtime in self._members.all().items()})
        unwrap_all(outcomes, "the clean-up")
