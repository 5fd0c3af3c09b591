"""The process that watches over a function's process on a host; sent there as text, together with `call.py`.

Standard library only, and the syntax of Python 3.6.
"""

import contextlib
import os
import select
import signal
import time

_PR_SET_PDEATHSIG = 1  # prctl(2)
_PR_SET_CHILD_SUBREAPER = 36
_UNKILLABLE = 2.0  # seconds to wait for processes that SIGKILL was sent to
_TICK = 0.02


def fork() -> int:
    """Fork a process with a process group of its own, which does not outlive this one, and adopt its orphans."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    worker = os.fork()
    if worker == 0:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(PermissionError, ProcessLookupError):  # both do it: whoever comes first
        os.setpgid(worker, 0)
    return worker


def watch(worker: int, grace: float) -> str:
    """Wait for the worker's end and return in words how it came.

    At the end of standard input, or a signal, every process below this one is ended: SIGTERM, and SIGKILL after
    `grace` seconds.
    """
    return _Watch(worker, grace).until_ended()


def _prctl(option: int, value: int) -> None:
    """Call prctl(2), where there is one."""
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes  # noqa: PLC0415 - not every Python is built with it

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


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
        if os.WIFSIGNALED(self._status):
            number = os.WTERMSIG(self._status)
            return f"was killed by signal {number} ({_signal_name(number)})"
        return f"ended with exit status {os.WEXITSTATUS(self._status)} before the function returned (os._exit?)"

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
        """End every descendant: SIGTERM, and SIGKILL when the grace is over.

        The worker comes first, or its function would see a child end, and might return as if nothing had happened.
        """
        asked: set[int] = set()
        late = time.monotonic() + self._grace
        while time.monotonic() < late + _UNKILLABLE:
            self._reaped()
            alive = descendants(process_table(), os.getpid(), self._worker)
            if not alive and self._childless:
                return
            kill = time.monotonic() >= late
            for pid in sorted(alive if kill else alive - asked, key=self._worker.__ne__):
                for number in (signal.SIGKILL,) if kill else (signal.SIGTERM, signal.SIGCONT):
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, number)
            asked |= alive
            select.select([self._bell], [], [], _TICK)
            while self._bell in select.select([self._bell], [], [], 0)[0]:
                os.read(self._bell, 4096)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def descendants(table: "list[tuple[int, int, int]]", root: int, group: int) -> "set[int]":
    """Return the processes below `root`, and those of the process group `group` that lost their parent."""
    found = {root}
    while True:
        more = {pid for pid, parent, leader in table if parent in found or leader == group} - found
        if not more:
            return found - {root}
        found |= more


def process_table() -> "list[tuple[int, int, int]]":
    """Return pid, parent and process group of every process that is no zombie."""
    if not os.access("/proc/self/stat", os.R_OK):
        return _process_table_of_ps()
    table = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError), os.fdopen(os.open(entry.path + "/stat", os.O_RDONLY), "rb") as file:
                # proc_pid_stat(5): pid (comm) state ppid pgrp ...; comm may hold anything, parentheses too
                state, parent, group = file.read().rpartition(b")")[2].split()[:3]
                if state != b"Z":
                    table.append((int(entry.name), int(parent), int(group)))
    return table


def _process_table_of_ps() -> "list[tuple[int, int, int]]":
    reading, writing = os.pipe()
    argv = ["ps", "-A", "-o", "pid=", "-o", "ppid=", "-o", "pgid=", "-o", "stat="]
    ps = os.posix_spawnp("ps", argv, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, writing, 1)])
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        rows = [line.split() for line in file]
    os.waitpid(ps, 0)
    return [(int(row[0]), int(row[1]), int(row[2])) for row in rows if int(row[0]) != ps and row[3][:1] != b"Z"]
