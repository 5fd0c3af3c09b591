"""A group of runtimes: the same on many hosts at once, and items spread over them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence, Sized
from typing import Any, Literal, ParamSpec, TypeVar, overload

from lazycluster import _invoke
from lazycluster._display import count_bar, pluralize, print_table
from lazycluster._facts import HOST_TABLE_COLUMNS, host_table_row
from lazycluster._gather import CancelGroup, OnError, gather, unwrap_all, values_by_host, values_or_errors
from lazycluster._mapping import MapScheduler
from lazycluster._membership import Members
from lazycluster._model.checks import check_command, check_port, check_timeout
from lazycluster._model.watch import Watch
from lazycluster._remote.ports import is_port_free
from lazycluster._waiting import CancelToken
from lazycluster.exceptions import HostsFailedError, LazyclusterError, NoPortsLeftError
from lazycluster.managed import CleanupOnExit, ManagedProcess
from lazycluster.results import CommandResult, Error, Stream, Value
from lazycluster.runtimes import Runtime
from lazycluster.steps import GetFile, Step, check_callable, function_name
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
        check_command(command)
        check_timeout(timeout)

        def work(runtime: Runtime, cancellation: CancelToken) -> CommandResult:
            def tell(stream: Stream, data: bytes) -> None:
                if on_output is not None:
                    on_output(runtime.host, stream, data)

            return runtime.run(command, stdin=stdin, timeout=timeout, watch=Watch(tell, cancel_token=cancellation))

        return self._run_on_all(work, f"`{command}`", on_error)

    @overload
    def call(
        self, function: Callable[..., T], /, *args: object, on_error: Literal["collect"], **kwargs: object
    ) -> dict[str, T | Error]: ...
    @overload
    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> dict[str, T]: ...
    def call(
        self,
        function: Callable[..., T],
        /,
        *args: Any,
        **kwargs: Any,
    ) -> Mapping[str, T | Error]:
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

        def work(runtime: Runtime, cancellation: CancelToken) -> T:
            return _invoke.call_function(runtime.executor(cancellation=cancellation), function, args, kwargs)

        check_callable(function)
        return self._run_on_all(work, function_name(function), on_error)

    def _run_on_all(
        self, work: Callable[[Runtime, CancelToken], T], action: str, on_error: OnError
    ) -> Mapping[str, T | Error]:
        """Do something on every host; where this is interrupted (Ctrl-C), it is ended on the hosts."""
        _check_on_error(on_error)
        runtimes = self.require_runtimes()
        cancel_group = CancelGroup()

        def run_cancellable(runtime: Runtime) -> T:
            with cancel_group.token() as cancellation:
                return work(runtime, cancellation)

        with count_bar(action, len(runtimes), "hosts", shown=self.progress) as advance:
            outcomes = gather(
                {host: functools.partial(run_cancellable, runtime) for host, runtime in runtimes.items()},
                on_result=lambda _, outcome: advance(isinstance(outcome, Value)),
                cancel=cancel_group.cancel,
            )
        return unwrap_all(outcomes, action) if on_error == "raise" else values_or_errors(outcomes)

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
        check_callable(function)
        _check_on_error(on_error)
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise ValueError(f"retries is a whole number from 0 on, not {retries!r}")
        spread = MapScheduler(
            list(self.require_runtimes().values()), function, iter(iterable), ordered=ordered, retries=retries
        )
        return self._iter_results(spread, on_error, function_name(function), _length_of(iterable))

    def _iter_results(
        self, scheduler: MapScheduler[X, T], on_error: OnError, title: str, total: int | None
    ) -> Generator[T | Error, None, None]:
        with count_bar(title, total, "items", shown=self.progress) as advance, scheduler:
            for outcome in scheduler:
                advance(isinstance(outcome, Value))
                if isinstance(outcome, Value):
                    yield outcome.value
                elif on_error == "collect":
                    yield outcome
                else:
                    outcome.unwrap()

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
        _check_on_error(on_error)
        if not broadcast:
            runtime = self.get_runtime(host)
            try:
                return runtime.execute_task(task, execute_async, debug)
            except LazyclusterError as error:
                if on_error == "raise":
                    raise
                return Error(error)
        if host is not None:
            raise ValueError(f"broadcast is to all hosts, and not to {host} alone")
        return self._broadcast(task, execute_async=execute_async, debug=debug, on_error=on_error)

    def _broadcast(
        self, task: RuntimeTask, *, execute_async: bool, debug: bool, on_error: OnError
    ) -> Mapping[str, RuntimeTask | Error]:
        outcomes: dict[str, Value[RuntimeTask] | Error] = {}
        runtimes = self.require_runtimes()
        if len(runtimes) > 1:
            _check_distinct_local_paths(task.steps)
        copies = {host: task.copy() for host in runtimes}
        try:
            for host, runtime in runtimes.items():
                outcomes[host] = _start_task(runtime, copies[host], debug=debug)
            if not execute_async:
                with count_bar(
                    f"task {task.name}", len(outcomes), "hosts", shown=self.progress and not debug
                ) as advance:
                    for host, outcome in outcomes.items():
                        outcomes[host] = _join_task(outcome)
                        advance(isinstance(outcomes[host], Value))
        except BaseException:
            self._terminate_tasks(list(copies.values()))
            raise
        return unwrap_all(outcomes, f"task {task.name!r}") if on_error == "raise" else values_or_errors(outcomes)

    @staticmethod
    def _terminate_tasks(tasks: Sequence[RuntimeTask]) -> None:
        """End tasks in the background, all at the same time."""
        processes = [task.process for task in tasks if task.process is not None]
        gather({str(number): process.terminate for number, process in enumerate(processes)})

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
        _check_on_error(on_error)
        task = RuntimeTask(f"send {os.fspath(local_path)}").send_file(local_path, remote_path)
        return self._broadcast(task, execute_async=execute_async, debug=False, on_error=on_error)

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
        runtimes = self.runtimes
        errors = []
        with count_bar("waiting for tasks", len(runtimes), "hosts", shown=self.progress) as advance:
            for runtime in runtimes:
                failed = runtime.join_tasks()
                errors += [(runtime.host, error) for error in failed]
                advance(not failed)
        if errors:
            raise HostsFailedError("a task", tuple(errors), len(runtimes)) from errors[0][1]

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
        return bool(self._free_ports([check_port(port)], exclude_hosts))

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
        wanted = [check_port(port) for port in ports]
        free = self._free_ports(wanted, exclude_hosts) if wanted else []
        for port in free:
            if not enforce_check_on_localhost or is_port_free(port):
                return port
        raise NoPortsLeftError("the group", tuple(wanted))

    def _free_ports(self, ports: list[int], exclude_hosts: str | Iterable[str] | None) -> list[int]:
        runtimes = self.get_runtimes(exclude_hosts=exclude_hosts)
        found = gather({host: functools.partial(runtime.free_ports, ports) for host, runtime in runtimes.items()})
        free = [set(of_host) for of_host in unwrap_all(found, "asking for free ports").values()]
        return [port for port in ports if all(port in of_host for of_host in free)]

    def expose_port_to_runtimes(
        self,
        local_port: int,
        runtime_port: int | None = None,
        exclude_hosts: str | Iterable[str] | None = None,
    ) -> list[str]:
        """Make a service that listens here on `local_port` reachable on every host at `localhost:runtime_port`.

        All tunnels to one host share one connection.

        Returns:
            The keys under which `stop_process()` ends the tunnels, in the order of the hosts.

        Raises:
            HostsFailedError: It failed on some hosts; nothing of it is left on the others.
        """
        check_port(local_port)
        check_port(local_port if runtime_port is None else runtime_port)
        runtimes = self.get_runtimes(exclude_hosts=exclude_hosts)
        work = {
            host: functools.partial(runtime.expose_port_to_runtime, local_port, runtime_port)
            for host, runtime in runtimes.items()
        }
        outcomes = gather(
            work, limit=self._max_connections, rollback=lambda host, key: runtimes[host].stop_process(key)
        )
        if any(isinstance(outcome, Error) for outcome in outcomes.values()):
            keys = values_by_host(outcomes)
            gather({host: functools.partial(runtimes[host].stop_process, key) for host, key in keys.items()})
        return list(unwrap_all(outcomes, f"exposing port {local_port}").values())

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
        source = self.get_runtime(host)
        resolved_local_port = runtime_port if local_port is None else local_port
        resolved_group_port = check_port(runtime_port if group_port is None else group_port)
        key = source.expose_port_from_runtime(runtime_port, resolved_local_port)
        try:
            return [key, *self.expose_port_to_runtimes(resolved_local_port, resolved_group_port, exclude_hosts=host)]
        except BaseException:
            source.stop_process(key)
            raise

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
        print_table(
            pluralize(self.runtime_count, "host"),
            HOST_TABLE_COLUMNS,
            [host_table_row(runtime) for runtime in self.runtimes],
        )

    # The end ---------------------------------------------------------------------------------------------------------

    def cleanup(self) -> None:
        """End every process and remove everything temporary on every host, all at once. Doing it twice is fine."""
        outcomes = gather({host: runtime.cleanup for host, runtime in self.get_runtimes().items()})
        unwrap_all(outcomes, "the clean-up")

    def close(self) -> None:
        """Do what `cleanup()` does."""
        self.cleanup()


def _check_on_error(on_error: str) -> None:
    if on_error not in {"raise", "collect"}:
        raise ValueError(f"on_error is 'raise' or 'collect', not {on_error!r}")


def _check_distinct_local_paths(steps: Iterable[Step]) -> None:
    for step in steps:
        if isinstance(step, GetFile) and not step.has_host_placeholder:
            raise ValueError(
                f"each host would write to the same place, {step.local}: put {{host}} into the local path of get_file()"
            )


def _start_task(runtime: Runtime, task: RuntimeTask, *, debug: bool) -> Value[RuntimeTask] | Error:
    try:
        return Value(runtime.execute_task(task, debug=debug, prefix_output=True))
    except Exception as error:  # noqa: BLE001 - the other hosts go on; Ctrl-C is none of theirs
        return Error(error)


def _join_task(started: Value[RuntimeTask] | Error) -> Value[RuntimeTask] | Error:
    if isinstance(started, Value):
        try:
            started.value.join()
        except LazyclusterError as error:
            return Error(error)
    return started


def _length_of(iterable: Iterable[object]) -> int | None:
    return len(iterable) if isinstance(iterable, Sized) else None
