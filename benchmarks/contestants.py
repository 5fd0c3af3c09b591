"""Contestants, and how those that can take part are opened."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, TypeAlias, TypeVar

import attrs

from benchmarks.timing import Failure, Outcome, deadline, failure_from

NOT_INSTALLED = Failure("not installed")
_OPEN_TIMEOUT_SECONDS = 60.0  # seconds to log in, and to close


@attrs.frozen
class Abilities:
    """The abilities of an open contestant; None for one that it lacks, or that is not to be measured.

    `command` runs `true` on the host, or on every host, reads all that it prints, and takes its exit status. `call`
    calls a function of `benchmarks.remote` there and returns its value.
    """

    command: Callable[[], object] | None = None
    call: Callable[..., object] | None = None


W = TypeVar("W")
Opener: TypeAlias = Callable[[W], contextlib.AbstractContextManager[Abilities]]
"""Opens a contestant at its place of work: a `Site`, or `Hosts`."""


@attrs.frozen
class Contestant(Generic[W]):
    """A tool that runs work on other machines, and the package or program that it needs."""

    name: str
    open: Opener[W]
    package: str | None = None
    program: str | None = None

    def is_installed(self) -> bool:
        has_package = self.package is None or importlib.util.find_spec(self.package) is not None
        return has_package and (self.program is None or shutil.which(self.program) is not None)


@contextlib.contextmanager
def open_contestants(
    contestants: Sequence[Contestant[W]], where: W, timeout: float = _OPEN_TIMEOUT_SECONDS
) -> Iterator[tuple[dict[str, Abilities], dict[str, Outcome]]]:
    """Open all that can take part, for a block; yield their abilities, and why the others are missing, by name."""
    stack = contextlib.ExitStack()
    abilities: dict[str, Abilities] = {}
    missing: dict[str, Outcome] = {}
    try:
        for contestant in contestants:
            if not contestant.is_installed():
                missing[contestant.name] = NOT_INSTALLED
                continue
            try:
                with deadline(timeout, f"open {contestant.name}"):
                    abilities[contestant.name] = stack.enter_context(contestant.open(where))
            except Exception as error:  # noqa: BLE001 - the others go on after any error
                missing[contestant.name] = failure_from(error)
        yield abilities, missing
    finally:
        with deadline(timeout, "close the contestants"):
            stack.close()


def expect(wanted: object, got: object) -> None:
    """Refuse a wrong answer: a contestant that does not do the work must not win."""
    if got != wanted:
        raise ValueError(f"got {got!r:.100} for {wanted!r:.100}")


@attrs.frozen
class SomeHostsFailedError(Exception):
    """A contestant did not run the command on every host; each that failed, with why."""

    failed: Mapping[str, str]
    total: int

    def __str__(self) -> str:
        host, reason = next(iter(self.failed.items()))
        return f"{len(self.failed)} of {self.total} hosts failed, such as {host}: {reason}"


def expect_no_failures(failed: Mapping[str, str], total: int) -> None:
    """Refuse work that was not done on every host."""
    if failed:
        raise SomeHostsFailedError(failed, total)
