"""The wire protocol between a runtime and its supervisor: a table of frames, written and read in every way."""

from __future__ import annotations

import contextlib
import itertools
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lazycluster._remote import protocol
from lazycluster._remote.protocol import (
    FRAME_HEADER,
    FRAME_MAGIC,
    FRAME_NAMES,
    MAX_BODY_BYTES,
    STREAM_KINDS,
    FrameDecoder,
    FrameError,
)

Frame = tuple[int, int, bytes]

MANY = bytes(range(256)) * 5
# At least one frame of each kind. Frames of streams have bodies of no, one and many bytes, and one like a header.
FRAME_TABLE: list[Frame] = [
    (protocol.RUN, 1, protocol.pack(b"3", b"/a b", b"5.0", b"echo \xff\n", b"", b"NAME", b"value\n")),
    (protocol.CALL, 2, protocol.pack(b"0", b"", b"0.5", b"f", MANY)),
    (protocol.INPUT, 3, b""),
    (protocol.INPUT, 3, b"\0"),
    (protocol.INPUT, 3, MANY),
    (protocol.INPUT_END, 3, b""),
    (protocol.WINDOW_UPDATE, 4, protocol.encode_number(protocol.WINDOW_UPDATE_THRESHOLD_BYTES)),
    (protocol.STOP, 5, b""),
    (protocol.REQUEST, 6, protocol.pack(b"ports", b"1", b"65535")),
    (protocol.PREPARE, 0, protocol.pack(MANY, b"")),
    (protocol.DETACH, 6, b""),
    (
        protocol.HELLO,
        0,
        protocol.pack(
            protocol.encode_number(protocol.PROTOCOL_VERSION), b"cpython", b"3.11.7", b"/p", b"", b"1", b"", b""
        ),
    ),
    (protocol.STARTED, 7, protocol.encode_number(4_194_304)),
    (protocol.STDOUT, 8, MANY),
    (protocol.STDOUT, 8, struct.pack(">H", FRAME_MAGIC)),
    (protocol.STDERR, 9, protocol.encode_frame(protocol.STDOUT, 9, b"a frame in a frame")),
    (protocol.OUTCOME, 0xFFFFFFFF, MANY),
    (protocol.INPUT_WINDOW_UPDATE, 10, protocol.encode_number(1)),
    (protocol.ENDED, 11, protocol.pack(b"exit", b"256")),
    (protocol.RESPONSE, 12, protocol.pack(b"ok")),
    (protocol.GOODBYE, 0, b""),
    (protocol.KEEPALIVE, 0, b""),
]
ENCODED_FRAMES = [protocol.encode_frame(*fields) for fields in FRAME_TABLE]


def merge_stream_frames(pieces: list[Frame]) -> list[Frame]:
    """Return frames with the pieces of each stream merged, since a stream may be cut anywhere."""
    found: list[Frame] = []
    for kind, number, body in pieces:
        if kind in STREAM_KINDS and found and found[-1][:2] == (kind, number):
            found[-1] = (kind, number, found[-1][2] + body)
        elif body or kind not in STREAM_KINDS:
            found.append((kind, number, body))
    return found


def decode(*pieces: bytes) -> list[Frame]:
    """Return the frames that a decoder reads; no byte may be left in it."""
    decoder = FrameDecoder()
    found = [each for piece in pieces for each in decoder.feed(piece)]
    assert decoder.trailing_data == b""
    return found


# Encoding and decoding ------------------------------------------------------------------------------------------------


def test_frame_table_has_every_kind() -> None:
    assert {kind for kind, _, _ in FRAME_TABLE} == set(FRAME_NAMES)
    assert {getattr(protocol, name) for name in FRAME_NAMES.values()} == set(FRAME_NAMES)
    assert STREAM_KINDS.issubset(FRAME_NAMES)


@pytest.mark.parametrize(("fields", "data"), list(zip(FRAME_TABLE, ENCODED_FRAMES, strict=True)), ids=lambda _: "")
def test_frame_is_header_and_body(fields: Frame, data: bytes) -> None:
    kind, number, body = fields
    assert data == protocol.encode_header(kind, number, len(body)) + body
    assert FRAME_HEADER.unpack_from(data) == (FRAME_MAGIC, kind, number, len(body))
    assert len(data) == FRAME_HEADER.size + len(body)
    assert merge_stream_frames(decode(data)) == merge_stream_frames([fields])


