"""The hosts of a command: the options that choose them, and the group of those that answer and fit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

import attrs
import click

from lazycluster._cli.options import (
    complete_hosts,
    config_option,
    connect_timeout_option,
    parse_callback,
    parse_host,
    resident_option,
)
from lazycluster._membership import DEFAULT_MAX_CONNECTIONS
from lazycluster._requirements import Requirements
from lazycluster._ssh.config_hosts import check_config, configured_hosts, default_config
from lazycluster.exceptions import NoRuntimesDetectedError
from lazycluster.groups import RuntimeGroup
from lazycluster.manager import check_requirements, failure_reason, underlying_error
from lazycluster.options import RuntimeOptions

P = ParamSpec("P")
R = TypeVar("R")


class _Filter(NamedTuple):
    value_syntax: str
    constraint: str


_FILTERS = {
    "gpu": _Filter("", "must have no value"),
    "min-memory": _Filter("=MB", "must be a whole number of MB"),
    "min-cores": _Filter("=N", "must be a number"),
    "installed": _Filter("=PROGRAM", "must be the name of a program"),
    "true": _Filter("=COMMAND", "must be a command"),
}
_FILTER_SYNTAX = ", ".join(f"{name}{each.value_syntax}" for name, each in _FILTERS.items())


def parse_requirements(texts: tuple[str, ...]) -> Requirements:
    """Return the requirements of all values of `--group-filter`.

    Raises:
        ValueError: If a text is not a filter, or has a value that its filter does not take.
    """
    found = Requirements()
    for text in texts:
        name, _, value = text.partition("=")
        match name:
            case "gpu" if not value:
                found = attrs.evolve(found, gpu_required=True)
            case "min-memory" if value.isdecimal():
                found = attrs.evolve(found, min_memory=int(value))
            case "min-cores" if value.replace(".", "", 1).isdecimal():
                found = attrs.evolve(found, min_cpu_cores=float(value))
            case "installed" if value:
                found = attrs.evolve(found, installed_executables=(*found.installed_executables, value))
            case "true" if value:
                found = attrs.evolve(found, filter_commands=(*found.filter_commands, value))
            case _ if name in _FILTERS:
                raise ValueError(f"{name} {_FILTERS[name].constraint}, got {value!r}")
            case _:
                raise ValueError(f"unknown filter {text!r} (filters: {_FILTER_SYNTAX})")
    return found


@attrs.frozen
class SelectedHosts:
    """The connected hosts of a command. Two tables have the hosts that were left out, with the reasons.

    `failed` has those that could not be used, and `filtered_out` those that lack a requirement.
    """

    group: RuntimeGroup
    failed: dict[str, str]
    filtered_out: dict[str, str]
    source: str
    config: Path | None

    def require_hosts(self) -> None:
        """Check that a host is left.

        Raises:
            NoRuntimesDetectedError: If no host is left.
            ConfigRefusedError: If the configuration names no host, because ssh does not accept it.
        """
        if not self.group.runtime_count:
            if not self.failed and not self.filtered_out:
                check_config(self.config)
            raise NoRuntimesDetectedError(self.source, (*self.failed.items(), *self.filtered_out.items()))


@attrs.frozen
class HostSelection:
    """The values of the options of `host_selection_options()`: the hosts to choose, and how to reach them."""

    hosts: tuple[str, ...]
    requirements: Requirements
    config: Path | None
    connect_timeout: float
    resident: bool
    max_connections: int

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the hosts: those given, else all of the configuration."""
        return self.hosts or configured_hosts(self.config)

    @property
    def source(self) -> str:
        """The source of the names of the hosts."""
        return "--hosts" if self.hosts else str(self.config or default_config())

    @contextlib.contextmanager
    def connect(self) -> Iterator[SelectedHosts]:
        """Connect, and yield the group of the hosts that can be used, with the reasons why the others cannot."""
        options: RuntimeOptions = {
            "config_file": self.config,
            "connect_timeout": self.connect_timeout,
            "resident": self.resident,
        }
        with RuntimeGroup(
            hosts=self.names,
            working_dir="~",
            max_connections=self.max_connections,
            on_error="skip",
            progress=True,
            **options,
        ) as group:
            failed = {host: failure_reason(host, underlying_error(error)) for host, error in group.failed_hosts.items()}
            filtered_out, unreachable = check_requirements(group.get_runtimes(), self.requirements)
            for host in (*filtered_out, *unreachable):
                group.remove_runtime(host).cleanup()
            yield SelectedHosts(group, failed | unreachable, filtered_out, self.source, self.config)


def parse_hosts(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the hosts of any number of texts such as `A,B`, each once.

    An empty text, such as a shell variable that is not set, is an error. It never means all hosts.

    Raises:
        ValueError: If a name is empty or invalid.
    """
    hosts: list[str] = []
    for text in texts:
        names = [name.strip() for name in text.split(",")]
        if not any(names):
            raise ValueError(f"hosts must contain a name, got {text!r}")
        if not all(names):
            raise ValueError(f"hosts must be A,B without empty names or a space after the comma, got {text!r}")
        hosts += map(parse_host, names)
    return tuple(dict.fromkeys(hosts))


def _complete_host_list(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{host}" for host in complete_hosts(context, parameter, last)]


def _complete_filter(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    names = [f"{name}=" if each.value_syntax else name for name, each in _FILTERS.items()]
    return [name for name in names if name.startswith(incomplete)]


max_connections_option = click.option(
    "--max-connections",
    type=click.IntRange(min=1),
    default=DEFAULT_MAX_CONNECTIONS,
    show_default=True,
    metavar="N",
    help="The most log-ins at once.",
)
"""Gives `max_connections: int`."""


hosts_option = click.option(
    "--hosts",
    callback=parse_callback(parse_hosts),
    multiple=True,
    metavar="A,B,...",
    shell_complete=_complete_host_list,
    help="Only these hosts. Default: all that the ssh configuration names.",
)
"""Gives `hosts: tuple[str, ...]`."""


def host_selection_options(command: Callable[P, R]) -> Callable[P, R]:
    """Add the options that choose the hosts of a command; they are the keywords of `HostSelection`."""
    for option in (
        max_connections_option,
        resident_option,
        connect_timeout_option,
        config_option,
        click.option(
            "--group-filter",
            "requirements",
            callback=parse_callback(parse_requirements),
            multiple=True,
            metavar="FILTER",
            shell_complete=_complete_filter,
            help=f"Only hosts that have this; may be given several times: {_FILTER_SYNTAX}, which must print true.",
        ),
        hosts_option,
    ):
        command = option(command)
    return command
