"""What a runtime holds and must give back: processes, directories, the connection."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import threading
from collections.abc import Iterable

import attrs

from lazycluster._transports.interface import HostTransport, Stoppable
from lazycluster.exceptions import RuntimeClosedError
from lazycluster.managed import ManagedProcess
from lazycluster.tasks import TaskProcess

_log = logging.getLogger(__name__)
_DEAD_LINK_TIMEOUT = 3.0


@attrs.define(eq=False)
class Holdings:
    """What a runtime must not leave behind, apart from it, so that nothing keeps the runtime itself alive."""

    transport: HostTransport
    processes: dict[str, Stoppable] = attrs.field(factory=dict)
    lock: threading.Lock = attrs.field(factory=threading.Lock)
    releasing: threading.RLock = attrs.field(factory=threading.RLock)
    pid: int = attrs.field(factory=os.getpid)
    closed: bool = False
    released: bool = False

    def __attrs_post_init__(self) -> None:
        _register()
        _held.add(self)

    def release(self) -> None:
        """Stop every process, remove every directory, end the connection; again where that was interrupted."""
        if self.pid != os.getpid():  # a fork of the owner has only what it began itself, after the fork
            self.closed = self.released = True
            self.transport.clean_up()
            self.transport.close()
            return
        with self.releasing:
            if self.released:
                return
            with self.lock:
                self.closed = True
                processes = list(self.processes.values())
            try:
                self._give_back(processes)
            except Exception:
                self.transport.close()
                raise
            self.transport.close()
            self.released = True
            _held.discard(self)

    def abandon(self) -> None:
        """End the connection, where nothing was made on the host yet."""
        self.closed = self.released = True
        self.transport.close()
        _held.discard(self)

    def release_in_background(self) -> None:
        """Do it in a thread, for the garbage collector, which may have come in the middle of anything."""
        if self.pid == os.getpid():
            threading.Thread(target=self.release, name=f"clean-up of {self.transport.host}", daemon=True).start()

    def _give_back(self, processes: list[Stoppable]) -> None:
        for process in processes:
            process.request_stop()
        reached = self.transport.reaches_host(_DEAD_LINK_TIMEOUT)
        if not reached:
            self.transport.close()  # what waits for the host then waits no more
        for process in processes:
            if reached:
                process.terminate()
            else:
                process.kill()
            if isinstance(process, TaskProcess):
                process.tell_failure()
        if reached:
            self.transport.clean_up()
        elif self.transport.directories:
            _log.warning("%s: not reached; left there: %s", self.transport.host, ", ".join(self.transport.directories))

    def keep(self, key: str, process: Stoppable) -> str:
        """Add a process under a key and return the key; one that comes too late is stopped.

        Raises:
            RuntimeClosedError: Everything was released already.
        """
        with self.lock:
            if not self.closed:
                self.processes[key] = process
                return key
        process.terminate()
        raise RuntimeClosedError(self.transport.host)

    def living(self, *, only_alive: bool) -> dict[str, ManagedProcess]:
        """Return the processes by key."""
        with self.lock:
            processes = dict(self.processes)
        return {key: process for key, process in processes.items() if process.is_alive() or not only_alive}

    def forget(self, keys: Iterable[str]) -> None:
        """Drop processes that have ended."""
        with self.lock:
            for key in keys:
                self.processes.pop(key, None)


_held: set[Holdings] = set()


@functools.cache
def _register() -> None:
    """Have everything given back when the program ends: once there is something, so before the masters are let go."""
    atexit.register(_release_all)


def _release_all() -> None:
    """Give everything back."""
    for holdings in list(_held):
        try:
            holdings.release()
        except Exception:  # noqa: BLE001 - the others are to be released, too
            _log.warning("%s: the clean-up failed", holdings.transport.host, exc_info=True)
