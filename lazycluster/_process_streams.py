"""The three streams of a started process, between the thread of the process and the threads that read and write."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

from lazycluster._execution import copy_error
from lazycluster._model.running_command import RunningCommand
from lazycluster._waiting import CancelToken, hold, wait_for
from lazycluster.results import Stream

if TYPE_CHECKING:
    from typing_extensions import Buffer

_MAX_UNREAD_BYTES = 1 << 20
"""The unread bytes of a stream from which on the process is kept from printing more. A few MiB are under way then."""
_MAX_KEPT_BYTES = 1 << 24
"""The most unread bytes of a stream. Only a process that is being stopped can print more, which is dropped."""
_MAX_UNSENT_BYTES = 1 << 20
"""The most bytes of input that wait to be sent."""
_PIECE_BYTES = 1 << 16


class ProcessStreams:
    """Buffers between the thread of a process, which carries out the conversation, and the user's threads."""

    def __init__(self, cancel_token: CancelToken, *, has_input: bool) -> None:
        """Begin with empty buffers; `has_input` is whether the command has all of its input."""
        self._cancel_token = cancel_token
        self._changed = threading.Condition()
        self._unread = {stream: bytearray() for stream in Stream}
        self._dropped: set[Stream] = set()
        self._unsent = bytearray()
        self._has_input = has_input
        self._is_input_closed = has_input
        self._has_ended = False
        self._error: BaseException | None = None
        self._creator_pid = os.getpid()

    @property
    def has_ended(self) -> bool:
        """Whether nothing more comes; in a forked child, which lacks the thread, nothing ever comes."""
        return self._has_ended or self._creator_pid != os.getpid()

    # For the thread of the process ------------------------------------------------------------------------------------

    def receive(self, stream: Stream, data: bytes) -> None:
        """Keep output until it is read."""
        with self._changed:
            if stream not in self._dropped and len(self._unread[stream]) < _MAX_KEPT_BYTES:
                self._unread[stream] += data
                self._changed.notify_all()

    def accepts_output(self) -> bool:
        """Return whether the process may print more."""
        return all(len(unread) < _MAX_UNREAD_BYTES for unread in self._unread.values())

    def converse(self, running: RunningCommand) -> None:
        """Send the input as it comes, and receive the output: the conversation of a command."""
        while not self._has_input:
            running.wait_until(lambda: bool(self._unsent) or self._is_input_closed)
            with self._changed:
                piece = bytes(self._unsent[:_PIECE_BYTES])
            if not piece:  # the input is closed, or the command has ended
                break
            running.write(piece)
            with self._changed:  # only now, because a conversation may be repeated
                del self._unsent[: len(piece)]
                self._changed.notify_all()
        if self._is_input_closed and not self._has_input:
            running.close_stdin()
        running.wait()

    def end(self, error: BaseException | None) -> None:
        """Record that nothing more comes, and why if that is an error."""
        with self._changed:
            self._has_ended, self._error = True, error
            self._unsent.clear()
            self._changed.notify_all()

    # For the user's threads -------------------------------------------------------------------------------------------

    def read_into(self, stream: Stream, buffer: memoryview) -> int:
        """Wait for output, and copy it; return the number of bytes, 0 at the end."""
        with hold(self._changed):
            unread = self._unread[stream]
            wait_for(lambda: unread or self.has_ended, self._changed)
            if not unread and self._error is not None:
                raise copy_error(self._error)
            size = min(len(buffer), len(unread))
            buffer[:size] = unread[:size]
            did_accept = self.accepts_output()
            del unread[:size]
            has_room = not did_accept and self.accepts_output()
        if has_room:
            self._cancel_token.wake()
        return size

    def drop(self, stream: Stream) -> None:
        """Drop the output that is unread, and all that comes."""
        with self._changed:
            self._dropped.add(stream)
            self._unread[stream].clear()
        self._cancel_token.wake()

    def write(self, data: memoryview) -> int:
        """Wait for room, and take input to send; return the number of bytes taken.

        Raises:
            BrokenPipeError: If the process has ended.
        """
        with hold(self._changed):
            wait_for(lambda: len(self._unsent) < _MAX_UNSENT_BYTES or self.has_ended, self._changed)
            if self.has_ended:
                raise BrokenPipeError("the process has ended")
            taken = data[: _MAX_UNSENT_BYTES - len(self._unsent)]
            self._unsent += taken
        self._cancel_token.wake()
        return len(taken)

    def close_input(self) -> None:
        """Close standard input when all of it is sent."""
        self._is_input_closed = True
        self._cancel_token.wake()

    def open_reader(self, stream: Stream) -> BinaryIO:
        """Return a buffered reader of a stream."""
        return io.BufferedReader(_OutputReader(self.read_into, self.drop, stream))

    def open_writer(self) -> BinaryIO:
        """Return a buffered writer of standard input, closed if the command has all of it."""
        writer = io.BufferedWriter(_InputWriter(self.write, self.close_input))
        if self._has_input:
            writer.close()
        return writer


class _OutputReader(io.RawIOBase):
    def __init__(
        self, read_into: Callable[[Stream, memoryview], int], drop: Callable[[Stream], None], stream: Stream
    ) -> None:
        super().__init__()
        self._read_into, self._drop, self._stream = read_into, drop, stream

    def readable(self) -> bool:
        return True

    def readall(self) -> bytes:
        return b"".join(iter(lambda: self.read(_MAX_UNREAD_BYTES) or b"", b""))

    def readinto(self, buffer: Buffer, /) -> int:
        return self._read_into(self._stream, memoryview(buffer).cast("B"))

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._drop(self._stream)


class _InputWriter(io.RawIOBase):
    def __init__(self, write: Callable[[memoryview], int], close_input: Callable[[], None]) -> None:
        super().__init__()
        self._write, self._close_input = write, close_input

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer, /) -> int:
        return self._write(memoryview(data).cast("B"))

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._close_input()
