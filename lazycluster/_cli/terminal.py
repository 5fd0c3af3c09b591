"""`lazycluster shell` and `run --tty`: the terminal of this process is handed to ssh."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from lazycluster._cli.options import complete_hosts, config_option, connect_timeout_option, parse_callback, parse_host
from lazycluster._model.checks import absolute_path
from lazycluster._processes.popen import replace_process
from lazycluster._ssh.argv import terminal_argv
from lazycluster._ssh.destination import Destination
from lazycluster._ssh.diagnosis import start_failure


def join_command(words: Sequence[str]) -> str:
    """Return the words of a command joined by spaces, as ssh joins them.

    Raises:
        click.UsageError: If the command is empty or blank.
    """
    text = " ".join(words)
    if not text.strip():
        raise click.UsageError(f"command must not be empty or blank, got {text!r}")
    return text


def become_terminal(host: str, command: str | None, *, config: Path | None, connect_timeout: float) -> NoReturn:
    """Replace this process by an ssh with a terminal on a host, whose exit status is that of the command.

    Raises:
        ConnectError: If ssh cannot be started.
    """
    config_file = None if config is None else absolute_path(config)
    try:
        destination = Destination(host, config_file=config_file, connect_timeout=connect_timeout)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    try:
        replace_process(terminal_argv(destination, command))
    except OSError as error:
        raise start_failure(host, error) from error


@click.command(short_help="Open a shell on a host, or run one command, in this terminal.")
@click.argument("host", callback=parse_callback(parse_host), shell_complete=complete_hosts)
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND]")
@config_option
@connect_timeout_option
def shell(host: str, command: tuple[str, ...], config: Path | None, connect_timeout: float) -> None:
    """Open a shell on HOST in this terminal, or run one COMMAND there that needs a terminal.

    It is `ssh -t` with the configuration that the other commands use. ssh asks its questions here, and forwardings of
    the configuration hold. The words of COMMAND are joined by spaces, as ssh does. The exit status is that of the
    command or the shell, and 255 if ssh failed.

    \b
    Examples:
      lazycluster shell web-1
      lazycluster shell web-1 -- htop
      lazycluster shell web-1 -- sudo systemctl restart nginx
    """  # noqa: D301 - \b keeps click from wrapping what follows
    become_terminal(host, join_command(command) if command else None, config=config, connect_timeout=connect_timeout)
