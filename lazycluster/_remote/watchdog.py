"""The process that watches over a function's process on a host; sent there as text, together with `call_program.py`.

Standard library only, and the syntax of Python 3.6.
"""

import contextlib
import os
import select
import signal

from lazycluster._remote.process_tree import (
    TreeTerminator,
    become_subreaper,
    descendants,
    describe_wait_status,
    die_with_parent,
    process_table,
)

_TERMINATION_POLL_SECONDS = 0.02


def fork_worker() -> int:
    """Fork a process with a process group of its own, which does not outlive this one, and adopt its orphans."""
    become_subreaper()
    worker = os.fork()
    if worker == 0:
        die_with_parent()
    with contextlib.suppress(PermissionError, ProcessLookupError):  # both do it: whoever comes first
        os.setpgid(worker, 0)
    return worker


def watch_worker(worker_pid: int, grace: float) -> str:
    """Wait for the worker's end and return in words how it came.

    At the end of standard input, or a signal, every process below this one is ended: SIGTERM, and SIGKILL after
    `grace` seconds.
    """
    return _Watchdog(worker_pid, grace).wait()


class _Watchdog:
    """Waits for the worker's end, or for the manager's, and then ends all that the worker started."""

    def __init__(self, worker_pid: int, grace: float) -> None:
        self._worker_pid = worker_pid
        self._grace = grace
        self._wait_status: int | None = None
        self._has_no_children = False
        self._wakeup_reader, wakeup_writer = os.pipe()
        for end in (self._wakeup_reader, wakeup_writer):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wakeup_writer)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda _number, _frame: None)

    def wait(self) -> str:
        """Return in words how the worker ended; collect every process that is ours to collect."""
        while not self._reap():
            if self._wait_for_disconnect():
                self._terminate_tree()
                return "was ended because the manager closed the connection"
        assert self._wait_status is not None
        return describe_wait_status(self._wait_status)

    def _reap(self) -> bool:
        """Collect what has ended, adopted processes too, and tell whether the worker is among it."""
        self._has_no_children = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self._has_no_children = True
                break
            if pid == 0:
                break
            if pid == self._worker_pid:
                self._wait_status = status
        return self._wait_status is not None

    def _wait_for_disconnect(self) -> bool:
        """Wait for something to happen; tell whether it is the end of our input, or a signal that asks us to end."""
        ready = select.select([0, self._wakeup_reader], [], [])[0]
        signal_numbers = os.read(self._wakeup_reader, 4096) if self._wakeup_reader in ready else b""
        if any(number != signal.SIGCHLD for number in signal_numbers):
            return True
        try:
            return 0 in ready and not os.read(0, 65536)
        except OSError:  # a socket may end with ECONNRESET
            return True

    def _terminate_tree(self) -> None:
        """End every descendant: SIGTERM, and SIGKILL when the grace is over."""
        terminator = TreeTerminator(
            lambda table: descendants(table, os.getpid(), self._worker_pid), self._grace, self._worker_pid
        )
        while True:
            self._reap()
            if terminator.step(process_table()) and (self._has_no_children or terminator.unkillable):
                return
            select.select([self._wakeup_reader], [], [], _TERMINATION_POLL_SECONDS)
            while self._wakeup_reader in select.select([self._wakeup_reader], [], [], 0)[0]:
                os.read(self._wakeup_reader, 4096)
