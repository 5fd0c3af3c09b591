"""`lazycluster run`."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import attrs
import click

from lazycluster._cli import FAILED
from lazycluster._cli.choosing import Choice, Chosen, choosing_hosts
from lazycluster._cli.lines import Lines
from lazycluster._cli.options import json_option, parsed
from lazycluster._cli.together import on_each
from lazycluster._display import counted, print_table
from lazycluster._gather import Stopping
from lazycluster._model.checks import check_timeout
from lazycluster._model.watch import Watch
from lazycluster._processes import Output
from lazycluster._waiting import Cancellation
from lazycluster.exceptions import CommandTimeoutError, NoRuntimesDetectedError
from lazycluster.manager import reason
from lazycluster.results import Collector, CommandResult, Stream
from lazycluster.runtimes import Runtime

HOST_FAILED = 3
_STOPPED = "given up (Ctrl-C)"
_INTERRUPTED = "lazycluster: ending the commands; one that ignores SIGTERM is killed after 5 s"


@click.command(
    short_help="Run a shell command on many hosts at once.", context_settings={"allow_interspersed_args": False}
)
@choosing_hosts
@click.option(
    "--timeout",
    type=float,
    callback=parsed(check_timeout),
    metavar="SECONDS",
    help="End it after so long; that counts as failed.",
)
@click.option(
    "--stdin",
    "with_stdin",
    is_flag=True,
    help="Read standard input to its end, then give all of it to the command on each host; else theirs is empty.",
)
@json_option
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    command: tuple[str, ...],
    timeout: float | None,
    with_stdin: bool,
    as_json: bool,
    **which: Any,  # noqa: ANN401 - see choosing_hosts
) -> int:
    """Run a shell COMMAND on many hosts at once, in their home directories.

    Options come before it: what follows its first word is its own. Its words are joined by spaces, as ssh does.

    Each line of output is printed when it comes, behind the name of its host and without control characters; a summary
    follows on standard error. Hosts that --group-filter leaves out are told there, and are no failure. Ctrl-C ends the
    command on all hosts, with its children.

    \b
    Exit status: 0   it ended with 0 on every host
                 1   it ended otherwise on some host, or took longer than --timeout;
                     or whoever read the output wanted no more of it
                 3   some host could not be reached, or was lost, or there was none to run it on
                 130 Ctrl-C

    \b
    Examples:
      lazycluster run uptime
      lazycluster run --hosts web-1,web-2 -- 'df -h / | tail -1'
      lazycluster run --group-filter gpu --group-filter min-memory=16000 -- nvidia-smi -L
      lazycluster run --stdin -- 'cat >> .ssh/authorized_keys' < new_key.pub
      lazycluster run --json -- uname -r | jq -r 'select(.exit_status == 0).stdout'
    """  # noqa: D301 - \b keeps click from wrapping what follows
    text = " ".join(command)  # as ssh does
    if not text.strip():
        raise click.UsageError("the command is empty")
    stdin = _read_stdin() if with_stdin else b""
    stopping = Stopping()
    ends: dict[str, Ended] = {}
    with Choice(**which).group() as chosen:
        try:
            chosen.check()
        except NoRuntimesDetectedError as error:
            click.echo(f"lazycluster: {error}", err=True)
            if as_json:
                _print_left(chosen)
            return HOST_FAILED
        lines = Lines(chosen.group.hosts, stopping.request)

        def work(runtime: Runtime, cancellation: Cancellation) -> Ended:
            def on_output(stream: Stream, data: bytes) -> None:
                if not as_json:
                    lines.add(runtime.host, stream, data)

            return _carry_out(runtime, text, stdin, timeout, on_output, cancellation)

        try:
            on_each(
                chosen.group,
                work,
                stopping,
                interrupted=_INTERRUPTED,
                done=lambda host, outcome: ends.update({host: outcome.unwrap()}),
            )
        except click.Abort:
            lines.end()
            if ends and not as_json:
                stopped = {host: _STOPPED for host in chosen.group.hosts if host not in ends}
                _summarize(ends, chosen.failed | stopped, chosen.lacking)
            raise
    lines.end()
    match lines.failure:
        case BrokenPipeError() as failure:
            raise failure
        case OSError() as failure:
            raise click.ClickException(f"cannot write the output: {failure.strerror or failure}")
    ends = {host: ends[host] for host in chosen.group.hosts}
    if as_json:
        for host, ended in ends.items():
            click.echo(json.dumps(_record(host, ended)))
        _print_left(chosen)
    else:
        _summarize(ends, chosen.failed, chosen.lacking)
    if chosen.failed or any(ended.lost for ended in ends.values()):
        return HOST_FAILED
    return 0 if all(ended.exit_status == 0 for ended in ends.values()) else FAILED


def _read_stdin() -> bytes:
    if sys.stdin is None:
        raise click.UsageError("--stdin: standard input is closed")
    return sys.stdin.buffer.read()


@attrs.frozen
class Ended:
    """How the command ended on a host: with an exit status, or before that with an error; and what it had printed."""

    output: CommandResult
    exit_status: int | None
    error: Exception | None

    @property
    def lost(self) -> bool:
        """Tell whether it is the host that failed, and not the command."""
        return self.error is not None and not isinstance(self.error, CommandTimeoutError)

    def why(self, host: str) -> str:
        """Return what went wrong, without the command and its output; `''` where nothing did."""
        match self.error:
            case None:
                return "" if self.exit_status == 0 else "failed"
            case CommandTimeoutError(timeout=seconds):
                return f"took longer than its timeout of {seconds:g} s and was ended"
            case error:
                return reason(host, error)


def _carry_out(
    runtime: Runtime, command: str, stdin: bytes, timeout: float | None, on_output: Output, cancellation: Cancellation
) -> Ended:
    collector, begun = Collector(), time.monotonic()
    exit_status, error = None, None
    try:
        watch = Watch(on_output, cancellation=cancellation, collector=collector)
        exit_status = runtime.run(command, stdin=stdin, timeout=timeout, watch=watch).exit_code
    except Exception as raised:  # noqa: BLE001 - whatever it was is told with its host
        error = raised
    return Ended(collector.result(command, exit_status or 0, time.monotonic() - begun), exit_status, error)


def _record(host: str, ended: Ended) -> dict[str, object]:
    output = ended.output
    return {
        "host": host,
        "exit_status": ended.exit_status,
        "stdout": output.stdout,
        "stderr": output.stderr,
        "seconds": round(output.duration, 6),
        **({} if ended.error is None else {"error": ended.why(host)}),
    }


def _print_left(chosen: Chosen) -> None:
    for kind, reasons in (("error", chosen.failed), ("left_out", chosen.lacking)):
        for host, why in reasons.items():
            click.echo(json.dumps({"host": host, kind: why}))


def _summarize(ends: dict[str, Ended], failures: dict[str, str], lacking: dict[str, str]) -> None:
    rows = [
        (
            host,
            "-" if ended.exit_status is None else str(ended.exit_status),
            f"{ended.output.duration:.2f}",
            ended.why(host),
        )
        for host, ended in ends.items()
    ]
    rows += [(host, "-", "-", why) for host, why in failures.items()]
    failed = sum(1 for row in rows if row[3])
    title = f"{counted(len(rows), 'host')}, {f'{failed} failed' if failed else 'all well'}"
    title += f"; {len(lacking)} left out" if lacking else ""
    rows += [(host, "-", "-", f"left out: {why}") for host, why in lacking.items()]
    columns = ("host", "exit status", "seconds", "")[: 4 if failed or lacking else 3]
    print_table(title, columns, [row[: len(columns)] for row in rows], err=True)
