"""The targets, as records, and their judge."""

from __future__ import annotations

from typing import TypeAlias

import attrs

from lazycluster._typing import assert_never


@attrs.frozen
class MaxRatio:
    """At most `limit` times as long as the reference."""

    limit: float


@attrs.frozen
class Faster:
    """Less time than the reference; unless `strictly`, no more time is enough."""

    strictly: bool = True


@attrs.frozen
class MinRateShare:
    """At least the share `limit` of the reference's rate."""

    limit: float


@attrs.frozen
class MaxExtraSeconds:
    """At most `seconds` longer than the reference."""

    seconds: float


@attrs.frozen
class MaxExtraBytes:
    """At most `bytes` more than the reference."""

    bytes: float


@attrs.frozen
class MinItemsPerSecond:
    """At least `per_second` of the items a second; there is nothing to compare with."""

    per_second: float
    items: int


Target: TypeAlias = MaxRatio | Faster | MinRateShare | MaxExtraSeconds | MaxExtraBytes | MinItemsPerSecond


def is_met(target: Target, ours: float, reference: float) -> bool:
    """Judge two times, in seconds, for the same work; or two sizes, in bytes."""
    match target:
        case MaxRatio():
            return ours <= target.limit * reference
        case Faster():
            return ours < reference if target.strictly else ours <= reference
        case MinRateShare():
            return reference >= target.limit * ours
        case MaxExtraSeconds():
            return ours <= reference + target.seconds
        case MaxExtraBytes():
            return ours <= reference + target.bytes
        case MinItemsPerSecond():
            return target.items >= target.per_second * ours
        case _:
            assert_never(target)


def compare(target: Target, ours: float, reference: float) -> str:
    """Return how two times or sizes compare, in the terms of the target."""
    match target:
        case MaxRatio() | Faster():
            return f"{ours / reference:.2f} x"
        case MinRateShare():
            return f"{reference / ours:.2f} x"
        case MaxExtraSeconds():
            return f"{(ours - reference) * 1000:+.1f} ms"
        case MaxExtraBytes():
            return f"{(ours - reference) / 1e6:+.2f} MB"
        case MinItemsPerSecond():
            return ""
        case _:
            assert_never(target)


def describe_target(target: Target) -> str:
    """Return a target in words."""
    match target:
        case MaxRatio():
            return f"at most {target.limit:g} x"
        case Faster():
            return "faster" if target.strictly else "not slower"
        case MinRateShare():
            return f"at least {target.limit:g} x the rate"
        case MaxExtraSeconds():
            return f"at most {target.seconds * 1000:g} ms more"
        case MaxExtraBytes():
            return f"at most {target.bytes / 1e6:g} MB more"
        case MinItemsPerSecond():
            return f"at least {target.per_second:,g} a second"
        case _:
            assert_never(target)
