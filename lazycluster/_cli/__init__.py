"""The command line: one module a command or a few of a kind, imported when the command is used."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from lazycluster._cli.invocation import Invocation, print_error, print_interruption
from lazycluster._cli.options import CONFIG_VARIABLE, verbose_option
from lazycluster.exceptions import LazyclusterError

_COMMAND_MODULES = {
    "list-runtimes": "list_runtimes",
    "run": "run",
    "put": "files",
    "get": "files",
    "shell": "terminal",
    "expose": "expose",
    "info": "doctor",
    "doctor": "doctor",
    "add-runtime": "edit_config",
    "delete-runtime": "edit_config",
    "demo": "demo",
    "explain": "explain",
    "completion": "completion",
}
"""The module of this package for each command; the function is named like the command, with underscores."""

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130
"""Exit statuses: something failed, on a host or here; Ctrl-C. Click's own for a wrong call is 2."""


class _LazyGroup(click.Group):
    """Imports a command when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the overridden method's signature
        return list(_COMMAND_MODULES)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in _COMMAND_MODULES and not name.startswith("-") and not ctx.resilient_parsing:
            close = difflib.get_close_matches(name, _COMMAND_MODULES, n=1)
            ctx.fail(f"No such command {name!r}." + (f" Did you mean {close[0]}?" if close else ""))
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - as above
        if cmd_name not in _COMMAND_MODULES:
            return None
        module = importlib.import_module(f"lazycluster._cli.{_COMMAND_MODULES[cmd_name]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        if not any(parameter.name == "verbose" for parameter in command.params):
            verbose_option(command)
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"As after the command: the ssh configuration to use. Default: that in {CONFIG_VARIABLE}, else your own.",
)
@verbose_option
@click.version_option(package_name="lazycluster", message="%(prog)s %(version)s")
def lazycluster(config: Path | None) -> None:
    """Run work on other machines over nothing but the system's own OpenSSH client.

    \b
    Examples:
      lazycluster list-runtimes -l              which hosts of your ssh configuration can be used
      lazycluster run --hosts web-1,web-2 -- df -h /
      lazycluster doctor web-3                  why it does not work
      lazycluster run --help                    each command has examples
    """  # noqa: D301 - \b keeps click from wrapping what follows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    It is the one that the command itself returns, else 0. It is 1 if something failed, on a host or here, 2 for a wrong
    call, and 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    invocation = Invocation()
    try:
        result = lazycluster.main(words, prog_name="lazycluster", standalone_mode=False, obj=invocation)
    except click.ClickException as error:
        # Of a call that click cannot parse no option has been read.
        print_error(error, as_json=invocation.as_json or (isinstance(error, click.UsageError) and _has_json(words)))
        return error.exit_code
    except click.Abort as error:
        if error.__cause__ is None:  # at a prompt, where the cursor still is; elsewhere click has begun a new line
            click.echo(err=True)
        print_interruption(as_json=invocation.as_json)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of the output has enough
        devnull = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):  # else Python complains at its end about unwritten output
            os.dup2(devnull, stream.fileno())
        return EXIT_FAILED
    except LazyclusterError as error:
        print_error(error, as_json=invocation.as_json)
        return EXIT_FAILED
    finally:
        invocation.close()
    return result if isinstance(result, int) else 0


def _has_json(words: Sequence[str]) -> bool:
    """Return whether `--json` is among the options of a call."""
    return "--json" in (words[: words.index("--")] if "--" in words else words)
