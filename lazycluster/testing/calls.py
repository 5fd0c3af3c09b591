"""The calls that a fake host got: frozen records in one closed union."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias, cast

import attrs

from lazycluster._functions.function_call import Payload
from lazycluster.testing._in_process_call import unpickle_call


@attrs.frozen
class Ran:
    """A command was run; `env` is all that the runtime or connection added to the environment."""

    host: str
    command: str
    cwd: str | None = None
    env: Mapping[str, str] = attrs.field(factory=dict)
    stdin: bytes = b""
    timeout: float | None = None


@attrs.frozen
class Called:
    """A function was called."""

    host: str
    function: str
    cwd: str | None = None
    env: Mapping[str, str] = attrs.field(factory=dict)
    timeout: float | None = None
    _payload: Payload = attrs.field(kw_only=True, repr=False, eq=False)

    @property
    def args(self) -> tuple[object, ...]:
        """Copies of the positional arguments, as they were sent; of a `map()` the items that went together."""
        _, args, kwargs = unpickle_call(self._payload)
        return args if kwargs is not None else tuple(cast("tuple[float, list[object]]", args)[1])

    @property
    def kwargs(self) -> dict[str, object]:
        """Copies of the keyword arguments, as they were sent."""
        return unpickle_call(self._payload)[2] or {}


@attrs.frozen
class Sent:
    """A file or directory was sent; `remote` is None if it kept its name."""

    host: str
    local: Path
    remote: str | None = None
    cwd: str | None = None


@attrs.frozen
class Fetched:
    """A file or directory was fetched."""

    host: str
    remote: str
    local: Path
    cwd: str | None = None


@attrs.frozen
class Read:
    """A file was read: `read_bytes()` or `read_text()`."""

    host: str
    path: str
    cwd: str | None = None


@attrs.frozen
class Wrote:
    """A file was written: `write_bytes()` or `write_text()`."""

    host: str
    path: str
    data: bytes = attrs.field(repr=lambda data: f"<{len(data)} bytes>")
    cwd: str | None = None


@attrs.frozen
class Looked:
    """The code under test looked for files: `exists()`, `listdir()` or `glob()`, with a path or pattern."""

    host: str
    path: str
    cwd: str | None = None


@attrs.frozen
class MadeDir:
    """A directory was made: `create_dir()`."""

    host: str
    path: str
    cwd: str | None = None


@attrs.frozen
class DeletedDir:
    """A directory was deleted: `delete_dir()`."""

    host: str
    path: str
    cwd: str | None = None


@attrs.frozen
class AskedForPorts:
    """The code under test asked which of some ports are free."""

    host: str
    ports: tuple[int, ...]


@attrs.frozen
class OpenedTunnel:
    """A tunnel was opened: with `to_host` a local port is reachable on the host, without it one of the host locally."""

    host: str
    listen_port: int
    connect_port: int
    to_host: bool


Asked: TypeAlias = (
    Ran | Called | Sent | Fetched | Read | Wrote | Looked | MadeDir | DeletedDir | AskedForPorts | OpenedTunnel
)
