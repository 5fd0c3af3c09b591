"""Row 10: small things, and a tree of files, over a slow link."""

from __future__ import annotations

from benchmarks import floors
from benchmarks.report import Check, Measurement
from benchmarks.rows import calls, commands, files
from benchmarks.rows.bench import Bench
from benchmarks.sites import slow_site
from benchmarks.targets import Plus

_DELAY = 0.010  # each way
_CHECKS = (Check(Plus(0.003), floors.ROUND_TRIP.name),)
_MOST_CALLS_WHEN_QUICK = 50


def measure(bench: Bench) -> None:
    """Measure rows 1, 2 and 8 once more; a round trip and little else is what a command or call may take.

    The round trip is measured too: the link that plays the network wakes up by the millisecond, and adds one or two.
    """
    number = min(bench.calls, _MOST_CALLS_WHEN_QUICK) if bench.is_quick else bench.calls
    with slow_site(bench.site.sshd, bench.site.directory, _DELAY) as site:
        for label, outcomes in (('`run("true")` at 20 ms', commands.outcomes), ("`call(f)` at 20 ms", calls.outcomes)):
            found = outcomes(site, number, floors.ROUND_TRIP)
            bench.report.measured(Measurement(label, found, floors.ROUND_TRIP.name), _CHECKS)
        for label, found in files.tree_outcomes(site, rounds=5 if bench.is_quick else 9):
            bench.report.measured(Measurement(f"{label} at 20 ms", found, files.TAR), files.TREE_CHECKS)
