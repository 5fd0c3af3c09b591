"""A pipe that any thread may write to without waiting."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator
from typing import IO

import attrs
import pytest

from lazycluster._processes.pipe_writer import PipeWriter
from lazycluster._remote.descriptors import readable_bytes
from tests.keyboard_interrupt import library_threads
from tests.waiting import wait_until


@attrs.define
class Pipe:
    """A pipe writer under test, and the other end of its pipe."""

    writer: PipeWriter
    reader: IO[bytes]
    descriptor: int

    @property
    def waiting_bytes(self) -> int:
        return readable_bytes(self.reader.fileno(), 0)

    def has_ended(self) -> bool:
        """Return whether no process and no system call holds the writing end."""
        poll = select.poll()
        poll.register(self.reader, 0)
        return poll.poll(0) == [(self.reader.fileno(), select.POLLHUP)]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    pipe = Pipe(PipeWriter(writing), os.fdopen(reading, "rb"), writing)
    yield pipe
    pipe.writer.close()
    pipe.reader.close()


def writer_threads() -> set[threading.Thread]:
    return library_threads("lazycluster-pipe-writer")


@pytest.fixture
def others() -> set[threading.Thread]:
    """Return the threads that write for other tests, whose runtimes stay connected."""
    return writer_threads()


def test_write_that_fits_starts_no_thread(pipe: Pipe) -> None:
    before = len(writer_threads())
    assert [pipe.writer.write(data) for data in (b"abc", b"", b"x" * select.PIPE_BUF)] == [True] * 3
    assert pipe.reader.read(3 + select.PIPE_BUF) == b"abc" + b"x" * select.PIPE_BUF
    assert len(writer_threads()) == before
    pipe.writer.close()
    assert pipe.reader.read() == b""


@pytest.mark.parametrize("size", [select.PIPE_BUF + 1, 1_000_000, 20_000_000])
def test_write_to_full_pipe_does_not_block(pipe: Pipe, size: int) -> None:
    data = bytes(range(251)) * (size // 251 + 1)
    assert pipe.writer.write(data)  # returns although no thread reads
    assert pipe.writer.write(b"after it")
    assert pipe.reader.read(len(data)) == data
    assert pipe.reader.read(8) == b"after it"


def test_write_while_data_waits_keeps_order(pipe: Pipe) -> None:
    pieces = [b"%d," % number * (number % 3000) for number in range(500)]
    for piece in pieces:
        assert pipe.writer.write(piece)
    everything = b"".join(pieces)
    assert pipe.reader.read(len(everything)) == everything
    assert pipe.writer.write(b"one more")  # the thread has to notice it
    assert pipe.reader.read(8) == b"one more"


def test_write_from_many_threads_mixes_no_lines(pipe: Pipe) -> None:
    def write(letter: bytes) -> None:
        for number in range(100):
            pipe.writer.write(b"%b%d\n" % (letter * (number * 97 % 9000), number))

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c", b"d")]
    for thread in threads:
        thread.start()
    lines = [pipe.reader.readline() for _ in range(400)]
    for thread in threads:
        thread.join(10)
    assert sorted(lines) == sorted(
        b"%b%d\n" % (letter * (number * 97 % 9000), number)
        for letter in (b"a", b"b", b"c", b"d")
        for number in range(100)
    )


@pytest.mark.parametrize("size", [1, 1_000_000])
def test_write_without_reader_returns_false(pipe: Pipe, others: set[threading.Thread], size: int) -> None:
    pipe.reader.close()
    assert wait_until(lambda: not pipe.writer.write(bytes(size)), 10)
    assert not pipe.writer.write(b"x")
    assert wait_until(lambda: writer_threads() <= others, 10)


def test_close_drops_waiting_data_and_ends_thread(pipe: Pipe, others: set[threading.Thread]) -> None:
    pipe.writer.write(bytes(1_000_000))
    pipe.writer.close()
    pipe.writer.close()
    assert not pipe.writer.write(b"x")
    assert len(pipe.reader.read()) < 1_000_000  # waiting data is lost
    assert wait_until(lambda: writer_threads() <= others, 10)


def test_close_of_full_pipe_shows_reader_the_end(pipe: Pipe, others: set[threading.Thread]) -> None:
    """A thread that waits in poll(2) keeps the pipe open until it wakes."""
    pipe.writer.write(bytes(1_000_000))
    assert wait_until(lambda: pipe.waiting_bytes >= select.PIPE_BUF, 10)
    pipe.writer.close()
    assert wait_until(pipe.has_ended, 10)  # seen before the reader makes room in the pipe
    assert len(pipe.reader.read()) < 1_000_000
    assert wait_until(lambda: writer_threads() <= others, 10)


def count_descriptors() -> int:
    return len(os.listdir("/dev/fd"))  # noqa: PTH208


@pytest.mark.parametrize("size", [0, 1_000_000])
def test_fork_closes_pipe_in_child(pipe: Pipe, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fork comes while another thread, which the child lacks, holds the lock of the writer."""
    is_writing, is_forked, write = threading.Event(), threading.Event(), os.write

    def write_after_fork(descriptor: int, data: bytes) -> int:
        if descriptor == pipe.descriptor:
            is_writing.set()
            is_forked.wait(10)
        return write(descriptor, data)

    before = count_descriptors()
    if size > 0:
        monkeypatch.setattr(os, "write", write_after_fork)
        pipe.writer.write(bytes(size))
        assert is_writing.wait(10)
    child = os.fork()
    if child == 0:
        # Neither the pipe is open, nor the waker of the thread; runtimes that other tests share close theirs, too.
        is_closed = count_descriptors() <= before - 1
        select.select([], [], [], 60 if is_closed else 0)
        os._exit(1)
    is_forked.set()
    try:
        pipe.reader.read(size)
        pipe.writer.close()
        assert pipe.reader.read() == b""  # the end is seen although the child lives
        assert os.waitpid(child, os.WNOHANG)[0] == 0
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
