"""Ports of one host: the choice of a free one, and the forwardings that expose a port to or from the host."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

from lazycluster._model.checks import check_port
from lazycluster._model.forwarding import Forwarding, ForwardType
from lazycluster.exceptions import NoPortsLeftError, PortInUseError, PythonNotFoundError


def first_free_port(host: str, find_free_ports: Callable[[list[int]], list[int]], ports: Iterable[int]) -> int:
    """Return the first port of a list that is free on a host.

    Raises:
        NoPortsLeftError: If no port of the list is free, or the list is empty.
    """
    wanted = list(ports)
    free = find_free_ports(wanted)
    if not free:
        raise NoPortsLeftError(host, tuple(wanted))
    return free[0]


def forwarding_to_host(
    host: str, has_free_port: Callable[[int], bool], local_port: int, host_port: int | None
) -> Forwarding:
    """Return the forwarding that makes a local port reachable on a host, by default under the same number.

    Raises:
        PortInUseError: If `host_port` is in use on the host.
    """
    listen = check_port(local_port if host_port is None else host_port)
    forwarding = Forwarding(ForwardType.REMOTE, listen, check_port(local_port))
    with contextlib.suppress(PythonNotFoundError):  # without a Python, only sshd can find out
        if not has_free_port(listen):
            raise PortInUseError(host, listen)
    return forwarding


def forwarding_from_host(host_port: int, local_port: int | None) -> Forwarding:
    """Return the forwarding that makes a port of a host reachable locally, by default under the same number."""
    listen = check_port(host_port if local_port is None else local_port)
    return Forwarding(ForwardType.LOCAL, listen, check_port(host_port))
