"""What a supervisor sends, in order, as far as its channel takes it; sent to the host.

Standard library only, and the syntax of Python 3.6.
"""

import os
import selectors
import time
from collections import deque
from collections.abc import Callable

from lazycluster._remote.protocol import frame, header

_CONGESTED = 1 << 20  # bytes that wait to be sent before the jobs' output is left in their pipes
_AT_ONCE = 64


class Outbox:
    """A queue in front of a descriptor that does not block."""

    def __init__(
        self,
        descriptor: int,
        selector: "selectors.BaseSelector",
        on_change: "Callable[[], None]",
        on_lost: "Callable[[], None]",
    ) -> None:
        """Call `on_change` when it becomes congested and when it no longer is, `on_lost` when nobody reads any more."""
        self._descriptor = descriptor
        self._selector = selector
        self._on_change = on_change
        self._on_lost = on_lost
        self._queue: deque[memoryview] = deque()
        self._bytes = 0
        self._watched = False
        self.congested = False
        self.last_sent = time.monotonic()

    def send(self, kind: int, name: int = 0, body: bytes = b"") -> None:
        """Queue a frame."""
        self.put(frame(kind, name, body))

    def send_piece(self, kind: int, name: int, data: bytes) -> None:
        """Queue a frame with a piece of a stream, which is not copied for it."""
        self.put(header(kind, name, len(data)))
        self.put(data)

    def put(self, data: bytes) -> None:
        """Queue bytes as they are."""
        self._queue.append(memoryview(data))
        self._bytes += len(data)
        if self._bytes > _CONGESTED and not self.congested:
            self.congested = True
            self._on_change()

    def flush(self) -> None:
        """Write what waits, as far as the channel takes it; the rest is written when there is room."""
        if not self._queue:
            return
        try:
            while self._queue:
                pieces = [self._queue[index] for index in range(min(len(self._queue), _AT_ONCE))]
                self._written(os.writev(self._descriptor, pieces))
        except BlockingIOError:
            pass
        except OSError:
            self._queue.clear()
            self._bytes = 0
            self._on_lost()
        self.last_sent = time.monotonic()
        if self.congested and self._bytes <= _CONGESTED // 2:
            self.congested = False
            self._on_change()
        if bool(self._queue) != self._watched:
            self._watched = not self._watched
            if self._watched:
                self._selector.register(self._descriptor, selectors.EVENT_WRITE, self.flush)
            else:
                self._selector.unregister(self._descriptor)

    def _written(self, size: int) -> None:
        self._bytes -= size
        while size:
            if size < len(self._queue[0]):
                self._queue[0] = self._queue[0][size:]
                return
            size -= len(self._queue.popleft())

    def drain(self, seconds: float) -> None:
        """Write all that waits, for so many seconds at most."""
        until = time.monotonic() + seconds
        while self._queue and time.monotonic() < until:
            self.flush()
            if self._queue:
                self._selector.select(0.05)
