"""What a contestant is, and how those that can take part are opened."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import attrs

from benchmarks.measuring import Failure, Outcome, deadline, failure
from benchmarks.sites import Site

NOT_INSTALLED = Failure("not installed")
_PATIENCE = 60.0  # seconds to log in, and to close


@attrs.frozen
class Abilities:
    """What an open contestant does; None where it cannot, or is not meant to.

    `command` runs `true` on the host, reads all that it prints, and takes its exit status. `call` calls a function of
    `benchmarks.remote` there and returns what it returns.
    """

    command: Callable[[], object] | None = None
    call: Callable[..., object] | None = None


Opener: TypeAlias = Callable[[Site], contextlib.AbstractContextManager[Abilities]]


@attrs.frozen
class Contestant:
    """Somebody who runs work on another machine, and the package that it takes where it is a library."""

    name: str
    open: Opener
    package: str | None = None

    def is_installed(self) -> bool:
        return self.package is None or importlib.util.find_spec(self.package) is not None


@contextlib.contextmanager
def opened(contestants: Sequence[Contestant], site: Site) -> Iterator[tuple[dict[str, Abilities], dict[str, Outcome]]]:
    """Open all that can be for a block; give their abilities, and why the others are missing, by name."""
    stack = contextlib.ExitStack()
    abilities: dict[str, Abilities] = {}
    missing: dict[str, Outcome] = {}
    try:
        for contestant in contestants:
            if not contestant.is_installed():
                missing[contestant.name] = NOT_INSTALLED
                continue
            try:
                with deadline(_PATIENCE, f"open {contestant.name}"):
                    abilities[contestant.name] = stack.enter_context(contestant.open(site))
            except Exception as error:  # noqa: BLE001 - whatever it is, the others go on
                missing[contestant.name] = failure(error)
        yield abilities, missing
    finally:
        with deadline(_PATIENCE, "close the contestants"):
            stack.close()


def expect(wanted: object, got: object) -> None:
    """Refuse a wrong answer: a contestant that does not do the work is not to win."""
    if got != wanted:
        raise ValueError(f"got {got!r:.100} for {wanted!r:.100}")
