"""How many sessions a master may carry at once, learned from the host."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from lazycluster._waiting import CancelledError, CancelToken, Deadline, DeadlinePassedError, wait_for

DEFAULT_MAX_SESSIONS = 10
"""sshd's MaxSessions where nobody set it (sshd_config(5))."""

_SUCCESSES_BEFORE_RAISING_LIMIT = 20


class NoSessionAvailableError(Exception):
    """Every session that the host allows is one that lasts."""


class SessionLimit:
    """Lets as many sessions run at once as the host allows; the others wait for a free slot."""

    def __init__(self, max_sessions: int = DEFAULT_MAX_SESSIONS) -> None:
        """Start from a limit that the first refusal may lower."""
        self._max_sessions = max_sessions
        self._initial_max_sessions = max_sessions
        self._in_use = 0
        self._long_lived = 0
        self._successes = 0
        self._changed = threading.Condition()

    @property
    def max_sessions(self) -> int:
        """Return how many sessions run at once at most, as far as is known."""
        return self._max_sessions

    @contextlib.contextmanager
    def acquire(
        self, deadline: Deadline, cancel_token: CancelToken | None = None, *, long_lived: bool = False
    ) -> Iterator[None]:
        """Hold a slot; wait for a free one first. A long-lived session lasts as long as its client: the supervisor's.

        Raises:
            DeadlinePassedError: None became free in time.
            CancelledError: The token was cancelled first.
            NoSlotError: Lasting sessions hold all of them.
        """
        with (
            contextlib.nullcontext() if cancel_token is None else cancel_token.on_cancel(self._notify_all),
            self._changed,
        ):
            wait_for(
                lambda: (
                    self._in_use < self._max_sessions
                    or self._long_lived >= self._max_sessions
                    or (cancel_token is not None and cancel_token.is_cancelled)
                ),
                self._changed,
                deadline,
            )
            if cancel_token is not None and cancel_token.is_cancelled:
                raise CancelledError
            if self._in_use >= self._max_sessions:
                raise NoSessionAvailableError if self._long_lived >= self._max_sessions else DeadlinePassedError
            self._in_use += 1
            self._long_lived += long_lived
        try:
            yield
        finally:
            with self._changed:
                self._in_use -= 1
                self._long_lived -= long_lived
                self._changed.notify_all()

    def _notify_all(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def record_success(self) -> None:
        """Learn from a session that began: after some of them in a row, try one more at once again.

        A host counts sessions that were given up until their commands have ended, so a refusal may have been passing.
        """
        with self._changed:
            self._successes += 1
            if self._successes >= _SUCCESSES_BEFORE_RAISING_LIMIT and self._max_sessions < self._initial_max_sessions:
                self._max_sessions += 1
                self._successes = 0
                self._changed.notify_all()

    def record_refusal(self) -> bool:
        """Learn from a refusal, while still holding the slot; return whether other sessions are under way.

        Where none is, the host still counts a session that has ended here, or allows none at all.
        """
        with self._changed:
            others = self._in_use - 1
            self._max_sessions = max(1, min(self._max_sessions, others))
            self._successes = 0
            return others > 0

    def wait_for_change(self, deadline: Deadline, timeout: float) -> None:
        """Wait until a session ends, at most so many seconds."""
        with self._changed:
            self._changed.wait(deadline.clamp(timeout))
