"""A tunnel: forwardings that are open together, over the connection that all tunnels of a host share."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

from lazycluster._model.forwarding import Forwarding
from lazycluster._ssh.tunnel_connection import TunnelConnection
from lazycluster._waiting import BackOff, Deadline, wait_event


class TunnelProvider(Protocol):
    """The part of a `TunnelManager` that a tunnel uses."""

    host: str

    @property
    def connection(self) -> TunnelConnection | None:
        """The connection of the tunnels; None while there is no connection."""

    def open_tunnel(self, tunnel: Tunnel) -> None:
        """Open all forwardings of a tunnel, or none."""

    def stop_tunnel(self, tunnel: Tunnel, *, graceful: bool, wait: bool = True) -> None:
        """Close the forwardings of a tunnel."""

    def new_back_off(self) -> BackOff:
        """Return the pauses between tries of one forwarding."""


class Tunnel:
    """Forwardings that are open until they are stopped; a `ManagedProcess`.

    Its process is the ssh that all tunnels of a host share. That begins with the first tunnel and ends with the last. A
    stopped tunnel stops listening at once. Connections that are open through it go on until one of their ends closes
    them, or that ssh ends.

    Its `TunnelManager` alone changes the attributes.
    """

    def __init__(
        self, tunnel_manager: TunnelProvider, forwardings: Sequence[Forwarding], *, owner: object | None = None
    ) -> None:
        """Open the forwardings, all or none, and see that traffic flows. The owner lives as long as the tunnel runs.

        Raises:
            ValueError: If `forwardings` is empty.
            PortInUseError: If a port to listen on is taken, here or on the host.
            ForwardingRefusedError: If the host does not allow it.
            ConnectError: If the log-in fails.
            TunnelError: If the connection breaks, or the host does not answer.
        """
        if not forwardings:
            raise ValueError(f"forwardings must not be empty, got {forwardings!r}")
        self._tunnel_manager = tunnel_manager
        self.forwardings = tuple(forwardings)
        self.name = f"tunnel to {tunnel_manager.host}: " + ", ".join(map(str, self.forwardings))
        self.owner = owner
        self.closed_forwardings: dict[Forwarding, BackOff] = {}
        """The forwardings that are not open on the present connection, with the time of the next try."""
        self.has_opened = False
        """Whether every forwarding was open once. From then on a forwarding that fails is tried again."""
        self.lost_connections = 0
        self.stop_requested = False
        self.graceful = True
        self.error: Exception | None = None
        self.exitcode: int | None = None
        """0 once the tunnel was stopped, 1 after an unforeseen error; None while it runs."""
        self.settled = threading.Event()
        self.ended = threading.Event()
        self.mark_closed()
        tunnel_manager.open_tunnel(self)

    def __repr__(self) -> str:
        """Return the forwardings, and whether the tunnel runs."""
        return f"<Tunnel {self.name}, {'alive' if self.is_alive() else 'stopped'}>"

    @property
    def pid(self) -> int | None:
        """The process id of the ssh of the tunnels; None while there is no connection."""
        connection = self._tunnel_manager.connection
        return None if connection is None or not self.is_alive() else connection.pid

    @property
    def open_forwardings(self) -> list[Forwarding]:
        """The forwardings that are open."""
        return [forwarding for forwarding in self.forwardings if forwarding not in self.closed_forwardings]

    @property
    def is_up(self) -> bool:
        """Whether there is a connection now, and every forwarding is open on it."""
        connection = self._tunnel_manager.connection
        return connection is not None and not connection.has_exited and not self.closed_forwardings

    def is_alive(self) -> bool:
        """Return whether the tunnel has not been stopped; also True while its connection is being restored."""
        return not self.ended.is_set()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the tunnel was stopped, at most `timeout` seconds."""
        wait_event(self.ended, Deadline(timeout))

    def terminate(self) -> None:
        """Close its ports on both ends; the last tunnel of a host ends the connection. Stopping twice is fine."""
        self._tunnel_manager.stop_tunnel(self, graceful=True)

    def kill(self) -> None:
        """Close its ports without waiting for the host; the last tunnel of a host kills the ssh process."""
        self._tunnel_manager.stop_tunnel(self, graceful=False)

    def request_stop(self) -> None:
        """Ask the tunnel to end, and do not wait."""
        self._tunnel_manager.stop_tunnel(self, graceful=True, wait=False)

    def mark_closed(self) -> None:
        """Record that every forwarding is closed, so that the `TunnelManager` opens it at once."""
        self.closed_forwardings = {forwarding: self._tunnel_manager.new_back_off() for forwarding in self.forwardings}

    def mark_open(self, forwarding: Forwarding) -> None:
        """Record that a forwarding is open."""
        del self.closed_forwardings[forwarding]
        if not self.closed_forwardings:
            self.has_opened = True
            self.settled.set()

    def fail(self, error: Exception) -> None:
        """Record why the tunnel cannot open: the `TunnelManager` ends it, and the waiting thread gets the error."""
        self.error, self.stop_requested = error, True

    def mark_ended(self, exitcode: int = 0) -> None:
        """Record that the tunnel has ended, and drop its owner. Calling this twice is fine."""
        self.mark_closed()
        self.exitcode = exitcode if self.exitcode is None else self.exitcode
        self.settled.set()
        self.ended.set()
        self.owner = None

    def reset(self) -> None:
        """Record the end in a forked child; a thread that the child lacks may hold the locks of the events."""
        self.settled, self.ended = threading.Event(), threading.Event()
        self.mark_ended()
