"""The frames that a supervisor sends, in order, as far as its channel takes them; sent to the host.

Standard library only, and the syntax of Python 3.6.
"""

import os
import selectors
import time
from collections import deque
from collections.abc import Callable

from lazycluster._remote.protocol import encode_frame, encode_header

_HIGH_WATER_BYTES = 1 << 20  # bytes that wait to be sent before the children's output is left in their pipes
_MAX_BUFFERS_PER_WRITE = 64


class SendQueue:
    """A queue in front of a descriptor that does not block."""

    def __init__(
        self,
        descriptor: int,
        selector: "selectors.BaseSelector",
        on_congestion_change: "Callable[[], None]",
        on_connection_lost: "Callable[[], None]",
    ) -> None:
        """Call `on_congestion_change` at each change of `congested`, `on_connection_lost` when writing fails."""
        self._descriptor = descriptor
        self._selector = selector
        self._on_congestion_change = on_congestion_change
        self._on_connection_lost = on_connection_lost
        self._queue: deque[memoryview] = deque()
        self._queued_bytes = 0
        self._is_registered = False
        self.congested = False
        self.last_sent = time.monotonic()

    def send(self, kind: int, number: int = 0, body: bytes = b"") -> None:
        """Queue a frame."""
        self.write(encode_frame(kind, number, body))

    def send_chunk(self, kind: int, number: int, data: bytes) -> None:
        """Queue a frame with a piece of a stream, which is not copied for it."""
        self.write(encode_header(kind, number, len(data)))
        self.write(data)

    def write(self, data: bytes) -> None:
        """Queue bytes as they are."""
        self._queue.append(memoryview(data))
        self._queued_bytes += len(data)
        if self._queued_bytes > _HIGH_WATER_BYTES and not self.congested:
            self.congested = True
            self._on_congestion_change()

    def flush(self) -> None:
        """Write the queue as far as the channel takes it; the rest is written when there is room."""
        if not self._queue:
            return
        try:
            while self._queue:
                pieces = [self._queue[index] for index in range(min(len(self._queue), _MAX_BUFFERS_PER_WRITE))]
                self._discard_written(os.writev(self._descriptor, pieces))
        except BlockingIOError:
            pass
        except OSError:
            self._queue.clear()
            self._queued_bytes = 0
            self._on_connection_lost()
        self.last_sent = time.monotonic()
        if self.congested and self._queued_bytes <= _HIGH_WATER_BYTES // 2:
            self.congested = False
            self._on_congestion_change()
        if bool(self._queue) != self._is_registered:
            self._is_registered = not self._is_registered
            if self._is_registered:
                self._selector.register(self._descriptor, selectors.EVENT_WRITE, self.flush)
            else:
                self._selector.unregister(self._descriptor)

    def _discard_written(self, size: int) -> None:
        self._queued_bytes -= size
        while size:
            if size < len(self._queue[0]):
                self._queue[0] = self._queue[0][size:]
                return
            size -= len(self._queue.popleft())

    def drain(self, timeout: float) -> None:
        """Write the whole queue, within a time-out in seconds."""
        deadline = time.monotonic() + timeout
        while self._queue and time.monotonic() < deadline:
            self.flush()
            if self._queue:
                self._selector.select(0.05)
