"""Row 4: from nothing to a runtime that knows its host."""

from __future__ import annotations

import contextlib

from benchmarks import baselines, peers, variants
from benchmarks.contestants import NOT_INSTALLED, Contestant
from benchmarks.report import Check, Measurement
from benchmarks.rows.bench import Bench
from benchmarks.sites import Site
from benchmarks.targets import MaxRatio
from benchmarks.timing import Entry, interleave

_LOGIN_ROUNDS = 20
_QUICK_LOGIN_ROUNDS = 15


def measure(bench: Bench) -> None:
    """Compare `Runtime(host)`, which has asked the host by then, with a connection and the command `true`."""
    contestants = (*variants.LAZYCLUSTER_CONTESTANTS, baselines.SSH_PER_COMMAND, *peers.PEER_CONTESTANTS)
    able = [each for each in contestants if each.is_installed()]
    entries = [_entry(each, bench.site, first_command=each not in variants.LAZYCLUSTER_CONTESTANTS) for each in able]
    found = interleave(entries, _QUICK_LOGIN_ROUNDS if bench.is_quick else _LOGIN_ROUNDS, warm_up=2)
    missing = {each.name: NOT_INSTALLED for each in contestants if each not in able}
    bench.report.add_measurement(
        Measurement("`Runtime(host)`, others: first `true`", {**found, **missing}, baselines.SSH_PER_COMMAND.name),
        (Check(MaxRatio(1.3), baselines.SSH_PER_COMMAND.name),),
    )


def _entry(contestant: Contestant[Site], site: Site, *, first_command: bool) -> Entry:
    """Open a contestant; closing it is not timed."""
    stack = contextlib.ExitStack()

    def act() -> None:
        abilities = stack.enter_context(contestant.open(site))
        if first_command and abilities.command is not None:
            abilities.command()

    return Entry(contestant.name, act, tidy=stack.close)
