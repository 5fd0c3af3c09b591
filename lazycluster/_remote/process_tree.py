"""The processes of a host as a tree, and how a part of it is ended; sent there.

Standard library only, and the syntax of Python 3.6.
"""

import _signal as signal  # `signal` itself makes enumerations of it, which takes 2 ms
import contextlib
import os
import time
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1  # prctl(2)
_PR_SET_CHILD_SUBREAPER = 36
_UNKILLABLE = 2.0  # seconds to wait for processes that SIGKILL was sent to
_LOOKS = 2  # in the moment of its exec a process shows no environment, so nothing found counts when found twice


class Row:
    """A process that is no zombie. `born` is its start in the kernel's ticks: with it a number is nobody else's."""

    __slots__ = ("born", "group", "parent", "pid", "session")

    def __init__(self, pid: int, parent: int, group: int, session: int, born: int = 0) -> None:
        """Keep what the kernel says."""
        self.pid = pid
        self.parent = parent
        self.group = group
        self.session = session
        self.born = born


def adopt_orphans() -> bool:
    """Become the parent of what loses its own below this process; tell whether the kernel can do that (Linux 3.4)."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """Be killed when the parent ends, where the kernel can do that."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> bool:
    """Call prctl(2), where there is one."""
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes  # noqa: PLC0415 - not every Python is built with it

        return bool(ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0)
    return False


def how_ended(status: int) -> str:
    """Return in words how a function's process ended, from what waitpid(2) says."""
    if os.WIFSIGNALED(status):
        signal_number = os.WTERMSIG(status)
        return f"was killed by signal {signal_number} ({signal_name(signal_number)})"
    return f"ended with exit status {os.WEXITSTATUS(status)} before the function returned (os._exit?)"


def signal_name(signal_number: int) -> str:
    """Return the name of a signal."""
    from signal import Signals  # noqa: PLC0415 - as above

    try:
        return Signals(signal_number).name
    except ValueError:
        return "unknown"


def descendants(table: "list[Row]", root: int, group: int = 0) -> "set[int]":
    """Return the processes below `root`, and those of the process group or session `group` that lost their parent."""
    found = {root}
    while True:
        more = {row.pid for row in table if row.parent in found or (group and group in (row.group, row.session))}
        more -= found
        if not more:
            return found - {root}
        found |= more


def marked(table: "list[Row]", mark: bytes) -> "set[int]":
    """Return the processes that have a mark in the environment that they began with (proc_pid_environ(5))."""
    found = set()
    for row in table:
        with contextlib.suppress(OSError), open(f"/proc/{row.pid}/environ", "rb") as file:
            if mark in file.read():
                found.add(row.pid)
    return found


def process_table() -> "list[Row]":
    """Return every process that is no zombie."""
    if not os.access("/proc/self/stat", os.R_OK):
        return _process_table_of_ps()
    table = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError), os.fdopen(os.open(entry.path + "/stat", os.O_RDONLY), "rb") as file:
                # proc_pid_stat(5): pid (comm) state ppid pgrp session ...; comm may hold anything, parentheses too
                fields = file.read().rpartition(b")")[2].split()
                if fields[0] != b"Z":
                    table.append(Row(int(entry.name), int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19])))
    return table


def _process_table_of_ps() -> "list[Row]":
    reading, writing = os.pipe()
    argv = ["ps", "-A", "-o", "pid=", "-o", "ppid=", "-o", "pgid=", "-o", "stat="]
    ps = os.fork()
    if ps == 0:
        try:
            os.dup2(writing, 1)
            os.execvp(argv[0], argv)
        finally:
            os._exit(127)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        rows = [line.split() for line in file]
    os.waitpid(ps, 0)
    return [
        Row(int(row[0]), int(row[1]), int(row[2]), int(row[2]))
        for row in rows
        if int(row[0]) != ps and row[3][:1] != b"Z"
    ]


class Ending:
    """Ends processes, one look at a time: SIGTERM to each when it is first seen, SIGKILL when the grace is over.

    What a process starts that was told to end and lives yet, such as the `rm` of a trap, is its own way of ending:
    that is told only when it is left alone.
    """

    def __init__(self, find: "Callable[[list[Row]], set[int]]", grace: float, first: int = 0) -> None:
        """Prepare to end what `find` finds in the table of processes, and what was found before.

        The process `first` comes first: a function would else see a child of its end, and might return as if nothing
        had happened.
        """
        self._find = find
        self._first = first
        self._known: set[tuple[int, int]] = set()
        self._empty = 0
        self._late = time.monotonic() + grace
        self.left: set[int] = set()
        """What could not be killed."""

    def hurry(self) -> None:
        """End the grace."""
        self._late = min(self._late, time.monotonic())

    def step(self, table: "list[Row]") -> bool:
        """Send the signals that are due, and tell whether nothing is left, or what is left cannot be killed."""
        now = time.monotonic()
        rows = {row.pid: row for row in table}
        found = self._find(table) | {pid for pid, born in self._known if pid in rows and rows[pid].born == born}
        found = {pid for pid in found if pid in rows and pid != os.getpid()}
        if not found:
            self._empty += 1
            return self._empty >= _LOOKS
        self._empty = 0
        fresh = {pid for pid in found if (pid, rows[pid].born) not in self._known}
        kill = now >= self._late
        below = found - fresh
        while below:
            below = {pid for pid in fresh if rows[pid].parent in below}
            fresh -= below
        for pid in sorted(found if kill else fresh, key=self._first.__ne__):
            for number in (signal.SIGKILL,) if kill else (signal.SIGTERM, signal.SIGCONT):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
        self._known |= {(pid, rows[pid].born) for pid in fresh}
        if now < self._late + _UNKILLABLE:
            return False
        self.left = found
        return True
