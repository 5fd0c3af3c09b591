"""The resources of a runtime, which it must release: processes, directories, the connection."""

from __future__ import annotations

import atexit
import functools
import itertools
import logging
import os
import threading
from collections.abc import Iterable, Iterator

import attrs

from lazycluster._execution import TaskProcess
from lazycluster._model.forwarding import Forwarding
from lazycluster._transports.interface import RuntimeTransport, Stoppable
from lazycluster.exceptions import InvalidRuntimeError, LazyclusterError, RuntimeClosedError
from lazycluster.hardware import HostInfo
from lazycluster.managed import ManagedProcess

_log = logging.getLogger(__name__)
_REACHABILITY_TIMEOUT_SECONDS = 3.0


@attrs.define(eq=False)
class ResourceRegistry:
    """The resources of a runtime, kept apart from it, so that nothing keeps the runtime itself alive."""

    transport: RuntimeTransport
    processes: dict[str, Stoppable] = attrs.field(factory=dict)
    lock: threading.Lock = attrs.field(factory=threading.Lock)
    release_lock: threading.RLock = attrs.field(factory=threading.RLock)
    process_numbers: Iterator[int] = attrs.field(factory=itertools.count)
    creator_pid: int = attrs.field(factory=os.getpid)
    closed: bool = False
    released: bool = False

    def __attrs_post_init__(self) -> None:
        _register_atexit()
        unreleased_registries.add(self)

    def release(self) -> None:
        """Stop every process, remove every directory, end the connection. After an interruption, call it again."""
        if self.creator_pid != os.getpid():  # a fork of the owner has only what it began itself, after the fork
            self.closed = self.released = True
            self.transport.clean_up()
            self.transport.close()
            return
        with self.release_lock:
            if self.released:
                return
            with self.lock:
                self.closed = True
                processes = list(self.processes.values())
            try:
                self._release_resources(processes)
            except Exception:
                self.transport.close()
                raise
            self.transport.close()
            self.released = True
            unreleased_registries.discard(self)

    def set_up(self, working_dir: str | None) -> tuple[str, HostInfo]:
        """Make the working directory, a temporary one by default; return it with the hardware of the host.

        Raises:
            InvalidRuntimeError: If the host cannot be used; its `__cause__` is the reason.
        """
        try:
            return self.transport.set_up(working_dir)
        except (LazyclusterError, ValueError) as error:
            self._abort_set_up()
            host = self.transport.host
            raise InvalidRuntimeError(host, str(error).removeprefix(f"{host}: ")) from error
        except BaseException:
            self._abort_set_up()
            raise

    def _abort_set_up(self) -> None:
        """Release everything; a host without temporary directories of the runtime is not contacted again."""
        if self.transport.temp_dirs:
            self.release()
        else:
            self.disconnect()

    def disconnect(self) -> None:
        """End the connection, if nothing was made on the host yet."""
        self.closed = self.released = True
        self.transport.close()
        unreleased_registries.discard(self)

    def release_in_background(self) -> None:
        """Release in a thread: the garbage collector may call this in the middle of any other code."""
        if self.creator_pid == os.getpid():
            threading.Thread(target=self.release, name=f"clean-up of {self.transport.host}", daemon=True).start()

    def _release_resources(self, processes: list[Stoppable]) -> None:
        for process in processes:
            process.request_stop()
        reachable = self.transport.can_reach_host(_REACHABILITY_TIMEOUT_SECONDS)
        if not reachable:
            self.transport.close()  # ends every wait for the host
        for process in processes:
            if reachable:
                process.terminate()
            else:
                process.kill()
            if isinstance(process, TaskProcess):
                process.log_failure()
        if reachable:
            self.transport.clean_up()
        elif self.transport.temp_dirs:
            _log.warning("%s: not reached; left there: %s", self.transport.host, ", ".join(self.transport.temp_dirs))

    def check_open(self) -> None:
        """Check that the resources are not released.

        Raises:
            RuntimeClosedError: If the release has begun.
        """
        if self.closed:
            raise RuntimeClosedError(self.transport.host)

    def new_key(self, name: str) -> str:
        """Return a key that no other process has, on this host or on another host of a group."""
        return f"{name}-{next(self.process_numbers)}@{self.transport.host}"

    def register(self, key: str, process: Stoppable) -> str:
        """Add a process under a key and return the key; a process that comes too late is stopped.

        Raises:
            RuntimeClosedError: If the release has begun.
        """
        with self.lock:
            if not self.closed:
                self.processes[key] = process
                return key
        process.terminate()
        raise RuntimeClosedError(self.transport.host)

    def open_tunnel(self, name: str, forwarding: Forwarding, owner: object) -> str:
        """Open a tunnel and return its key; the owner lives as long as the tunnel.

        Raises:
            RuntimeClosedError: If the release has begun.
        """
        self.check_open()
        tunnel = self.transport.open_tunnel(forwarding, owner)
        return self.register(self.new_key(name), tunnel)

    def get_process(self, key: str) -> ManagedProcess:
        """Return the process with a key.

        Raises:
            ValueError: If no process has that key.
        """
        try:
            return self.processes[key]
        except KeyError:
            known = ", ".join(self.processes) or "none"
            message = f"{self.transport.host}: no process with the key {key!r} (there are: {known})"
            raise ValueError(message) from None

    def get_processes(self, *, only_alive: bool) -> dict[str, ManagedProcess]:
        """Return the processes by key."""
        with self.lock:
            processes = dict(self.processes)
        return {key: process for key, process in processes.items() if process.is_alive() or not only_alive}

    def discard(self, keys: Iterable[str]) -> None:
        """Drop processes that have ended."""
        with self.lock:
            for key in keys:
                self.processes.pop(key, None)


unreleased_registries: set[ResourceRegistry] = set()
"""The registries that are to be released when the program ends."""


@functools.cache
def _register_atexit() -> None:
    """Have everything released when the program ends: registered after the masters, so called before they end."""
    atexit.register(release_all, unreleased_registries)


def release_all(registries: Iterable[ResourceRegistry]) -> None:
    """Release every registry; a failure is logged, and does not keep the others."""
    for registry in list(registries):
        try:
            registry.release()
        except Exception:  # noqa: BLE001 - the others are to be released, too
            _log.warning("%s: the clean-up failed", registry.transport.host, exc_info=True)
