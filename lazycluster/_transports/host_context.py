"""The surroundings of work on a host: the transport, the working directory, the environment."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from lazycluster._transports.interface import Transport
from lazycluster._waiting import CancelToken


@attrs.frozen
class HostContext:
    """The surroundings of work on a host, and what cancels it."""

    transport: Transport
    cwd: str | None = None
    env: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    cancel_token: CancelToken | None = None

    @property
    def host(self) -> str:
        """The host as it was given."""
        return self.transport.host


def context_of(connection: object) -> HostContext:
    """Return the context of a connection, which is private to it, for the tasks that it carries out."""
    context: HostContext = vars(connection)["_context"]
    return context