def test_frame_header_format_is_fixed() -> None:
    assert protocol.encode_frame(protocol.RUN, 258, b"ab") == b"\xf5\xc7\x01\0\0\0\1\2\0\0\0\2ab"
    assert (protocol.PROTOCOL_VERSION, FRAME_HEADER.size) == (1, 12)


def test_decoder_reads_all_frames_in_one_piece() -> None:
    assert merge_stream_frames(decode(b"".join(ENCODED_FRAMES))) == merge_stream_frames(FRAME_TABLE)


def test_decoder_reads_frames_byte_by_byte() -> None:
    data = b"".join(ENCODED_FRAMES)
    assert merge_stream_frames(decode(*[data[at : at + 1] for at in range(len(data))])) == merge_stream_frames(
        FRAME_TABLE
    )


SHORT_FRAMES = [
    (protocol.ENDED, 1, b"ab"),
    (protocol.STDOUT, 2, b"cde"),
    (protocol.KEEPALIVE, 0, b""),
    (protocol.INPUT, 3, b"f"),
]


def test_decoder_reads_frames_cut_at_any_two_places() -> None:
    data = b"".join(protocol.encode_frame(*fields) for fields in SHORT_FRAMES)
    for one, other in itertools.combinations_with_replacement(range(len(data) + 1), 2):
        assert merge_stream_frames(decode(data[:one], data[one:other], data[other:])) == SHORT_FRAMES


def test_decoder_returns_parts_of_streams_at_once() -> None:
    data = protocol.encode_frame(protocol.STDOUT, 5, b"hello")
    decoder = FrameDecoder()
    frames = [decoder.feed(piece) for piece in (data[:12], data[12:14], data[14:], b"")]
    assert frames == [[], [(protocol.STDOUT, 5, b"he")], [(protocol.STDOUT, 5, b"llo")], []]


def test_decoder_returns_other_frames_whole() -> None:
    data = protocol.encode_frame(protocol.ENDED, 5, b"hello")
    decoder = FrameDecoder()
    assert [decoder.feed(data[:14]), decoder.trailing_data, decoder.feed(data[14:])] == [
        [],
        data[:14],
        [(protocol.ENDED, 5, b"hello")],
    ]


KINDS = st.sampled_from(sorted(FRAME_NAMES))
FRAMES = st.lists(st.tuples(KINDS, st.integers(0, 0xFFFFFFFF), st.binary(max_size=60)), max_size=12)


@given(FRAMES, st.lists(st.integers(0, 400), max_size=20))
def test_decoder_reads_any_frames_in_any_pieces(sent: list[Frame], cuts: list[int]) -> None:
    data = b"".join(protocol.encode_frame(*fields) for fields in sent)
    ends = [0, *sorted(cuts), len(data)]
    assert merge_stream_frames(
        decode(*[data[one:other] for one, other in itertools.pairwise(ends)])
    ) == merge_stream_frames(sent)


@given(FRAMES, st.binary(max_size=40), st.integers(1, 50))
def test_decoder_reads_any_bytes_or_raises_frame_error(sent: list[Frame], noise: bytes, size: int) -> None:
    data = b"".join(protocol.encode_frame(*fields) for fields in sent) + noise
    decoder = FrameDecoder()
    found: list[Frame] = []
    with contextlib.suppress(FrameError):
        for at in range(0, len(data), size):
            found += decoder.feed(data[at : at + size])
    assert sum(len(body) for _, _, body in found) <= len(data)
    assert decoder.trailing_data in data


@pytest.mark.parametrize("kind", [protocol.PREPARE, protocol.INPUT])
def test_decoder_reads_largest_frame(kind: int) -> None:
    body = bytes(MAX_BODY_BYTES)
    data = protocol.encode_frame(kind, 1, body)
    pieces = [data[at : at + (1 << 18)] for at in range(0, len(data), 1 << 18)]
    assert merge_stream_frames(decode(*pieces)) == [(kind, 1, body)]


def test_decoder_keeps_no_view_of_its_input() -> None:
    """The caller may change the bytes afterwards."""
    data = protocol.encode_frame(protocol.ENDED, 1, b"abc")
    decoder, piece = FrameDecoder(), bytearray(data[:13])
    decoder.feed(bytes(piece))
    piece[:] = bytes(13)
    assert decoder.feed(data[13:]) == [(protocol.ENDED, 1, b"abc")]


# Invalid frames -------------------------------------------------------------------------------------------------------

GOOD = protocol.encode_frame(protocol.STDOUT, 1, b"good")


