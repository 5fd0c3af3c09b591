"""A command or function under way on a host, and its streams; sent there.

Standard library only, and the syntax of Python 3.6.
"""

import os
import selectors
from collections import deque
from collections.abc import Callable

from lazycluster._remote.process_tree import Ending, Row, descendants, marked
from lazycluster._remote.protocol import (
    ENDED,
    GRANT_INPUT,
    GRANTED,
    OUTCOME,
    PIECE,
    WINDOW,
    number,
    pack,
)
from lazycluster._remote.send_queue import Outbox
from lazycluster._remote.spawn import enlarge, waiting

_PIPE = 1 << 16


class Reader:
    """One stream that a job writes to."""

    def __init__(self, descriptor: int, kind: int) -> None:
        """Take the reading end of a pipe."""
        self.descriptor = descriptor
        self.kind = kind
        self.watched = False
        self.capacity = _PIPE
        self.left: int | None = None
        """Bytes that the pipe can hold of a process that has ended; what comes later is of another one."""

    @property
    def piece(self) -> int:
        """Return how much to read at once: more where it was seen that there is much."""
        return PIECE if self.capacity == _PIPE else 4 * PIECE


class Job:
    """A command or function; `name` is its number on the channel."""

    def __init__(
        self,
        name: int,
        grace: float,
        selector: "selectors.BaseSelector",
        outbox: Outbox,
        on_end: "Callable[[Job], None]",
    ) -> None:
        """Begin without a process; `on_end` is called when there is nothing more to tell about it."""
        self.name = name
        self.grace = grace
        self.pid = 0
        self.status: int | None = None
        self.ending: Ending | None = None
        self.over = False
        self.done = b""
        """How an outcome ends after which its process needs no further watching."""
        self._said_done = False
        self._tail = b""
        self._forsaken = False
        self.collected: bytearray | None = None
        """Where output goes that is not sent."""
        self._selector = selector
        self._outbox = outbox
        self._on_end = on_end
        self._credit = WINDOW
        self._readers: list[Reader] = []
        self._input: deque[memoryview] = deque()
        self._input_ended = False
        self._input_descriptor = -1
        self._input_watched = False
        self._taken = 0

    def begin(self, pid: int, feeding: int, streams: "tuple[tuple[int, int], ...]") -> None:
        """Take over a process with our ends of its pipes, which do not block; -1 for no input."""
        self.pid = pid
        for descriptor, kind in streams:
            self._readers.append(Reader(descriptor, kind))
        self.watch()
        self._input_descriptor = feeding
        self._feed()

    # Input -----------------------------------------------------------------------------------------------------------

    @property
    def needs_input(self) -> bool:
        """Tell whether it is to have a pipe for its standard input."""
        return bool(self._input) or not self._input_ended

    def give_setting(self, data: bytes) -> None:
        """Put something before the input that is no part of it."""
        self._input.appendleft(memoryview(data))
        self._taken -= len(data)

    def give(self, data: bytes) -> None:
        """Take a piece of its input."""
        if data:
            self._input.append(memoryview(data))
        self._feed()

    def end_input(self) -> None:
        """Take note that its input is complete."""
        self._input_ended = True
        self._feed()

    def _feed(self) -> None:
        """Write what it has not read yet, as far as it takes it."""
        if not self.pid:
            return
        try:
            while self._input and self._input_descriptor >= 0:
                written = os.write(self._input_descriptor, self._input[0])
                self._taken += written
                if written == len(self._input[0]):
                    self._input.popleft()
                else:
                    self._input[0] = self._input[0][written:]
        except BlockingIOError:
            pass
        except OSError:
            self.close_input()
        if self._input_descriptor < 0:  # it reads no more: what still comes for it goes nowhere
            self._taken += sum(map(len, self._input))
            self._input.clear()
        if self._taken >= GRANTED and not self._input_ended:
            self._outbox.send(GRANT_INPUT, self.name, number(self._taken))
            self._taken = 0
        if self._input_ended and not self._input:
            self.close_input()
        elif bool(self._input) != self._input_watched:
            self._input_watched = not self._input_watched
            if self._input_watched:
                self._selector.register(self._input_descriptor, selectors.EVENT_WRITE, self._feed)
            else:
                self._selector.unregister(self._input_descriptor)

    def close_input(self) -> None:
        """End its standard input."""
        if self._input_descriptor >= 0:
            if self._input_watched:
                self._selector.unregister(self._input_descriptor)
                self._input_watched = False
            os.close(self._input_descriptor)
            self._input_descriptor = -1

    # Output ----------------------------------------------------------------------------------------------------------

    def grant(self, size: int) -> None:
        """Take leave to send so many bytes more."""
        self._credit += size
        self.watch()
        if self.status is not None:
            self.settle()

    def watch(self) -> None:
        """Look out for output where there is leave to send it, or nobody to send it to."""
        wanted = self.over or self._forsaken or (self._credit > 0 and not self._outbox.congested)
        for reader in self._readers:
            if wanted and not reader.watched:
                self._selector.register(
                    reader.descriptor, selectors.EVENT_READ, lambda reader=reader: self._read(reader)
                )
            elif not wanted and reader.watched:
                self._selector.unregister(reader.descriptor)
            reader.watched = wanted

    def _read(self, reader: Reader) -> bool:
        """Send on what a stream holds; tell whether there may be more of it now."""
        heard = not (self.over or self._forsaken)
        if reader.descriptor < 0 or (heard and self._credit <= 0):  # so since the selector saw it
            return False
        try:
            data = os.read(reader.descriptor, min(reader.piece, self._credit) if heard else reader.piece)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._drop(reader)
            if self.status is not None and not self._readers:
                self.settle()
            return False
        if len(data) == PIECE and reader.capacity == _PIPE:
            reader.capacity = enlarge(reader.descriptor)
        if not heard:
            return True  # of a process that was left in the background, or so
        if reader.left is not None:
            reader.left -= len(data)
        if self.collected is not None:
            self.collected += data
            return True
        self._credit -= len(data)
        self._outbox.send_piece(reader.kind, self.name, data)
        if reader.kind == OUTCOME and self.done:
            self._tail = (self._tail + data[-len(self.done) :])[-len(self.done) :]
            if self._tail == self.done:
                self._said_done = True
                self.exited(0)
                return False
        if self._credit <= 0:
            self.watch()
        return True

    def _drop(self, reader: Reader) -> None:
        if reader.watched:
            self._selector.unregister(reader.descriptor)
        os.close(reader.descriptor)
        reader.descriptor = -1
        self._readers.remove(reader)

    # The end ---------------------------------------------------------------------------------------------------------

    def exited(self, status: int) -> None:
        """Take note of what waitpid(2) says of its process."""
        if self.status is None:
            self.status = status
            for reader in self._readers:
                reader.left = waiting(reader.descriptor, reader.capacity)
            self.settle()

    def settle(self) -> None:
        """End it once its process has ended, its output is on its way, and what it started is gone if it must."""
        if self.ending is not None or self.over or self.status is None:
            return
        readers = [] if self._forsaken else list(self._readers)
        while readers and self._credit > 0:
            if not (readers[0].left and readers[0].left > 0 and self._read(readers[0])):
                readers.pop(0)
        if readers or self._is_over():
            return  # the rest is sent with the next grant; or the last of the streams has ended it
        how = b"done" if self._said_done else b"signal" if os.WIFSIGNALED(self.status) else b"exit"
        self.end(how, number(self.status))

    def _is_over(self) -> bool:
        return self.over

    def end(self, how: bytes, what: "bytes | str") -> None:
        """Tell the end: `exit` or `signal` and what waitpid(2) said, `cd` or `failed` and why."""
        if self.collected is None and not self._forsaken:
            self._outbox.send(ENDED, self.name, pack(how, what if isinstance(what, bytes) else os.fsencode(what)))
        self.leave()
        self._on_end(self)

    def forsake(self) -> None:
        """Tell nothing more of it, as nobody waits for it; it is being ended."""
        self._forsaken = True
        self.close_input()
        self.watch()
        self.settle()

    def leave(self) -> None:
        """Tell nothing more of it; a process that it left in the background may print on."""
        self.over = True
        self.close_input()
        self.watch()

    def stop(self, mark: str) -> None:
        """Begin to end its process with all that it started; asked a second time, at once."""
        if self.ending is not None:
            self.ending.hurry()
        elif self.pid:
            self.ending = Ending(
                lambda table: self._members(f"{mark}{self.name}.".encode(), table), self.grace, self.pid
            )

    def _members(self, mark: bytes, table: "list[Row]") -> "set[int]":
        """Return the processes of the job: below its own, of its session, and orphans with its mark."""
        found = descendants(table, self.pid, self.pid) | ({self.pid} if self.status is None else set())
        orphans = [row for row in table if row.parent in {1, os.getpid()} and row.pid not in found]
        for pid in marked(orphans, mark):
            found |= {pid} | descendants(table, pid)
        return found

    def stopped(self) -> None:
        """Take note that all of it is gone, or cannot be killed."""
        self.ending = None
        if self.status is None:
            self.end(b"failed", "it could not be killed")
        else:
            self.settle()
