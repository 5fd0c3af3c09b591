"""The transports that runtimes and connections get during a test."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import attrs
import pytest

from lazycluster._transports import factory
from lazycluster.testing._fake_transport import FakeTransport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lazycluster._transports.interface import RuntimeTransport
    from lazycluster.options import RuntimeOptions


@attrs.define
class TransportRecorder:
    """The transports in the order in which they were made, and the last options of each host."""

    transports: list[FakeTransport] = attrs.field(factory=list)
    options: dict[str, RuntimeOptions] = attrs.field(factory=dict)

    @property
    def connected_hosts(self) -> list[str]:
        """The hosts whose transports are open, sorted."""
        return sorted(transport.host for transport in self.transports if not transport.closed)

    @property
    def running_calls(self) -> int:
        """The number of commands and functions that run."""
        return sum(transport.calls_under_way for transport in self.transports)


@contextlib.contextmanager
def record_transports() -> Iterator[TransportRecorder]:
    """Record the transports that a `FakeHost` makes within the block."""
    recorder, make_transport = TransportRecorder(), factory.make_transport

    def make_and_record(host: str, options: RuntimeOptions) -> RuntimeTransport:
        transport = make_transport(host, options)
        assert isinstance(transport, FakeTransport)
        recorder.transports.append(transport)
        recorder.options[host] = options
        return transport

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factory, "make_transport", make_and_record)
        yield recorder
