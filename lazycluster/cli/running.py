"""`lazycluster run`."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any

import click

from lazycluster.cli.choosing import Choice, choosing_hosts
from lazycluster.cli.options import json_option
from lazycluster.display import print_table
from lazycluster.exceptions import NoRuntimesDetectedError
from lazycluster.manager import reason
from lazycluster.results import CommandResult, Error, LineDecoder, Stream

HOST_FAILED = 3
_COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "bright_cyan", "bright_yellow", "bright_green")


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@choosing_hosts
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="End it after so long.")
@json_option
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(command: tuple[str, ...], timeout: float | None, as_json: bool, **which: Any) -> int:  # noqa: ANN401
    """Run a shell COMMAND on many hosts at once, in their home directories.

    Each line of output is printed when it comes, behind the name of its host; a summary follows on standard error.
    Ctrl-C ends the command on all hosts, with its children.

    \b
    Exit status: 0   it ended with 0 on every host
                 1   it ended otherwise on some host
                 3   some host could not be reached, or was lost
                 130 Ctrl-C

    \b
    Examples:
      lazycluster run -- uptime
      lazycluster run --hosts web-1,web-2 -- 'df -h / | tail -1'
      lazycluster run --group-filter gpu --group-filter min-memory=16000 -- nvidia-smi -L
      lazycluster run --json -- uname -r | jq -r 'select(.exit_status == 0).stdout'
    """  # noqa: D301 - \b keeps click from wrapping what follows
    text = " ".join(command)  # as ssh does
    try:
        with Choice(**which).group() as (group, left_out):
            group.progress = False
            lines = Lines(group.hosts)
            outcomes = group.run(text, timeout=timeout, on_error="collect", on_output=None if as_json else lines.add)
    except NoRuntimesDetectedError as error:
        click.echo(f"lazycluster: {error}", err=True)
        return HOST_FAILED
    lines.end()
    if as_json:
        for host, outcome in outcomes.items():
            click.echo(json.dumps(_record(host, outcome)))
        for host, why in left_out.items():
            click.echo(json.dumps({"host": host, "error": why}))
    else:
        _summarize(outcomes, left_out)
    if left_out or any(isinstance(outcome, Error) for outcome in outcomes.values()):
        return HOST_FAILED
    return 0 if all(isinstance(outcome, CommandResult) and outcome.ok for outcome in outcomes.values()) else 1


class Lines:
    """Prints the output of many hosts line by line, each behind its host's name. Any thread may use it."""

    def __init__(self, hosts: Sequence[str]) -> None:
        """Give each host its colour."""
        self._lock = threading.Lock()
        width = max(map(len, hosts))
        self._prefixes = {
            host: click.style(f"{host.ljust(width)} | ", fg=_COLOURS[number % len(_COLOURS)])
            for number, host in enumerate(hosts)
        }
        self._decoders = {(host, stream): LineDecoder() for host in hosts for stream in Stream}

    def add(self, host: str, stream: Stream, data: bytes) -> None:
        """Take a piece of output, and print the lines that are complete with it."""
        self._print((host, stream), self._decoders[host, stream].feed(data))

    def end(self) -> None:
        """Print what did not end with a newline."""
        for key, decoder in self._decoders.items():
            if decoder.rest:
                self._print(key, [decoder.rest])

    def _print(self, key: tuple[str, Stream], lines: Sequence[str]) -> None:
        if lines:
            prefix = self._prefixes[key[0]]
            with self._lock:
                click.echo("\n".join(prefix + line.removesuffix("\r") for line in lines), err=key[1] is Stream.STDERR)


def _record(host: str, outcome: CommandResult | Error) -> dict[str, object]:
    if isinstance(outcome, Error):
        return {"host": host, "error": str(outcome.error)}
    return {
        "host": host,
        "exit_status": outcome.exit_code,
        "stdout": outcome.stdout,
        "stderr": outcome.stderr,
        "seconds": round(outcome.duration, 6),
    }


def _summarize(outcomes: dict[str, CommandResult | Error], left_out: dict[str, str]) -> None:
    rows = []
    for host, outcome in outcomes.items():
        if isinstance(outcome, Error):
            rows.append((host, "-", "-", reason(host, outcome.error)))
        else:
            rows.append((host, str(outcome.exit_code), f"{outcome.duration:.2f}", "" if outcome.ok else "failed"))
    rows += [(host, "-", "-", why) for host, why in left_out.items()]
    failed = sum(1 for row in rows if row[3])
    title = f"{len(rows)} hosts, {failed} failed" if failed else f"{len(rows)} hosts, all well"
    print_table(title, ("host", "exit status", "seconds", ""), rows, err=True)
