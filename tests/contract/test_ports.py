"""Ports of a host."""

from __future__ import annotations

from lazycluster import Runtime
from tests.reserved_ports import reserve_free_port


def test_free_ports_keep_their_order(runtime: Runtime) -> None:
    ports = [reserve_free_port() for _ in range(5)]

    assert runtime.free_ports(ports) == ports
    assert runtime.free_ports([]) == []
