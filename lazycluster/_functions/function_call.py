"""The record of a function call on a host, which every transport takes."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from lazycluster._remote import call_program


def _repr_size(data: bytes) -> str:
    return f"<{len(data)} bytes>"


@attrs.frozen
class Payload:
    """A function with its arguments, serialized; `serialize` makes it."""

    function: str
    """The name of the function."""
    modules: bytes = attrs.field(repr=_repr_size)
    traceback_texts: bytes = attrs.field(repr=_repr_size)
    pickles: bytes = attrs.field(repr=_repr_size)

    def encode_request(self, cloudpickle_sources: bytes = b"") -> bytes:
        """Return the request that the host's program reads, with the sources of cloudpickle if the host needs them."""
        parts = (cloudpickle_sources, self.modules, self.traceback_texts, self.pickles)
        return b"".join((call_program.CALL_REQUEST_HEADER.pack(*map(len, parts)), *parts))


@attrs.frozen
class FunctionCall:
    """A function call and its surroundings."""

    payload: Payload
    cwd: str | None = None
    """The directory on the host where the function runs; by default the home directory."""
    env: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """Environment variables in addition to those of the host."""
    timeout: float | None = None
    """The time limit in seconds."""

    @property
    def title(self) -> str:
        """The name of the call in errors, and in the process list of the host."""
        return f"python: {self.payload.function}"
