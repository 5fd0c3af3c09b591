"""The limit of the sessions that a master carries at once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from lazycluster._waiting import CancelledError, CancelToken, Deadline, DeadlinePassedError, hold, wait_for


class NoSessionAvailableError(Exception):
    """All sessions that may run at once are long-lived ones."""


class SessionLimit:
    """Lets at most `max_sessions` sessions run at once; the others wait until one ends."""

    def __init__(self, max_sessions: int) -> None:
        """Begin without a session."""
        self._max_sessions = max_sessions
        self._in_use = 0
        self._long_lived = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def acquire(
        self, deadline: Deadline, cancel_token: CancelToken | None = None, *, long_lived: bool = False
    ) -> Iterator[None]:
        """Hold one session; wait until one is free. A long-lived one lasts as long as its client: the supervisor's.

        Raises:
            DeadlinePassedError: If no session becomes free in time.
            CancelledError: If the token is cancelled first.
            NoSessionAvailableError: If all sessions that may run at once are long-lived ones.
        """
        with (
            contextlib.nullcontext() if cancel_token is None else cancel_token.on_cancel(self._notify_all),
            hold(self._changed),
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
            self._release(long_lived=long_lived)

    @contextlib.contextmanager
    def acquire_if_free(self) -> Iterator[bool]:
        """Hold one session if one is free; yield whether one was."""
        with self._changed:
            free = self._in_use < self._max_sessions
            self._in_use += free
        try:
            yield free
        finally:
            if free:
                self._release()

    def _release(self, *, long_lived: bool = False) -> None:
        with self._changed:
            self._in_use -= 1
            self._long_lived -= long_lived
            self._changed.notify_all()

    def _notify_all(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def wait_for_release(self, timeout: float) -> None:
        """Wait until a session ends, at most `timeout` seconds."""
        with self._changed:
            self._changed.wait(timeout)
