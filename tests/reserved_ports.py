"""Ports that a test has for itself while it runs."""

from __future__ import annotations

import functools
import socket
import sys

_reserved_sockets: list[socket.socket] = []


def reserve_free_port() -> int:
    """Return a port that no program listens on; the system gives it to no other program until `release_ports()`.

    On Linux a socket that is bound with SO_REUSEADDR and does not listen keeps its port (socket(7)): bind(2) to port 0
    and connect(2) choose another one. Servers that set the option, too, may bind it: sshd, ssh and Python's do.
    """
    while True:
        reserved = _reserve(socket.AF_INET, "127.0.0.1", 0)
        port: int = reserved.getsockname()[1]
        try:
            ipv6_sockets = [_reserve(socket.AF_INET6, "::1", port)] if _has_ipv6() else []
        except OSError:  # the IPv6 port is taken
            reserved.close()
            continue
        _reserved_sockets.extend((reserved, *ipv6_sockets))
        if sys.platform != "linux":
            release_ports()
        return port


def _reserve(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    reservation = socket.socket(family)
    try:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reservation.bind((address, port))
    except BaseException:
        reservation.close()
        raise
    return reservation


@functools.cache
def _has_ipv6() -> bool:
    try:
        _reserve(socket.AF_INET6, "::1", 0).close()
    except OSError:
        return False
    return True


def reserved_descriptors() -> set[int]:
    """Return the descriptors of the sockets that keep ports."""
    return {reservation.fileno() for reservation in _reserved_sockets}


def release_ports() -> None:
    """Release all reserved ports."""
    while _reserved_sockets:
        _reserved_sockets.pop().close()
