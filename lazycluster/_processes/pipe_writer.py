"""The standard input of a local process, written by any thread without waiting for the process."""

from __future__ import annotations

import os
import select
import threading

from lazycluster._processes.forks import reset_in_forks
from lazycluster._waiting import Waker, start_thread

_WRITE_BYTES = 1 << 20


class PipeWriter:
    """The standard input of a process. Any thread may write to it, and never waits for the process to read.

    It keeps unread data without a bound, so a caller that writes much must see to it that the process reads.
    """

    def __init__(self, descriptor: int) -> None:
        """Take over a non-blocking descriptor."""
        self._descriptor = descriptor
        self._pending = bytearray()
        self._changed = threading.Condition()
        self._waker: Waker | None = None
        """Wakes the thread that waits until the pipe has room; None while there is no such thread."""
        reset_in_forks(self)  # a copy of the pipe in a child would hide the end of this process from a host

    def write(self, data: bytes) -> bool:
        """Write data, now or as soon as the pipe has room; return whether its other end is still open."""
        with self._changed:
            if self._descriptor < 0:
                return False
            # Up to PIPE_BUF bytes are written at once or not at all (pipe(7)). A thread writes longer data: Ctrl-C
            # does not interrupt it, so the number of bytes written stays known.
            if not self._pending and len(data) <= select.PIPE_BUF:
                try:
                    os.write(self._descriptor, data)
                except BlockingIOError:
                    pass
                except OSError:
                    self._close_locked()
                    return False
                else:
                    return True
            self._pending += data
            self._changed.notify_all()
            if self._waker is None:
                start_thread(threading.Thread(target=self._flush, name="lazycluster-pipe-writer", daemon=True))
            return True

    def _flush(self) -> None:
        """Write pending data whenever the pipe has room, until it is closed."""
        poll = select.poll()
        with self._changed:
            if self._descriptor < 0 or self._waker is not None:  # Ctrl-C during the start of a thread: one more starts
                return
            try:
                self._waker = waker = Waker()
            except OSError:  # no descriptors are left; the reader sees the end of its input
                self._close_locked()
                raise
            poll.register(waker, select.POLLIN)
            poll.register(self._descriptor, select.POLLOUT)
        while self._write_pending():
            poll.poll()
        with self._changed:
            self._waker = None
            waker.close()

    def _write_pending(self) -> bool:
        """Write pending data, and wait for more, until the pipe is full; return whether the pipe is still open."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._pending or self._descriptor < 0)
                if self._descriptor < 0:
                    return False
                try:
                    del self._pending[: os.write(self._descriptor, self._pending[:_WRITE_BYTES])]
                except BlockingIOError:
                    return True
                except OSError:
                    self._close_locked()
                    return False

    def close(self) -> None:
        """Close the pipe; pending data is lost. Closing twice is fine."""
        with self._changed:
            self._close_locked()

    def reset_after_fork(self) -> None:
        """Close the descriptors in a forked child, without the lock: a thread that the child lacks may hold it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._waker is not None:
            self._waker.close()
            self._waker = None

    def _close_locked(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._pending.clear()
            self._changed.notify_all()
            if self._waker is not None:
                self._waker.wake()
