"""Runs the shell text that examines the machine, when a supervisor starts; sent to the host.

Standard library only, and the syntax of Python 3.6.
"""

import contextlib
import os
import selectors
from collections.abc import Callable

from lazycluster._remote.descriptors import close_all, readable_bytes
from lazycluster._remote.protocol import MAX_BODY_BYTES, STREAM_CHUNK_BYTES
from lazycluster._remote.spawn import Spawner, base_environment

_MAX_OUTPUT_BYTES = MAX_BODY_BYTES // 2


class HostProbe:
    """Collects the output of a shell text until the shell ends."""

    def __init__(self, selector: "selectors.BaseSelector", on_end: "Callable[[bytes], None]") -> None:
        """Begin without a process; `on_end` is called with the output."""
        self._selector = selector
        self._on_end = on_end
        self._output = bytearray()
        self.pid = 0
        """The shell, 0 if none runs."""
        self._reader = -1

    def start(self, text: str, spawner: Spawner) -> None:
        """Start the shell. If that fails, there is no output."""
        self._reader, writer = os.pipe()
        self._selector.register(self._reader, selectors.EVENT_READ, lambda: self._read(STREAM_CHUNK_BYTES))
        null_device = os.open(os.devnull, os.O_RDONLY)
        environment = {**base_environment(), **known_facts()}
        try:
            argv = ["sh", "-c", text, "sh"]
            self.pid = spawner.spawn("/bin/sh", argv, environment, [null_device, writer, writer])
        except OSError:
            self._end()
        finally:
            close_all((null_device, writer))

    def process_exited(self, pid: int) -> None:
        """Record that a process has ended, which may be the shell; a process that it left may keep the pipe open."""
        if pid == self.pid:
            waiting_bytes = readable_bytes(self._reader, 0) if self._reader >= 0 else 0
            if waiting_bytes:
                self._read(waiting_bytes)
            self._end()

    def _read(self, size: int) -> None:
        if self._reader < 0:  # closed since the selector reported it
            return
        data = os.read(self._reader, size)
        self._output += data[: _MAX_OUTPUT_BYTES - len(self._output)]
        if not data:
            self._close()

    def _close(self) -> None:
        if self._reader >= 0:
            self._selector.unregister(self._reader)
            os.close(self._reader)
            self._reader = -1

    def _end(self) -> None:
        self._close()
        self.pid = 0
        self._on_end(bytes(self._output))


def known_facts() -> "dict[bytes, bytes]":
    """Return facts that Python knows, so that the probe starts no program for them (see probe.sh)."""
    system = os.uname()
    known = {b"LAZYCLUSTER_UNAME": os.fsencode(f"{system.sysname} {system.release} {system.machine}")}
    with contextlib.suppress(AttributeError, OSError):  # not on every system, and not always allowed
        known[b"LAZYCLUSTER_PROCESSORS"] = b"%d" % len(os.sched_getaffinity(0))
    return known
