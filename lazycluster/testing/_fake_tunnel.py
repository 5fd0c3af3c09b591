"""A tunnel of a fake host: it carries nothing, holds its ports, and lives until it is stopped."""

from __future__ import annotations

import threading

from lazycluster._model.forwarding import Forwarding
from lazycluster._waiting import Deadline, wait_event


class FakeTunnel:
    """A `ManagedProcess` that plays a tunnel, without a process and without traffic."""

    def __init__(self, host: str, forwarding: Forwarding, owner: object) -> None:
        """Open the tunnel. The owner lives as long as the tunnel."""
        self.name: str = f"tunnel to {host}: {forwarding}"
        self.forwarding = forwarding
        self._owner: object = owner
        self._stopped = threading.Event()

    def __repr__(self) -> str:
        """Return the name and the state."""
        return f"<FakeTunnel {self.name}, {'alive' if self.is_alive() else 'stopped'}>"

    @property
    def pid(self) -> int | None:
        """None: there is no process."""
        return None

    @property
    def exitcode(self) -> int | None:
        """None while the tunnel is open, 0 once it was stopped."""
        return 0 if self._stopped.is_set() else None

    def is_alive(self) -> bool:
        """Return whether it has not been stopped."""
        return not self._stopped.is_set()

    def join(self, timeout: float | None = None) -> None:
        """Wait until it was stopped, at most `timeout` seconds."""
        wait_event(self._stopped, Deadline(timeout))

    def request_stop(self) -> None:
        """Stop it."""
        self._owner = None
        self._stopped.set()

    def terminate(self) -> None:
        """Stop it. Its ports are free when this returns."""
        self.request_stop()

    def kill(self) -> None:
        """Stop it."""
        self.request_stop()


class FakeTunnelRegistry:
    """The tunnels that listen on one machine. Any thread may use it."""

    def __init__(self) -> None:
        """Begin empty."""
        self._tunnels: list[FakeTunnel] = []
        self._lock = threading.Lock()

    def is_listening_on(self, port: int) -> bool:
        """Return whether a tunnel listens on a port."""
        with self._lock:
            return self._is_listening_on(port)

    def _is_listening_on(self, port: int) -> bool:
        return any(tunnel.is_alive() and tunnel.forwarding.listen_port == port for tunnel in self._tunnels)

    def add(self, tunnel: FakeTunnel) -> bool:
        """Add a tunnel unless its port is taken; return whether it was added."""
        with self._lock:
            if self._is_listening_on(tunnel.forwarding.listen_port):
                return False
            self._tunnels.append(tunnel)
            return True
