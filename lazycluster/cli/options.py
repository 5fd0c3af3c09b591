"""The options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

config_option = click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Read this ssh configuration in place of ~/.ssh/config (ssh -F).",
)
"""Gives `config: Path | None`."""

connect_timeout_option = click.option(
    "--connect-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a host may take to let us in.",
)
"""Gives `connect_timeout: float`."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
"""Gives `as_json: bool`."""
