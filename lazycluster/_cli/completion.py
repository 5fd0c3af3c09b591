"""`lazycluster completion`."""

from __future__ import annotations

import os

import click
from click.shell_completion import get_completion_class

_SHELLS = ("bash", "zsh", "fish")


@click.command(short_help="Print the script for completion in your shell.")
@click.argument("shell", type=click.Choice(_SHELLS), required=False)
@click.pass_context
def completion(context: click.Context, shell: str | None) -> None:
    """Print the script that makes a shell complete commands, options, files and the hosts of your ssh configuration.

    Without a name it is for the shell in $SHELL.

    \b
    Examples:
      eval "$(lazycluster completion bash)"        # bash 4.4 or newer; put it into ~/.bashrc
      eval "$(lazycluster completion zsh)"         # in ~/.zshrc, after compinit
      lazycluster completion fish > ~/.config/fish/completions/lazycluster.fish
    """  # noqa: D301 - \b keeps click from wrapping what follows
    shell = shell or os.path.basename(os.environ.get("SHELL", ""))  # noqa: PTH119 - $SHELL may be any text
    if shell not in _SHELLS:
        raise click.UsageError(f"shell must be one of {', '.join(_SHELLS)}, got {shell!r}")
    root = context.find_root()
    completion_class = get_completion_class(shell)
    assert completion_class is not None
    shell_completion = completion_class(root.command, {}, "lazycluster", "_LAZYCLUSTER_COMPLETE")
    # Not source(): click's starts a bash, only to look at its version.
    click.echo(shell_completion.source_template % shell_completion.source_vars())
