"""What a runtime holds and must give back: processes, directories, the connection."""

from __future__ import annotations

import atexit
import logging
import os
import shlex
import threading
from collections.abc import Iterable
from typing import Protocol

import attrs

from lazycluster.exceptions import LazyclusterError, RuntimeClosedError
from lazycluster.managed import ManagedProcess
from lazycluster.openssh.connection import Connection
from lazycluster.openssh.host_scripts import END_MARKED
from lazycluster.openssh.shell import JOB_VARIABLE
from lazycluster.tasks import TaskProcess

_log = logging.getLogger(__name__)
_CLEAN_UP_TIMEOUT = 120.0
_DEAD_LINK_TIMEOUT = 3.0


class Stoppable(ManagedProcess, Protocol):
    """A managed process that can be asked to end without waiting for it, so that many end together."""

    def request_stop(self) -> None:
        """Ask it to end."""


@attrs.define(eq=False)
class Holdings:
    """What a runtime must not leave behind, apart from it, so that nothing keeps the runtime itself alive."""

    connection: Connection
    processes: dict[str, Stoppable] = attrs.field(factory=dict)
    directories: list[str] = attrs.field(factory=list)
    lock: threading.Lock = attrs.field(factory=threading.Lock)
    releasing: threading.RLock = attrs.field(factory=threading.RLock)
    pid: int = attrs.field(factory=os.getpid)
    closed: bool = False
    released: bool = False

    def __attrs_post_init__(self) -> None:
        _held.add(self)

    def release(self) -> None:
        """Stop every process, remove every directory, end the connection; again where that was interrupted."""
        if self.pid != os.getpid():  # a fork of the owner
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
                self.connection.close()
                raise
            self.connection.close()
            self.released = True
            _held.discard(self)

    def abandon(self) -> None:
        """End the connection, where nothing was made on the host yet."""
        self.closed = self.released = True
        self.connection.close()
        _held.discard(self)

    def release_in_background(self) -> None:
        """Do it in a thread, for the garbage collector, which may have come in the middle of anything."""
        if self.pid == os.getpid():
            threading.Thread(target=self.release, name=f"clean-up of {self.connection.host}", daemon=True).start()

    def _give_back(self, processes: list[Stoppable]) -> None:
        for process in processes:
            process.request_stop()
        reached = self.connection.sessions.reaches_host(_DEAD_LINK_TIMEOUT)
        if not reached:
            self.connection.close()  # what waits for the host then waits no more
        for process in processes:
            if reached:
                process.terminate()
            else:
                process.kill()
            if isinstance(process, TaskProcess):
                process.tell_failure()
        if reached:
            self._clean_host()
        elif self.directories:
            _log.warning("%s: not reached; left there: %s", self.connection.host, ", ".join(self.directories))

    def _clean_host(self) -> None:
        sessions = self.connection.sessions
        words = [shlex.quote(f"{JOB_VARIABLE}={sessions.token}."), *map(shlex.quote, self.directories)]
        script = f"set -- {' '.join(words)}\n{END_MARKED}"
        try:
            result = sessions.run(script, title="clean up", timeout=_CLEAN_UP_TIMEOUT, login_shell=False, marked=False)
        except LazyclusterError as error:
            _log.warning("%s: the clean-up failed: %s", self.connection.host, error)
        else:
            if not result.ok:
                _log.warning("%s: the clean-up left something: %s", self.connection.host, result.stderr.strip())

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
        raise RuntimeClosedError(self.connection.host)

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


@atexit.register
def _release_all() -> None:
    """Give everything back when the program ends."""
    for holdings in list(_held):
        try:
            holdings.release()
        except Exception:  # noqa: BLE001 - the others are to be released, too
            _log.warning("%s: the clean-up failed", holdings.connection.host, exc_info=True)
