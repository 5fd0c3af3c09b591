"""The command line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import metadata

from lazycluster.exceptions import LazyclusterError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 1 after an error, 2 for a wrong call."""
    parser = argparse.ArgumentParser(
        prog="lazycluster", description="Run work on other machines over nothing but the system's own OpenSSH client."
    )
    parser.add_argument("--version", action="version", version=f"lazycluster {metadata.version('lazycluster')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("demo", help="show the main job on three private sshds on this machine")
    parser.parse_args(arguments)
    from lazycluster import demo  # noqa: PLC0415 - the library's users do not need it

    try:
        return demo.run()
    except BrokenPipeError:  # whoever read the output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except LazyclusterError as error:
        print(f"lazycluster: {error}", file=sys.stderr)  # noqa: T201
        return 1
