"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import machine, peers
from benchmarks.hosts import Farm
from benchmarks.measuring import deadline, failure
from benchmarks.report import Report
from benchmarks.rows import ROWS, Bench, Row
from benchmarks.sites import direct_site
from lazycluster.testing import LocalSshd
from lazycluster.testing.processes import descendants, end

_CALLS = 200
_HOSTS = 100
_QUICK_HOSTS = 10
_ROW_TIMEOUT = 1800.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the tables, also those of a run that was broken off; return the exit status."""
    given = _parser().parse_args(arguments)
    parent: Path = given.directory or machine.fastest_directory()
    report = Report(f"{machine.describe([each.name for each in peers.CONTESTANTS])}; files in {parent}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: everything is taken down
    status = 0
    try:
        with _kept(parent) as (sshd, farm, directory):
            hosts = given.hosts or (_QUICK_HOSTS if given.quick else _HOSTS)
            bench = Bench(direct_site(sshd, directory), farm, report, given.calls, hosts, given.quick)
            for row in given.only or ROWS:
                status |= _measure(row, bench)
    except KeyboardInterrupt:
        report.note("interrupted")
        status = 130
    report.finish()
    if given.json is not None:
        report.write(given.json)
    return status


def _measure(row: Row, bench: Bench) -> int:
    """Measure a row, and return 1 where that fails: the others are measured all the same."""
    bench.report.begin(row.number, row.title)
    try:
        with deadline(_ROW_TIMEOUT, row.title):
            row.measure(bench)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told
        bench.report.failed(row.title, failure(error))
        return 1
    return 0


@contextlib.contextmanager
def _kept(parent: Path) -> Iterator[tuple[LocalSshd, Farm, Path]]:
    """Keep a private sshd, with an empty home, a farm of more, and a directory for a block, and nothing longer."""
    with contextlib.ExitStack() as stack:
        stack.callback(end, lambda: descendants(os.getpid()))  # what a peer left running
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lazycluster-bench-", dir=parent)))
        home = directory / "home"
        home.mkdir(mode=0o700)
        sshd = stack.enter_context(LocalSshd(home=home))
        yield sshd, stack.enter_context(Farm(directory)), directory


def _parser() -> argparse.ArgumentParser:
    rows = "; ".join(f"{row.number}: {row.title}" for row in ROWS)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure lazycluster on private sshds on loopback, side by side with the floors and its peers.",
        epilog=f"Rows: {rows}.",
    )
    parser.add_argument("--quick", action="store_true", help="fewer repetitions of what takes long, smaller files")
    parser.add_argument("--only", type=_rows, metavar="ROW[,ROW...]", help="the rows with these numbers")
    parser.add_argument(
        "--calls", type=int, default=_CALLS, metavar="N", help="how often small things are measured (%(default)s)"
    )
    parser.add_argument(
        "--hosts", type=int, metavar="N", help=f"the most hosts of rows 11 to 13 ({_HOSTS}; quick: {_QUICK_HOSTS})"
    )
    parser.add_argument(
        "--directory", type=Path, metavar="DIR", help="where files lie meanwhile (default: in memory, if there is room)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, too")
    return parser


def _rows(text: str) -> list[Row]:
    known = {str(row.number): row for row in ROWS}
    numbers = [number.strip() for number in text.split(",")]
    unknown = [number for number in numbers if number not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"no row {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[number] for number in numbers]


if __name__ == "__main__":
    sys.exit(main())
