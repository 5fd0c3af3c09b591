"""`lazycluster run`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import attrs
import click

from lazycluster._cli import EXIT_FAILED
from lazycluster._cli.invocation import print_error
from lazycluster._cli.options import json_option, parse_callback
from lazycluster._cli.run_on_hosts import run_on_hosts
from lazycluster._cli.selection import HostSelection, SelectedHosts, host_selection_options
from lazycluster._cli.terminal import become_terminal, join_command
from lazycluster._display import pluralize, print_table
from lazycluster._gather import CancelGroup
from lazycluster._model.checks import check_timeout
from lazycluster._model.watch import Watch
from lazycluster._prefixed_output import PrefixedOutput
from lazycluster._processes.local_process import OutputCallback
from lazycluster._requirements import Requirements
from lazycluster._runtime_core import core_of
from lazycluster._waiting import CancelToken
from lazycluster.exceptions import CommandTimeoutError, LazyclusterError
from lazycluster.manager import failure_reason
from lazycluster.options import DEFAULT_GRACE_SECONDS
from lazycluster.results import Collector, CommandResult, Stream
from lazycluster.runtimes import Runtime

EXIT_HOST_FAILED = 3
_CANCELLED_REASON = "cancelled (Ctrl-C)"
_RUN_INTERRUPTED_MESSAGE = (
    f"lazycluster: ending the commands; one that ignores SIGTERM is killed after {DEFAULT_GRACE_SECONDS:g} s"
)


@click.command(
    short_help="Run a shell command on many hosts at once.", context_settings={"allow_interspersed_args": False}
)
@host_selection_options
@click.option(
    "--timeout",
    type=float,
    callback=parse_callback(check_timeout),
    metavar="SECONDS",
    help="End the command after this time; that counts as failed.",
)
@click.option(
    "--stdin",
    "with_stdin",
    is_flag=True,
    help="Read standard input to its end, then give all of it to the command on each host. Default: an empty one.",
)
@click.option(
    "--tty",
    is_flag=True,
    help="Run it in this terminal, on one host: for commands that ask, such as sudo. The exit status is its own.",
)
@json_option
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    command: tuple[str, ...],
    timeout: float | None,
    with_stdin: bool,
    tty: bool,
    as_json: bool,
    **selection: Any,  # noqa: ANN401 - see host_selection_options
) -> int:
    """Run a shell COMMAND on many hosts at once, in their home directories.

    Options come before it: all words after its first are its own. Its words are joined by spaces, as ssh does.

    Each line of output is printed as it comes, after the name of its host and without control characters. A summary
    follows on standard error. It names the hosts that --group-filter leaves out; they have not failed. Ctrl-C ends the
    command on all hosts, with its children.

    \b
    Exit status: 0   it ended with 0 on every host
                 1   it ended otherwise on some host, or took longer than --timeout;
                     or the reader of the output closed it
                 3   some host could not be reached, or was lost, or no host was left to run it on
                 130 Ctrl-C

    \b
    Examples:
      lazycluster run uptime
      lazycluster run --hosts web-1,web-2 -- 'df -h / | tail -1'
      lazycluster run --group-filter gpu --group-filter min-memory=16000 -- nvidia-smi -L
      lazycluster run --stdin -- 'cat >> .ssh/authorized_keys' < new_key.pub
      lazycluster run --hosts web-1 --tty -- sudo apt-get upgrade
      lazycluster run --json -- uname -r | jq -r 'select(.exit_code == 0).stdout'
    """  # noqa: D301 - \b keeps click from wrapping what follows
    text = join_command(command)
    hosts = HostSelection(**selection)
    if tty:
        excluded = {
            "--timeout": timeout is not None,
            "--stdin": with_stdin,
            "--json": as_json,
            "--group-filter": hosts.requirements != Requirements(),
        }
        _run_in_terminal(text, hosts, [option for option, is_given in excluded.items() if is_given])
    stdin = _read_stdin() if with_stdin else b""
    cancel_group = CancelGroup()
    outcomes: dict[str, CommandOutcome] = {}
    with hosts.connect() as selected:
        try:
            selected.require_hosts()
        except LazyclusterError as error:
            print_error(error, as_json=as_json)
            if as_json:
                _print_other_hosts(selected)
            return EXIT_HOST_FAILED
        output = PrefixedOutput(selected.group.hosts, cancel_group.cancel)

        def work(runtime: Runtime, cancel_token: CancelToken) -> CommandOutcome:
            def on_output(stream: Stream, data: bytes) -> None:
                if not as_json:
                    output.write(runtime.host, stream, data)

            outcome = _run_on_host(runtime, text, stdin, timeout, on_output, cancel_token)
            output.flush(runtime.host)
            return outcome

        try:
            run_on_hosts(
                selected.group,
                work,
                cancel_group,
                interrupt_message=_RUN_INTERRUPTED_MESSAGE,
                on_result=lambda host, outcome: outcomes.update({host: outcome.unwrap()}),
            )
        except click.Abort:
            if outcomes and not as_json:
                stopped = {host: _CANCELLED_REASON for host in selected.group.hosts if host not in outcomes}
                _print_summary(outcomes, selected.failed | stopped, selected.filtered_out)
            raise
    match output.write_error:
        case BrokenPipeError() as failure:
            raise failure
        case OSError() as failure:
            raise click.ClickException(f"cannot write the output: {failure.strerror or failure}")
    outcomes = {host: outcomes[host] for host in selected.group.hosts}
    if as_json:
        for host, ended in outcomes.items():
            click.echo(json.dumps(_outcome_record(host, ended)))
        _print_other_hosts(selected)
    else:
        _print_summary(outcomes, selected.failed, selected.filtered_out)
    if selected.failed or any(ended.host_failed for ended in outcomes.values()):
        return EXIT_HOST_FAILED
    return 0 if all(ended.exit_code == 0 for ended in outcomes.values()) else EXIT_FAILED


def _run_in_terminal(command: str, selection: HostSelection, excluded_options: Sequence[str]) -> NoReturn:
    if excluded_options:
        raise click.UsageError(f"--tty must stand without {', '.join(excluded_options)}")
    names = selection.names
    if len(names) != 1:
        raise click.UsageError(f"--tty must be for one host (--hosts A), got {', '.join(names) or 'none'}")
    become_terminal(names[0], command, config=selection.config, connect_timeout=selection.connect_timeout)


def _read_stdin() -> bytes:
    if sys.stdin is None:
        raise click.UsageError("--stdin: standard input is closed")
    return sys.stdin.buffer.read()


@attrs.frozen
class CommandOutcome:
    """The end of the command on a host, an exit status or an error, and its output."""

    output: CommandResult
    exit_code: int | None
    error: Exception | None

    @property
    def host_failed(self) -> bool:
        """Whether the host failed, rather than the command."""
        return self.error is not None and not isinstance(self.error, CommandTimeoutError)

    def failure_reason(self, host: str) -> str:
        """Return the reason of a failure, without the command and its output; `''` after a success."""
        match self.error:
            case None:
                return "" if self.exit_code == 0 else "failed"
            case CommandTimeoutError(timeout=seconds):
                return f"took longer than its timeout of {seconds:g} s and was ended"
            case error:
                return failure_reason(host, error)


def _run_on_host(
    runtime: Runtime,
    command: str,
    stdin: bytes,
    timeout: float | None,
    on_output: OutputCallback,
    cancel_token: CancelToken,
) -> CommandOutcome:
    collector, started = Collector(), time.monotonic()
    exit_code, error = None, None
    try:
        watch = Watch(on_output, cancel_token=cancel_token, collector=collector)
        core = core_of(runtime)
        exit_code = core.run_command(core.command(command, stdin=stdin, timeout=timeout), watch).exit_code
    except Exception as raised:  # noqa: BLE001 - the summary shows it with its host
        error = raised
    return CommandOutcome(collector.result(command, exit_code or 0, time.monotonic() - started), exit_code, error)


def _outcome_record(host: str, outcome: CommandOutcome) -> dict[str, object]:
    output = outcome.output
    return {
        "host": host,
        "exit_code": outcome.exit_code,
        "stdout": output.stdout,
        "stderr": output.stderr,
        "seconds": round(output.duration, 6),
        **({} if outcome.error is None else {"error": outcome.failure_reason(host)}),
    }


def _print_other_hosts(selected: SelectedHosts) -> None:
    for kind, reasons in (("error", selected.failed), ("left_out", selected.filtered_out)):
        for host, why in reasons.items():
            click.echo(json.dumps({"host": host, kind: why}))


def _print_summary(outcomes: dict[str, CommandOutcome], failures: dict[str, str], filtered_out: dict[str, str]) -> None:
    rows = [
        (
            host,
            "-" if ended.exit_code is None else str(ended.exit_code),
            f"{ended.output.duration:.2f}",
            ended.failure_reason(host),
        )
        for host, ended in outcomes.items()
    ]
    rows += [(host, "-", "-", why) for host, why in failures.items()]
    failed = sum(1 for row in rows if row[3])
    title = f"{pluralize(len(rows), 'host')}, {f'{failed} failed' if failed else 'all well'}"
    title += f"; {len(filtered_out)} left out" if filtered_out else ""
    rows += [(host, "-", "-", f"left out: {why}") for host, why in filtered_out.items()]
    columns = ("host", "exit status", "seconds", "")[: 4 if failed or filtered_out else 3]
    print_table(title, columns, [row[: len(columns)] for row in rows], err=True)
