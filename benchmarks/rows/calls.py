"""Rows 2 and 3: `call`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from benchmarks import baselines, peers, remote, variants
from benchmarks.contestants import Abilities, Contestant, expect, open_contestants
from benchmarks.report import Check, Measurement
from benchmarks.rows.bench import Bench
from benchmarks.sites import Site
from benchmarks.targets import Faster, MaxRatio
from benchmarks.timing import Entry, Outcomes, interleave

_CALL_CONTESTANTS = (*variants.LAZYCLUSTER_CONTESTANTS, baselines.RESIDENT_PYTHON, peers.EXECNET, peers.MITOGEN)
_WARM_UP_ROUNDS = 10
_LARGE_RESULT_BYTES = 1_000_000


def measure_small(bench: Bench) -> None:
    """Compare a function that returns an int; mitogen's runs without a process of its own."""
    bench.report.add_measurement(
        Measurement("warm `call(f)`, an int", measure_calls(bench.site, bench.calls), baselines.RESIDENT_PYTHON.name),
        (
            Check(MaxRatio(2.0), baselines.RESIDENT_PYTHON.name),
            Check(Faster(strictly=False), peers.MITOGEN.name),
        ),
    )


def measure_large(bench: Bench) -> None:
    """Compare a function that returns 1 MB of bytes."""
    with open_contestants(_CALL_CONTESTANTS, bench.site) as (able, missing):
        entries = _entries(able, _fetch_large)
        found = {**interleave(entries, bench.calls, _WARM_UP_ROUNDS), **missing}
    bench.report.add_measurement(
        Measurement("warm `call(f)`, 1 MB", found, baselines.RESIDENT_PYTHON.name),
        (Check(MaxRatio(1.5), baselines.RESIDENT_PYTHON.name),),
    )


def measure_calls(site: Site, calls: int, *besides: Contestant[Site]) -> Outcomes:
    """Measure a function that returns an int on all contestants that call functions, and a command of some others."""
    with open_contestants((*_CALL_CONTESTANTS, *besides), site) as (able, missing):
        entries = _entries(able, lambda call: expect(remote.answer(), call(remote.answer)))
        others = {each.name for each in besides}
        entries += [Entry(name, each.command) for name, each in able.items() if name in others and each.command]
        return {**interleave(entries, calls, _WARM_UP_ROUNDS), **missing}


def _fetch_large(call: Callable[..., object]) -> None:
    found = call(remote.blob, _LARGE_RESULT_BYTES)
    assert isinstance(found, bytes)
    expect(_LARGE_RESULT_BYTES, len(found))


def _entries(abilities: Mapping[str, Abilities], use: Callable[[Callable[..., object]], None]) -> list[Entry]:
    return [Entry(name, functools.partial(use, each.call)) for name, each in abilities.items() if each.call is not None]
