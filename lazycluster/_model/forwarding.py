"""Ports that are forwarded through a connection."""

from __future__ import annotations

import enum

import attrs

from lazycluster._model.checks import check_port


class ForwardType(enum.Enum):
    """The direction of a forwarding, as the flag of ssh(1)."""

    LOCAL = "-L"
    REMOTE = "-R"


@attrs.frozen
class Forwarding:
    """Connections to `listen_port` at one end come out at `connect_port` at the other; both are loopback ports.

    `LOCAL` listens here and connects on the host, `REMOTE` listens on the host and connects here. "localhost" as the
    address to listen on means every loopback address, IPv4 and IPv6 (RFC 4254, section 7.1).
    """

    type: ForwardType
    listen_port: int = attrs.field(converter=check_port)
    connect_port: int = attrs.field(converter=check_port)
    listen_host: str = "localhost"
    connect_host: str = "localhost"

    def __str__(self) -> str:
        return f"{self.type.value} {self.listen_host}:{self.listen_port}:{self.connect_host}:{self.connect_port}"
