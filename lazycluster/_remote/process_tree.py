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
TERMINATION_POLL_SECONDS = 0.02
"""Seconds between two steps of a `TreeTerminator`."""
KILL_TIMEOUT_SECONDS = 2.0  # seconds to wait for processes that SIGKILL was sent to
MAX_NAMED_PROCESSES = 10
"""The most processes that a message names."""
_MAX_COMMAND_LINE_BYTES = 200
# In the moment of its exec a process shows no environment, so a tree is gone only if two scans find nothing.
_EMPTY_SCANS_REQUIRED = 2


class ProcessEntry:
    """A process that is not a zombie. `start_time`, in the kernel's ticks, distinguishes processes of one pid."""

    __slots__ = ("group", "parent", "pid", "session", "start_time")

    def __init__(self, pid: int, parent: int, group: int, session: int, start_time: int = 0) -> None:
        """Keep the facts of the kernel."""
        self.pid = pid
        self.parent = parent
        self.group = group
        self.session = session
        self.start_time = start_time


def become_subreaper() -> bool:
    """Adopt the descendants that lose their parent; return whether the kernel can do that (Linux 3.4)."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, if it can do that (Linux)."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> bool:
    """Call prctl(2) if the system has it; return whether that succeeded."""
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes  # noqa: PLC0415 - not every Python is built with it

        return bool(ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0)
    return False


def catch_signals() -> int:
    """Return the reading end of a pipe, which does not block: it gets the number of each signal that comes.

    The signals are SIGCHLD and those that ask a process to end; they have no other effect.
    """
    reading, writing = os.pipe()
    for end in (reading, writing):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(writing)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: None)
    return reading


def reap_children() -> "tuple[list[tuple[int, int]], bool]":
    """Collect the children that have ended, adopted ones too.

    Return the process id and wait status of each, and whether no child is left.
    """
    ended: list[tuple[int, int]] = []
    while True:
        try:
            pid, wait_status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended, True
        if pid == 0:
            return ended, False
        ended.append((pid, wait_status))


def describe_wait_status(wait_status: int) -> str:
    """Return in words how a function's process ended, from its wait status (waitpid(2))."""
    if os.WIFSIGNALED(wait_status):
        signal_number = os.WTERMSIG(wait_status)
        return f"was killed by signal {signal_number} ({signal_name(signal_number)})"
    return f"ended with exit status {os.WEXITSTATUS(wait_status)} before the function returned (os._exit?)"


def signal_name(signal_number: int) -> str:
    """Return the name of a signal."""
    from signal import Signals  # noqa: PLC0415 - as above

    try:
        return Signals(signal_number).name
    except ValueError:
        return "unknown"


def descendants(table: "list[ProcessEntry]", root: int, group: int = 0) -> "set[int]":
    """Return the descendants of `root`, and the processes of the group or session `group` that lost their parent."""
    found = {root}
    while True:
        more = {row.pid for row in table if row.parent in found or (group and group in (row.group, row.session))}
        more -= found
        if not more:
            return found - {root}
        found |= more


def find_marked(table: "list[ProcessEntry]", mark: bytes) -> "set[int]":
    """Return the processes that have a mark in the environment that they began with (proc_pid_environ(5))."""
    found = set()
    for row in table:
        with contextlib.suppress(OSError), open(f"/proc/{row.pid}/environ", "rb") as file:
            if mark in file.read():
                found.add(row.pid)
    return found


def command_lines(table: "list[ProcessEntry]", pids: "set[int]") -> "list[bytes]":
    """Return the command lines of processes, shortened, without those whose parent is among the processes.

    There are at most MAX_NAMED_PROCESSES and one more, which shows that others are left out.
    """
    lines: list[bytes] = []
    for row in table:
        if row.pid in pids and row.parent not in pids and len(lines) <= MAX_NAMED_PROCESSES:
            line = b"process %d" % row.pid  # without /proc
            if os.access("/proc/self/stat", os.R_OK):
                line = b""
                with contextlib.suppress(OSError), open(f"/proc/{row.pid}/cmdline", "rb") as file:
                    line = file.read(_MAX_COMMAND_LINE_BYTES).replace(b"\0", b" ").strip()
            if line:
                lines.append(line)
    return lines


def process_table() -> "list[ProcessEntry]":
    """Return every process that is not a zombie."""
    if not os.access("/proc/self/stat", os.R_OK):
        return _process_table_from_ps()
    table = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError), os.fdopen(os.open(entry.path + "/stat", os.O_RDONLY), "rb") as file:
                # proc_pid_stat(5): pid (comm) state ppid pgrp session ...; comm may hold anything, parentheses too
                fields = file.read().rpartition(b")")[2].split()
                if fields[0] != b"Z":
                    table.append(
                        ProcessEntry(int(entry.name), int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]))
                    )
    return table


def _process_table_from_ps() -> "list[ProcessEntry]":
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
        ProcessEntry(int(row[0]), int(row[1]), int(row[2]), int(row[2]))
        for row in rows
        if int(row[0]) != ps and row[3][:1] != b"Z"
    ]


class TreeTerminator:
    """Ends processes, one scan at a time: SIGTERM to each that is first seen, SIGKILL after the grace period.

    A process that has got SIGTERM may start others to clean up, such as the `rm` of a trap. These get SIGTERM only when
    they have lost their parent.
    """

    def __init__(
        self,
        find: "Callable[[list[ProcessEntry]], set[int]]",
        grace: float,
        root_pid: int = 0,
        clock: "Callable[[], float]" = time.monotonic,
    ) -> None:
        """Prepare to end the processes that `find` finds in the table, now or in an earlier scan.

        The process `root_pid` gets each signal first. Otherwise a function might see the end of a child of its own, and
        return as if nothing had happened.
        """
        self._find = find
        self._clock = clock
        self._root_pid = root_pid
        self._known: set[tuple[int, int]] = set()
        self._empty_scans = 0
        self.kill_at = clock() + grace
        """The end of the grace period, by `clock`."""

    def escalate(self) -> None:
        """End the grace period."""
        self.kill_at = min(self.kill_at, self._clock())

    def step(self, table: "list[ProcessEntry]") -> bool:
        """Send the signals that are due; return whether nothing is left, or nothing that can be killed."""
        now = self._clock()
        rows = {row.pid: row for row in table}
        found = self._find(table) | {pid for pid, start in self._known if pid in rows and rows[pid].start_time == start}
        found = {pid for pid in found if pid in rows and pid != os.getpid()}
        if not found:
            self._empty_scans += 1
            return self._empty_scans >= _EMPTY_SCANS_REQUIRED
        self._empty_scans = 0
        unsignalled = {pid for pid in found if (pid, rows[pid].start_time) not in self._known}
        kill = now >= self.kill_at
        generation = found - unsignalled
        while generation:
            generation = {pid for pid in unsignalled if rows[pid].parent in generation}
            unsignalled -= generation
        for pid in sorted(found if kill else unsignalled, key=self._root_pid.__ne__):
            for number in (signal.SIGKILL,) if kill else (signal.SIGTERM, signal.SIGCONT):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
        self._known |= {(pid, rows[pid].start_time) for pid in unsignalled}
        return now >= self.kill_at + KILL_TIMEOUT_SECONDS
