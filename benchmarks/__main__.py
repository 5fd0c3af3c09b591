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
from benchmarks.hosts import SshdFarm
from benchmarks.report import Report
from benchmarks.rows import ROWS, Bench, BenchmarkRow
from benchmarks.sites import direct_site
from benchmarks.timing import deadline, failure_from
from lazycluster.testing import LocalSshd
from lazycluster.testing._process_guard import descendant_pids, kill_all

_DEFAULT_CALLS = 200
_DEFAULT_HOST_COUNT = 100
_QUICK_HOST_COUNT = 10
_ROW_TIMEOUT_SECONDS = 1800.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the tables, also those of a run that was broken off; return the exit status."""
    options = _build_parser().parse_args(arguments)
    parent: Path = options.directory or machine.fastest_directory()
    report = Report(f"{machine.describe_machine([each.name for each in peers.PEER_CONTESTANTS])}; files in {parent}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does, so that everything is taken down
    status = 0
    try:
        with _benchmark_hosts(parent) as (sshd, farm, directory):
            hosts = options.hosts or (_QUICK_HOST_COUNT if options.quick else _DEFAULT_HOST_COUNT)
            bench = Bench(direct_site(sshd, directory), farm, report, options.calls, hosts, options.quick)
            for row in options.only or ROWS:
                status |= _measure_row(row, bench)
    except KeyboardInterrupt:
        report.note("interrupted")
        status = 130
    report.finish()
    if options.json is not None:
        report.write_json(options.json)
    return status


def _measure_row(row: BenchmarkRow, bench: Bench) -> int:
    """Measure a row; return 1 if that fails, so that the other rows are measured all the same."""
    bench.report.start_row(row.number, row.title)
    try:
        with deadline(_ROW_TIMEOUT_SECONDS, row.title):
            row.measure(bench)
    except Exception as error:  # noqa: BLE001 - every error is reported
        bench.report.add_failure(row.title, failure_from(error))
        return 1
    return 0


@contextlib.contextmanager
def _benchmark_hosts(parent: Path) -> Iterator[tuple[LocalSshd, SshdFarm, Path]]:
    """Keep a private sshd with an empty home, a farm of more, and a directory, for a block and no longer."""
    with contextlib.ExitStack() as stack:
        stack.callback(kill_all, lambda: descendant_pids(os.getpid()))  # processes that a peer left running
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lazycluster-bench-", dir=parent)))
        home = directory / "home"
        home.mkdir(mode=0o700)
        sshd = stack.enter_context(LocalSshd(home=home, options=machine.default_key_exchange()))
        yield sshd, stack.enter_context(SshdFarm(directory)), directory


def _build_parser() -> argparse.ArgumentParser:
    rows = "; ".join(f"{row.number}: {row.title}" for row in ROWS)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure lazycluster on private sshds on loopback, side by side with the floors and its peers.",
        epilog=f"Rows: {rows}.",
    )
    parser.add_argument("--quick", action="store_true", help="fewer repetitions of long measurements, smaller files")
    parser.add_argument("--only", type=_parse_rows, metavar="ROW[,ROW...]", help="the rows with these numbers")
    parser.add_argument(
        "--calls",
        type=int,
        default=_DEFAULT_CALLS,
        metavar="N",
        help="how often small things are measured (%(default)s)",
    )
    parser.add_argument(
        "--hosts",
        type=int,
        metavar="N",
        help=f"the most hosts of rows 11 to 13 ({_DEFAULT_HOST_COUNT}; quick: {_QUICK_HOST_COUNT})",
    )
    parser.add_argument(
        "--directory",
        type=Path,
        metavar="DIR",
        help="where files lie during the run (default: in memory, if there is room)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to this file, too")
    return parser


def _parse_rows(text: str) -> list[BenchmarkRow]:
    known = {str(row.number): row for row in ROWS}
    numbers = [number.strip() for number in text.split(",")]
    unknown = [number for number in numbers if number not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown row {', '.join(unknown)} (rows: {', '.join(known)})")
    return [known[number] for number in numbers]


if __name__ == "__main__":
    sys.exit(main())
