"""What the benchmarks print as they go, and at the end: one line for each target, and a table of the contestants."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from benchmarks.contestants import NOT_INSTALLED
from benchmarks.measuring import Failure, Outcome, Outcomes, Sample
from benchmarks.ours import OURS
from benchmarks.targets import Target, compare, describe, is_met


@attrs.frozen
class Check:
    """What ours has to reach, measured against one of the others."""

    target: Target
    reference: str
    ours: str = OURS


@attrs.frozen
class Line:
    """One line of the table; `met` is None where there was nothing to compare with."""

    row: str
    ours: str
    reference: str
    ratio: str
    target: str
    met: bool | None

    @property
    def verdict(self) -> str:
        return "not compared" if self.met is None else "met" if self.met else "NOT met"

    def cells(self) -> tuple[str, ...]:
        return (self.row, self.ours, self.reference, self.ratio, self.target, self.verdict)


def seconds(value: float) -> str:
    """Return a time in words."""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.{2 if value < 0.01 else 1 if value < 0.1 else 0}f} ms"


def megabytes(value: float) -> str:
    """Return a size in words."""
    return f"{value / 1e6:.2f} MB"


@attrs.frozen
class Measurement:
    """The outcomes under one label; `volume` is the number of bytes moved where a rate says more than a time.

    `words` renders an outcome: a time in seconds, or a size in bytes.
    """

    row: str
    outcomes: Outcomes
    reference: str
    volume: int | None = None
    words: Callable[[float], str] = seconds

    def shown(self, name: str) -> str:
        outcome = self.outcomes.get(name)
        if not isinstance(outcome, Sample):
            return "-" if outcome in {None, NOT_INSTALLED} else "failed"
        return self.words(outcome.median) if self.volume is None else rate(self.volume, outcome.median)

    def ratio(self, name: str, reference: str) -> float | None:
        """Return how many times as long it took as the reference, or as much."""
        own, other = self.outcomes.get(name), self.outcomes.get(reference)
        return own.median / other.median if isinstance(own, Sample) and isinstance(other, Sample) else None


class Report:
    """Prints, and keeps what it printed for the end."""

    def __init__(self, machine: str) -> None:
        """Print the machine."""
        self._machine = machine
        self._measurements: list[Measurement] = []
        self._lines: list[Line] = []
        self._number = 0
        _say(machine)

    def begin(self, number: int, title: str) -> None:
        """Begin a row."""
        self._number = number
        _say(f"\n== {number}. {title}")

    def note(self, text: str) -> None:
        """Say what is left out, and why."""
        _say(f"   {text}")

    def measured(self, measurement: Measurement, checks: Sequence[Check]) -> None:
        """Print what was measured, fastest first, and judge it."""
        self._measurements.append(attrs.evolve(measurement, row=self._numbered(measurement.row)))
        _say(f"\n   {measurement.row}")
        for name, outcome in sorted(measurement.outcomes.items(), key=lambda item: _order(item[1])):
            _say(f"   {name:32}{_details(measurement, name, outcome)}")
        for check in checks:
            self.judged(_line(measurement, check))

    def judged(self, line: Line) -> None:
        """Print one judgement, and keep it for the table."""
        self._lines.append(attrs.evolve(line, row=self._numbered(line.row)))
        ours = f"ours {line.ours}, {line.reference}{f', {line.ratio}' if line.ratio else ''}"
        _say(f"   -> {line.row}: {line.target}: {line.verdict} ({ours})")

    def failed(self, title: str, why: Failure) -> None:
        """Say that a row could not be measured."""
        self.note(f"failed: {why.reason}")
        self.judged(Line(title, "failed", "-", "", "to be measured", met=False))

    def _numbered(self, row: str) -> str:
        return f"{self._number}. {row}"

    def finish(self) -> None:
        """Print the tables, ready to be pasted."""
        _say(f"\n{self._machine}\n")
        small = [each for each in self._measurements if each.volume is None]
        names = list(dict.fromkeys(name for each in small for name in each.outcomes))
        if small:
            _table(("", *names), [(each.row, *map(each.shown, names)) for each in small])
            _say("")
        _table(("row", "ours", "reference", "ratio", "target", "met?"), [line.cells() for line in self._lines])
        _say(f"\n{sum(line.met is True for line in self._lines)} of {len(self._lines)} targets met")

    def write(self, path: Path) -> None:
        """Write everything as JSON, times in seconds and sizes in bytes."""
        rows = [
            {
                "row": each.row,
                "reference": each.reference,
                "bytes": each.volume,
                "outcomes": {name: _record(outcome) for name, outcome in each.outcomes.items()},
            }
            for each in self._measurements
        ]
        found = {"machine": self._machine, "measured": rows, "targets": [attrs.asdict(line) for line in self._lines]}
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def rate(volume: int, value: float) -> str:
    """Return a rate in words."""
    return f"{volume / value / 1e6:.0f} MB/s"


def _line(measurement: Measurement, check: Check) -> Line:
    ours, reference = measurement.outcomes.get(check.ours), measurement.outcomes.get(check.reference)
    ratio, met = "", None
    if isinstance(ours, Failure):
        met = False
    elif isinstance(ours, Sample) and isinstance(reference, Sample):
        ratio = compare(check.target, ours.median, reference.median)
        met = is_met(check.target, ours.median, reference.median)
    return Line(
        measurement.row,
        measurement.shown(check.ours),
        f"{measurement.shown(check.reference)} {check.reference}",
        ratio,
        describe(check.target),
        met,
    )


def _details(measurement: Measurement, name: str, outcome: Outcome) -> str:
    if isinstance(outcome, Failure):
        return outcome.reason
    low, high = outcome.spread
    ratio = measurement.ratio(name, measurement.reference)
    times = "" if ratio is None else f"{ratio:8.2f} x{' (reference)' if name == measurement.reference else ''}"
    moved = "" if measurement.volume is None else f"  {rate(measurement.volume, outcome.median):>9}"
    words = measurement.words
    return f"{words(outcome.median):>9}  {f'({words(low)} - {words(high)})':24}{moved}{times}"


def _order(outcome: Outcome) -> float:
    return outcome.median if isinstance(outcome, Sample) else float("inf")


def _record(outcome: Outcome) -> dict[str, object]:
    if isinstance(outcome, Failure):
        return {"failure": outcome.reason}
    low, high = outcome.spread
    return {"median": outcome.median, "p10": low, "p90": high, "count": len(outcome.times)}


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for row in (heads, ["---"] * len(heads), *rows):
        _say(f"| {' | '.join(row)} |")


def _say(text: str) -> None:
    print(text, flush=True)
