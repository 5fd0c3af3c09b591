"""The hosts that the ssh configuration names: those that answer, the faults of the others, and groups of them."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterable, Mapping

from lazycluster._display import pluralize, print_table
from lazycluster._facts import HOST_TABLE_COLUMNS, host_table_row
from lazycluster._gather import errors_by_host, gather, unwrap_all, values_by_host
from lazycluster._membership import DEFAULT_MAX_CONNECTIONS, check_options, connect_hosts
from lazycluster._model.checks import absolute_path, to_list
from lazycluster._requirements import Requirements
from lazycluster._ssh.config_hosts import configured_hosts, default_config
from lazycluster._typing import Unpack
from lazycluster._waiting import interrupt_boundary
from lazycluster.exceptions import NoRuntimesDetectedError, error_text
from lazycluster.groups import RuntimeGroup
from lazycluster.managed import CleanupOnExit
from lazycluster.options import ManagerOptions, RuntimeOptions
from lazycluster.runtimes import Runtime


class RuntimeManager(CleanupOnExit):
    """Finds the hosts that can be used, and makes groups of those that meet requirements.

    The first use tries all hosts in parallel; `detect()` tries them again. Hosts that answer stay connected until a
    group takes them, or until `close()`. It is a context manager.

    Args:
        config_file: The ssh configuration; its `Host` entries without wildcards are the hosts, also those of included
            files. Default: the user's own.
        hosts: The hosts to try instead of the configured ones.
        max_connections: Log-ins at once; if more hosts than this do not answer, the rest takes another
            `connect_timeout`.
        progress: Show a bar on a terminal while hosts are connected.
        connection_kwargs: The keywords of `Runtime`.

    Raises:
        TypeError: If a keyword is unknown.
        ValueError: If an argument has an invalid value.
    """

    def __init__(
        self,
        config_file: str | os.PathLike[str] | None = None,
        hosts: Iterable[str] | None = None,
        *,
        max_connections: int = DEFAULT_MAX_CONNECTIONS,
        progress: bool = False,
        **connection_kwargs: Unpack[ManagerOptions],
    ) -> None:
        self._config_file = None if config_file is None else absolute_path(config_file)
        self._explicit_hosts = None if hosts is None else to_list(hosts)
        self._max_connections = max_connections
        self._progress = progress
        self._options: RuntimeOptions = {**connection_kwargs, "config_file": self._config_file}
        check_options(self._options, max_connections)
        self._lock = threading.RLock()
        self._detected = False
        self._candidate_hosts: list[str] = []
        self._runtimes: dict[str, Runtime] = {}
        self._inactive: dict[str, Exception] = {}

    def __repr__(self) -> str:
        """Return the source of the hosts."""
        return f"<{type(self).__name__} of {self._source}>"

    @property
    def _source(self) -> str:
        return "hosts=[...]" if self._explicit_hosts is not None else str(self._config_file or default_config())

    # Detection -------------------------------------------------------------------------------------------------------

    def detect(self) -> None:
        """Try all hosts again, in parallel, each within `connect_timeout`.

        Raises:
            ValueError: If the configuration file does not exist.
        """
        with self._lock:
            if self._config_file is not None and not self._config_file.is_file():
                raise ValueError(f"no such file: {self._config_file}")
            self.cleanup()
            names = configured_hosts(self._config_file) if self._explicit_hosts is None else self._explicit_hosts
            self._candidate_hosts = list(dict.fromkeys(names))
            outcomes = connect_hosts(
                self._candidate_hosts, self._options, max_connections=self._max_connections, progress=self._progress
            )
            self._runtimes = values_by_host(outcomes)
            self._inactive = {host: underlying_error(error) for host, error in errors_by_host(outcomes)}
            self._detected = True

    def _detect_once(self) -> None:
        with self._lock:
            if not self._detected:
                self.detect()

    @property
    def hosts(self) -> list[str]:
        """The hosts that answered, in the order of the configuration."""
        with interrupt_boundary:
            self._detect_once()
        return [host for host in self._candidate_hosts if host not in self._inactive]

    @property
    def inactive_hosts(self) -> dict[str, Exception]:
        """The hosts that cannot be used, with their errors."""
        with interrupt_boundary:
            self._detect_once()
        return dict(self._inactive)

    @property
    def runtimes(self) -> list[Runtime]:
        """The runtimes on the hosts that answered and that no group has taken."""
        with interrupt_boundary:
            self._detect_once()
        return list(self._runtimes.values())

    # Groups ----------------------------------------------------------------------------------------------------------

    def create_group(
        self,
        include_hosts: str | Iterable[str] | None = None,
        exclude_hosts: str | Iterable[str] | None = None,
        gpu_required: bool = False,
        min_memory: int | None = None,
        min_cpu_cores: float | None = None,
        installed_executables: str | list[str] | None = None,
        filter_commands: str | list[str] | None = None,
        root_dir: str | None = None,
        working_dir: str | None = None,
    ) -> RuntimeGroup:
        """Make a group of the hosts that meet all requirements.

        Args:
            include_hosts: The hosts to choose from; default: all.
            exclude_hosts: Hosts that are not taken.
            gpu_required: Whether a host must have a GPU.
            min_memory: The least memory, in units of 1024 * 1024 bytes.
            min_cpu_cores: The least number of processors.
            installed_executables: Programs that must be on the host's PATH.
            filter_commands: Shell commands that must print `true`.
            root_dir: Another name for `working_dir`.
            working_dir: The working directory on each host; default: a temporary one each.

        Raises:
            NoRuntimesDetectedError: If no host is left; the error lists each with the reason.
            ValueError: If a host is unknown, or a minimum is not a number.
        """
        requirements = Requirements(gpu_required, min_memory, min_cpu_cores, installed_executables, filter_commands)
        self._detect_once()
        if working_dir is not None and root_dir not in {None, working_dir}:
            raise ValueError(f"root_dir must be the same as working_dir {working_dir!r}, got {root_dir!r}")
        with self._lock:
            reasons = {host: failure_reason(host, error) for host, error in self._inactive.items()}
            included = self._select_hosts(include_hosts, None)
            selected = self._select_hosts(included, exclude_hosts)
            candidates = self._ensure_connected([host for host in selected if host not in reasons], reasons)
            unsuitable, failed = check_requirements(candidates, requirements)
            reasons |= unsuitable | failed
            suitable = {host: runtime for host, runtime in candidates.items() if host not in reasons}
            if not suitable:
                tried = tuple((host, reasons[host] if host in selected else "excluded") for host in included)
                raise NoRuntimesDetectedError(self._source, tried)
            return self._make_group(suitable, working_dir if root_dir is None else root_dir)

    def _select_hosts(
        self, include_hosts: str | Iterable[str] | None, exclude_hosts: str | Iterable[str] | None
    ) -> list[str]:
        included = self._candidate_hosts if include_hosts is None else to_list(include_hosts)
        excluded = to_list(exclude_hosts)
        unknown = [host for host in [*included, *excluded] if host not in self._candidate_hosts]
        if unknown:
            raise ValueError(
                f"unknown host {', '.join(map(repr, unknown))} ({self._source}: {', '.join(self._candidate_hosts)})"
            )
        return [host for host in self._candidate_hosts if host in included and host not in excluded]

    def _ensure_connected(self, hosts: list[str], reasons: dict[str, str]) -> dict[str, Runtime]:
        """Return runtimes on hosts that answered; those that a group has taken are connected once more."""
        unconnected = [host for host in hosts if host not in self._runtimes]
        outcomes = connect_hosts(
            unconnected, self._options, max_connections=self._max_connections, progress=self._progress
        )
        self._runtimes |= values_by_host(outcomes)
        reasons.update(
            (host, failure_reason(host, underlying_error(error))) for host, error in errors_by_host(outcomes)
        )
        return {host: self._runtimes[host] for host in hosts if host in self._runtimes}

    def _make_group(self, runtimes: dict[str, Runtime], working_dir: str | None) -> RuntimeGroup:
        if working_dir is None:
            for host in runtimes:
                del self._runtimes[host]
            group = RuntimeGroup(
                runtimes.values(), max_connections=self._max_connections, progress=self._progress, **self._options
            )
        else:
            group = RuntimeGroup(
                hosts=list(runtimes),
                working_dir=working_dir,
                max_connections=self._max_connections,
                progress=self._progress,
                **self._options,
            )
        return group

    # Tables ----------------------------------------------------------------------------------------------------------

    def print_hosts(self) -> None:
        """Print the hosts that answered."""
        print_table(pluralize(len(self.hosts), "active host"), ("host",), [(host,) for host in self.hosts])

    def print_inactive_hosts(self) -> None:
        """Print the hosts that cannot be used, with the reasons."""
        rows = [(host, failure_reason(host, error)) for host, error in self.inactive_hosts.items()]
        print_table(pluralize(len(rows), "inactive host"), ("host", "why"), rows)

    def print_runtime_info(self) -> None:
        """Print the facts about the hosts that answered and that no group has taken."""
        rows = [host_table_row(runtime) for runtime in self.runtimes]
        taken = len(self.hosts) - len(rows)
        suffix = f" (and {taken} handed to groups)" if taken else ""
        print_table(f"{pluralize(len(rows), 'active host')}{suffix}", HOST_TABLE_COLUMNS, rows)

    def cleanup(self) -> None:
        """End the runtimes that no group has taken. A second call does nothing.

        The next use tries all hosts again.

        Raises:
            HostsFailedError: If it failed on some hosts.
        """
        with self._lock:
            runtimes, self._runtimes = self._runtimes, {}
            self._inactive = {}
            self._detected = False
            unwrap_all(gather({host: runtime.cleanup for host, runtime in runtimes.items()}), "the clean-up")


def check_requirements(
    runtimes: Mapping[str, Runtime], requirements: Requirements
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the hosts that do not meet requirements, and those that could not be asked, both with the reason."""
    outcomes = gather(
        {
            host: functools.partial(requirements.find_missing, runtime.host_info, runtime.run)
            for host, runtime in runtimes.items()
        }
    )
    unsuitable = {host: text for host, text in values_by_host(outcomes).items() if text}
    return unsuitable, {host: failure_reason(host, error) for host, error in errors_by_host(outcomes)}


def underlying_error(error: Exception) -> Exception:
    """Return the cause of an `InvalidRuntimeError`, or the error itself."""
    return error.__cause__ if isinstance(error.__cause__, Exception) else error


def failure_reason(host: str, error: BaseException) -> str:
    """Return the reason that a host cannot be used, without its name at the beginning."""
    return error_text(error).removeprefix(f"{host}: ")
