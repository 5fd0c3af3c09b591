"""A tunnel: forwardings that stand and fall together, carried by the connection that the tunnels of a host share."""

from __future__ import annotations

from collections.abc import Sequence

from lazycluster._model.forwarding import Forwarding
from lazycluster._ssh.tunnel_manager import TunnelManager
from lazycluster._ssh.tunnel_state import TunnelState
from lazycluster._waiting import Deadline, wait_event


class Tunnel:
    """Forwardings that are open until they are stopped; a `ManagedProcess`.

    The process behind it is the ssh that carries all tunnels of its host. It begins with the first and ends with the
    last of them. A tunnel that is stopped listens no more at once; connections that are open through it go on until
    one of their ends closes them, or that ssh ends.
    """

    def __init__(
        self, tunnel_manager: TunnelManager, forwardings: Sequence[Forwarding], *, owner: object | None = None
    ) -> None:
        """Open the forwardings, all or none, and see that traffic flows. The owner lives as long as the tunnel runs.

        Raises:
            ValueError: There is no forwarding.
            PortInUseError: A port to listen on is taken, here or on the host.
            ForwardingRefusedError: The host does not allow it.
            ConnectError: The log-in failed.
            TunnelError: The link broke meanwhile, or the host does not answer.
        """
        if not forwardings:
            raise ValueError("a tunnel needs a forwarding")
        self._tunnel_manager = tunnel_manager
        self.forwardings = tuple(forwardings)
        self.name = f"tunnel to {tunnel_manager.host}: " + ", ".join(map(str, self.forwardings))
        self._state = TunnelState(self.name, self.forwardings, owner)
        tunnel_manager.open_tunnel(self._state)

    def __repr__(self) -> str:
        """Return what it carries, and whether it does."""
        return f"<Tunnel {self.name}, {'alive' if self.is_alive() else 'stopped'}>"

    @property
    def pid(self) -> int | None:
        """Return the process id of the ssh that carries it, None while that is being brought back."""
        connection = self._tunnel_manager.connection
        return None if connection is None or not self.is_alive() else connection.pid

    @property
    def exitcode(self) -> int | None:
        """Return None while it runs, 0 once it was stopped."""
        return self._state.exit_code

    def is_alive(self) -> bool:
        """Tell whether it has not been stopped; also while it is being brought back."""
        return not self._state.ended.is_set()

    @property
    def is_up(self) -> bool:
        """Tell whether its connection stands just now, and all of it is open there."""
        connection = self._tunnel_manager.connection
        return (
            connection is not None
            and not connection.has_exited
            and len(self._state.open_forwardings) == len(self.forwardings)
        )

    def join(self, timeout: float | None = None) -> None:
        """Wait until it was stopped, at most so many seconds."""
        wait_event(self._state.ended, Deadline(timeout))

    def terminate(self) -> None:
        """Close its ports on both ends; the last tunnel of a host ends the connection. Stopping twice is fine."""
        self._tunnel_manager.stop_tunnel(self._state, graceful=True)

    def kill(self) -> None:
        """Close its ports without waiting for the host; the last tunnel of a host kills the ssh process."""
        self._tunnel_manager.stop_tunnel(self._state, graceful=False)

    def request_stop(self) -> None:
        """Ask it to end, and do not wait."""
        self._tunnel_manager.stop_tunnel(self._state, graceful=True, wait=False)
