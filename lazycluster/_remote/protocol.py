"""The wire protocol between a runtime and its supervisor on the host: the same file on both ends.

Every frame has a header (magic, kind, number, length) and a body of at most MAX_BODY_BYTES. Children of a supervisor
share one channel: the number in a frame is that of its child, or 0 for the supervisor itself.

Flow control is that of HTTP/2 (RFC 9113, section 5.2). At most WINDOW_BYTES of a child may be on their way that the
receiver has not consumed yet. The receiver allows more with a window update. So no child delays another, and neither
end's memory grows without bound.

Standard library only, and the syntax of Python 3.6. Nothing here does input or output.
"""

import struct

PROTOCOL_VERSION = 1
"""The version of this protocol; HELLO carries it."""

FRAME_HEADER = struct.Struct(">HBxII")
"""Magic, kind, number of the child, length of the body."""

FRAME_MAGIC = 0xF5C7
MAX_BODY_BYTES = 1 << 22
"""Bytes in the body of a frame, at most."""
STREAM_CHUNK_BYTES = 1 << 16
"""Bytes in the body of a frame that carries a piece of a stream."""
WINDOW_BYTES = 1 << 22
"""Bytes of a child that may be on their way in one direction: more than ssh's own window of 2 MiB per channel."""
WINDOW_UPDATE_THRESHOLD_BYTES = WINDOW_BYTES // 4
"""Bytes that a receiver consumes before it sends a window update for as many."""

# From the runtime to the host.
RUN, CALL, INPUT, INPUT_END, WINDOW_UPDATE, STOP, REQUEST, PREPARE, DETACH = range(1, 10)
# From the host to the runtime.
HELLO, STARTED, STDOUT, STDERR, OUTCOME, INPUT_WINDOW_UPDATE, ENDED, RESPONSE, GOODBYE, KEEPALIVE = range(16, 26)

FLAG_INPUT_ENDED, FLAG_LOGIN_SHELL, FLAG_NO_SHELL = 1, 2, 4
"""Flags of RUN and CALL. With FLAG_NO_SHELL the text of RUN is the words of a program, joined by NUL."""

STREAM_KINDS = frozenset((INPUT, STDOUT, STDERR, OUTCOME))
"""The kinds whose bodies are pieces of a stream."""

FRAME_NAMES = {
    RUN: "RUN",
    CALL: "CALL",
    INPUT: "INPUT",
    INPUT_END: "INPUT_END",
    WINDOW_UPDATE: "WINDOW_UPDATE",
    STOP: "STOP",
    REQUEST: "REQUEST",
    PREPARE: "PREPARE",
    DETACH: "DETACH",
    HELLO: "HELLO",
    STARTED: "STARTED",
    STDOUT: "STDOUT",
    STDERR: "STDERR",
    OUTCOME: "OUTCOME",
    INPUT_WINDOW_UPDATE: "INPUT_WINDOW_UPDATE",
    ENDED: "ENDED",
    RESPONSE: "RESPONSE",
    GOODBYE: "GOODBYE",
    KEEPALIVE: "KEEPALIVE",
}

_FIELD_LENGTH = struct.Struct(">I")


class FrameError(Exception):
    """Some bytes are not a frame of this protocol; `trailing_data` begins with them."""

    def __init__(self, reason: str, trailing_data: bytes) -> None:
        """Keep the bytes that came; the message shows the first of them."""
        super().__init__(f"{reason}: {trailing_data[:80]!r}")
        self.trailing_data = trailing_data


def encode_header(kind: int, number: int, length: int) -> bytes:
    """Return the header of a frame, for a body that is sent after it."""
    return FRAME_HEADER.pack(FRAME_MAGIC, kind, number, length)


def encode_frame(kind: int, number: int = 0, body: bytes = b"") -> bytes:
    """Return a frame."""
    if len(body) > MAX_BODY_BYTES:
        raise ValueError(f"body must have at most {MAX_BODY_BYTES} bytes, got {len(body)}")
    return FRAME_HEADER.pack(FRAME_MAGIC, kind, number, len(body)) + body


def pack(*fields: bytes) -> bytes:
    """Return a body of several fields, each after its length."""
    return b"".join(_FIELD_LENGTH.pack(len(field)) + field for field in fields)


def unpack(body: bytes) -> "list[bytes]":
    """Return the fields of a body.

    Raises:
        FrameError: If the body is not made of fields.
    """
    fields = []
    offset = 0
    while offset < len(body):
        start = offset + _FIELD_LENGTH.size
        if start > len(body):
            raise FrameError("a field without a length", body[offset:])
        offset = start + _FIELD_LENGTH.unpack_from(body, offset)[0]
        if offset > len(body):
            raise FrameError("a field that is cut short", body[start:])
        fields.append(bytes(body[start:offset]))
    return fields


def encode_number(value: int) -> bytes:
    """Return a whole number as a field, or as the body of a window update."""
    return b"%d" % value


class FrameDecoder:
    """Turns bytes, in pieces of any size, into frames.

    A frame that carries a piece of a stream may be returned in several pieces, each as soon as it has come.
    """

    def __init__(self) -> None:
        """Begin between two frames."""
        self._buffer = bytearray()
        self._kind = self._number = self._bytes_missing = 0
        self._is_corrupt = False

    @property
    def trailing_data(self) -> bytes:
        """The bytes so far of an incomplete frame, or of something that is not a frame."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> "list[tuple[int, int, bytes]]":
        """Return kind, number and body of each frame, or piece of one, that is there now.

        Raises:
            FrameError: If the next bytes are not a frame; the frames before them were returned.
        """
        if self._is_corrupt:
            raise FrameError("this is no frame of the supervisor's protocol", self.trailing_data)
        found = []  # type: list[tuple[int, int, bytes]]
        offset = 0
        if self._bytes_missing:
            offset = self._decode_chunk(data, offset, found)
        elif self._buffer:
            self._buffer += data
            data = bytes(self._buffer)
            self._buffer.clear()
        while len(data) - offset >= FRAME_HEADER.size:
            magic, kind, number, length = FRAME_HEADER.unpack_from(data, offset)
            if magic != FRAME_MAGIC or kind not in FRAME_NAMES or length > MAX_BODY_BYTES:
                self._is_corrupt = True
                break
            end = offset + FRAME_HEADER.size + length
            if end <= len(data):
                found.append((kind, number, data[offset + FRAME_HEADER.size : end]))
            elif kind in STREAM_KINDS:
                self._kind, self._number, self._bytes_missing = kind, number, length
                end = self._decode_chunk(data, offset + FRAME_HEADER.size, found)
            else:
                break
            offset = end
        if offset < len(data):
            self._buffer += data[offset:]
        if self._is_corrupt and not found:
            return self.feed(b"")
        return found

    def _decode_chunk(self, data: bytes, offset: int, found: "list[tuple[int, int, bytes]]") -> int:
        """Add the part of a stream's frame that has come; return the offset of its end."""
        piece = data[offset : offset + self._bytes_missing]
        self._bytes_missing -= len(piece)
        if piece:
            found.append((self._kind, self._number, piece))
        return offset + len(piece)
