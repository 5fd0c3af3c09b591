"""Wait for a condition with a deadline, never for a guessed time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    """Wait until a condition holds, at most `timeout` seconds. Returns whether it held in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def assert_eventually(condition: Callable[[], bool], expected: str, timeout: float = 10.0) -> None:
    """Assert that a condition holds within `timeout` seconds; `expected` says it in words."""
    assert wait_until(condition, timeout), f"not within {timeout:g} s: {expected}"
