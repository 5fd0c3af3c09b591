"""Which runtimes a group consists of, and how they are connected."""

from __future__ import annotations

import contextlib
import functools
import resource
import threading
from collections.abc import Iterable, Mapping
from typing import Literal

from lazycluster._display import count_bar
from lazycluster._gather import CancelGroup, errors_by_host, gather, values_by_host
from lazycluster._model.checks import check_environment, to_list
from lazycluster._model.options import RuntimeOptions
from lazycluster._transports import factory
from lazycluster._typing import Unpack
from lazycluster.exceptions import HostsFailedError, NoRuntimesError
from lazycluster.results import Error, Value
from lazycluster.runtimes import Runtime

_OPEN_FILES_PER_HOST, _OTHER_OPEN_FILES = 16, 256
"""Open files of a host, measured as 8 at rest and 10 at work; and of everything else."""
DEFAULT_MAX_CONNECTIONS = 16
"""Log-ins at once, unless told otherwise: what a jump host and this machine's processors take well."""


def check_options(options: RuntimeOptions, max_connections: int) -> None:
    """See what is wrong with options, which is not the fault of a host.

    Raises:
        TypeError: There is no such keyword.
        ValueError: A value that cannot be right.
    """
    if isinstance(max_connections, bool) or not isinstance(max_connections, int) or max_connections < 1:
        raise ValueError(f"max_connections is a whole number from 1 on, not {max_connections!r}")
    factory.check_options(options)


def connect_hosts(
    hosts: Iterable[str],
    options: RuntimeOptions,
    *,
    working_dir: str | None = None,
    max_connections: int = DEFAULT_MAX_CONNECTIONS,
    progress: bool = False,
) -> dict[str, Value[Runtime] | Error]:
    """Make a runtime on each host, never more than so many at once, and return what came of it.

    Raises:
        TypeError: There is no such keyword.
        ValueError: A host is named twice, or an option cannot be right.
    """
    check_options(options, max_connections)
    names = to_list(hosts)
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise ValueError(f"named twice: {', '.join(duplicates)}")
    cancel_group = CancelGroup()
    _raise_open_file_limit(len(names))
    work = {host: functools.partial(_connect_runtime, host, working_dir, options, cancel_group) for host in names}
    with count_bar("connecting", len(work), "hosts", shown=progress) as advance:
        return gather(
            work,
            limit=max_connections,
            on_result=lambda _, outcome: advance(isinstance(outcome, Value)),
            cancel=cancel_group.cancel,
            rollback=lambda _, runtime: runtime.cleanup(),
        )


def _connect_runtime(host: str, working_dir: str | None, options: RuntimeOptions, cancel_group: CancelGroup) -> Runtime:
    """Make a runtime; a stop ends the log-in that is under way."""
    transport = factory.make_transport(host, options)
    with cancel_group.on_cancel(transport.close):
        return Runtime(host, working_dir, transport=transport)


