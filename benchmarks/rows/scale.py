"""Rows 11 to 14: many hosts, each a private sshd."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from benchmarks import baselines, many_hosts, remote, variants
from benchmarks.contestants import NOT_INSTALLED, Contestant, expect, open_contestants
from benchmarks.hosts import Hosts, LoginCounter
from benchmarks.memory import MEMORY_REFERENCE, Footprint, measure_in_subprocess
from benchmarks.report import Check, Judgement, Measurement, format_megabytes
from benchmarks.rows.bench import Bench
from benchmarks.targets import Faster, MaxExtraBytes, MaxRatio, MinItemsPerSecond, describe_target, is_met
from benchmarks.timing import Entry, Failure, Outcome, Outcomes, Sample, deadline, interleave

_HOST_COUNTS = (1, 10, 50, 100)
_MAX_ALIASES_OF_ONE_HOST = 50
_COLD_ROUNDS = 3
_MAP_HOSTS = 4
_MAP_ROUNDS = 20
_QUICK_MAP_ROUNDS = 5
_MAP_ITEMS = 2000
_MAP_TARGET = MinItemsPerSecond(1000.0, _MAP_ITEMS)
_MEMORY_TARGET = MaxExtraBytes(0.5e6)
_ROUND_TIMEOUT_SECONDS = 180.0


# Warm -----------------------------------------------------------------------------------------------------------------


def measure_warm(bench: Bench) -> None:
    """Compare `true` on all hosts at once, over open connections; the targets are those of the most hosts."""
    for count in _host_counts(bench):
        with open_contestants(many_hosts.WARM_CONTESTANTS, bench.farm.first_hosts(count), _ROUND_TIMEOUT_SECONDS) as (
            able,
            missing,
        ):
            entries = [
                Entry(name, each.command, timeout=_ROUND_TIMEOUT_SECONDS)
                for name, each in able.items()
                if each.command is not None
            ]
            found = {**interleave(entries, _warm_rounds(bench, count), warm_up=2), **missing}
        checks = [Check(Faster(), peer) for peer in many_hosts.PEER_NAMES] if count == bench.most_hosts else []
        bench.report.add_measurement(
            Measurement(f'warm `run("true")`, {_format_host_count(count)}', found, baselines.SSH_THROUGH_MASTER.name),
            checks,
        )


def _warm_rounds(bench: Bench, count: int) -> int:
    return max(5, 50 // count) if bench.is_quick else max(20, 400 // count)


# Cold -----------------------------------------------------------------------------------------------------------------


def measure_cold(bench: Bench) -> None:
    """Compare connecting to all hosts and running `true` on them; also to hosts that are one, which limits log-ins."""
    for count in _host_counts(bench):
        # The first round is for the imports of each contestant, which are the same for any number of hosts.
        found = _cold_outcomes(
            many_hosts.COLD_CONTESTANTS, bench.farm.first_hosts(count), warm_up=1 if count == 1 else 0
        )
        bench.report.add_measurement(
            Measurement(f"connect and `true`, {_format_host_count(count)}", found, baselines.SSH_PER_COMMAND.name),
            (Check(MaxRatio(1.3), baselines.SSH_PER_COMMAND.name),),
        )
        _judge_failures(bench, f"failures, {_format_host_count(count)}", found)
    count = min(_MAX_ALIASES_OF_ONE_HOST, bench.most_hosts)
    # Fabric's groups identify connections by address and port, and would take all for one.
    contestants = [each for each in many_hosts.COLD_CONTESTANTS if each.name != "fabric"]
    found = _cold_outcomes(contestants, bench.farm.aliases_of_one_host(count), warm_up=0)
    bench.report.add_measurement(
        Measurement(f"connect and `true`, one sshd, {count} names", found, baselines.SSH_PER_COMMAND.name), ()
    )
    _judge_failures(bench, f"failures, one sshd, {count} names", found)


def _cold_outcomes(contestants: Sequence[Contestant[Hosts]], hosts: Hosts, warm_up: int) -> Outcomes:
    able = [each for each in contestants if each.is_installed()]
    log_ins = LoginCounter(hosts)
    entries = [_cold_entry(each, hosts, log_ins) for each in able]
    missing = {each.name: NOT_INSTALLED for each in contestants if each not in able}
    return {**interleave(entries, _COLD_ROUNDS, warm_up), **missing}


def _cold_entry(contestant: Contestant[Hosts], hosts: Hosts, log_ins: LoginCounter) -> Entry:
    """Open a contestant and run a command; the close, and the check that each sshd has seen a log-in, are not timed."""
    stack = contextlib.ExitStack()

    def act() -> None:
        abilities = stack.enter_context(contestant.open(hosts))
        assert abilities.command is not None
        abilities.command()

    def tidy() -> None:
        stack.close()
        log_ins.expect_login_on_each()

    return Entry(contestant.name, act, tidy, timeout=_ROUND_TIMEOUT_SECONDS)


def _judge_failures(bench: Bench, label: str, found: Outcomes) -> None:
    bench.report.add_judgement(
        Judgement(
            label,
            _format_failures(found[variants.LAZYCLUSTER]),
            f"{_format_failures(found[baselines.SSH_PER_COMMAND.name])} {baselines.SSH_PER_COMMAND.name}",
            "",
            "none",
            isinstance(found[variants.LAZYCLUSTER], Sample),
        )
    )


def _format_failures(outcome: Outcome) -> str:
    return "none" if isinstance(outcome, Sample) else outcome.reason.partition(", such as")[0].partition(": ")[2]


# Memory ---------------------------------------------------------------------------------------------------------------


def measure_memory(bench: Bench) -> None:
    """Compare the local memory for each host, between two commands, with that of two ssh processes."""
    hosts = bench.farm.first_hosts(bench.most_hosts)
    number = len(hosts.members)
    found: dict[str, Outcome] = {}
    for contestant in (MEMORY_REFERENCE, *many_hosts.WARM_CONTESTANTS):
        if not contestant.is_installed():
            found[contestant.name] = NOT_INSTALLED
            continue
        with deadline(_ROUND_TIMEOUT_SECONDS, contestant.name):
            footprint = measure_in_subprocess(contestant.name, hosts)
        found[contestant.name] = _per_host(footprint, number, python=contestant is not MEMORY_REFERENCE)
        if not footprint.failed:
            bench.report.note(
                f"{contestant.name:32}{format_megabytes(footprint.python)} more in Python, "
                f"{format_megabytes(footprint.programs)} in {footprint.count} programs"
            )
    bench.report.add_measurement(
        Measurement(
            f"memory for each of {_format_host_count(number)}", found, MEMORY_REFERENCE.name, formatter=format_megabytes
        ),
        (Check(_MEMORY_TARGET, MEMORY_REFERENCE.name),),
    )


def _per_host(footprint: Footprint, number: int, *, python: bool) -> Outcome:
    if footprint.failed:
        return Failure(footprint.failed)
    return Sample(((footprint.programs + (footprint.python if python else 0)) / number,))


# Items ----------------------------------------------------------------------------------------------------------------


def measure_map(bench: Bench) -> None:
    """Spread items that take no time over a few hosts."""
    items = range(_MAP_ITEMS)
    wanted = [remote.successor(item) for item in items]
    with many_hosts.new_group(bench.farm.first_hosts(_MAP_HOSTS)) as group:
        entry = Entry(variants.LAZYCLUSTER, lambda: expect(wanted, list(group.map(remote.successor, items))))
        found = interleave([entry], _QUICK_MAP_ROUNDS if bench.is_quick else _MAP_ROUNDS, warm_up=2)
    label = f"`map`, {_MAP_ITEMS} items, {_MAP_HOSTS} hosts"
    bench.report.add_measurement(Measurement(label, found, variants.LAZYCLUSTER), ())
    taken = found[variants.LAZYCLUSTER]
    shown, met = ("failed", False)
    if isinstance(taken, Sample):
        shown, met = f"{_MAP_ITEMS / taken.median:,.0f} a second", is_met(_MAP_TARGET, taken.median, 0.0)
    bench.report.add_judgement(Judgement(label, shown, "-", "", describe_target(_MAP_TARGET), met))


def _host_counts(bench: Bench) -> list[int]:
    return sorted({min(count, bench.most_hosts) for count in _HOST_COUNTS})


def _format_host_count(count: int) -> str:
    return "1 host" if count == 1 else f"{count} hosts"
