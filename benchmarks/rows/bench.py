"""The needs of a row: a place to log in, the number of repetitions, and a report."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from benchmarks.hosts import SshdFarm
from benchmarks.report import Report
from benchmarks.sites import Site


@attrs.frozen
class Bench:
    """One run of the benchmarks; `calls` is how often small things are measured, `most_hosts` the most hosts."""

    site: Site
    farm: SshdFarm
    report: Report
    calls: int
    most_hosts: int
    is_quick: bool


@attrs.frozen
class BenchmarkRow:
    """One row of the table, which may measure several things."""

    number: int
    title: str
    measure: Callable[[Bench], None]
