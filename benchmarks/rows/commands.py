"""Row 1: `run("true")`."""

from __future__ import annotations

from benchmarks import floors, ours, peers
from benchmarks.contestants import Contestant, open_contestants
from benchmarks.measuring import Entry, Outcomes, interleave
from benchmarks.report import Check, Measurement
from benchmarks.rows.bench import Bench
from benchmarks.sites import Site
from benchmarks.targets import Faster, MaxRatio

_COMMAND_CONTESTANTS = (
    *ours.LAZYCLUSTER_CONTESTANTS,
    floors.PERSISTENT_SHELL,
    floors.SSH_THROUGH_MASTER,
    *peers.PEER_CONTESTANTS,
)
_WARM_UP_ROUNDS = 10


def measure(bench: Bench) -> None:
    """Compare with the persistent shell, and with the peers that keep a Python there."""
    bench.report.add_measurement(
        Measurement('warm `run("true")`', measure_commands(bench.site, bench.calls), floors.PERSISTENT_SHELL.name),
        (
            Check(MaxRatio(1.5), floors.PERSISTENT_SHELL.name),
            Check(Faster(), peers.MITOGEN.name),
            Check(Faster(), peers.EXECNET.name),
        ),
    )


def measure_commands(site: Site, calls: int, *besides: Contestant[Site]) -> Outcomes:
    """Measure the command `true` on all contestants."""
    with open_contestants((*_COMMAND_CONTESTANTS, *besides), site) as (able, missing):
        entries = [Entry(name, each.command) for name, each in able.items() if each.command is not None]
        return {**interleave(entries, calls, _WARM_UP_ROUNDS), **missing}