@pytest.mark.parametrize(
    "bad",
    [
        FRAME_HEADER.pack(FRAME_MAGIC ^ 1, protocol.RUN, 1, 0),
        FRAME_HEADER.pack(FRAME_MAGIC ^ 0x8000, protocol.RUN, 1, 0),
        *(FRAME_HEADER.pack(FRAME_MAGIC, kind, 1, 0) for kind in (0, 10, 15, 26, 255)),
        FRAME_HEADER.pack(FRAME_MAGIC, protocol.STDOUT, 1, MAX_BODY_BYTES + 1),
        FRAME_HEADER.pack(FRAME_MAGIC, protocol.RUN, 1, 0xFFFFFFFF),
        b"Traceback (most recent call last):\n",
        bytes(FRAME_HEADER.size),
    ],
)
def test_decoder_invalid_frame_raises_from_then_on(bad: bytes) -> None:
    decoder = FrameDecoder()
    for data in (bad, b"", GOOD):
        with pytest.raises(FrameError) as caught:
            decoder.feed(data)
        assert caught.value.trailing_data == decoder.trailing_data == bad
    decoder = FrameDecoder()
    for byte in GOOD + bad[: FRAME_HEADER.size - 1]:
        decoder.feed(bytes([byte]))
    assert decoder.trailing_data == bad[: FRAME_HEADER.size - 1]
    with pytest.raises(FrameError):
        decoder.feed(bad[FRAME_HEADER.size - 1 :])


def test_decoder_returns_frames_before_invalid_data() -> None:
    """The status of the shell may follow the GOODBYE frame closely, for example."""
    decoder = FrameDecoder()
    assert decoder.feed(GOOD + GOOD + b"exit status 0") == [(protocol.STDOUT, 1, b"good")] * 2
    assert decoder.trailing_data == b"exit status 0"
    with pytest.raises(FrameError) as caught:
        decoder.feed(b"")
    assert caught.value.trailing_data == b"exit status 0"


def test_frame_error_message_is_short() -> None:
    with pytest.raises(FrameError) as caught:
        FrameDecoder().feed(b"x" * 1000)
    assert str(caught.value).startswith("this is no frame of the supervisor's protocol: b'xxx")
    assert (len(str(caught.value)) < 200, len(caught.value.trailing_data)) == (True, 1000)


@pytest.mark.parametrize("size", [MAX_BODY_BYTES + 1, MAX_BODY_BYTES * 2])
def test_encode_frame_too_large_raises(size: int) -> None:
    with pytest.raises(ValueError, match=f"body must have at most .* bytes, got {size}"):
        protocol.encode_frame(protocol.RUN, 1, bytes(size))


# Fields ---------------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=40), max_size=12))
@example([])
@example([b""])
@example([b"", b"\0", b""])
def test_unpack_returns_packed_fields(fields: list[bytes]) -> None:
    assert protocol.unpack(protocol.pack(*fields)) == fields
    assert protocol.unpack(memoryview(protocol.pack(*fields)).tobytes()) == fields


def test_pack_writes_lengths_and_bytes() -> None:
    assert protocol.pack(b"ab", b"") == b"\0\0\0\2ab\0\0\0\0"


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=5), st.data())
def test_unpack_truncated_fields_raises(fields: list[bytes], data: st.DataObject) -> None:
    packed = protocol.pack(*fields)
    ends = set(itertools.accumulate(4 + len(field) for field in fields)) | {0}
    cut = data.draw(st.integers(0, len(packed) - 1))
    if cut in ends:
        assert protocol.unpack(packed[:cut]) == fields[: len(protocol.unpack(packed[:cut]))]
    else:
        with pytest.raises(FrameError):
            protocol.unpack(packed[:cut])


@pytest.mark.parametrize(
    ("body", "reason", "rest"),
    [
        (b"\0\0\0", "a field without a length", b"\0\0\0"),
        (b"\0\0\0\1a\0", "a field without a length", b"\0"),
        (b"\0\0\0\1", "a field that is cut short", b""),
        (b"\0\0\0\5abcd", "a field that is cut short", b"abcd"),
        (b"\xff\xff\xff\xffabc", "a field that is cut short", b"abc"),
    ],
)
def test_unpack_truncated_field_error_has_the_rest(body: bytes, reason: str, rest: bytes) -> None:
    with pytest.raises(FrameError, match=reason) as caught:
        protocol.unpack(body)
    assert caught.value.trailing_data == rest


@pytest.mark.parametrize("value", [0, 1, 65536, 1 << 40, -1])
def test_encode_number_is_read_by_int(value: int) -> None:
    assert int(protocol.encode_number(value)) == value
