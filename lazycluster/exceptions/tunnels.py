"""Errors of tunnels and of the ports at their ends."""

from __future__ import annotations

import attrs

from lazycluster.exceptions.root import LazyclusterError


@attrs.frozen(slots=False)
class TunnelError(LazyclusterError):
    """A tunnel could not be made or did not carry traffic."""

    host: str
    forwarding: str
    reason: str

    def __str__(self) -> str:
        return f"{self.host}: tunnel {self.forwarding}: {self.reason}"


@attrs.frozen(slots=False)
class ForwardingRefusedError(TunnelError):
    """The host does not allow the forwarding (AllowTcpForwarding, PermitOpen, PermitListen)."""

    def __str__(self) -> str:
        return (
            f"{self.host}: tunnel {self.forwarding}: forwarding refused by the host ({self.reason}). "
            "See AllowTcpForwarding, PermitOpen and PermitListen in its sshd_config."
        )


@attrs.frozen(slots=False)
class PortInUseError(LazyclusterError, ValueError):
    """Another program listens on the port."""

    host: str
    port: int

    def __str__(self) -> str:
        reserved = " (or reserved for root, as all below 1024 are)" if self.port < 1024 else ""
        where = "on this machine" if self.host == "localhost" else "there"
        return f"{self.host}: port {self.port} is in use{reserved}. Choose another one {where}."


@attrs.frozen(slots=False)
class NoPortsLeftError(LazyclusterError):
    """Every port of the list is in use, or the list is empty."""

    host: str
    ports: tuple[int, ...]

    def __str__(self) -> str:
        if not self.ports:
            return f"{self.host}: no port to choose from, the list is empty."
        return f"{self.host}: none of the {len(self.ports)} ports from {min(self.ports)} to {max(self.ports)} is free."
