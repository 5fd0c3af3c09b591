"""Collectors that keep a bounded part of the output of a command."""

from __future__ import annotations

import itertools
from collections import deque
from typing import Literal

from lazycluster.exceptions import OutputLimitError
from lazycluster.results import Collector, Stream

TAIL_BYTES = 1 << 16
"""The bytes of each stream that are kept of output that is not kept whole."""
_STREAM_NAMES: dict[Stream, Literal["stdout", "stderr"]] = {Stream.STDOUT: "stdout", Stream.STDERR: "stderr"}


class TailCollector(Collector):
    """Keeps the last 64 KiB of each stream, and the order in which they came."""

    def __init__(self) -> None:
        """Begin with nothing."""
        super().__init__()
        self._numbers = itertools.count()
        self._pieces: dict[Stream, deque[tuple[int, bytes]]] = {stream: deque() for stream in Stream}
        self._sizes = dict.fromkeys(Stream, 0)

    def write(self, stream: Stream, data: bytes) -> None:
        """Keep one piece, and drop those that are no longer among the last 64 KiB."""
        pieces, data = self._pieces[stream], data[-TAIL_BYTES:]
        pieces.append((next(self._numbers), data))
        size = self._sizes[stream] + len(data)
        while size - len(pieces[0][1]) >= TAIL_BYTES:
            size -= len(pieces.popleft()[1])
        self._sizes[stream] = size

    def getvalue(self, stream: Stream) -> bytes:
        """Return the last 64 KiB of a stream."""
        return b"".join(data for _, data in self._pieces[stream])[-TAIL_BYTES:]

    @property
    def order(self) -> tuple[tuple[Stream, int], ...]:
        """The order in which the last parts of the two streams came, as run lengths in bytes."""
        runs = []
        for stream, pieces in self._pieces.items():
            excess = max(0, self._sizes[stream] - TAIL_BYTES)  # less than the first piece
            for number, data in pieces:
                runs.append((number, stream, len(data) - excess))
                excess = 0
        return tuple((stream, length) for _, stream, length in sorted(runs, key=lambda run: run[0]))


class LimitedCollector(Collector):
    """Keeps all output, until one stream has more bytes than the limit."""

    def __init__(self, host: str, command: str, limit: int) -> None:
        """Begin with nothing; the error names the host and the command."""
        super().__init__()
        self._host = host
        self._command = command
        self._limit = limit
        self._is_exceeded = False

    def write(self, stream: Stream, data: bytes) -> None:
        """Keep one piece. After the limit was exceeded, pieces are dropped: the command is being ended.

        Raises:
            OutputLimitError: If the stream has more bytes than the limit with this piece.
        """
        if self._is_exceeded:
            return
        super().write(stream, data)
        if self._buffers[stream].tell() > self._limit:
            self._is_exceeded = True
            tails = (self._buffers[each].getbuffer()[-TAIL_BYTES:].tobytes() for each in Stream)
            raise OutputLimitError(self._host, self._command, self._limit, _STREAM_NAMES[stream], *tails)
