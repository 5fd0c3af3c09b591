"""`lazycluster demo`."""

from __future__ import annotations

import click

from lazycluster import _demo as demonstration


@click.command()
def demo() -> int:
    """Show the main job on three private sshds on this machine.

    \b
    Example:
      lazycluster demo
    """  # noqa: D301 - \b keeps click from wrapping what follows
    return demonstration.run_demo()
