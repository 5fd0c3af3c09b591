"""`lazycluster info` and `lazycluster doctor`: the facts about a host, and its faults."""

from __future__ import annotations

import contextlib
import itertools
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import click

from lazycluster._cli import EXIT_FAILED
from lazycluster._cli.options import complete_hosts, config_option, connect_timeout_option, json_option, python_option
from lazycluster._display import fill_lines, is_terminal, show_status
from lazycluster._doctor import Finding, Verdict, examine
from lazycluster.exceptions import InvalidRuntimeError
from lazycluster.runtimes import Runtime

if TYPE_CHECKING:
    from rich.console import Console

_VERDICT_MARKS = {
    Verdict.OK: ("✓", "green"),
    Verdict.WARNING: ("!", "yellow"),
    Verdict.FAILED: ("✗", "bold red"),
    Verdict.SKIPPED: ("-", "dim"),
}
_ASCII_MARKS = {"✓": "+", "✗": "x"}
"""For a terminal without such characters."""
_CHECK_NAME_WIDTH = 19
"""Columns of the longest name of a check."""
_ADVICE_INDENT = 9
"""Columns before the advice, on the line after the check."""
_TERMINAL_ADVICE_INDENT = 4
"""The same on a terminal."""


@click.command(short_help="Print what a host has: system, Python, memory, GPUs.")
@click.argument("host", shell_complete=complete_hosts)
@config_option
@connect_timeout_option
@json_option
def info(host: str, config: Path | None, connect_timeout: float, as_json: bool) -> int:
    """Print what HOST has: system, Python, processors, memory, GPUs.

    HOST is anything that `ssh HOST` understands. It needs no Python, and nothing is made on it. The exit status is 0,
    or 1 if the host cannot be used.

    \b
    Examples:
      lazycluster info node1
      lazycluster info node1 --json | jq .memory
    """  # noqa: D301 - \b keeps click from wrapping what follows
    try:
        with show_status(f"connecting to {host} ..."):
            runtime = Runtime(host, ".", config_file=config, connect_timeout=connect_timeout, resident=False)
    except InvalidRuntimeError as error:
        doctor_command = ("lazycluster", "doctor", host, *(() if config is None else ("--config", str(config))))
        raise click.ClickException(f"{error}\nStep by step: {shlex.join(doctor_command)}") from error
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    with runtime:
        if as_json:
            facts = {"host": host, **attrs.asdict(runtime.host_info), "working_dir": runtime.working_dir}
            click.echo(json.dumps(facts, indent=2))
        else:
            runtime.print_info()
    return 0


@click.command(short_help="Find out why a host does not work, or works badly.")
@click.argument("host", shell_complete=complete_hosts)
@config_option
@connect_timeout_option
@json_option
@python_option
def doctor(host: str, config: Path | None, connect_timeout: float, as_json: bool, python: str | None) -> int:
    """Look step by step at why HOST does not work, or works badly, and say what to do.

    ssh is asked to log in once, as it would for you. Then everything that a runtime needs is really tried: the login
    shell, Python, files, ports. Everything that is made on the host is removed again. It takes a few seconds, more on
    a slow connection. The exit status is 0 if all is well, warnings included, and 1 if something failed.

    \b
    Examples:
      lazycluster doctor node1
      lazycluster doctor node1 --python '~/miniconda3/bin/python3'
      lazycluster doctor node1 --json | jq -r '.findings[] | select(.verdict != "ok") | .advice'
    """  # noqa: D301 - \b keeps click from wrapping what follows
    try:
        findings = examine(host, config_file=config, connect_timeout=connect_timeout, python=python)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    seen: list[Finding] = []
    with contextlib.closing(findings):
        if as_json:
            seen.extend(findings)
            click.echo(json.dumps(_json_report(host, seen), indent=2))
        else:
            _print_findings(host, _record_each(findings, seen))
    return EXIT_FAILED if any(finding.verdict is Verdict.FAILED for finding in seen) else 0


def _json_report(host: str, findings: Iterable[Finding]) -> dict[str, object]:
    records = [finding.to_dict() for finding in findings]
    well = all(record["verdict"] != Verdict.FAILED.value for record in records)
    return {"host": host, "well": well, "findings": records}


def _record_each(findings: Iterable[Finding], seen: list[Finding]) -> Iterator[Finding]:
    for finding in findings:
        seen.append(finding)
        yield finding


def _print_findings(host: str, findings: Iterable[Finding]) -> None:
    """Print findings as they come; those that are skipped for one reason share a line."""
    with _finding_printer(host) as show:
        for (verdict, _), members in itertools.groupby(findings, key=lambda finding: (finding.verdict, finding.found)):
            if verdict is Verdict.SKIPPED:
                listed = list(members)
                show(attrs.evolve(listed[0], check=", ".join(finding.check for finding in listed)))
            else:
                for finding in members:
                    show(finding)


@contextlib.contextmanager
def _finding_printer(host: str) -> Iterator[Callable[[Finding], None]]:
    """Yield a function that shows a finding: with marks and colours on a terminal, as plain text elsewhere."""
    if not is_terminal(sys.stdout):
        yield lambda finding: click.echo(format_finding(finding))
        return
    from rich.console import Console  # noqa: PLC0415

    console = Console(highlight=False)
    with console.status(f"examining {host} ..."):
        yield lambda finding: _print_finding(console, finding)


def format_finding(finding: Finding) -> str:
    """Return a finding as plain text: the verdict, the check and the facts, with the advice on a second line."""
    line = f"{finding.verdict.value:<8} {finding.check:<{_CHECK_NAME_WIDTH}} {_single_line(finding.found)}"
    return f"{line}\n{' ' * _ADVICE_INDENT}{_single_line(finding.advice)}" if finding.advice else line


def _print_finding(console: Console, finding: Finding) -> None:
    """Print a finding in lines of our own, since rich would break commands that are to be copied."""
    from rich.text import Text  # noqa: PLC0415

    mark, style = _VERDICT_MARKS[finding.verdict]
    if not console.encoding.lower().startswith("utf"):
        mark = _ASCII_MARKS.get(mark, mark)
    dim = "dim" if finding.verdict is Verdict.SKIPPED else ""
    if len(finding.check) <= _CHECK_NAME_WIDTH:
        check, found = f"{finding.check:<{_CHECK_NAME_WIDTH}} ", _single_line(finding.found)
    else:
        check, found = "", f"{finding.check}: {_single_line(finding.found)}"
    indent = len(f"{mark} {check}")
    lines = fill_lines(found, console.width - indent)
    text = Text.assemble((mark, style), " ", (check, dim or "bold"), (f"\n{' ' * indent}".join(lines), dim))
    console.print(text, soft_wrap=True)
    for line in fill_lines(_single_line(finding.advice), console.width - _TERMINAL_ADVICE_INDENT):
        console.print(Text(" " * _TERMINAL_ADVICE_INDENT + line, "cyan"), soft_wrap=True)


def _single_line(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines() if line.strip())
