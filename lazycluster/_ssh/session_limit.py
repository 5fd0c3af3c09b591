"""How many sessions a master may carry at once, learned from the host."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from lazycluster._waiting import Cancellation, CancelledError, Deadline, DeadlinePassedError, holds

DEFAULT_LIMIT = 10
"""sshd's MaxSessions where nobody set it (sshd_config(5))."""

_TRUST = 20


class NoSlotError(Exception):
    """Every session that the host allows is one that lasts."""


class SessionSlots:
    """Lets as many sessions run at once as the host allows; the others wait for a free slot."""

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        """Start from a limit that the first refusal may lower."""
        self._limit = limit
        self._most = limit
        self._used = 0
        self._lasting = 0
        self._accepted = 0
        self._changed = threading.Condition()

    @property
    def limit(self) -> int:
        """Return how many sessions run at once at most, as far as is known."""
        return self._limit

    @contextlib.contextmanager
    def taken(
        self, deadline: Deadline, cancellation: Cancellation | None = None, *, lasting: bool = False
    ) -> Iterator[None]:
        """Hold a slot; wait for a free one first. A lasting session is one whose end nobody waits for.

        Raises:
            DeadlinePassedError: None became free in time.
            CancelledError: The cancellation was requested first.
            NoSlotError: Lasting sessions hold all of them.
        """
        with contextlib.nullcontext() if cancellation is None else cancellation.calling(self._wake), self._changed:
            holds(
                lambda: (
                    self._used < self._limit
                    or self._lasting >= self._limit
                    or (cancellation is not None and cancellation.requested)
                ),
                self._changed,
                deadline,
            )
            if cancellation is not None and cancellation.requested:
                raise CancelledError
            if self._used >= self._limit:
                raise NoSlotError if self._lasting >= self._limit else DeadlinePassedError
            self._used += 1
            self._lasting += lasting
        try:
            yield
        finally:
            with self._changed:
                self._used -= 1
                self._lasting -= lasting
                self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def accepted(self) -> None:
        """Learn from a session that began: after some of them in a row, try one more at once again.

        A host counts sessions that were given up until their commands have ended, so a refusal may have been passing.
        """
        with self._changed:
            self._accepted += 1
            if self._accepted >= _TRUST and self._limit < self._most:
                self._limit += 1
                self._accepted = 0
                self._changed.notify_all()

    def refused(self) -> bool:
        """Learn from a refusal, while still holding the slot; return whether other sessions are under way.

        Where none is, the host still counts a session that has ended here, or allows none at all.
        """
        with self._changed:
            others = self._used - 1
            self._limit = max(1, min(self._limit, others))
            self._accepted = 0
            return others > 0

    def wait_for_change(self, deadline: Deadline, seconds: float) -> None:
        """Wait until a session ends, at most so many seconds."""
        with self._changed:
            self._changed.wait(deadline.within(seconds))
