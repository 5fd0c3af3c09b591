"""The state of a tunnel and of each of its forwardings: whether it is open, and when the next try is due."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import attrs

from lazycluster._model.forwarding import Forwarding

_MIN_RECONNECT_DELAY_SECONDS = 0.5
MAX_RECONNECT_DELAY_SECONDS = 15.0


@attrs.define
class BackOff:
    """The time of the next try: the pauses between tries grow."""

    retry_at: float = 0.0
    delay: float = attrs.field(factory=lambda: _MIN_RECONNECT_DELAY_SECONDS)

    def record_failure(self) -> None:
        """Put the next try off by a pause, and make the pause after that longer."""
        self.retry_at = time.monotonic() + self.delay
        self.delay = min(2 * self.delay, MAX_RECONNECT_DELAY_SECONDS)

    @property
    def has_failed(self) -> bool:
        """Return whether a try has failed."""
        return self.delay != _MIN_RECONNECT_DELAY_SECONDS

    @property
    def remaining(self) -> float:
        """The seconds until the next try."""
        return max(0.0, self.retry_at - time.monotonic())


@attrs.define(eq=False)
class ForwardingState:
    """One forwarding: whether it is open on the present connection, and when the next try is due."""

    forwarding: Forwarding
    is_open: bool = False
    back_off: BackOff = attrs.field(factory=BackOff)

    def mark_closed(self) -> None:
        """Record that the forwarding is closed, so that the manager opens it at once."""
        self.is_open, self.back_off = False, BackOff()


def _forwarding_states(forwardings: Sequence[Forwarding]) -> tuple[ForwardingState, ...]:
    return tuple(map(ForwardingState, forwardings))


@attrs.define(eq=False)
class TunnelState:
    """One tunnel: its forwardings, and how far it has come. `owner` lives as long as the tunnel is managed."""

    name: str
    forwarding_states: tuple[ForwardingState, ...] = attrs.field(converter=_forwarding_states)
    owner: object | None = None
    has_opened: bool = False
    """Every forwarding was open once. From then on a forwarding that fails is tried again."""
    lost_connections: int = 0
    stop_requested: bool = False
    graceful: bool = True
    exit_code: int | None = None
    error: Exception | None = None
    settled: threading.Event = attrs.field(factory=threading.Event)
    ended: threading.Event = attrs.field(factory=threading.Event)

    @property
    def forwardings(self) -> tuple[Forwarding, ...]:
        """The forwardings that the tunnel is made of."""
        return tuple(state.forwarding for state in self.forwarding_states)

    @property
    def open_forwardings(self) -> list[Forwarding]:
        """The forwardings that are open."""
        return [state.forwarding for state in self.forwarding_states if state.is_open]

    def mark_opened(self) -> None:
        """Record that every forwarding is open."""
        self.has_opened = True
        self.settled.set()

    def fail(self, error: Exception) -> None:
        """Give the tunnel up before it has opened: the manager ends it, and the waiting thread gets the error."""
        self.error, self.stop_requested = error, True

    def mark_ended(self, exit_code: int = 0) -> None:
        """Record that the tunnel has ended, and drop its owner. Calling this twice is fine."""
        self.exit_code = exit_code if self.exit_code is None else self.exit_code
        self.settled.set()
        self.ended.set()
        self.owner = None
