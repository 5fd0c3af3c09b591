"""A command or function under way on a host, and its streams; sent there.

Standard library only, and the syntax of Python 3.6.
"""

import os
import selectors
from collections import deque
from collections.abc import Callable

from lazycluster._remote.descriptors import enlarge_pipe, readable_bytes
from lazycluster._remote.process_tree import ProcessEntry, TreeTerminator, descendants, find_marked
from lazycluster._remote.protocol import (
    ENDED,
    INPUT_WINDOW_UPDATE,
    OUTCOME,
    STREAM_CHUNK_BYTES,
    WINDOW_BYTES,
    WINDOW_UPDATE_THRESHOLD_BYTES,
    encode_number,
    pack,
)
from lazycluster._remote.send_queue import SendQueue

_DEFAULT_PIPE_BYTES = 1 << 16


class PipeReader:
    """One stream that a child writes to."""

    def __init__(self, descriptor: int, kind: int) -> None:
        """Take the reading end of a pipe."""
        self.descriptor = descriptor
        self.kind = kind
        self.is_registered = False
        self.capacity = _DEFAULT_PIPE_BYTES
        self.remaining_bytes: int | None = None
        """Bytes that the pipe can hold of a process that has ended; what comes later is of another one."""

    @property
    def chunk_bytes(self) -> int:
        """Return how much to read at once: more where it was seen that there is much."""
        return STREAM_CHUNK_BYTES if self.capacity == _DEFAULT_PIPE_BYTES else 4 * STREAM_CHUNK_BYTES


