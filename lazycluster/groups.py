"""A group of runtimes: the same on many hosts at once, and items spread over them."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, Literal, ParamSpec, TypeVar, overload

from lazycluster import _group_calls, _group_ports, _group_tasks
from lazycluster._display import pluralize, print_table
from lazycluster._facts import HOST_TABLE_COLUMNS, host_table_row
from lazycluster._gather import OnError, gather, unwrap_all
from lazycluster._membership import Members
from lazycluster._model.checks import check_port
from lazycluster.managed import CleanupOnExit, ManagedProcess
from lazycluster.results import CommandResult, Error, Stream
from lazycluster.tasks import RuntimeTask

P = ParamSpec("P")
T = TypeVar("T")
X = TypeVar("X")


class RuntimeGroup(Members, CleanupOnExit):
    """Some hosts that work together: the same command, function or file on all of them, or items spread over them.

    Hosts are connected in parallel. It is a context manager; at its end, or at `cleanup()`, everything that its
    runtimes started and made is ended and removed.

    Args:
        runtimes: Runtimes that exist; they are the group's from now on.
        hosts: Hosts to connect to, as `ssh` understands them.
        working_dir: The working directory on each of these hosts; default: a temporary one each.
        max_connections: Log-ins at once while it connects, also through one jump host; a server that refuses one, then
            or later, because there are too many (MaxStartups) is asked again, with growing pauses, until
            `connect_timeout`.
        on_error: What to do with hosts that cannot be used: `raise`, or `skip` them, see `failed_hosts`.
        progress: Show a bar on a terminal while something is under way.
        connection_kwargs: The keywords of `Runtime`.

    Raises:
        HostsFailedError: Some hosts cannot be used; it lists each with its cause, and none stays connected.
        ValueError: A host is there twice.
    """

    # What it does ----------------------------------------------------------------------------------------------------

    @overload
    def run(
        self,
        command: str,
        *,
        stdin: bytes = ...,
        timeout: float | None = ...,
        on_error: Literal["raise"] = ...,
        on_output: Callable[[str, Stream, bytes], object] | None = ...,
    ) -> dict[str, CommandResult]: ...
    @overload
    def run(
        self,
        command: str,
        *,
        stdin: bytes = ...,
        timeout: float | None = ...,
        on_error: Literal["collect"],
        on_output: Callable[[str, Stream, bytes], object] | None = ...,
    ) -> dict[str, CommandResult | Error]: ...
    def run(
        self,
        command: str,
        *,
        stdin: bytes = b"",
        timeout: float | None = None,
        on_error: OnError = "raise",
        on_output: Callable[[str, Stream, bytes], object] | None = None,
    ) -> Mapping[str, CommandResult | Error]:
        """Run a command on every host at once and return how it ended, by host; an exit status is no exception.

        Args:
            command: Any text that a POSIX shell takes.
            stdin: What it reads from its standard input, on each host.
            timeout: Seconds after which the command and its children are ended.
            on_error: `raise` what failed when all have ended, or `collect` it: an `Error` in place of the result.
            on_output: Gets each piece of output with its host while it is produced, in threads of the hosts.

        Raises:
            HostsFailedError: Hosts on which it took longer, or to which the link broke; with the results of the others.
            ValueError: The command is empty, or the timeout is not positive.
        """
        return _group_calls.run_command(self, command, on_error, stdin=stdin, timeout=timeout, on_output=on_output)

    @overload
    def call(
        self, function: Callable[..., T], /, *args: object, on_error: Literal["collect"], **kwargs: object
    ) -> dict[str, T | Error]: ...
    @overload
    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> dict[str, T]: ...
    def call(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Mapping[str, T | Error]:
        """Call a function on every host at once and return what it returned, by host.

        Args:
            function: Anything that `Runtime.call()` takes.
            args: Its arguments.
            on_error: `raise` what failed when all have ended, or `collect` it: an `Error` in place of the value. It is
                not handed on to the function.
            kwargs: Its arguments by name.

        Raises:
            HostsFailedError: Hosts on which it raised; with the values of the others.
        """
        on_error: OnError = kwargs.pop("on_error", "raise")
        return _group_calls.call_function(self, function, on_error, args, kwargs)

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
        """Call a function with each item, on whichever host is free, and yield what it returns.

        A host gets the next items when it has done its last ones. Items that take little time go several at once, to
        be worked on one after another in one process there; what has not been begun within 50 ms comes back for others.
        Some items are taken from the iterable ahead of what is yielded, more of them while a slow item is waited for.
        What the iterable raises is raised when the items before it are done and yielded, as with Python's own `map()`.

        Items of a host that dies, or of a process that dies there, are worked on again, each by itself: what a function
        did before may happen twice. The group's other hosts go on.

        Args:
            function: Anything that `Runtime.call()` takes, of one argument.
            iterable: The items; it may be endless.
            ordered: Yield in the order of the items; else as the results come.
            retries: How often an item is moved to another host because its host died.
            on_error: `raise` the first error of an item, or yield an `Error` in place of a value.

        Raises:
            HostsFailedError: No host is left.
        """
        return _group_calls.map_items(self, function, iterable, on_error, ordered=ordered, retries=retries)

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
            host: Where; default: on the least busy host, see `get_runtime()`.
            broadcast: On every host, each with a copy that has its own log, results and returns.
            execute_async: Do it in the background; `join()` of a task, or of the group, raises what failed.
            debug: Print the output while it is produced; with `broadcast` line by line, behind the name of the host.
            on_error: `raise` what failed, once all have ended, or `collect` it: an `Error` in place of the task, or of
                the copy for a host. What fails in the background is raised by `join()`, whichever it is.

        Returns:
            The task, or with `broadcast` the copies by host.

        Raises:
            TaskExecutionError: A step failed.
            HostsFailedError: The same with `broadcast`; its `values` has the copies that did well.
            ValueError: A host that is not of the group, or a host together with `broadcast`; or a file that each host
                would write to the same place here, see `RuntimeTask.get_file()`.
        """
        return _group_tasks.execute_task(
            self, task, on_error, host=host, broadcast=broadcast, execute_async=execute_async, debug=debug
        )

    def send_file(
        self,
        local_path: str | os.PathLike[str],
        remote_path: str | None = None,
        execute_async: bool = True,
        *,
        on_error: OnError = "raise",
    ) -> Mapping[str, RuntimeTask | Error]:
        """Send a file or directory to every host; see `RuntimeTask.send_file()` and `execute_task()`.

        Returns:
            The tasks that do it, by host.

        Raises:
            ValueError: There is no such file here.
            HostsFailedError: It could not be sent to some hosts; of `execute_async` `join()` raises that.
        """
        return _group_tasks.send_file(self, local_path, remote_path, on_error, execute_async=execute_async)

    # Tasks -----------------------------------------------------------------------------------------------------------

    @property
    def task_processes(self) -> list[ManagedProcess]:
        """Return the processes of the tasks in the background, host by host."""
        return [process for runtime in self.runtimes for process in runtime.task_processes]

    @property
    def function_returns(self) -> Generator[object, None, None]:
        """Wait for the tasks, then yield what their functions returned, host by host in the order of the group."""
        for runtime in self.runtimes:
            yield from runtime.function_returns

    def join(self) -> None:
        """Wait until every task in the background has ended.

        Raises:
            HostsFailedError: Some failed; it lists each with its host.
        """
        _group_tasks.join(self)

    def print_log(self) -> None:
        """Print the logs of the tasks, host by host."""
        for runtime in self.runtimes:
            runtime.print_log()

    def clear_tasks(self) -> None:
        """Forget the tasks that have ended: their logs, returns and processes."""
        for runtime in self.runtimes:
            runtime.clear_tasks()

    # Ports and tunnels -----------------------------------------------------------------------------------------------

    def has_free_port(self, port: int, exclude_hosts: str | Iterable[str] | None = None) -> bool:
        """Tell whether a server could listen on a port of every host.

        Raises:
            HostsFailedError: Hosts that could not be asked.
        """
        return bool(_group_ports.free_ports(self, [check_port(port)], exclude_hosts))

    def get_free_port(
        self,
        ports: Iterable[int],
        enforce_check_on_localhost: bool = False,
        exclude_hosts: str | Iterable[str] | None = None,
    ) -> int:
        """Return the first port of a list that is free on every host; each is asked once, all at the same time.

        Args:
            ports: The ports, in the order of preference.
            enforce_check_on_localhost: It must be free on this machine, too.
            exclude_hosts: Hosts that do not matter.

        Raises:
            NoPortsLeftError: None is, or the list is empty.
            HostsFailedError: Hosts that could not be asked.
        """
        return _group_ports.first_free_port(self, ports, exclude_hosts, also_local=enforce_check_on_localhost)

    def expose_port_to_runtimes(
        self, local_port: int, runtime_port: int | None = None, exclude_hosts: str | Iterable[str] | None = None
    ) -> list[str]:
        """Make a service that listens here on `local_port` reachable on every host at `localhost:runtime_port`.

        All tunnels to one host share one connection.

        Returns:
            The keys under which `stop_process()` ends the tunnels, in the order of the hosts.

        Raises:
            HostsFailedError: It failed on some hosts; nothing of it is left on the others.
        """
        return _group_ports.expose_to_all(
            self, local_port, runtime_port, exclude_hosts, max_connections=self._max_connections
        )

    def expose_port_from_runtime_to_group(
        self, host: str, runtime_port: int, local_port: int | None = None, group_port: int | None = None
    ) -> list[str]:
        """Make a service of one host reachable on all others, by way of this machine.

        Args:
            host: Where it listens.
            runtime_port: On which port there.
            local_port: On which port it is reachable on this machine; default: `runtime_port`.
            group_port: On which port it is reachable on the other hosts, at localhost; default: `runtime_port`.

        Returns:
            The keys under which `stop_process()` ends the tunnels: that from the host first.

        Raises:
            PortInUseError: The port is taken here.
            HostsFailedError: It failed on some hosts; nothing of it is left.
        """
        return _group_ports.expose_from_one_to_others(
            self, host, runtime_port, local_port, group_port, max_connections=self._max_connections
        )

    def stop_process(self, key: str) -> None:
        """End a task or tunnel of one of the hosts by its key.

        Raises:
            ValueError: There is no process with that key.
        """
        for runtime in self.runtimes:
            if key in runtime.get_processes():
                runtime.stop_process(key)
                return
        raise ValueError(f"no host of the group has a process with the key {key!r}")

    # For people ------------------------------------------------------------------------------------------------------

    def print_hosts(self) -> None:
        """Print the hosts with their working directories as a table."""
        rows = [(runtime.host, runtime.working_dir) for runtime in self.runtimes]
        print_table(pluralize(len(rows), "host"), ("host", "working directory"), rows)

    def print_runtime_info(self) -> None:
        """Print what is known about the hosts as a table."""
        rows = [host_table_row(runtime) for runtime in self.runtimes]
        print_table(pluralize(len(rows), "host"), HOST_TABLE_COLUMNS, rows)

    # The end ---------------------------------------------------------------------------------------------------------

    def cleanup(self) -> None:
        """End every process and remove everything temporary on every host, all at once. Doing it twice is fine."""
        outcomes = gather({host: runtime.cleanup for host, runtime in self.get_runtimes().items()})
        unwrap_all(outcomes, "the clean-up")

    def close(self) -> None:
        """Do what `cleanup()` does."""
        self.cleanup()
