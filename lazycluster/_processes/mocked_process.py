"""The seam for a mocked `subprocess`: a process of pytest-subprocess becomes one that is read like any other.

The streams of a mocked process are buffers without descriptors, for which no selector can wait.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import IO, TypeAlias

from lazycluster._processes.popen import Process

MockedOutput: TypeAlias = Callable[[bytes, int], bytes]
"""Takes the output that a test registered and the exit status, and returns the output that the program would print."""


def is_mocked(process: Process) -> bool:
    """Return whether a mock made a process: its standard output, which is a pipe otherwise, has no descriptor."""
    assert process.stdout is not None
    try:
        process.stdout.fileno()
    except OSError:
        return True
    return False


def replace_streams(process: Process, mocked_output: MockedOutput) -> None:
    """Wait until a mocked process has ended, and put files in the place of its streams.

    Nothing reads its standard input.
    """
    outputs = process.communicate()
    process.stdin = os.fdopen(os.open(os.devnull, os.O_WRONLY), "wb", buffering=0)
    process.stdout, process.stderr = (_file_with(mocked_output(data or b"", process.returncode)) for data in outputs)


def _file_with(data: bytes) -> IO[bytes]:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        return os.fdopen(os.dup(file.fileno()), "rb", buffering=0)
