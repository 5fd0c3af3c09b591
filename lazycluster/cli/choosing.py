"""Which hosts a command is for: the options that say so, and the group of those that answer and fit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

import attrs
import click

from lazycluster.cli.options import complete_hosts, config_option, connect_timeout_option
from lazycluster.exceptions import NoRuntimesDetectedError
from lazycluster.groups import RuntimeGroup
from lazycluster.manager import cause_of, reason
from lazycluster.openssh.configured import configured_hosts, default_config
from lazycluster.parallel import on_all
from lazycluster.reaching import RuntimeOptions
from lazycluster.results import Value

P = ParamSpec("P")
R = TypeVar("R")
_FILTERS = "gpu, min-memory=MB, min-cores=N, installed=PROGRAM, true=COMMAND"


@attrs.frozen
class Filter:
    """What a host must have, in the terms of `Runtime.check_filter()`."""

    gpu_required: bool = False
    min_memory: int | None = None
    min_cpu_cores: float | None = None
    installed_executables: tuple[str, ...] = ()
    filter_commands: tuple[str, ...] = ()

    @classmethod
    def parse(cls, texts: tuple[str, ...]) -> Filter:
        """Read what was given with `--group-filter`.

        Raises:
            ValueError: A text is none of the filters.
        """
        filter_ = cls()
        for text in texts:
            name, _, value = text.partition("=")
            match name:
                case "gpu" if not value:
                    filter_ = attrs.evolve(filter_, gpu_required=True)
                case "min-memory" if value.isdecimal():
                    filter_ = attrs.evolve(filter_, min_memory=int(value))
                case "min-cores" if value.replace(".", "", 1).isdecimal():
                    filter_ = attrs.evolve(filter_, min_cpu_cores=float(value))
                case "installed" if value:
                    filter_ = attrs.evolve(filter_, installed_executables=(*filter_.installed_executables, value))
                case "true" if value:
                    filter_ = attrs.evolve(filter_, filter_commands=(*filter_.filter_commands, value))
                case _:
                    raise ValueError(f"{text!r} is no filter; there are: {_FILTERS}")
        return filter_


@attrs.frozen
class Choice:
    """Which hosts were asked for, and how they are reached."""

    named: tuple[str, ...]
    filter: Filter
    config: Path | None
    connect_timeout: float
    resident: bool
    max_connections: int

    @property
    def source(self) -> str:
        """Return where the names of the hosts come from."""
        return "--hosts" if self.named else str(self.config or default_config())

    @contextlib.contextmanager
    def group(self) -> Iterator[tuple[RuntimeGroup, dict[str, str]]]:
        """Connect, and give the group of those that can be used, and why the others cannot.

        Raises:
            NoRuntimesDetectedError: None can.
        """
        names = self.named or configured_hosts(self.config)
        options: RuntimeOptions = {
            "config_file": self.config,
            "connect_timeout": self.connect_timeout,
            "resident": self.resident,
        }
        with RuntimeGroup(
            hosts=names,
            working_dir="~",
            max_connections=self.max_connections,
            on_error="skip",
            progress=True,
            **options,
        ) as group:
            left_out = {host: reason(host, cause_of(error)) for host, error in group.failed_hosts.items()}
            left_out |= self._unfit(group)
            if not group.runtime_count:
                raise NoRuntimesDetectedError(self.source, tuple((host, left_out[host]) for host in names))
            yield group, left_out

    def _unfit(self, group: RuntimeGroup) -> dict[str, str]:
        """Take the hosts out of a group that have not what is asked for, and return why."""

        def check(host: str) -> Callable[[], str]:
            return lambda: group.get_runtime(host).unmet(
                self.filter.gpu_required,
                self.filter.min_memory,
                self.filter.min_cpu_cores,
                list(self.filter.installed_executables),
                list(self.filter.filter_commands),
            )

        unfit = {}
        for host, outcome in on_all({host: check(host) for host in group.hosts}).items():
            unmet = outcome.value if isinstance(outcome, Value) else str(outcome.error)
            if unmet:
                unfit[host] = unmet
                group.remove_runtime(host).cleanup()
        return unfit


def _filter(_context: click.Context, _parameter: click.Parameter, value: tuple[str, ...]) -> Filter:
    try:
        return Filter.parse(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _split(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, (word.strip() for word in (value or "").split(",")))))


def _complete_list(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{host}" for host in complete_hosts(context, parameter, last)]


def choosing_hosts(command: Callable[P, R]) -> Callable[P, R]:
    """Add the options that say which hosts a command is for; `choice_of()` makes a `Choice` of them."""
    for option in (
        click.option(
            "--max-connections",
            type=click.IntRange(min=1),
            default=16,
            show_default=True,
            metavar="N",
            help="How many log-ins there may be at once.",
        ),
        click.option("--resident/--no-resident", default=True, help="Without: for hosts that have no Python."),
        connect_timeout_option,
        config_option,
        click.option(
            "--group-filter",
            "filters",
            callback=_filter,
            multiple=True,
            metavar="FILTER",
            help=f"Only hosts that have this; may be given several times: {_FILTERS}.",
        ),
        click.option(
            "--hosts",
            callback=_split,
            metavar="A,B,...",
            shell_complete=_complete_list,
            help="Only these hosts; else all that the ssh configuration names.",
        ),
    ):
        command = option(command)
    return command


def choice_of(
    hosts: tuple[str, ...],
    filters: Filter,
    config: Path | None,
    connect_timeout: float,
    resident: bool,
    max_connections: int,
) -> Choice:
    """Return what the options of `choosing_hosts()` say."""
    return Choice(hosts, filters, config, connect_timeout, resident, max_connections)
