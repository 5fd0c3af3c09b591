"""The private parts of connections and runtimes that tests look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lazycluster import Connection, Runtime
from lazycluster._runtime_core import core_of
from lazycluster._transports.host_context import context_of
from lazycluster._transports.ssh_transport import SshTransport

if TYPE_CHECKING:
    from lazycluster._ssh.client import SshClient


def transport_of(owner: Connection | Runtime) -> SshTransport:
    transport = core_of(owner).transport if isinstance(owner, Runtime) else context_of(owner).transport
    assert isinstance(transport, SshTransport)
    return transport


def ssh_client_of(owner: Connection | Runtime) -> SshClient:
    return transport_of(owner).ssh_client
