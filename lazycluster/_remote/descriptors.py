"""Functions for the descriptors of pipes; sent to the host.

Standard library only, and the syntax of Python 3.6.
"""

import contextlib
import os
import struct
import sys
from collections.abc import Iterable

LARGE_PIPE_BYTES = 1 << 20
_F_SETPIPE_SZ = 1031  # fcntl(2), F_SETPIPE_SZ
_READ_BYTES = 1 << 20


def read_exactly(descriptor: int, length: int) -> bytes:
    """Read this number of bytes and not one more.

    Raises:
        EOFError: If the stream ends before that.
    """
    data = bytearray()
    while len(data) < length:
        piece = os.read(descriptor, min(length - len(data), _READ_BYTES))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def enlarge_pipe(descriptor: int) -> int:
    """Enlarge a pipe that carries much (Linux), and return its capacity in bytes."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl  # noqa: PLC0415 - not on every system

        return fcntl.fcntl(descriptor, _F_SETPIPE_SZ, LARGE_PIPE_BYTES)
    return LARGE_PIPE_BYTES


def readable_bytes(descriptor: int, default: int) -> int:
    """Return the number of bytes that wait in a pipe, or `default` if the system cannot tell."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl  # noqa: PLC0415 - not on every system
        import termios  # noqa: PLC0415 - as above

        return int(struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))[0])
    return default


def close_all(descriptors: "Iterable[int]") -> None:
    """Close descriptors, except those below 0, which stand for no descriptor."""
    for descriptor in descriptors:
        if descriptor >= 0:
            os.close(descriptor)


def set_nonblocking(descriptors: "Iterable[int]") -> None:
    """Make descriptors non-blocking, except those below 0."""
    for descriptor in descriptors:
        if descriptor >= 0:
            os.set_blocking(descriptor, False)


def close_all_but(*keep: int) -> None:
    """Close every descriptor above the standard streams except those to keep."""
    try:
        names = os.listdir("/proc/self/fd" if sys.platform.startswith("linux") else "/dev/fd")
    except OSError:
        names = [str(descriptor) for descriptor in range(1024)]
    for descriptor in map(int, names):
        if descriptor > 2 and descriptor not in keep:
            with contextlib.suppress(OSError):
                os.close(descriptor)
