"""The processes of a private sshd; the only file of `lazycluster.testing` that starts processes.

Run as a program, under `python -I -S`, this file is the guard of an sshd. It starts the sshd, and adopts the orphans of
its sessions. The pipe on its standard input closes when its owner stops it, or dies in whatever way. Then it ends the
sshd with everything that it started, and removes its directory. For that it imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_KILL_TIMEOUT_SECONDS = 10.0
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def run_checked(argv: Sequence[str]) -> None:
    """Run a program to its end.

    Raises:
        OSError: If the program cannot be started or fails; its output is in the error.
    """
    ended = subprocess.run(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if ended.returncode:
        raise ChildProcessError(f"{argv[0]} ended with exit status {ended.returncode}: {ended.stdout.strip()}")


# The process table ---------------------------------------------------------------------------------------------------


def parent_by_pid(proc_directory: Path = Path("/proc")) -> dict[int, int]:
    """Return the parent of every living process; a zombie does not live. Without that directory, ps is asked."""
    has_proc = (proc_directory / "self" / "stat").exists()
    rows = _read_proc_rows(proc_directory) if has_proc else _read_ps_rows()
    return {pid: parent for pid, parent, state in rows if not state.startswith(("Z", "X"))}


def _read_proc_rows(proc_directory: Path) -> Iterable[tuple[int, int, str]]:
    """Yield pid, parent and state from /proc/PID/stat (proc(5)); the name, in parentheses, may hold anything."""
    for entry in proc_directory.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # ended since it was listed
                state, parent, *_ = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                yield int(entry.name), int(parent), state


def _read_ps_rows() -> Iterable[tuple[int, int, str]]:
    """Yield pid, parent and state as POSIX ps and `stat` of the BSDs print them, without the row of that ps."""
    with subprocess.Popen(["ps", "-A", "-o", "pid=,ppid=,stat="], stdout=subprocess.PIPE, text=True) as ps:
        output, _ = ps.communicate()
    for line in output.splitlines():
        pid, parent, state = line.split()[:3]
        if int(pid) != ps.pid:
            yield int(pid), int(parent), state


def child_pids(pid: int) -> set[int]:
    """Return the living children of a process."""
    return {child for child, parent in parent_by_pid().items() if parent == pid}


def descendant_pids(root: int) -> set[int]:
    """Return the living descendants of a process, without itself, whatever their sessions and process groups."""
    parents = parent_by_pid()
    found: set[int] = set()
    generation = {root}
    while generation:
        generation = {pid for pid, parent in parents.items() if parent in generation} - found
        found |= generation
    return found


# Ending --------------------------------------------------------------------------------------------------------------


def wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    """Wait for a condition, and return whether it came true in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def kill_all(find_pids: Callable[[], set[int]]) -> None:
    """Kill the processes that `find_pids` finds, and wait until they are gone.

    They are stopped first, and looked for until no new one appears, so that no process escapes by a fork in between.
    """
    stopped: set[int] = set()
    while new := find_pids() - stopped:
        _send_signal(new, signal.SIGSTOP)
        stopped |= new
    _send_signal(stopped, signal.SIGKILL)
    wait_until(lambda: stopped.isdisjoint(parent_by_pid()), _KILL_TIMEOUT_SECONDS)


def _send_signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


# The guard -----------------------------------------------------------------------------------------------------------


class GuardedProcess:
    """A program that runs under a guard of its own, for as long as this object and this process live."""

    def __init__(self, argv: Sequence[str], directory: Path, log: Path) -> None:
        """Start the guard, and through it the program; the standard error of both goes to `log`."""
        command = [sys.executable, "-I", "-S", __file__, str(directory), *argv]
        with log.open("ab") as stderr:
            self._guard = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, cwd="/", start_new_session=True
            )
        assert self._guard.stdout is not None
        self.pid = int(self._guard.stdout.readline() or 0)

    def has_ended(self) -> bool:
        """Return whether the program has ended by itself."""
        return self.pid not in parent_by_pid()

    def living_pids(self) -> set[int]:
        """Return the program and all its descendants; on Linux also those whose parents are gone."""
        return descendant_pids(self._guard.pid) if self._guard.returncode is None else set()

    def stop(self, timeout: float = 15.0) -> None:
        """Let the guard end the program with its descendants and remove the directory; wait for that."""
        self._guard.communicate(b"q", timeout=timeout)  # a byte, because a fork of this process may hold the pipe too


def run_guard(directory: str, argv: Sequence[str]) -> None:  # pragma: no cover: runs in a process of its own
    """Start the program, wait for the end of the owner, then end all that came from it and remove the directory."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    program = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    os.write(1, b"%d\n" % program.pid)
    threading.Thread(target=_reap_children, daemon=True).start()
    os.read(0, 1)
    for _ in range(5):  # once is enough, unless a process of another user started one of ours in between
        kill_all(lambda: descendant_pids(os.getpid()))
    shutil.rmtree(directory, ignore_errors=True)


def _reap_children() -> None:  # pragma: no cover: runs in a process of its own
    """Wait for each child, also for adopted ones, until no child is left."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


if __name__ == "__main__":  # pragma: no cover
    run_guard(sys.argv[1], sys.argv[2:])
