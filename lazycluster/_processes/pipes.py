"""Pipes to local processes: their descriptors and their capacity."""

from __future__ import annotations

import contextlib
import fcntl
import sys
from typing import IO

PIPE_CAPACITY_BYTES = 1 << 20
_F_SETPIPE_SZ = 1031  # fcntl(2), F_SETPIPE_SZ


def enlarge_pipe(stream: IO[bytes] | None) -> None:
    """Enlarge the buffer of a pipe, if the system allows it (Linux)."""
    if stream is not None and sys.platform == "linux":
        with contextlib.suppress(OSError):
            fcntl.fcntl(stream, _F_SETPIPE_SZ, PIPE_CAPACITY_BYTES)
