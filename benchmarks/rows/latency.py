"""Row 10: small things, and a tree of files, over a slow network."""

from __future__ import annotations

from benchmarks import baselines
from benchmarks.report import Check, Measurement
from benchmarks.rows import calls, commands, files
from benchmarks.rows.bench import Bench
from benchmarks.sites import slow_site
from benchmarks.targets import MaxExtraSeconds

_ONE_WAY_DELAY_SECONDS = 0.010  # each way
_LATENCY_CHECKS = (Check(MaxExtraSeconds(0.003), baselines.SINGLE_ROUND_TRIP.name),)
_MAX_QUICK_CALLS = 50


def measure(bench: Bench) -> None:
    """Measure rows 1, 2 and 8 once more; a command or call may take a round trip and little else.

    The round trip is measured, too: the relay that plays the network wakes up by the millisecond, and adds one or two.
    """
    number = min(bench.calls, _MAX_QUICK_CALLS) if bench.is_quick else bench.calls
    with slow_site(bench.site.sshd, bench.site.directory, _ONE_WAY_DELAY_SECONDS) as site:
        for label, outcomes in (
            ('`run("true")` at 20 ms', commands.measure_commands),
            ("`call(f)` at 20 ms", calls.measure_calls),
        ):
            found = outcomes(site, number, baselines.SINGLE_ROUND_TRIP)
            bench.report.add_measurement(Measurement(label, found, baselines.SINGLE_ROUND_TRIP.name), _LATENCY_CHECKS)
        for label, found in files.tree_outcomes(site, rounds=5 if bench.is_quick else 9):
            bench.report.add_measurement(
                Measurement(f"{label} at 20 ms", found, files.TAR_REFERENCE), files.TREE_CHECKS
            )
