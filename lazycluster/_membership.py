"""The members of a group: runtimes by host, and how they are connected."""

from __future__ import annotations

import contextlib
import functools
import resource
import threading
from collections.abc import Iterable, Mapping

from lazycluster._display import count_bar
from lazycluster._gather import CancelGroup, errors_by_host, gather, values_by_host
from lazycluster._model.checks import check_environment, is_whole_number, to_list
from lazycluster._runtime_core import RuntimeCore, core_of, register_core
from lazycluster._transports import factory
from lazycluster.exceptions import HostsFailedError, NoRuntimesError
from lazycluster.options import RuntimeOptions
from lazycluster.results import Error, Value
from lazycluster.runtimes import Runtime

_OPEN_FILES_PER_HOST, _OTHER_OPEN_FILES = 16, 256
"""Open files for each host, of which 8 at rest and 10 at work were measured, and for everything else."""
DEFAULT_MAX_CONNECTIONS = 16
"""The default number of log-ins at once, which a jump host and the processors of the local machine can bear."""


def check_options(options: RuntimeOptions, max_connections: int) -> None:
    """Check options before any host is contacted.

    Raises:
        TypeError: If a keyword is unknown.
        ValueError: If an option has an invalid value.
    """
    if not is_whole_number(max_connections, 1):
        raise ValueError(f"max_connections must be a whole number from 1 on, got {max_connections!r}")
    factory.check_options(options)


def connect_hosts(
    hosts: Iterable[str],
    options: RuntimeOptions,
    *,
    working_dir: str | None = None,
    max_connections: int,
    progress: bool,
) -> dict[str, Value[Runtime] | Error]:
    """Make a runtime on each host, with at most `max_connections` log-ins at once, and return the outcomes by host.

    Raises:
        TypeError: If a keyword is unknown.
        ValueError: If a host is named twice, or an option has an invalid value.
    """
    check_options(options, max_connections)
    names = to_list(hosts)
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise ValueError(f"hosts contains duplicates: {', '.join(duplicates)}")
    cancel_group = CancelGroup()
    raise_open_file_limit(len(names))
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
    """Return a runtime as `Runtime()` does; if the group is cancelled during the log-in, the log-in ends."""
    transport = factory.make_transport(host, options)
    with cancel_group.on_cancel(transport.close):
        core = RuntimeCore.connect(transport, working_dir, options.get("env"))
    runtime = Runtime.__new__(Runtime)
    register_core(runtime, core)
    return runtime


