"""Files as the standard input of commands."""

from __future__ import annotations

import gzip
import io
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from lazycluster._model.checks import split_stdin
from lazycluster._model.input_source import PIECE_BYTES, FileView, InputReader, read_pieces
from lazycluster._waiting import CancelledError, CancelToken, Deadline, DeadlinePassedError
from tests.keyboard_interrupt import interrupt, library_thread_names
from tests.waiting import assert_eventually

THREAD_NAME = "lazycluster-input"


@pytest.fixture
def pipe() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Return both ends of a pipe, and check that no thread reads it any longer."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as source, os.fdopen(writer, "wb", buffering=0) as target:
        yield cast("BinaryIO", source), cast("BinaryIO", target)
        assert library_thread_names(THREAD_NAME) == []


class Stuck(io.RawIOBase):
    """A file, not of the system, whose read waits."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def read(self, _size: int = -1, /) -> bytes:
        self.released.wait(30)
        return b""


def test_read_pieces_of_regular_file_uses_no_thread(tmp_path: Path) -> None:
    data = os.urandom(3 * PIECE_BYTES + 5)
    (tmp_path / "file").write_bytes(data)
    with (tmp_path / "file").open("rb") as file:
        file.seek(1)
        pieces = []
        for piece in read_pieces(file):
            pieces.append(piece)
            assert library_thread_names(THREAD_NAME) == []
    assert b"".join(pieces) == data[1:]
    assert max(map(len, pieces)) <= PIECE_BYTES


def test_read_pieces_of_bytes_io() -> None:
    assert list(read_pieces(io.BytesIO(b"data"))) == [b"data"]
    assert list(read_pieces(io.BytesIO())) == []


def test_read_pieces_of_compressed_file(tmp_path: Path) -> None:
    data = os.urandom(PIECE_BYTES) * 3
    (tmp_path / "file.gz").write_bytes(gzip.compress(data))
    with gzip.open(tmp_path / "file.gz") as file:
        assert b"".join(read_pieces(cast("BinaryIO", file))) == data
    assert library_thread_names(THREAD_NAME) == []


def test_read_pieces_of_pipe_come_as_they_are_written(pipe: tuple[BinaryIO, BinaryIO]) -> None:
    source, target = pipe
    pieces = read_pieces(source, Deadline(30))
    for piece in (b"one", b"two"):
        target.write(piece)
        assert next(pieces) == piece
    target.close()
    assert list(pieces) == []


def test_read_pieces_gives_what_a_reader_left_in_the_buffer(pipe: tuple[BinaryIO, BinaryIO]) -> None:
    """The pipe itself is empty, and stays open."""
    source, target = pipe
    target.write(b"header\nrest")
    assert source.readline() == b"header\n"
    pieces = read_pieces(source, Deadline(30))
    assert next(pieces) == b"rest"
    assert os.get_blocking(source.fileno())
    pieces.close()  # type: ignore[attr-defined]  # it is a generator


def test_read_pieces_of_socket_file() -> None:
    here, there = socket.socketpair()
    with here, there, there.makefile("rb") as file:
        here.sendall(b"data")
        here.shutdown(socket.SHUT_WR)
        assert list(read_pieces(cast("BinaryIO", file), Deadline(30))) == [b"data"]
    assert library_thread_names(THREAD_NAME) == []


def test_read_pieces_deadline_ends_wait_for_idle_pipe(pipe: tuple[BinaryIO, BinaryIO]) -> None:
    with pytest.raises(DeadlinePassedError):
        list(read_pieces(pipe[0], Deadline(0.05)))


def test_read_pieces_deadline_ends_endless_file() -> None:
    with Path("/dev/zero").open("rb") as endless, pytest.raises(DeadlinePassedError):
        for _ in read_pieces(endless, Deadline(0.05)):
            pass
    assert library_thread_names(THREAD_NAME) == []


def test_read_pieces_token_ends_wait_for_idle_pipe(pipe: tuple[BinaryIO, BinaryIO]) -> None:
    token = CancelToken()
    token.cancel()
    with pytest.raises(CancelledError):
        list(read_pieces(pipe[0], token=token))
    token.close()


def test_read_pieces_ctrl_c_ends_wait_for_idle_pipe(pipe: tuple[BinaryIO, BinaryIO]) -> None:
    interrupt(lambda: list(read_pieces(pipe[0])), lambda: library_thread_names(THREAD_NAME) != [])


def test_read_pieces_raises_error_of_file() -> None:
    class Broken(Stuck):
        def read(self, _size: int = -1, /) -> bytes:
            raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        list(read_pieces(cast("BinaryIO", Broken())))


def test_read_pieces_of_text_is_refused() -> None:
    class Text(Stuck):
        def read(self, _size: int = -1, /) -> bytes:
            return cast("bytes", "text")

    with pytest.raises(ValueError, match=r"^stdin must be a binary file, but its read\(\) returned str$"):
        list(read_pieces(cast("BinaryIO", Text())))


def test_input_reader_of_stuck_object_ends_without_it() -> None:
    stuck = Stuck()
    with InputReader(cast("BinaryIO", stuck), lambda: None) as reader:
        assert not reader.has_piece
    stuck.released.set()
    assert_eventually(lambda: library_thread_names(THREAD_NAME) == [], "the thread ends after the read")


def test_input_reader_reads_one_piece_ahead(pipe: tuple[BinaryIO, BinaryIO]) -> None:
    source, target = pipe
    written = 2 * PIECE_BYTES
    threading.Thread(target=target.write, args=(bytes(written),), daemon=True).start()
    came = threading.Event()
    with InputReader(source, came.set) as reader:
        assert came.wait(30)
        assert reader.has_piece
    rest = b""
    while len(rest) < written - PIECE_BYTES:
        rest += os.read(source.fileno(), written)


def test_file_view_starts_at_beginning_each_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    with (tmp_path / "file").open("rb") as file:
        views = [cast("BinaryIO", FileView(file.fileno())) for _ in range(2)]
        assert [list(read_pieces(view)) for view in views] == [[b"data"], [b"data"]]
        assert file.tell() == 0


@pytest.mark.parametrize("stdin", [None, 1, io.StringIO("text")])
def test_split_stdin_other_types_are_refused(stdin: BinaryIO) -> None:
    with pytest.raises(ValueError, match=r"^stdin must be text, bytes or a binary file, got "):
        split_stdin(stdin)


def test_input_reader_interrupted_at_its_start_ends(
    pipe: tuple[BinaryIO, BinaryIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt), InputReader(pipe[0], lambda: None):
        pytest.fail("the block does not begin")
