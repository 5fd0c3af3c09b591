"""Collectors that keep a bounded part of the output of a command."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazycluster._model.output_limits import TAIL_BYTES, LimitedCollector, TailCollector
from lazycluster.exceptions import OutputLimitError
from lazycluster.results import Collector, Stream

OUT, ERR = Stream.STDOUT, Stream.STDERR


def test_limited_collector_at_limit_keeps_everything() -> None:
    collector = LimitedCollector("web1", "x", 4)
    for stream, data in ((OUT, b"ab"), (ERR, b"1234"), (OUT, b"cd")):
        collector.write(stream, data)
    assert collector.result("x", 0, 0.0).output == "ab1234cd"


@pytest.mark.parametrize(("stream", "name"), [(OUT, "stdout"), (ERR, "stderr")])
def test_limited_collector_over_limit_raises_once(stream: Stream, name: str) -> None:
    collector = LimitedCollector("web1", "x", 2 * TAIL_BYTES)
    other = ERR if stream is OUT else OUT
    collector.write(other, b"other")
    collector.write(stream, b"a" * 2 * TAIL_BYTES)
    with pytest.raises(OutputLimitError) as caught:
        collector.write(stream, b"end")
    error = caught.value
    assert (error.host, error.command, error.limit, error.stream) == ("web1", "x", 2 * TAIL_BYTES, name)
    tails = {OUT: error.stdout_bytes, ERR: error.stderr_bytes}
    assert tails == {stream: b"a" * (TAIL_BYTES - 3) + b"end", other: b"other"}
    collector.write(stream, b"while it is being ended")
    assert not collector.getvalue(stream).endswith(b"ended")


def test_limited_collector_of_0_refuses_first_byte() -> None:
    collector = LimitedCollector("web1", "x", 0)
    with pytest.raises(OutputLimitError):
        collector.write(OUT, b"a")


@given(st.lists(st.tuples(st.sampled_from(Stream), st.binary(min_size=1, max_size=TAIL_BYTES // 8)), max_size=40))
def test_tail_collector_keeps_last_bytes_and_their_order(pieces: list[tuple[Stream, bytes]]) -> None:
    whole, tail = Collector(), TailCollector()
    for stream, data in pieces:
        whole.write(stream, data)
        tail.write(stream, data)
    result = tail.result("x", 0, 0.0)
    assert result.stdout_bytes == whole.getvalue(OUT)[-TAIL_BYTES:]
    assert result.stderr_bytes == whole.getvalue(ERR)[-TAIL_BYTES:]
    lengths = {stream: sum(length for each, length in tail.order if each is stream) for stream in Stream}
    assert lengths == {stream: len(tail.getvalue(stream)) for stream in Stream}
    if max(map(len, map(whole.getvalue, Stream))) <= TAIL_BYTES:
        assert result.output == whole.result("x", 0, 0.0).output


def test_tail_collector_piece_longer_than_tail_is_cut() -> None:
    collector = TailCollector()
    collector.write(ERR, b"early")
    collector.write(OUT, b"x" * TAIL_BYTES + b"end")
    assert collector.getvalue(OUT) == b"x" * (TAIL_BYTES - 3) + b"end"
    assert collector.order == ((ERR, 5), (OUT, TAIL_BYTES))


def test_tail_collector_memory_is_flat() -> None:
    """Alternating pieces of one byte are the worst case for the order of the streams."""
    collector = TailCollector()
    for _ in range(2 * TAIL_BYTES):
        collector.write(OUT, b"a")
        collector.write(ERR, b"b")
    tracemalloc.start()
    try:
        for _ in range(2 * TAIL_BYTES):
            collector.write(OUT, b"a")
            collector.write(ERR, b"b")
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 40 * 2**20
    assert len(collector.order) == 2 * TAIL_BYTES
