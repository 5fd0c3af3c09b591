"""Pipes to local processes: their capacity, and which of them a fork of this process must close."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import weakref
from typing import IO, Protocol

PIPE_CAPACITY_BYTES = 1 << 20
_F_SETPIPE_SZ = 1031  # fcntl(2), F_SETPIPE_SZ


def enlarge_pipe(stream: IO[bytes] | None) -> None:
    """Enlarge the buffer of a pipe, if the system allows it (Linux)."""
    if stream is not None and sys.platform == "linux":
        with contextlib.suppress(OSError):
            fcntl.fcntl(stream, _F_SETPIPE_SZ, PIPE_CAPACITY_BYTES)


class StdinPipeOwner(Protocol):
    """The owner of a pipe to the standard input of a process."""

    def close_after_fork(self) -> None:
        """Close the pipe in a forked child."""


_stdin_pipe_owners: weakref.WeakSet[StdinPipeOwner] = weakref.WeakSet()


def close_in_forks(owner: StdinPipeOwner) -> None:
    """Have every forked child of this process close a pipe.

    A host notices the end of this process by the end of its pipe. A copy in a child would hide that end.
    """
    _stdin_pipe_owners.add(owner)


def _close_stdin_pipes_after_fork() -> None:
    for owner in list(_stdin_pipe_owners):
        owner.close_after_fork()
    _stdin_pipe_owners.clear()


os.register_at_fork(after_in_child=_close_stdin_pipes_after_fork)
