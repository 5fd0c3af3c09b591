"""Transports of fake hosts, for tests of the classes that use a transport."""

from __future__ import annotations

from lazycluster._transports import factory
from lazycluster.testing._fake_transport import FakeTransport


def connect_to_fake_host(host: str = "web1") -> FakeTransport:
    """Return the transport that a runtime would get while a `FakeHost` stands in for its host."""
    transport = factory.make_transport(host, {})
    assert isinstance(transport, FakeTransport), "needs the fixture fake_host"
    return transport
