"""The process that watches over a function's process on a host; sent there as text, together with `call.py`.

Standard library only, and the syntax of Python 3.6.
"""

import contextlib
import os
import select
import signal

from lazycluster._remote.process_tree import (
    Ending,
    adopt_orphans,
    descendants,
    die_with_parent,
    how_ended,
    process_table,
)

_TICK = 0.02


def fork() -> int:
    """Fork a process with a process group of its own, which does not outlive this one, and adopt its orphans."""
    adopt_orphans()
    worker = os.fork()
    if worker == 0:
        die_with_parent()
    with contextlib.suppress(PermissionError, ProcessLookupError):  # both do it: whoever comes first
        os.setpgid(worker, 0)
    return worker


def watch(worker: int, grace: float) -> str:
    """Wait for the worker's end and return in words how it came.

    At the end of standard input, or a signal, every process below this one is ended: SIGTERM, and SIGKILL after
    `grace` seconds.
    """
    return _Watch(worker, grace).until_ended()


class _Watch:
    """Waits for the worker's end, or for the manager's, and then ends all that the worker started."""

    def __init__(self, worker: int, grace: float) -> None:
        self._worker = worker
        self._grace = grace
        self._status: int | None = None
        self._childless = False
        self._bell, ring = os.pipe()
        for end in (self._bell, ring):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(ring)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda _number, _frame: None)

    def until_ended(self) -> str:
        """Return in words how the worker ended; collect every process that is ours to collect."""
        while not self._reaped():
            if self._manager_gone():
                self._end_tree()
                return "was ended because the manager closed the connection"
        assert self._status is not None
        return how_ended(self._status)

    def _reaped(self) -> bool:
        """Collect what has ended, adopted processes too, and tell whether the worker is among it."""
        self._childless = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self._childless = True
                break
            if pid == 0:
                break
            if pid == self._worker:
                self._status = status
        return self._status is not None

    def _manager_gone(self) -> bool:
        """Wait for something to happen; tell whether it is the end of our input, or a signal that asks us to end."""
        ready = select.select([0, self._bell], [], [])[0]
        rung = os.read(self._bell, 4096) if self._bell in ready else b""
        if any(number != signal.SIGCHLD for number in rung):
            return True
        try:
            return 0 in ready and not os.read(0, 65536)
        except OSError:  # a socket may end with ECONNRESET
            return True

    def _end_tree(self) -> None:
        """End every descendant: SIGTERM, and SIGKILL when the grace is over."""
        ending = Ending(lambda table: descendants(table, os.getpid(), self._worker), self._grace, self._worker)
        while True:
            self._reaped()
            if ending.step(process_table()) and (self._childless or ending.left):
                return
            select.select([self._bell], [], [], _TICK)
            while self._bell in select.select([self._bell], [], [], 0)[0]:
                os.read(self._bell, 4096)
