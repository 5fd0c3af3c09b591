"""Measuring side by side: everything in turns, so that a slowdown of the machine hits all alike."""

from __future__ import annotations

import contextlib
import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import attrs

_ALARM_REPEAT_SECONDS = 10.0  # seconds after which an alarm that had no effect is repeated


def _no_tidying() -> None:
    """Leave nothing to be tidied."""


@attrs.frozen
class Entry:
    """One measurement: only `act` is timed. `tidy` follows each time, and `timeout`, in seconds, is for both."""

    name: str
    act: Callable[[], object]
    tidy: Callable[[], object] = _no_tidying
    timeout: float = 60.0


@attrs.frozen
class Sample:
    """The time that something took each time, in seconds; or its memory, in bytes."""

    times: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.times)

    @property
    def percentiles(self) -> tuple[float, float]:
        """The tenth and the ninetieth percentile; the extremes if there are few values."""
        ordered = sorted(self.times)
        cut = len(ordered) // 10
        return ordered[cut], ordered[-1 - cut]


@attrs.frozen
class Failure:
    """Why something was not measured."""

    reason: str


Outcome: TypeAlias = Sample | Failure
Outcomes: TypeAlias = Mapping[str, Outcome]


def interleave(entries: Sequence[Entry], rounds: int, warm_up: int) -> Outcomes:
    """Measure each entry once a round, after rounds that do not count; one that fails takes no further part.

    Each round has an order of its own, so that no entry always follows the same neighbour and pays for the work that it
    leaves running. The orders are the same in every run.
    """
    times: dict[str, list[float]] = {entry.name: [] for entry in entries}
    failures: dict[str, Failure] = {}
    shuffle = random.Random(0).shuffle
    for number in range(-warm_up, rounds):
        order = [entry for entry in entries if entry.name not in failures]
        shuffle(order)
        for entry in order:
            try:
                taken = _time_entry(entry)
            except Exception as error:  # noqa: BLE001 - a contestant may raise anything, and the others go on
                failures[entry.name] = failure_from(error)
            else:
                if number >= 0:
                    times[entry.name].append(taken)
    return {entry.name: failures.get(entry.name) or Sample(tuple(times[entry.name])) for entry in entries}


def failure_from(error: Exception) -> Failure:
    """Return an error as a reason on one line."""
    return Failure(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


def _time_entry(entry: Entry) -> float:
    with deadline(entry.timeout, entry.name):
        try:
            started = time.perf_counter()
            entry.act()
            taken = time.perf_counter() - started
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is reported
                entry.tidy()
            raise
        entry.tidy()
        return taken


@contextlib.contextmanager
def deadline(seconds: float, what: str) -> Iterator[None]:
    """Raise `TimeoutError` in a block that takes longer, whatever it waits for; for the main thread.

    It is an alarm, because most of the peers have waits without a time limit. It is repeated in case one of them
    swallows it. The deadline of a block around this one goes on afterwards.
    """

    def raise_timeout(_number: int, _frame: object) -> None:
        raise TimeoutError(f"{what}: no end after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, raise_timeout)
    started = time.monotonic()
    outer_remaining, interval = signal.setitimer(signal.ITIMER_REAL, seconds, _ALARM_REPEAT_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if outer_remaining:
            signal.setitimer(signal.ITIMER_REAL, max(outer_remaining - (time.monotonic() - started), 0.001), interval)
