"""How a caller follows, and may stop, work on a host."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from lazycluster._waiting import CancelToken
from lazycluster.results import Collector, Stream


def _ignore_output(_stream: Stream, _data: bytes) -> None:
    """Drop a piece of output."""


def _ignore_progress(_done: int, _total: int | None) -> None:
    """Drop a report of progress."""


@attrs.frozen
class Watch:
    """How a caller follows, and may stop, what it asked for.

    `on_output` gets each piece of output while it is produced, `on_progress` the bytes moved so far and in all (None:
    nobody knows). A `collector` given here holds the output so far also when the call raises.
    """

    on_output: Callable[[Stream, bytes], None] = _ignore_output
    on_progress: Callable[[int, int | None], None] = _ignore_progress
    cancel_token: CancelToken | None = None
    collector: Collector | None = None


UNWATCHED = Watch()
