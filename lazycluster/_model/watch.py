"""How a caller follows, and may stop, work on a host."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from lazycluster._waiting import CancelToken
from lazycluster.results import Collector, Stream


def _ignore_output(_stream: Stream, _data: bytes) -> None:
    pass


def _accept_output() -> bool:
    return True


def _ignore_progress(_done: int, _total: int | None) -> None:
    pass


@attrs.frozen
class Watch:
    """How a caller follows work on a host, and may stop it.

    `on_output` gets each piece of output at once. `on_progress` gets the bytes moved so far and the total, or None
    if that is unknown. A `collector` given here holds the output so far even if the call raises. While `accepts_output`
    returns False, the command is kept from printing more, and a few MiB that are under way still come. When that
    changes, call `cancel_token.wake()`.
    """

    on_output: Callable[[Stream, bytes], object] = _ignore_output
    on_progress: Callable[[int, int | None], object] = _ignore_progress
    cancel_token: CancelToken | None = None
    collector: Collector | None = None
    accepts_output: Callable[[], bool] = _accept_output


UNWATCHED = Watch()


def make_watch(
    on_output: Callable[[Stream, bytes], object] | None = None,
    on_progress: Callable[[int, int | None], object] | None = None,
    cancel_token: CancelToken | None = None,
) -> Watch:
    """Return a watch with the callbacks that a caller gave, if any."""
    return Watch(on_output or _ignore_output, on_progress or _ignore_progress, cancel_token)
