"""The options that several commands share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from lazycluster._cli.invocation import Invocation
from lazycluster._model.checks import check_connect_timeout
from lazycluster._ssh.config_hosts import configured_hosts
from lazycluster._ssh.destination import Destination

V = TypeVar("V")
T = TypeVar("T")


def parse_callback(parse: Callable[[V], T]) -> Callable[[click.Context, click.Parameter, V], T]:
    """Return a callback that parses a value; a ValueError of the parser becomes an error of usage."""

    def read(_context: click.Context, _parameter: click.Parameter, value: V) -> T:
        try:
            return parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error

    return read


def parse_host(text: str) -> str:
    """Return the name of a host as the user gave it.

    Raises:
        ValueError: If ssh could not take it for a host.
    """
    Destination(text)
    return text


def parse_python_option(name: str | None) -> str | None:
    """Return the name or path of a Python, None if the option is missing.

    Raises:
        ValueError: If the name is empty, such as a variable that is not set.
    """
    if name is not None and not name.strip():
        raise ValueError(f"name must not be empty or blank, got {name!r}")
    return name


def complete_hosts(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the hosts with which a shell can complete a word, from the ssh configuration or an earlier `--config`.

    For `shell_complete=` of an argument or option that names a host. A user before the host is kept, unless the shell
    takes the @ for the end of a word, as bash does. It connects to no host, and never raises.
    """
    config = context.params.get("config")
    user, at, name = incomplete.rpartition("@")
    with contextlib.suppress(Exception):
        hosts = configured_hosts(config if isinstance(config, Path) else None)
        return [f"{user}{at}{host}" for host in hosts if host.startswith(name)]
    return []


CONFIG_VARIABLE = "LAZYCLUSTER_CONFIG"
"""The environment variable with the ssh configuration to use if no option names one."""


class ConfigOption(click.Option):
    """`--config` of a command, whose value may also stand before the command, or else in the environment."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """Return the file that stands before the command, else that of the environment."""
        before = ctx.find_root().params.get("config")
        return super().resolve_envvar_value(ctx) if before is None else str(before)


config_option = click.option(
    "--config",
    cls=ConfigOption,
    envvar=CONFIG_VARIABLE,
    show_envvar=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Read this ssh configuration in place of ~/.ssh/config (ssh -F).",
)
"""Gives `config: Path | None`."""

connect_timeout_option = click.option(
    "--connect-timeout",
    type=float,
    callback=parse_callback(check_connect_timeout),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a log-in may take.",
)
"""Gives `connect_timeout: float`."""

resident_option = click.option(
    "--resident/--no-resident", default=True, help="--no-resident is for hosts that have no Python."
)
"""Gives `resident: bool`."""

python_option = click.option(
    "--python",
    metavar="NAME",
    callback=parse_callback(parse_python_option),
    help="The Python for functions on the host, as for Runtime(python=).",
)
"""Gives `python: str | None`."""


def _print_json(context: click.Context, _parameter: click.Parameter, as_json: bool) -> bool:
    invocation = context.find_object(Invocation)
    if invocation is not None:
        invocation.as_json |= as_json
    return as_json


def _show_log(context: click.Context, _parameter: click.Parameter, verbosity: int) -> None:
    invocation = context.find_object(Invocation)
    if invocation is not None and verbosity:
        invocation.show_log(verbosity)


json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    is_eager=True,  # so that an error of another option is JSON, too
    callback=_print_json,
    help="Print JSON for programs; an error is one line of JSON on standard error.",
)
"""Gives `as_json: bool`."""

verbose_option = click.option(
    "-v",
    "--verbose",
    count=True,
    expose_value=False,
    callback=_show_log,
    help="Show the log on standard error; -vv also shows each process that is started.",
)
"""Gives nothing to the command."""
