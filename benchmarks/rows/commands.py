"""Row 1: `run("true")`."""

from __future__ import annotations

from benchmarks import baselines, peers, variants
from benchmarks.contestants import Contestant, open_contestants
from benchmarks.report import Check, Measurement
from benchmarks.rows.bench import Bench
from benchmarks.sites import Site
from benchmarks.targets import Faster, MaxRatio
from benchmarks.timing import Entry, Outcomes, interleave

_COMMAND_CONTESTANTS = (
    *variants.LAZYCLUSTER_CONTESTANTS,
    baselines.PERSISTENT_SHELL,
    baselines.SSH_THROUGH_MASTER,
    *peers.PEER_CONTESTANTS,
)
_WARM_UP_ROUNDS = 10


def measure(bench: Bench) -> None:
    """Compare with the persistent shell, and with the peers that keep a Python on the host."""
    bench.report.add_measurement(
        Measurement('warm `run("true")`', measure_commands(bench.site, bench.calls), baselines.PERSISTENT_SHELL.name),
        (
            Check(MaxRatio(1.5), baselines.PERSISTENT_SHELL.name),
            Check(Faster(), peers.MITOGEN.name),
            Check(Faster(), peers.EXECNET.name),
        ),
    )


def measure_commands(site: Site, calls: int, *besides: Contestant[Site]) -> Outcomes:
    """Measure the command `true` on all contestants."""
    with open_contestants((*_COMMAND_CONTESTANTS, *besides), site) as (able, missing):
        entries = [Entry(name, each.command) for name, each in able.items() if each.command is not None]
        return {**interleave(entries, calls, _WARM_UP_ROUNDS), **missing}
