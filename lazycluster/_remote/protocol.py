"""The wire protocol between a runtime and its supervisor on the host: the same file on both ends.

Every frame has a header (magic, kind, job, length) and a body of at most LARGEST bytes. Jobs share one channel: each
frame says whose it is. A job's sender may have WINDOW bytes on their way that the receiver has not yet taken in, and
gets leave for more by a grant, so that no job delays another and neither end grows without bound.

Standard library only, and the syntax of Python 3.6. Nothing here does input or output.
"""

import struct

PROTOCOL = 1
"""The version of what is described here; the greeting names it."""

HEADER = struct.Struct(">HBxII")
"""Magic, kind, job, length of the body."""

MAGIC = 0xF5C7
LARGEST = 1 << 22
"""Bytes in the body of a frame, at most."""
PIECE = 1 << 16
"""Bytes in the body of a frame that carries a piece of a stream."""
WINDOW = 1 << 22
"""Bytes of a job that may be on their way in one direction: more than ssh's own window of 2 MiB per channel."""
GRANTED = WINDOW // 4
"""Bytes that are taken in before leave is given for as many more."""

# From the runtime to the host.
RUN, CALL, INPUT, INPUT_END, GRANT, STOP, ASK, PREPARE, FORSAKE = range(1, 10)
# From the host to the runtime.
GREETING, STARTED, OUTPUT, ERRORS, OUTCOME, GRANT_INPUT, ENDED, ANSWER, FAREWELL, PULSE = range(16, 26)

STREAMS = frozenset((INPUT, OUTPUT, ERRORS, OUTCOME))
"""The kinds whose bodies are pieces of a stream."""

NAMES = {
    RUN: "RUN",
    CALL: "CALL",
    INPUT: "INPUT",
    INPUT_END: "INPUT_END",
    GRANT: "GRANT",
    STOP: "STOP",
    ASK: "ASK",
    PREPARE: "PREPARE",
    FORSAKE: "FORSAKE",
    GREETING: "GREETING",
    STARTED: "STARTED",
    OUTPUT: "OUTPUT",
    ERRORS: "ERRORS",
    OUTCOME: "OUTCOME",
    GRANT_INPUT: "GRANT_INPUT",
    ENDED: "ENDED",
    ANSWER: "ANSWER",
    FAREWELL: "FAREWELL",
    PULSE: "PULSE",
}

_LENGTH = struct.Struct(">I")


class FrameError(Exception):
    """What came is no frame of this protocol; `rest` begins with it."""

    def __init__(self, reason: str, rest: bytes = b"") -> None:
        """Keep the first bytes of what came."""
        super().__init__(f"{reason}: {rest[:80]!r}")
        self.rest = rest


def header(kind: int, job: int, length: int) -> bytes:
    """Return the header of a frame, for a body that is sent behind it."""
    return HEADER.pack(MAGIC, kind, job, length)


def frame(kind: int, job: int = 0, body: bytes = b"") -> bytes:
    """Return a frame."""
    if len(body) > LARGEST:
        raise ValueError(f"a frame of {len(body)} bytes")
    return HEADER.pack(MAGIC, kind, job, len(body)) + body


def pack(*fields: bytes) -> bytes:
    """Return a body of several fields, each behind its length."""
    return b"".join(_LENGTH.pack(len(field)) + field for field in fields)


def unpack(body: bytes) -> "list[bytes]":
    """Return the fields of a body.

    Raises:
        FrameError: It is not made of fields.
    """
    fields = []
    at = 0
    while at < len(body):
        start = at + _LENGTH.size
        if start > len(body):
            raise FrameError("a field without a length", body[at:])
        at = start + _LENGTH.unpack_from(body, at)[0]
        if at > len(body):
            raise FrameError("a field that is cut short", body[start:])
        fields.append(bytes(body[start:at]))
    return fields


def number(value: int) -> bytes:
    """Return a whole number as a field, or as the body of a grant."""
    return b"%d" % value


class Decoder:
    """Turns bytes, in whatever pieces they come, into frames.

    A frame that carries a piece of a stream may be given in several: what has come of it is handed on at once.
    """

    def __init__(self) -> None:
        """Begin between two frames."""
        self._buffer = bytearray()
        self._kind = self._job = self._missing = 0
        self._foreign = False

    @property
    def rest(self) -> bytes:
        """Return what has come of a frame that is not complete, or of what is no frame."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> "list[tuple[int, int, bytes]]":
        """Return kind, job and body of each frame, or piece of one, that is there now.

        Raises:
            FrameError: What came is no frame; the frames before it were returned.
        """
        if self._foreign:
            raise FrameError("this is no frame of the supervisor's protocol", self.rest)
        found = []  # type: list[tuple[int, int, bytes]]
        at = 0
        if self._missing:
            at = self._go_on(data, at, found)
        elif self._buffer:
            self._buffer += data
            data = bytes(self._buffer)
            self._buffer.clear()
        while len(data) - at >= HEADER.size:
            magic, kind, job, length = HEADER.unpack_from(data, at)
            if magic != MAGIC or kind not in NAMES or length > LARGEST:
                self._foreign = True
                break
            end = at + HEADER.size + length
            if end <= len(data):
                found.append((kind, job, data[at + HEADER.size : end]))
            elif kind in STREAMS:
                self._kind, self._job, self._missing = kind, job, length
                end = self._go_on(data, at + HEADER.size, found)
            else:
                break
            at = end
        if at < len(data):
            self._buffer += data[at:]
        if self._foreign and not found:
            return self.feed(b"")
        return found

    def _go_on(self, data: bytes, at: int, found: "list[tuple[int, int, bytes]]") -> int:
        """Hand on what is there of the body of a stream's frame; return where it ends."""
        piece = data[at : at + self._missing]
        self._missing -= len(piece)
        if piece:
            found.append((self._kind, self._job, piece))
        return at + len(piece)
