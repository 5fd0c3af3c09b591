"""The process that watches over a function's process on a host; sent there as text, together with `call_program.py`.

Standard library only, and the syntax of Python 3.6.
"""

import contextlib
import os
import select
import signal

from lazycluster._remote.process_tree import (
    TERMINATION_POLL_SECONDS,
    TreeTerminator,
    become_subreaper,
    catch_signals,
    descendants,
    describe_wait_status,
    die_with_parent,
    process_table,
    reap_children,
)


def fork_worker() -> int:
    """Fork a process with a process group of its own, which does not outlive this one, and adopt its orphans."""
    become_subreaper()
    worker = os.fork()
    if worker == 0:
        die_with_parent()
    with contextlib.suppress(PermissionError, ProcessLookupError):  # parent and child both do it: the first one counts
        os.setpgid(worker, 0)
    return worker


def watch_worker(worker_pid: int, grace: float) -> str:
    """Wait for the worker's end and return a description of it.

    When standard input ends, or a signal comes, every descendant of this process is ended: SIGTERM, and SIGKILL after
    `grace` seconds.
    """
    return Watchdog(worker_pid, grace).wait()


class Watchdog:
    """Waits for the end of the worker or of the local process, and ends all that the worker started."""

    def __init__(self, worker_pid: int, grace: float) -> None:
        self._worker_pid = worker_pid
        self._grace = grace
        self._wait_status: int | None = None
        self._signal_reader = catch_signals()

    def wait(self) -> str:
        """Return in words how the worker ended; collect every child that has ended."""
        while not self._reap():
            if self._wait_for_disconnect():
                self._terminate_tree()
                return "was ended because the local process closed the connection"
        assert self._wait_status is not None
        return describe_wait_status(self._wait_status)

    def _reap(self) -> bool:
        """Collect the children that have ended, and return whether the worker is one of them."""
        for pid, wait_status in reap_children()[0]:
            if pid == self._worker_pid:
                self._wait_status = wait_status
        return self._wait_status is not None

    def _wait_for_disconnect(self) -> bool:
        """Wait for an event; return whether it is the end of standard input, or a signal that asks to end."""
        ready = select.select([0, self._signal_reader], [], [])[0]
        signal_numbers = os.read(self._signal_reader, 4096) if self._signal_reader in ready else b""
        if any(number != signal.SIGCHLD for number in signal_numbers):
            return True
        try:
            return 0 in ready and not os.read(0, 65536)
        except OSError:  # a socket may end with ECONNRESET
            return True

    def _terminate_tree(self) -> None:
        terminator = TreeTerminator(
            lambda table: descendants(table, os.getpid(), self._worker_pid), self._grace, self._worker_pid
        )
        while not terminator.step(process_table()):
            if select.select([self._signal_reader], [], [], TERMINATION_POLL_SECONDS)[0]:
                os.read(self._signal_reader, 4096)
            self._reap()
