"""The targets, as records, and their judge."""

from __future__ import annotations

from typing import TypeAlias

import attrs

from lazycluster._typing import assert_never


@attrs.frozen
class Times:
    """At most so many times as long as the reference."""

    limit: float


@attrs.frozen
class Faster:
    """Less time than the reference; or, where that is enough, no more."""

    strictly: bool = True


@attrs.frozen
class Share:
    """At least this share of the reference's rate."""

    limit: float


@attrs.frozen
class Plus:
    """At most so many seconds longer than the reference."""

    seconds: float


@attrs.frozen
class PlusMemory:
    """At most so many bytes more than the reference."""

    bytes: float


@attrs.frozen
class Pace:
    """At least so many of the items a second; there is nothing to compare with."""

    per_second: float
    items: int


Target: TypeAlias = Times | Faster | Share | Plus | PlusMemory | Pace


def is_met(target: Target, ours: float, reference: float) -> bool:
    """Judge two times, in seconds, for the same work; or two sizes, in bytes."""
    match target:
        case Times():
            return ours <= target.limit * reference
        case Faster():
            return ours < reference if target.strictly else ours <= reference
        case Share():
            return reference >= target.limit * ours
        case Plus():
            return ours <= reference + target.seconds
        case PlusMemory():
            return ours <= reference + target.bytes
        case Pace():
            return target.items >= target.per_second * ours
        case _:
            assert_never(target)


def compare(target: Target, ours: float, reference: float) -> str:
    """Return how two times or sizes compare, in the terms of the target."""
    match target:
        case Times() | Faster():
            return f"{ours / reference:.2f} x"
        case Share():
            return f"{reference / ours:.2f} x"
        case Plus():
            return f"{(ours - reference) * 1000:+.1f} ms"
        case PlusMemory():
            return f"{(ours - reference) / 1e6:+.2f} MB"
        case Pace():
            return ""
        case _:
            assert_never(target)


def describe(target: Target) -> str:
    """Return a target in words."""
    match target:
        case Times():
            return f"at most {target.limit:g} x"
        case Faster():
            return "faster" if target.strictly else "not slower"
        case Share():
            return f"at least {target.limit:g} x the rate"
        case Plus():
            return f"at most {target.seconds * 1000:g} ms more"
        case PlusMemory():
            return f"at most {target.bytes / 1e6:g} MB more"
        case Pace():
            return f"at least {target.per_second:,g} a second"
        case _:
            assert_never(target)
