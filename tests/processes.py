"""The processes of this machine, read by psutil. A zombie counts as ended."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import psutil

_ENDED = {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}


def parent_by_pid() -> dict[int, int]:
    """Return the parent of every living process."""
    rows = [process.info for process in psutil.process_iter(["pid", "ppid", "status"])]
    return {row["pid"]: row["ppid"] for row in rows if row["status"] not in _ENDED}


def is_alive(pid: int) -> bool:
    """Return whether a process lives."""
    try:
        return psutil.Process(pid).status() not in _ENDED
    except psutil.NoSuchProcess:
        return False


def child_pids(pid: int) -> set[int]:
    """Return the living children of a process."""
    return {child for child, parent in parent_by_pid().items() if parent == pid}


def descendant_pids(pid: int) -> set[int]:
    """Return the living descendants of a process, without itself."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return {process.pid for process in psutil.Process(pid).children(recursive=True) if is_alive(process.pid)}
    return set()


def command_line(pid: int) -> str:
    """Return the arguments of a process joined by spaces, or "" if it has ended."""
    with contextlib.suppress(psutil.Error):
        return " ".join(psutil.Process(pid).cmdline()).strip()
    return ""


def find_local_pids(text: str) -> list[int]:
    """Return the other processes whose command line contains a text."""
    return [pid for pid in parent_by_pid() if pid != os.getpid() and text in command_line(pid)]


def find_marked_pids(mark: str) -> set[int]:
    """Return the living processes that have a text, such as `NAME=value`, in their environment."""
    pids = set()
    for pid in parent_by_pid():
        with contextlib.suppress(OSError):
            if mark.encode() in _read_environment(Path(f"/proc/{pid}")):
                pids.add(pid)
    return pids


def _read_environment(process: Path) -> bytes:
    """Return the environment of a process. During execve() /proc shows neither environment nor arguments."""
    looks = 0
    while not (found := (process / "environ").read_bytes()) and looks < 3:
        (process / "exe").readlink()  # threads of the kernel have none
        looks += bool((process / "cmdline").read_bytes())
    return found