class Members:
    """The runtimes of a group by host, in the order given, and how more are connected. Any thread may use it."""

    def __init__(
        self, working_dir: str | None, options: RuntimeOptions, *, max_connections: int, progress: bool
    ) -> None:
        """Begin empty. The arguments are those of `RuntimeGroup`."""
        self.max_connections = max_connections
        self.progress = progress
        self.failed: dict[str, Exception] = {}
        """The hosts that were skipped, with their errors."""
        self.working_dir = working_dir
        self.options = options
        self._lock = threading.Lock()
        self._runtimes: dict[str, Runtime] = {}
        self._env: dict[str, str] = {}

    def connect(self, hosts: Iterable[str] | None, *, skip_failed: bool) -> None:
        """Connect to hosts in parallel and add their runtimes; keep the errors of those that fail, or raise them.

        Raises:
            HostsFailedError: If some hosts cannot be used; the others are disconnected.
            ValueError: If a host is given twice, or is in the group already.
        """
        names = to_list(hosts)
        self._check_not_members(names)
        outcomes = connect_hosts(
            names,
            self.options,
            working_dir=self.working_dir,
            max_connections=self.max_connections,
            progress=self.progress,
        )
        connected = values_by_host(outcomes)
        self.failed = dict(errors_by_host(outcomes))
        if self.failed and not skip_failed:
            gather({host: runtime.cleanup for host, runtime in connected.items()})
            raise HostsFailedError("connecting", tuple(self.failed.items()), len(names))
        with self._lock:
            self._runtimes.update(connected)

    def all(self) -> dict[str, Runtime]:
        """Return the runtimes as they are now; other threads may add and remove some at the same time."""
        with self._lock:
            return dict(self._runtimes)

    def require(self) -> dict[str, Runtime]:
        """Return all runtimes by host.

        Raises:
            NoRuntimesError: If the group is empty.
        """
        runtimes = self.all()
        if not runtimes:
            raise NoRuntimesError("the group has no hosts")
        return runtimes

    def get(self, host: str | None) -> Runtime:
        """Return the runtime on a host, by default the least busy; see `RuntimeGroup.get_runtime()`."""
        if host is not None:
            return self.select(host)[host]
        return min(
            self.require().values(),
            key=lambda runtime: (runtime.closed, core_of(runtime).last_lost or 0.0, runtime.alive_task_process_count),
        )

    def select(
        self, include_hosts: str | Iterable[str] | None = None, exclude_hosts: str | Iterable[str] | None = None
    ) -> dict[str, Runtime]:
        """Return some runtimes by host; see `RuntimeGroup.get_runtimes()`."""
        runtimes = self.all()
        included = list(runtimes) if include_hosts is None else to_list(include_hosts)
        excluded = to_list(exclude_hosts)
        _check_members([*included, *excluded], runtimes)
        chosen = set(included) - set(excluded)
        return {host: runtime for host, runtime in runtimes.items() if host in chosen}

    def add(self, host_or_runtime: str | Runtime) -> None:
        """Add a runtime, or connect to a host; see `RuntimeGroup.add_runtime()`."""
        host = host_or_runtime if isinstance(host_or_runtime, str) else host_or_runtime.host
        self._check_not_members([host])
        runtime = host_or_runtime
        if isinstance(runtime, str):
            runtime = Runtime(runtime, self.working_dir, **self.options)
        with self._lock:
            if self._runtimes.setdefault(host, runtime) is runtime:
                if isinstance(host_or_runtime, str):
                    runtime.add_env_variables(self._env)
                return
        if isinstance(host_or_runtime, str):
            runtime.cleanup()
        self._check_not_members([host])

    def remove(self, host: str) -> Runtime:
        """Remove a host and return its runtime.

        Raises:
            ValueError: If the host is not in the group.
        """
        with self._lock:
            _check_members([host], self._runtimes)
            return self._runtimes.pop(host)

    def set_env(self, env: Mapping[str, str]) -> None:
        """Replace the environment variables on every host, also on those that are connected later."""
        with self._lock:
            self._env = check_environment(env)
            for runtime in self._runtimes.values():
                runtime.set_env_variables(env)

    def add_env(self, env: Mapping[str, str]) -> None:
        """Add environment variables on every host, also on those that are connected later."""
        with self._lock:
            self._env = {**self._env, **check_environment(env)}
            for runtime in self._runtimes.values():
                runtime.add_env_variables(env)

    def _check_not_members(self, hosts: Iterable[str]) -> None:
        members = [host for host in hosts if host in self._runtimes]
        if members:
            raise ValueError(f"already in the group: {', '.join(members)}")


def check_runtimes(runtimes: Iterable[Runtime] | None) -> list[Runtime]:
    """Return runtimes as a list.

    Raises:
        TypeError: If one of them is the name of a host.
    """
    candidates = [runtimes] if isinstance(runtimes, (str, Runtime)) else list(runtimes or ())
    for runtime in candidates:
        if isinstance(runtime, str):
            raise TypeError(f"runtimes must hold Runtime objects, got {runtime!r}; give names of hosts as hosts=")
    return [runtime for runtime in candidates if not isinstance(runtime, str)]


def _check_members(hosts: Iterable[str], runtimes: Mapping[str, Runtime]) -> None:
    unknown = [host for host in hosts if host not in runtimes]
    if unknown:
        raise ValueError(unknown_hosts(unknown, runtimes))


def unknown_hosts(unknown: Iterable[str], runtimes: Mapping[str, Runtime]) -> str:
    """Return the message that hosts are not in a group."""
    return f"unknown host {', '.join(map(repr, unknown))} (group: {', '.join(runtimes) or 'no hosts'})"


def raise_open_file_limit(host_count: int) -> None:
    """Raise the limit of open files to the need of the hosts, as far as the system allows (setrlimit(2))."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OTHER_OPEN_FILES + _OPEN_FILES_PER_HOST * host_count
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            new_limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (new_limit, hard))
