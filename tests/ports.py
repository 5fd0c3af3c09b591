"""Ports for tests, which stay theirs while the test runs."""

from __future__ import annotations

import socket
import sys

_reservations: list[socket.socket] = []


def free_port() -> int:
    """Return a port on which nobody listens, and that the system gives to nobody else until `release_ports`.

    On Linux a socket that is bound with SO_REUSEADDR and does not listen (socket(7)) lets servers bind its port, which
    set that option too, as sshd, ssh and Python's do, but bind(2) to port 0 and connect(2) choose another.
    """
    reservation = socket.socket()
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.bind(("127.0.0.1", 0))
    port: int = reservation.getsockname()[1]
    if sys.platform == "linux":
        _reservations.append(reservation)
    else:
        reservation.close()
    return port


def reservations() -> set[int]:
    """Return the descriptors that hold ports."""
    return {reservation.fileno() for reservation in _reservations}


def release_ports() -> None:
    """Let others have the ports."""
    while _reservations:
        _reservations.pop().close()
