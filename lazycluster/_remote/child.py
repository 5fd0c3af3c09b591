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

# The states of a child.
NEW = "new"  # it has no process yet
RUNNING = "running"
STOPPING = "stopping"  # its process and all that it started are being ended
STOPPED = "stopped"  # its process has ended, and what it started is being ended
EXITED = "exited"  # its process has ended, and its output is still to be sent
FINISHED = "finished"  # its end was reported, or the supervisor itself ends
# The events that change the state.
START = "start"  # a process was started
STOP = "stop"  # the local process asks for the end; the second time at once
EXIT = "exit"  # its process has ended, or has reported that its outcome is complete
TREE_GONE = "tree gone"  # all that a stop ends is gone
FINISH = "finish"

TRANSITIONS = {
    NEW: {START: RUNNING, FINISH: FINISHED},
    RUNNING: {EXIT: EXITED, STOP: STOPPING, FINISH: FINISHED},
    STOPPING: {EXIT: STOPPED, STOP: STOPPING, FINISH: FINISHED},
    STOPPED: {EXIT: STOPPED, STOP: STOPPED, TREE_GONE: EXITED, FINISH: FINISHED},
    EXITED: {EXIT: EXITED, STOP: STOPPED, FINISH: FINISHED},
    FINISHED: {EXIT: FINISHED, STOP: FINISHED, FINISH: FINISHED},
}
"""The state after each event; an event that a state does not list cannot happen in it.

A child that is detached goes through the same states, and sends nothing more.
"""


class PipeReader:
    """One stream that a child writes to."""

    def __init__(self, descriptor: int, kind: int) -> None:
        """Take the reading end of a pipe."""
        self.descriptor = descriptor
        self.kind = kind
        self.is_registered = False
        self.capacity = _DEFAULT_PIPE_BYTES
        self.remaining_bytes: int | None = None
        """The most bytes that an ended process can have left in the pipe; later bytes come from another process."""

    @property
    def chunk_bytes(self) -> int:
        """The number of bytes to read at once: more from a pipe that was full before."""
        return STREAM_CHUNK_BYTES if self.capacity == _DEFAULT_PIPE_BYTES else 4 * STREAM_CHUNK_BYTES


class InputQueue:
    """The standard input of a child: bytes that it has not read yet, in front of a pipe that does not block."""

    def __init__(self, number: int, selector: "selectors.BaseSelector", send_queue: SendQueue) -> None:
        """Begin without a pipe."""
        self._number = number
        self._selector = selector
        self._send_queue = send_queue
        self._pending: deque[memoryview] = deque()
        self._is_complete = False
        self._descriptor: int | None = None
        self._is_registered = False
        self._unacknowledged_bytes = 0

    @property
    def is_at_end(self) -> bool:
        """Whether no input is left to be written."""
        return self._is_complete and not self._pending

    def prepend(self, data: bytes) -> None:
        """Put bytes before the input. They do not count for flow control."""
        self._pending.appendleft(memoryview(data))
        self._unacknowledged_bytes -= len(data)

    def write(self, data: bytes) -> None:
        """Add a piece of input."""
        if data:
            self._pending.append(memoryview(data))
        self._flush()

    def end(self) -> None:
        """Close the pipe when all input is written."""
        self._is_complete = True
        self._flush()

    def connect(self, descriptor: int) -> None:
        """Take the writing end of the pipe; -1 if there is no pipe."""
        self._descriptor = descriptor
        self._flush()

    def close(self) -> None:
        """Close the pipe now."""
        if self._descriptor is not None and self._descriptor >= 0:
            if self._is_registered:
                self._selector.unregister(self._descriptor)
                self._is_registered = False
            os.close(self._descriptor)
            self._descriptor = -1

    def _flush(self) -> None:
        """Write the pending bytes, as far as the pipe takes them."""
        if self._descriptor is None:
            return
        try:
            while self._pending and self._descriptor >= 0:
                written = os.write(self._descriptor, self._pending[0])
                self._unacknowledged_bytes += written
                if written == len(self._pending[0]):
                    self._pending.popleft()
                else:
                    self._pending[0] = self._pending[0][written:]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
        if self._descriptor < 0:  # the child reads no more, so its input is dropped
            self._unacknowledged_bytes += sum(map(len, self._pending))
            self._pending.clear()
        if self._unacknowledged_bytes >= WINDOW_UPDATE_THRESHOLD_BYTES and not self._is_complete:
            self._send_queue.send(INPUT_WINDOW_UPDATE, self._number, encode_number(self._unacknowledged_bytes))
            self._unacknowledged_bytes = 0
        if self.is_at_end:
            self.close()
        elif bool(self._pending) != self._is_registered:
            self._is_registered = not self._is_registered
            if self._is_registered:
                self._selector.register(self._descriptor, selectors.EVENT_WRITE, self._flush)
            else:
                self._selector.unregister(self._descriptor)