class Child:
    """A command or function; `number` is its number on the channel."""

    def __init__(
        self,
        number: int,
        grace: float,
        selector: "selectors.BaseSelector",
        send_queue: SendQueue,
        on_end: "Callable[[Child], None]",
    ) -> None:
        """Begin without a process; `on_end` is called when there is nothing more to tell about it."""
        self.number = number
        self.grace = grace
        self.pid = 0
        self.wait_status: int | None = None
        self.terminator: TreeTerminator | None = None
        self.finished = False
        self.done_record = b""
        """How an outcome ends after which its process needs no further watching."""
        self._done_record_seen = False
        self._outcome_tail = b""
        self._detached = False
        self.captured_output: bytearray | None = None
        """Where output goes that is not sent."""
        self._selector = selector
        self._send_queue = send_queue
        self._on_end = on_end
        self._send_window = WINDOW_BYTES
        self._readers: list[PipeReader] = []
        self._pending_input: deque[memoryview] = deque()
        self._input_ended = False
        self._input_writer = -1
        self._input_is_registered = False
        self._unacknowledged_bytes = 0

    def process_started(self, pid: int, input_writer: int, streams: "tuple[tuple[int, int], ...]") -> None:
        """Take over a process with our ends of its pipes, which do not block; -1 for no input."""
        self.pid = pid
        for descriptor, kind in streams:
            self._readers.append(PipeReader(descriptor, kind))
        self.update_reading()
        self._input_writer = input_writer
        self._flush_input()

    # Input -----------------------------------------------------------------------------------------------------------

    @property
    def needs_input(self) -> bool:
        """Tell whether it is to have a pipe for its standard input."""
        return bool(self._pending_input) or not self._input_ended

    def prepend_input(self, data: bytes) -> None:
        """Put something before the input that is no part of it."""
        self._pending_input.appendleft(memoryview(data))
        self._unacknowledged_bytes -= len(data)

    def write_input(self, data: bytes) -> None:
        """Take a piece of its input."""
        if data:
            self._pending_input.append(memoryview(data))
        self._flush_input()

    def end_input(self) -> None:
        """Take note that its input is complete."""
        self._input_ended = True
        self._flush_input()

    def _flush_input(self) -> None:
        """Write what it has not read yet, as far as it takes it."""
        if not self.pid:
            return
        try:
            while self._pending_input and self._input_writer >= 0:
                written = os.write(self._input_writer, self._pending_input[0])
                self._unacknowledged_bytes += written
                if written == len(self._pending_input[0]):
                    self._pending_input.popleft()
                else:
                    self._pending_input[0] = self._pending_input[0][written:]
        except BlockingIOError:
            pass
        except OSError:
            self.close_input()
        if self._input_writer < 0:  # it reads no more: what still comes for it goes nowhere
            self._unacknowledged_bytes += sum(map(len, self._pending_input))
            self._pending_input.clear()
        if self._unacknowledged_bytes >= WINDOW_UPDATE_THRESHOLD_BYTES and not self._input_ended:
            self._send_queue.send(INPUT_WINDOW_UPDATE, self.number, encode_number(self._unacknowledged_bytes))
            self._unacknowledged_bytes = 0
        if self._input_ended and not self._pending_input:
            self.close_input()
        elif bool(self._pending_input) != self._input_is_registered:
            self._input_is_registered = not self._input_is_registered
            if self._input_is_registered:
                self._selector.register(self._input_writer, selectors.EVENT_WRITE, self._flush_input)
            else:
                self._selector.unregister(self._input_writer)

    def close_input(self) -> None:
        """End its standard input."""
        if self._input_writer >= 0:
            if self._input_is_registered:
                self._selector.unregister(self._input_writer)
                self._input_is_registered = False
            os.close(self._input_writer)
            self._input_writer = -1

    # Output ----------------------------------------------------------------------------------------------------------

    def increase_window(self, size: int) -> None:
        """Take leave to send so many bytes more."""
        self._send_window += size
        self.update_reading()
        if self.wait_status is not None:
            self.report_end_if_complete()

    def update_reading(self) -> None:
        """Look out for output where there is leave to send it, or nobody to send it to."""
        should_read = self.finished or self._detached or (self._send_window > 0 and not self._send_queue.congested)
        for reader in self._readers:
            if should_read and not reader.is_registered:
                self._selector.register(
                    reader.descriptor, selectors.EVENT_READ, lambda reader=reader: self._read_output(reader)
                )
            elif not should_read and reader.is_registered:
                self._selector.unregister(reader.descriptor)
            reader.is_registered = should_read

    def _read_output(self, reader: PipeReader) -> bool:
        """Send on what a stream holds; tell whether there may be more of it now."""
        is_forwarded = not (self.finished or self._detached)
        if reader.descriptor < 0 or (is_forwarded and self._send_window <= 0):  # so since the selector saw it
            return False
        try:
            data = os.read(
                reader.descriptor, min(reader.chunk_bytes, self._send_window) if is_forwarded else reader.chunk_bytes
            )
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._close_reader(reader)
            if self.wait_status is not None and not self._readers:
                self.report_end_if_complete()
            return False
        if len(data) == STREAM_CHUNK_BYTES and reader.capacity == _DEFAULT_PIPE_BYTES:
            reader.capacity = enlarge_pipe(reader.descriptor)
        if not is_forwarded:
            return True  # of a process that was left in the background, or so
        if reader.remaining_bytes is not None:
            reader.remaining_bytes -= len(data)
        if self.captured_output is not None:
            self.captured_output += data
            return True
        self._send_window -= len(data)
        self._send_queue.send_chunk(reader.kind, self.number, data)
        if reader.kind == OUTCOME and self.done_record:
            self._outcome_tail = (self._outcome_tail + data[-len(self.done_record) :])[-len(self.done_record) :]
            if self._outcome_tail == self.done_record:
                self._done_record_seen = True
                self.process_exited(0)
                return False
        if self._send_window <= 0:
            self.update_reading()
        return True

    def _close_reader(self, reader: PipeReader) -> None:
        if reader.is_registered:
            self._selector.unregister(reader.descriptor)
        os.close(reader.descriptor)
        reader.descriptor = -1
        self._readers.remove(reader)

    # The end ---------------------------------------------------------------------------------------------------------

    def process_exited(self, wait_status: int) -> None:
        """Take note of what waitpid(2) says of its process."""
        if self.wait_status is None:
            self.wait_status = wait_status
            for reader in self._readers:
                reader.remaining_bytes = readable_bytes(reader.descriptor, reader.capacity)
            self.report_end_if_complete()

    def report_end_if_complete(self) -> None:
        """End it once its process has ended, its output is on its way, and what it started is gone if it must."""
        if self.terminator is not None or self.finished or self.wait_status is None:
            return
        readers = [] if self._detached else list(self._readers)
        while readers and self._send_window > 0:
            if not (readers[0].remaining_bytes and readers[0].remaining_bytes > 0 and self._read_output(readers[0])):
                readers.pop(0)
        if readers or self._is_finished():
            return  # the rest is sent with the next window update; or the last of the streams has ended it
        kind = b"done" if self._done_record_seen else b"signal" if os.WIFSIGNALED(self.wait_status) else b"exit"
        self.report_end(kind, encode_number(self.wait_status))

    def _is_finished(self) -> bool:
        return self.finished

    def report_end(self, kind: bytes, detail: "bytes | str") -> None:
        """Tell the end: `exit` or `signal` and what waitpid(2) said, `cd` or `failed` and why."""
        if self.captured_output is None and not self._detached:
            self._send_queue.send(
                ENDED, self.number, pack(kind, detail if isinstance(detail, bytes) else os.fsencode(detail))
            )
        self.finish()
        self._on_end(self)

    def detach(self) -> None:
        """Tell nothing more of it, as nobody waits for it; it is being ended."""
        self._detached = True
        self.close_input()
        self.update_reading()
        self.report_end_if_complete()

    def finish(self) -> None:
        """Tell nothing more of it; a process that it left in the background may print on."""
        self.finished = True
        self.close_input()
        self.update_reading()

    def stop(self, mark: str) -> None:
        """Begin to end its process with all that it started; asked a second time, at once."""
        if self.terminator is not None:
            self.terminator.escalate()
        elif self.pid:
            self.terminator = TreeTerminator(
                lambda table: self._find_processes(f"{mark}{self.number}.".encode(), table), self.grace, self.pid
            )

    def _find_processes(self, mark: bytes, table: "list[ProcessEntry]") -> "set[int]":
        """Return the processes of the child: below its own, of its session, and orphans with its mark."""
        found = descendants(table, self.pid, self.pid) | ({self.pid} if self.wait_status is None else set())
        orphans = [row for row in table if row.parent in {1, os.getpid()} and row.pid not in found]
        for pid in find_marked(orphans, mark):
            found |= {pid} | descendants(table, pid)
        return found

    def tree_terminated(self) -> None:
        """Take note that all of it is gone, or cannot be killed."""
        self.terminator = None
        if self.wait_status is None:
            self.report_end(b"failed", "it could not be killed")
        else:
            self.report_end_if_complete()
