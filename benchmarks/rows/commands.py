"""Row 1: `run("true")`."""

from __future__ import annotations

from benchmarks import floors, ours, peers
from benchmarks.contestants import Contestant, opened
from benchmarks.measuring import Entry, Outcomes, interleave
from benchmarks.report import Check, Measurement
from benchmarks.rows.bench import Bench
from benchmarks.sites import Site
from benchmarks.targets import Faster, Times

_CONTESTANTS = (*ours.CONTESTANTS, floors.SHELL, floors.RAW_SSH, *peers.CONTESTANTS)
_WARM_UP = 10


def measure(bench: Bench) -> None:
    """Compare with the persistent shell, and with the peers that keep a Python there."""
    bench.report.measured(
        Measurement('warm `run("true")`', outcomes(bench.site, bench.calls), floors.SHELL.name),
        (
            Check(Times(1.5), floors.SHELL.name),
            Check(Faster(), peers.MITOGEN.name),
            Check(Faster(), peers.EXECNET.name),
        ),
    )


def outcomes(site: Site, calls: int, *besides: Contestant[Site]) -> Outcomes:
    """Measure the command `true` on all contestants."""
    with opened((*_CONTESTANTS, *besides), site) as (able, missing):
        entries = [Entry(name, each.command) for name, each in able.items() if each.command is not None]
        return {**interleave(entries, calls, _WARM_UP), **missing}