class Child:
    """A command or function; `number` is its number on the channel."""

    def __init__(
        self,
        number: int,
        grace: float,
        selector: "selectors.BaseSelector",
        send_queue: SendQueue,
        on_finish: "Callable[[Child], None]",
    ) -> None:
        """Begin without a process; `on_finish` is called when the end is reported."""
        self.number = number
        self.grace = grace
        self.pid = 0
        self.state = NEW
        self.input = InputQueue(number, selector, send_queue)
        self.terminator: TreeTerminator | None = None
        """Ends the process and what it started, in the states STOPPING and STOPPED."""
        self.done_record = b""
        """The end of an outcome after which its process needs no further watching."""
        self._outcome_tail = b""
        self._end: tuple[bytes, bytes] | None = None
        """How the process ended: the fields of ENDED."""
        self._is_detached = False
        self._selector = selector
        self._send_queue = send_queue
        self._on_finish = on_finish
        self._send_window = WINDOW_BYTES
        self._readers: list[PipeReader] = []

    def _change_state(self, event: str) -> None:
        self.state = TRANSITIONS[self.state][event]

    def process_started(self, pid: int, input_writer: int, streams: "tuple[tuple[int, int], ...]") -> None:
        """Take over a process with our ends of its pipes, which do not block; -1 for no input."""
        self._change_state(START)
        self.pid = pid
        for descriptor, kind in streams:
            self._readers.append(PipeReader(descriptor, kind))
        self.update_reading()
        self.input.connect(input_writer)

    # Output ----------------------------------------------------------------------------------------------------------

    @property
    def _is_silent(self) -> bool:
        """Whether nothing more of the child is sent."""
        return self._is_detached or self.state == FINISHED

    def increase_window(self, size: int) -> None:
        """Allow this number of bytes more to be sent."""
        self._send_window += size
        self.update_reading()
        self._finish_if_complete()

    def update_reading(self) -> None:
        """Watch for output while it can be sent, or is dropped."""
        should_read = self._is_silent or (self._send_window > 0 and not self._send_queue.congested)
        for reader in self._readers:
            if should_read and not reader.is_registered:
                self._selector.register(
                    reader.descriptor, selectors.EVENT_READ, lambda reader=reader: self._read_output(reader)
                )
            elif not should_read and reader.is_registered:
                self._selector.unregister(reader.descriptor)
            reader.is_registered = should_read

    def _read_output(self, reader: PipeReader) -> bool:
        """Forward a piece of a stream; return whether more of it may be there now."""
        is_silent = self._is_silent
        if reader.descriptor < 0 or (self._send_window <= 0 and not is_silent):
            return False  # changed since the selector reported it
        try:
            data = os.read(
                reader.descriptor, reader.chunk_bytes if is_silent else min(reader.chunk_bytes, self._send_window)
            )
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._close_reader(reader)
            if not self._readers:
                self._finish_if_complete()
            return False
        if len(data) == STREAM_CHUNK_BYTES and reader.capacity == _DEFAULT_PIPE_BYTES:
            reader.capacity = enlarge_pipe(reader.descriptor)
        if is_silent:
            return True  # dropped, such as the output of a process that was left in the background
        if reader.remaining_bytes is not None:
            reader.remaining_bytes -= len(data)
        self._send_window -= len(data)
        self._send_queue.send_chunk(reader.kind, self.number, data)
        if reader.kind == OUTCOME and self.done_record:
            self._outcome_tail = (self._outcome_tail + data[-len(self.done_record) :])[-len(self.done_record) :]
            if self._outcome_tail == self.done_record:
                self._record_exit(b"done", b"0")
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
        """Record the wait status of its process (waitpid(2))."""
        self._record_exit(b"signal" if os.WIFSIGNALED(wait_status) else b"exit", encode_number(wait_status))

    def _record_exit(self, kind: bytes, detail: bytes) -> None:
        self._change_state(EXIT)
        is_first = self._end is None
        if is_first or kind == b"done":  # the done record may be read after the process has ended
            self._end = kind, detail
        if is_first:
            for reader in self._readers:
                reader.remaining_bytes = readable_bytes(reader.descriptor, reader.capacity)
            self._finish_if_complete()

    def _finish_if_complete(self) -> None:
        """Report the end if the process has ended, its output is on its way, and nothing is left to be stopped."""
        if self.state != EXITED:
            return
        readers = [] if self._is_detached else list(self._readers)
        while readers and self._send_window > 0:
            if not (readers[0].remaining_bytes and readers[0].remaining_bytes > 0 and self._read_output(readers[0])):
                readers.pop(0)
        # The next window update sends the rest. The end of the last stream may have finished the child already.
        if not readers and self.state == EXITED and self._end is not None:
            self.report_end(*self._end)

    def report_end(self, kind: bytes, detail: "bytes | str") -> None:
        """Report the end: `exit` or `signal` with the wait status, `cd` or `failed` with a reason."""
        if not self._is_detached:
            self._send_queue.send(
                ENDED, self.number, pack(kind, detail if isinstance(detail, bytes) else os.fsencode(detail))
            )
        self.finish()
        self._on_finish(self)

    def detach(self) -> None:
        """Send nothing more of the child, as the local process has stopped waiting for it."""
        self._is_detached = True
        self.input.close()
        self.update_reading()
        self._finish_if_complete()

    def finish(self) -> None:
        """Send nothing more of the child; a process that it left in the background may print on."""
        self._change_state(FINISH)
        self.input.close()
        self.update_reading()

    def stop(self, mark: str) -> None:
        """Begin to end its process with all that it started; a second call ends the grace period."""
        self._change_state(STOP)
        if self.terminator is not None:
            self.terminator.escalate()
        elif self.state != FINISHED:
            self.terminator = TreeTerminator(
                lambda table: self._find_processes(f"{mark}{self.number}.".encode(), table), self.grace, self.pid
            )

    def _find_processes(self, mark: bytes, table: "list[ProcessEntry]") -> "set[int]":
        """Return the processes of the child: its own with all descendants, its session, and orphans with its mark."""
        found = descendants(table, self.pid, self.pid) | ({self.pid} if self.state == STOPPING else set())
        orphans = [row for row in table if row.parent in {1, os.getpid()} and row.pid not in found]
        for pid in find_marked(orphans, mark):
            found |= {pid} | descendants(table, pid)
        return found

    def tree_terminated(self) -> None:
        """Record that the process and what it started are gone, or cannot be killed."""
        self.terminator = None
        if self.state == STOPPING:
            self.report_end(b"failed", "it could not be killed")
        else:
            self._change_state(TREE_GONE)
            self._finish_if_complete()
