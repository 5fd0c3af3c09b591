"""What a runtime holds and must give back: processes, directories, the connection."""

from __future__ import annotations

import contextlib
import os
import shlex
import threading
from collections.abc import Iterable

import attrs

from lazycluster.exceptions import LazyclusterError, RuntimeClosedError
from lazycluster.managed import ManagedProcess
from lazycluster.openssh.connection import Connection
from lazycluster.openssh.host_scripts import END_MARKED
from lazycluster.openssh.shell import JOB_VARIABLE
from lazycluster.tasks import TaskProcess

_CLEAN_UP_TIMEOUT = 10.0
_DEAD_LINK_TIMEOUT = 3.0


@attrs.define
class Holdings:
    """What a runtime must not leave behind, apart from it, so that nothing keeps the runtime itself alive."""

    connection: Connection
    processes: dict[str, ManagedProcess] = attrs.field(factory=dict)
    directories: list[str] = attrs.field(factory=list)
    lock: threading.Lock = attrs.field(factory=threading.Lock)
    pid: int = attrs.field(factory=os.getpid)
    released: bool = False

    def release(self) -> None:
        """Stop every process, remove every directory, end the connection."""
        if self.pid != os.getpid():  # a fork of the owner
            return
        with self.lock:
            if self.released:
                return
            self.released = True
            processes = list(self.processes.values())
        for process in processes:
            if isinstance(process, TaskProcess):
                process.request_stop()
        try:
            reached = self.connection.sessions.reaches_host(_DEAD_LINK_TIMEOUT)
            for process in processes:
                if reached:
                    process.terminate()
                else:
                    process.kill()
            if reached:
                with contextlib.suppress(LazyclusterError):
                    self._clean_host()
        finally:
            self.connection.close()

    def _clean_host(self) -> None:
        sessions = self.connection.sessions
        words = [shlex.quote(f"{JOB_VARIABLE}={sessions.token}."), *map(shlex.quote, self.directories)]
        script = f"set -- {' '.join(words)}\n{END_MARKED}"
        sessions.run(script, title="clean up", timeout=_CLEAN_UP_TIMEOUT, login_shell=False, marked=False)

    def keep(self, key: str, process: ManagedProcess) -> str:
        """Add a process under a key and return the key; one that comes too late is stopped.

        Raises:
            RuntimeClosedError: Everything was released already.
        """
        with self.lock:
            if not self.released:
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
