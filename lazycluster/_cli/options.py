"""The options that several commands share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

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
    """Return what a user takes for a host.

    Raises:
        ValueError: ssh could not take it for one.
    """
    Destination(text)
    return text


def parse_python_option(name: str | None) -> str | None:
    """Return the name or path of a Python, None where none was given.

    Raises:
        ValueError: It is empty, as a variable that is not set.
    """
    if name is not None and not name.strip():
        raise ValueError("the name of the Python is empty")
    return name


def complete_hosts(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the hosts of the ssh configuration, that of an earlier `--config` too, for a shell to complete.

    For `shell_complete=` of an argument or option that names a host. A user in front is kept, where the shell does not
    take the @ for the end of a word, as bash does. It connects to no host, and never raises.
    """
    config = context.params.get("config")
    user, at, name = incomplete.rpartition("@")
    with contextlib.suppress(Exception):
        hosts = configured_hosts(config if isinstance(config, Path) else None)
        return [f"{user}{at}{host}" for host in hosts if host.startswith(name)]
    return []


config_option = click.option(
    "--config",
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
    help="How long a host may take to let us in.",
)
"""Gives `connect_timeout: float`."""

resident_option = click.option("--resident/--no-resident", default=True, help="Without: for hosts that have no Python.")
"""Gives `resident: bool`."""

python_option = click.option(
    "--python",
    metavar="NAME",
    callback=parse_callback(parse_python_option),
    help="The Python for functions on the host, as for Runtime(python=).",
)
"""Gives `python: str | None`."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
"""Gives `as_json: bool`."""
