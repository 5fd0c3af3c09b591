"""The output of the benchmarks: as they go, and at the end a line for each target and a table of the contestants."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from benchmarks.contestants import NOT_INSTALLED
from benchmarks.targets import Target, compare, describe_target, is_met
from benchmarks.timing import Failure, Outcome, Outcomes, Sample
from benchmarks.variants import LAZYCLUSTER


@attrs.frozen
class Check:
    """The target that ours has to reach, measured against one of the others."""

    target: Target
    reference: str
    ours: str = LAZYCLUSTER


@attrs.frozen
class Judgement:
    """One line of the table; `met` is None if there was nothing to compare with."""

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


def format_seconds(value: float) -> str:
    """Return a time in words."""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.{2 if value < 0.01 else 1 if value < 0.1 else 0}f} ms"


def format_megabytes(value: float) -> str:
    """Return a size in words."""
    return f"{value / 1e6:.2f} MB"


@attrs.frozen
class Measurement:
    """The outcomes under one label; `volume` is the number of bytes moved if a rate says more than a time.

    `formatter` renders an outcome: a time in seconds, or a size in bytes.
    """

    row: str
    outcomes: Outcomes
    reference: str
    volume: int | None = None
    formatter: Callable[[float], str] = format_seconds

    def format_outcome(self, name: str) -> str:
        outcome = self.outcomes.get(name)
        if not isinstance(outcome, Sample):
            return "-" if outcome in {None, NOT_INSTALLED} else "failed"
        return self.formatter(outcome.median) if self.volume is None else format_rate(self.volume, outcome.median)

    def ratio(self, name: str, reference: str) -> float | None:
        """Return the ratio of the time or size to that of the reference."""
        own, other = self.outcomes.get(name), self.outcomes.get(reference)
        return own.median / other.median if isinstance(own, Sample) and isinstance(other, Sample) else None


class Report:
    """Prints measurements and judgements as they come, and again as tables at the end."""

    def __init__(self, machine: str) -> None:
        """Print the machine."""
        self._machine = machine
        self._measurements: list[Measurement] = []
        self._judgements: list[Judgement] = []
        self._number = 0
        _print(machine)

    def start_row(self, number: int, title: str) -> None:
        """Begin a row."""
        self._number = number
        _print(f"\n== {number}. {title}")

    def note(self, text: str) -> None:
        """Print a remark on the row."""
        _print(f"   {text}")

    def add_measurement(self, measurement: Measurement, checks: Sequence[Check]) -> None:
        """Print a measurement, the fastest first, and judge it."""
        self._measurements.append(attrs.evolve(measurement, row=self._with_row_number(measurement.row)))
        _print(f"\n   {measurement.row}")
        for name, outcome in sorted(measurement.outcomes.items(), key=lambda item: _sort_key(item[1])):
            _print(f"   {name:32}{_details(measurement, name, outcome)}")
        for check in checks:
            self.add_judgement(_judge(measurement, check))

    def add_judgement(self, line: Judgement) -> None:
        """Print one judgement, and keep it for the table."""
        self._judgements.append(attrs.evolve(line, row=self._with_row_number(line.row)))
        ours = f"ours {line.ours}, {line.reference}{f', {line.ratio}' if line.ratio else ''}"
        _print(f"   -> {line.row}: {line.target}: {line.verdict} ({ours})")

    def add_failure(self, title: str, failure: Failure) -> None:
        """Print that a row could not be measured."""
        self.note(f"failed: {failure.reason}")
        self.add_judgement(Judgement(title, "failed", "-", "", "to be measured", met=False))

    def _with_row_number(self, row: str) -> str:
        return f"{self._number}. {row}"

    def finish(self) -> None:
        """Print the tables, ready to be pasted."""
        _print(f"\n{self._machine}\n")
        small = [each for each in self._measurements if each.volume is None]
        names = list(dict.fromkeys(name for each in small for name in each.outcomes))
        if small:
            _print_table(("", *names), [(each.row, *map(each.format_outcome, names)) for each in small])
            _print("")
        _print_table(
            ("row", "ours", "reference", "ratio", "target", "met?"), [line.cells() for line in self._judgements]
        )
        _print(f"\n{sum(line.met is True for line in self._judgements)} of {len(self._judgements)} targets met")

    def write_json(self, path: Path) -> None:
        """Write everything as JSON, times in seconds and sizes in bytes."""
        rows = [
            {
                "row": each.row,
                "reference": each.reference,
                "bytes": each.volume,
                "outcomes": {name: _outcome_record(outcome) for name, outcome in each.outcomes.items()},
            }
            for each in self._measurements
        ]
        found = {
            "machine": self._machine,
            "measured": rows,
            "targets": [attrs.asdict(line) for line in self._judgements],
        }
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def format_rate(volume: int, value: float) -> str:
    """Return a rate in words."""
    return f"{volume / value / 1e6:.0f} MB/s"


def _judge(measurement: Measurement, check: Check) -> Judgement:
    ours, reference = measurement.outcomes.get(check.ours), measurement.outcomes.get(check.reference)
    ratio, met = "", None
    if isinstance(ours, Failure):
        met = False
    elif isinstance(ours, Sample) and isinstance(reference, Sample):
        ratio = compare(check.target, ours.median, reference.median)
        met = is_met(check.target, ours.median, reference.median)
    return Judgement(
        measurement.row,
        measurement.format_outcome(check.ours),
        f"{measurement.format_outcome(check.reference)} {check.reference}",
        ratio,
        describe_target(check.target),
        met,
    )


def _details(measurement: Measurement, name: str, outcome: Outcome) -> str:
    if isinstance(outcome, Failure):
        return outcome.reason
    low, high = outcome.percentiles
    ratio = measurement.ratio(name, measurement.reference)
    times = "" if ratio is None else f"{ratio:8.2f} x{' (reference)' if name == measurement.reference else ''}"
    moved = "" if measurement.volume is None else f"  {format_rate(measurement.volume, outcome.median):>9}"
    words = measurement.formatter
    return f"{words(outcome.median):>9}  {f'({words(low)} - {words(high)})':24}{moved}{times}"


def _sort_key(outcome: Outcome) -> float:
    return outcome.median if isinstance(outcome, Sample) else float("inf")


def _outcome_record(outcome: Outcome) -> dict[str, object]:
    if isinstance(outcome, Failure):
        return {"failure": outcome.reason}
    low, high = outcome.percentiles
    return {"median": outcome.median, "p10": low, "p90": high, "count": len(outcome.times)}


def _print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for row in (heads, ["---"] * len(heads), *rows):
        _print(f"| {' | '.join(row)} |")


def _print(text: str) -> None:
    print(text, flush=True)
