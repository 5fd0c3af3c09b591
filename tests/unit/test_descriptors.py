"""Functions for the descriptors of pipes."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from lazycluster._remote import descriptors


def test_read_exactly_leaves_the_rest() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", 0) as file:
        os.write(writing, b"abcde")
        assert descriptors.read_exactly(reading, 0) == b""
        assert descriptors.read_exactly(reading, 3) == b"abc"
        os.close(writing)
        assert file.read() == b"de"


def test_read_exactly_of_short_stream_raises() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"ab")
    os.close(writing)
    with os.fdopen(reading, "rb", 0), pytest.raises(EOFError):
        descriptors.read_exactly(reading, 3)


def test_readable_bytes_counts_bytes_of_pipe() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb"), os.fdopen(writing, "wb", 0) as file:
        assert descriptors.readable_bytes(reading, 7) == 0
        file.write(b"abc")
        assert descriptors.readable_bytes(reading, 7) == 3
        capacity = descriptors.enlarge_pipe(reading)
        assert capacity >= 1 << 16
        if sys.platform == "linux":
            assert capacity == fcntl.fcntl(reading, fcntl.F_GETPIPE_SZ)
        descriptors.set_nonblocking((reading, -1))
        assert os.read(reading, 9) == b"abc"
        with pytest.raises(BlockingIOError):
            os.read(reading, 9)


def test_pipe_functions_without_fcntl_return_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert descriptors.readable_bytes(0, 7) == 7
    assert descriptors.enlarge_pipe(0) == descriptors.LARGE_PIPE_BYTES


@pytest.mark.parametrize("listed", [True, False])
def test_close_all_but_keeps_given_descriptors(listed: bool) -> None:
    program = f"""
import os
from lazycluster._remote import descriptors
if not {listed}:
    def refuse(path): raise FileNotFoundError
    descriptors.os.listdir = refuse
kept, closed = os.pipe(), os.pipe()
descriptors.close_all_but(*kept)
print([os.fstat(each) is not None for each in (0, 1, 2, *kept)])
for each in closed:
    try:
        os.fstat(each)
    except OSError as error:
        print(error.errno)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{[True] * 5}\n{errno.EBADF}\n{errno.EBADF}\n", "")
