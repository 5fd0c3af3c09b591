"""A pipe that any thread may write to without waiting."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from typing import IO

import attrs
import pytest

from lazycluster._processes.pipe_writer import PipeWriter
from tests.waiting import wait_until


@attrs.define
class Pipe:
    """An inlet under test, and the end that is read."""

    inlet: PipeWriter
    reading: IO[bytes]

    def read(self, size: int) -> bytes:
        """Read exactly so many bytes."""
        return self.reading.read(size)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    made = Pipe(PipeWriter(writing), os.fdopen(reading, "rb"))
    yield made
    made.inlet.close()
    made.reading.close()


def flushers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "lazycluster-pipe-writer"]


def test_what_fits_is_written_at_once_and_without_a_thread(pipe: Pipe) -> None:
    before = len(flushers())
    assert [pipe.inlet.write(data) for data in (b"abc", b"", b"x" * select.PIPE_BUF)] == [True] * 3
    assert pipe.read(3 + select.PIPE_BUF) == b"abc" + b"x" * select.PIPE_BUF
    assert len(flushers()) == before
    pipe.inlet.close()
    assert pipe.reading.read() == b""


@pytest.mark.parametrize("size", [select.PIPE_BUF + 1, 1_000_000, 20_000_000])
def test_what_does_not_fit_waits_for_nobody_and_loses_nothing(pipe: Pipe, size: int) -> None:
    data = bytes(range(251)) * (size // 251 + 1)
    begun = time.monotonic()
    assert pipe.inlet.write(data)
    assert pipe.inlet.write(b"behind it")
    assert time.monotonic() - begun < 5
    assert pipe.read(len(data)) == data
    assert pipe.read(9) == b"behind it"


def test_writes_while_others_wait_keep_their_order(pipe: Pipe) -> None:
    pieces = [b"%d," % number * (number % 3000) for number in range(500)]
    for piece in pieces:
        assert pipe.inlet.write(piece)
    everything = b"".join(pieces)
    assert pipe.read(len(everything)) == everything
    assert pipe.inlet.write(b"one more")  # which the thread has to notice
    assert pipe.read(8) == b"one more"


def test_many_threads_may_write(pipe: Pipe) -> None:
    def write(letter: bytes) -> None:
        for number in range(100):
            pipe.inlet.write(b"%b%d\n" % (letter * (number * 97 % 9000), number))

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c", b"d")]
    for thread in threads:
        thread.start()
    lines = [pipe.reading.readline() for _ in range(400)]
    for thread in threads:
        thread.join(10)
    assert sorted(lines) == sorted(
        b"%b%d\n" % (letter * (number * 97 % 9000), number)
        for letter in (b"a", b"b", b"c", b"d")
        for number in range(100)
    )


@pytest.mark.parametrize("size", [1, 1_000_000])
def test_nobody_reads_any_more(pipe: Pipe, size: int) -> None:
    pipe.reading.close()
    assert wait_until(lambda: not pipe.inlet.write(bytes(size)), 10)
    assert not pipe.inlet.write(b"x")
    assert wait_until(lambda: not flushers(), 10)


def test_a_closed_inlet_takes_nothing_and_ends_its_thread(pipe: Pipe) -> None:
    pipe.inlet.write(bytes(1_000_000))
    pipe.inlet.close()
    pipe.inlet.close()
    assert not pipe.inlet.write(b"x")
    assert len(pipe.reading.read()) < 1_000_000  # what waited is lost
    assert wait_until(lambda: not flushers(), 10)


def test_close_with_a_full_pipe_is_seen_by_the_reader_at_once(pipe: Pipe) -> None:
    """A thread that waits in poll(2) keeps the pipe open until it wakes."""
    pipe.inlet.write(bytes(1_000_000))
    assert wait_until(lambda: pipe.inlet._waker is not None, 10)
    pipe.inlet.close()
    assert len(pipe.reading.read()) < 1_000_000
    assert wait_until(lambda: pipe.inlet._waker is None and not flushers(), 10)


@pytest.mark.parametrize("waiting", [0, 1_000_000])
def test_a_fork_neither_writes_nor_keeps_it_open(pipe: Pipe, waiting: int) -> None:
    """Though a thread that is not there may hold its lock."""
    pipe.inlet.write(bytes(waiting))
    with pipe.inlet._changed:
        child = os.fork()
    if child == 0:
        alive = pipe.inlet._descriptor < 0 and pipe.inlet._waker is None
        select.select([], [], [], 60 if alive else 0)
        os._exit(1)
    try:
        pipe.read(waiting)
        pipe.inlet.close()
        assert pipe.reading.read() == b""  # its end comes, though the child lives
        assert os.waitpid(child, os.WNOHANG)[0] == 0
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
