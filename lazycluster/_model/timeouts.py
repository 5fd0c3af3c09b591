"""The waits and pauses of connections and tunnels, in one record that tests can replace."""

from __future__ import annotations

import attrs


@attrs.frozen
class Timeouts:
    """Seconds of the waits and pauses of connections and tunnels."""

    session_refused: float = 1.0
    """From a refused session to the second try, unless another session ends before."""


DEFAULT_TIMEOUTS = Timeouts()
