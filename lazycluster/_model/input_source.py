"""Files as the standard input of commands, read in pieces while the commands run."""

from __future__ import annotations

import contextlib
import io
import os
import queue
import select
import stat
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import BinaryIO

from lazycluster._model.command import Command
from lazycluster._model.running_command import timeout_error
from lazycluster._model.watch import Watch
from lazycluster._typing import Self
from lazycluster._waiting import (
    NO_DEADLINE,
    CancelledError,
    CancelToken,
    Deadline,
    DeadlinePassedError,
    Waker,
    hold,
    queue_get,
    start_thread,
)
from lazycluster.exceptions import CommandStoppedError
from lazycluster.results import Collector

PIECE_BYTES = 1 << 16
_READER_END_SECONDS = 1.0
"""For a read under way to end, once the command no longer needs it."""


class FileView(io.RawIOBase):
    """A file of this machine from its beginning, with a position of its own."""

    def __init__(self, descriptor: int) -> None:
        """Read from a descriptor, which stays open."""
        super().__init__()
        self._descriptor = descriptor
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Return at most `size` bytes, none only at the end."""
        data = os.pread(self._descriptor, PIECE_BYTES if size < 0 else size, self._position)
        self._position += len(data)
        return data


class InputReader:
    """Reads a file piece by piece, and at most one piece ahead; in a thread of its own if a read may block.

    At the end of the block the thread ends, too. Only a file that is not one of the system may keep it in a read until
    that returns.
    """

    def __init__(self, source: BinaryIO, wake: Callable[[], object]) -> None:
        """Read a file; `wake` is called when a piece is there, its end, or an error."""
        self._source = source
        self._wake = wake
        self._condition = threading.Condition()
        self._piece: bytes | None = None
        self._error: BaseException | None = None
        self._stopped = self._ended = False
        self._thread: threading.Thread | None = None
        if not _is_always_ready(source):
            self._waker = Waker()
            self._thread = threading.Thread(target=self._run, name="lazycluster-input", daemon=True)

    def __enter__(self) -> Self:
        """Begin to read."""
        if self._thread is not None:
            try:
                start_thread(self._thread)
            except BaseException:  # Ctrl-C: the thread may have begun, and the block will not end it
                self._end()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the thread."""
        self._end()

    def _end(self) -> None:
        if self._thread is None:
            return
        with hold(self._condition):
            self._stopped = True
            self._condition.notify_all()
            if not self._ended:
                self._waker.wake()
        with contextlib.suppress(RuntimeError):  # it has not begun
            self._thread.join(_READER_END_SECONDS)

    @property
    def has_piece(self) -> bool:
        """Whether `take()` does not wait."""
        return self._thread is None or self._piece is not None or self._error is not None

    def take(self) -> bytes:
        """Return the next piece, empty at the end of the file.

        Raises:
            Exception: If the file could not be read.
        """
        if self._thread is None:
            return _read_piece(self._source)
        with hold(self._condition):
            piece, self._piece = self._piece, None
            self._condition.notify_all()
        if piece is None and self._error is not None:
            raise self._error
        return piece or b""

    def _run(self) -> None:
        try:
            piece = _peek_buffered(self._source)
            if piece:
                self._put(_read_piece(self._source))
            while self._wait_for_input():
                piece = _read_piece(self._source)
                self._put(piece)
                if not piece:
                    break
        except BaseException as error:  # noqa: BLE001 - `take()` raises it
            self._error = error
        finally:
            with self._condition:
                self._ended = True
                self._waker.close()
            self._wake()

    def _put(self, piece: bytes) -> None:
        with self._condition:
            self._piece = piece
            self._wake()
            while self._piece is not None and not self._stopped:
                self._condition.wait()

    def _wait_for_input(self) -> bool:
        """Wait until a file of the system can be read; return False if no more is needed."""
        if not self._stopped and _is_system_file(self._source):
            poll = select.poll()
            poll.register(self._source.fileno(), select.POLLIN)
            poll.register(self._waker.fileno(), select.POLLIN)
            poll.poll()
        return not self._stopped


def read_pieces(
    source: BinaryIO, deadline: Deadline = NO_DEADLINE, token: CancelToken | None = None
) -> Iterator[bytes]:
    """Yield the pieces of a file up to its end.

    Raises:
        DeadlinePassedError: If the deadline passes first.
        CancelledError: If the token is cancelled first.
    """
    events: queue.SimpleQueue[None] = queue.SimpleQueue()
    on_cancel = contextlib.nullcontext() if token is None else token.on_cancel(lambda: events.put(None))
    with on_cancel, InputReader(source, lambda: events.put(None)) as reader:
        while True:
            if token is not None and token.is_cancelled:
                raise CancelledError
            if deadline.has_passed:
                raise DeadlinePassedError
            if not reader.has_piece:
                queue_get(events, deadline)
            elif piece := reader.take():
                yield piece
            else:
                return


def read_input(host: str, command: Command, watch: Watch) -> Iterator[bytes]:
    """Yield the pieces of the file that is the standard input of a command, before the command runs.

    Raises:
        CommandTimeoutError: If the time limit of the command passes first.
        CommandStoppedError: If the cancel token is cancelled first.
    """
    assert command.source is not None
    try:
        yield from read_pieces(command.source, Deadline(command.timeout), watch.cancel_token)
    except CancelledError:
        raise CommandStoppedError(host, command.title) from None
    except DeadlinePassedError:
        raise timeout_error(host, command.title, command.timeout, Collector()) from None


def _is_system_file(source: BinaryIO) -> bool:
    """Return whether the readiness of the descriptor is that of the file; there are objects with buffers of their own.

    Such are the responses of HTTP libraries over TLS, and files that decompress.
    """
    raw = source.raw if isinstance(source, (io.BufferedReader, io.BufferedRandom)) else source
    return isinstance(raw, io.FileIO)


def _is_always_ready(source: BinaryIO) -> bool:
    if isinstance(source, (io.BytesIO, FileView)):
        return True
    return _is_system_file(source) and stat.S_ISREG(os.fstat(source.fileno()).st_mode)


def _peek_buffered(source: BinaryIO) -> bytes:
    """Return what an earlier reader of a pipe or socket left in the buffer, which its descriptor does not show."""
    if not isinstance(source, io.BufferedReader) or not _is_system_file(source):
        return b""
    descriptor = source.fileno()
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return b""
    was_blocking = os.get_blocking(descriptor)
    os.set_blocking(descriptor, False)
    try:
        return source.peek(1)
    finally:
        os.set_blocking(descriptor, was_blocking)


def _read_piece(source: BinaryIO) -> bytes:
    read = getattr(source, "read1", source.read)  # read() of a buffered file waits until it has all of the piece
    piece: object = read(PIECE_BYTES)
    if not isinstance(piece, (bytes, bytearray, memoryview)):
        raise ValueError(f"stdin must be a binary file, but its read() returned {type(piece).__name__}")  # noqa: TRY004
    return bytes(piece)
