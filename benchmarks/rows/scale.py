"""Rows 11 to 14: many hosts, each a private sshd."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from benchmarks import crowd, floors, ours, remote
from benchmarks.contestants import NOT_INSTALLED, Contestant, expect, opened
from benchmarks.footprint import REFERENCE, Footprint, footprint_of
from benchmarks.hosts import Hosts, LogIns
from benchmarks.measuring import Entry, Failure, Outcome, Outcomes, Sample, deadline, interleave
from benchmarks.report import Check, Line, Measurement, megabytes
from benchmarks.rows.bench import Bench
from benchmarks.targets import Faster, Pace, PlusMemory, Times, describe, is_met

_COUNTS = (1, 10, 50, 100)
_NAMES_OF_ONE = 50
_COLD_ROUNDS = 3
_MAP_HOSTS = 4
_MAP_ROUNDS = 20
_QUICK_MAP_ROUNDS = 5
_ITEMS = 2000
_PACE = Pace(1000.0, _ITEMS)
_EXTRA_MEMORY = PlusMemory(0.5e6)
_PATIENCE = 180.0


# Warm -----------------------------------------------------------------------------------------------------------------


def measure_warm(bench: Bench) -> None:
    """Compare `true` on all hosts at once, with connections that are there; the targets are those of the most hosts."""
    for count in _counts(bench):
        with opened(crowd.WARM, bench.farm.first(count), _PATIENCE) as (able, missing):
            entries = [
                Entry(name, each.command, timeout=_PATIENCE) for name, each in able.items() if each.command is not None
            ]
            found = {**interleave(entries, _warm_rounds(bench, count), warm_up=2), **missing}
        checks = [Check(Faster(), peer) for peer in crowd.PEERS] if count == bench.most_hosts else []
        bench.report.measured(Measurement(f'warm `run("true")`, {_hosts(count)}', found, floors.RAW_SSH.name), checks)


def _warm_rounds(bench: Bench, count: int) -> int:
    return max(5, 50 // count) if bench.is_quick else max(20, 400 // count)


# Cold -----------------------------------------------------------------------------------------------------------------


def measure_cold(bench: Bench) -> None:
    """Compare connecting to all hosts and running `true` there; also to hosts that are one, which limits log-ins."""
    for count in _counts(bench):
        # The first round is for what each contestant imports; that is the same for any number of hosts.
        found = _cold_outcomes(crowd.COLD, bench.farm.first(count), warm_up=1 if count == 1 else 0)
        bench.report.measured(
            Measurement(f"connect and `true`, {_hosts(count)}", found, floors.COLD_SSH.name),
            (Check(Times(1.3), floors.COLD_SSH.name),),
        )
        _judge_failures(bench, f"failures, {_hosts(count)}", found)
    count = min(_NAMES_OF_ONE, bench.most_hosts)
    # Fabric's groups tell connections by address and port, and would take all for one.
    contestants = [each for each in crowd.COLD if each.name != "fabric"]
    found = _cold_outcomes(contestants, bench.farm.names_of_one(count), warm_up=0)
    bench.report.measured(Measurement(f"connect and `true`, one sshd, {count} names", found, floors.COLD_SSH.name), ())
    _judge_failures(bench, f"failures, one sshd, {count} names", found)


def _cold_outcomes(contestants: Sequence[Contestant[Hosts]], hosts: Hosts, warm_up: int) -> Outcomes:
    able = [each for each in contestants if each.is_installed()]
    log_ins = LogIns(hosts)
    entries = [_cold_entry(each, hosts, log_ins) for each in able]
    missing = {each.name: NOT_INSTALLED for each in contestants if each not in able}
    return {**interleave(entries, _COLD_ROUNDS, warm_up), **missing}


def _cold_entry(contestant: Contestant[Hosts], hosts: Hosts, log_ins: LogIns) -> Entry:
    """Open a contestant and run a command; closing it, and whether each sshd has seen a log-in, are not timed."""
    stack = contextlib.ExitStack()

    def act() -> None:
        abilities = stack.enter_context(contestant.open(hosts))
        assert abilities.command is not None
        abilities.command()

    def tidy() -> None:
        stack.close()
        log_ins.expect_one_each()

    return Entry(contestant.name, act, tidy, timeout=_PATIENCE)


def _judge_failures(bench: Bench, label: str, found: Outcomes) -> None:
    bench.report.judged(
        Line(
            label,
            _failures(found[ours.OURS]),
            f"{_failures(found[floors.COLD_SSH.name])} {floors.COLD_SSH.name}",
            "",
            "none",
            isinstance(found[ours.OURS], Sample),
        )
    )


def _failures(outcome: Outcome) -> str:
    return "none" if isinstance(outcome, Sample) else outcome.reason.partition(", such as")[0].partition(": ")[2]


# Memory ---------------------------------------------------------------------------------------------------------------


def measure_memory(bench: Bench) -> None:
    """Compare the memory on this side for each host, between two commands, with that of two ssh processes."""
    hosts = bench.farm.first(bench.most_hosts)
    number = len(hosts.each)
    found: dict[str, Outcome] = {}
    for contestant in (REFERENCE, *crowd.WARM):
        if not contestant.is_installed():
            found[contestant.name] = NOT_INSTALLED
            continue
        with deadline(_PATIENCE, contestant.name):
            footprint = footprint_of(contestant.name, hosts)
        found[contestant.name] = _per_host(footprint, number, python=contestant is not REFERENCE)
        if not footprint.failed:
            bench.report.note(
                f"{contestant.name:32}{megabytes(footprint.python)} more in Python, "
                f"{megabytes(footprint.programs)} in {footprint.count} programs"
            )
    bench.report.measured(
        Measurement(f"memory for each of {_hosts(number)}", found, REFERENCE.name, words=megabytes),
        (Check(_EXTRA_MEMORY, REFERENCE.name),),
    )


def _per_host(footprint: Footprint, number: int, *, python: bool) -> Outcome:
    if footprint.failed:
        return Failure(footprint.failed)
    return Sample(((footprint.programs + (footprint.python if python else 0)) / number,))


# Items ----------------------------------------------------------------------------------------------------------------


def measure_map(bench: Bench) -> None:
    """Spread items that take no time over a few hosts."""
    items = range(_ITEMS)
    wanted = [remote.successor(item) for item in items]
    with crowd.group_on(bench.farm.first(_MAP_HOSTS)) as group:
        entry = Entry(ours.OURS, lambda: expect(wanted, list(group.map(remote.successor, items))))
        found = interleave([entry], _QUICK_MAP_ROUNDS if bench.is_quick else _MAP_ROUNDS, warm_up=2)
    label = f"`map`, {_ITEMS} items, {_MAP_HOSTS} hosts"
    bench.report.measured(Measurement(label, found, ours.OURS), ())
    taken = found[ours.OURS]
    shown, met = ("failed", False)
    if isinstance(taken, Sample):
        shown, met = f"{_ITEMS / taken.median:,.0f} a second", is_met(_PACE, taken.median, 0.0)
    bench.report.judged(Line(label, shown, "-", "", describe(_PACE), met))


def _counts(bench: Bench) -> list[int]:
    return sorted({min(count, bench.most_hosts) for count in _COUNTS})


def _hosts(count: int) -> str:
    return "1 host" if count == 1 else f"{count} hosts"