class Members:
    """The runtimes of a group by host, in the order given. Any thread may use it."""

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
            raise ValueError(f"on_error is 'raise' or 'skip', not {on_error!r}")
        self._lock = threading.Lock()
        self._max_connections = max_connections
        self._runtimes: dict[str, Runtime] = {}
        self._working_dir = working_dir
        self._options = connection_kwargs
        self._env: dict[str, str] = {}
        self.progress = progress
        self._failed: dict[str, Exception] = {}
        for runtime in _check_runtimes(runtimes):
            self.add_runtime(runtime)
        names = to_list(hosts)
        self._check_not_members(names)
        outcomes = connect_hosts(
            names, connection_kwargs, working_dir=working_dir, max_connections=max_connections, progress=progress
        )
        connected = values_by_host(outcomes)
        self._failed = dict(errors_by_host(outcomes))
        if self._failed and on_error == "raise":
            gather({host: runtime.cleanup for host, runtime in connected.items()})
            raise HostsFailedError("connecting", tuple(self._failed.items()), len(names))
        self._runtimes.update(connected)

    def __repr__(self) -> str:
        """Return the hosts."""
        return f"<{type(self).__name__} {', '.join(self.hosts) or 'without hosts'}>"

    @property
    def hosts(self) -> list[str]:
        """Return the hosts, in the order given."""
        return list(self._snapshot())

    @property
    def runtimes(self) -> list[Runtime]:
        """Return the runtimes, in the order of their hosts."""
        return list(self._snapshot().values())

    @property
    def runtime_count(self) -> int:
        """Return the number of hosts."""
        return len(self._runtimes)

    @property
    def failed_hosts(self) -> dict[str, Exception]:
        """Return the hosts that were skipped when the group was made, and why."""
        return dict(self._failed)

    def contains_runtime(self, host: str) -> bool:
        """Tell whether a host belongs to the group."""
        return host in self._runtimes

    def get_runtime(self, host: str | None = None) -> Runtime:
        """Return the runtime on a host; without one the least busy, by tasks that run, then by the order given.

        A host that was lost when its last task ended comes after the others, and the one lost last comes last: it would
        else get every task, and fail it at once. That is forgotten when a task or `run()` does well there, and with
        `clear_tasks()`.

        Raises:
            ValueError: The host is not of the group.
            NoRuntimesError: The group is empty.
        """
        if host is not None:
            return self.get_runtimes(host)[host]
        return min(
            self.require_runtimes().values(),
            key=lambda runtime: (runtime.closed, runtime.last_lost or 0.0, runtime.alive_task_process_count),
        )

    def get_runtimes(
        self,
        include_hosts: str | Iterable[str] | None = None,
        exclude_hosts: str | Iterable[str] | None = None,
    ) -> dict[str, Runtime]:
        """Return runtimes by host, in the order of the group: those named, or all, but for those excluded.

        Raises:
            ValueError: A host is not of the group.
        """
        runtimes = self._snapshot()
        included = list(runtimes) if include_hosts is None else to_list(include_hosts)
        excluded = to_list(exclude_hosts)
        _check_members([*included, *excluded], runtimes)
        chosen = set(included) - set(excluded)
        return {host: runtime for host, runtime in runtimes.items() if host in chosen}

    def add_runtime(self, host_or_runtime: str | Runtime) -> None:
        """Add a runtime, or connect to a host as the group does with its own.

        A host that is connected here gets the environment variables that were given to the group; a runtime keeps its
        own.

        Raises:
            ValueError: The host is there already.
            InvalidRuntimeError: The host cannot be used.
        """
        host = host_or_runtime if isinstance(host_or_runtime, str) else host_or_runtime.host
        self._check_not_members([host])
        runtime = host_or_runtime
        if isinstance(runtime, str):
            runtime = Runtime(runtime, self._working_dir, **self._options)
        with self._lock:
            if self._runtimes.setdefault(host, runtime) is runtime:
                if isinstance(host_or_runtime, str):
                    runtime.add_env_variables(self._env)
                return
        if isinstance(host_or_runtime, str):
            runtime.cleanup()
        self._check_not_members([host])

    def remove_runtime(self, host: str) -> Runtime:
        """Take a host out of the group, and return its runtime, which goes on until it is cleaned up.

        Raises:
            ValueError: The host is not of the group.
        """
        with self._lock:
            _check_members([host], self._runtimes)
            return self._runtimes.pop(host)

    def set_env_variables(self, env_variables: Mapping[str, str]) -> None:
        """Replace the environment variables of commands and functions on every host.

        Raises:
            ValueError: A name is no identifier.
        """
        with self._lock:
            self._env = check_environment(env_variables)
            for runtime in self._runtimes.values():
                runtime.set_env_variables(env_variables)

    def add_env_variables(self, env_variables: Mapping[str, str]) -> None:
        """Add environment variables for commands and functions on every host.

        Raises:
            ValueError: A name is no identifier.
        """
        with self._lock:
            self._env = {**self._env, **check_environment(env_variables)}
            for runtime in self._runtimes.values():
                runtime.add_env_variables(env_variables)

    # Checks ----------------------------------------------------------------------------------------------------------

    def require_runtimes(self) -> dict[str, Runtime]:
        """Return the runtimes by host.

        Raises:
            NoRuntimesError: There are none.
        """
        runtimes = self._snapshot()
        if not runtimes:
            raise NoRuntimesError("the group has no hosts")
        return runtimes

    def _snapshot(self) -> dict[str, Runtime]:
        """Return the runtimes as they are now, whatever other threads add and remove."""
        with self._lock:
            return dict(self._runtimes)

    def _check_not_members(self, hosts: Iterable[str]) -> None:
        members = [host for host in hosts if host in self._runtimes]
        if members:
            raise ValueError(f"of the group already: {', '.join(members)}")


def _check_runtimes(runtimes: Iterable[Runtime] | None) -> list[Runtime]:
    """Return runtimes as a list, and say it where they are hosts."""
    candidates = [runtimes] if isinstance(runtimes, (str, Runtime)) else list(runtimes or ())
    for runtime in candidates:
        if isinstance(runtime, str):
            raise TypeError(f"runtimes= takes objects of Runtime; names of hosts go into hosts=: {runtime!r}")
    return [runtime for runtime in candidates if not isinstance(runtime, str)]


def _check_members(hosts: Iterable[str], runtimes: Mapping[str, Runtime]) -> None:
    unknown = [host for host in hosts if host not in runtimes]
    if unknown:
        raise ValueError(f"not of the group: {', '.join(unknown)} (there are: {', '.join(runtimes) or 'none'})")


def _raise_open_file_limit(host_count: int) -> None:
    """Let this process have as many open files as so many hosts take, as far as the system allows (setrlimit(2))."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OTHER_OPEN_FILES + _OPEN_FILES_PER_HOST * host_count
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            new_limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (new_limit, hard))
