"""The steps that a task is made of: frozen records in one closed union."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import attrs

from lazycluster._typing import assert_never

_HOST_PLACEHOLDER = "{host}"


@attrs.frozen
class RunCommand:
    """Run a command, text for a shell or the words of a program, for `timeout` seconds at most."""

    command: str | tuple[str, ...]
    timeout: float | None = None

    @property
    def title(self) -> str:
        """The command as text."""
        return self.command if isinstance(self.command, str) else shlex.join(self.command)


@attrs.frozen
class SendFile:
    """Send a file or directory; without a remote path it keeps its name, in the working directory."""

    local: Path
    remote: str | None = None


@attrs.frozen
class GetFile:
    """Fetch a file or directory to an absolute local path, in which `{host}` stands for the host."""

    remote: str
    local: Path

    @property
    def has_host_placeholder(self) -> bool:
        """Whether the local path differs from host to host."""
        return _HOST_PLACEHOLDER in str(self.local)

    def local_path_for(self, host: str) -> Path:
        """Return the local path for one host."""
        return Path(str(self.local).replace(_HOST_PLACEHOLDER, host))


@attrs.frozen
class RunFunction:
    """Call a Python function on the host."""

    function: Callable[..., object]
    args: tuple[object, ...] = attrs.field(default=(), repr=False)
    kwargs: Mapping[str, object] = attrs.field(factory=dict, repr=False)

    @property
    def name(self) -> str:
        """The name of the function."""
        return function_name(self.function)


Step: TypeAlias = RunCommand | SendFile | GetFile | RunFunction


def check_callable(function: object) -> None:
    """Check that something can be called.

    Raises:
        ValueError: If it is not callable. The API reference asks for a ValueError, not a TypeError.
    """
    if not callable(function):
        raise ValueError(f"function must be callable, got {function!r}")  # noqa: TRY004 - see above


def function_name(function: Callable[..., object]) -> str:
    """Return the name of a callable: a partial has that of its function, an instance that of its class."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def describe_step(step: Step) -> str:
    """Return a step in words, on one line, for messages and logs."""
    match step:
        case RunCommand():
            line = " ".join(step.title.split())
            return f"run_command({line if len(line) <= 100 else line[:99] + '…'})"
        case SendFile():
            target = "" if step.remote is None else f", {step.remote}"
            return f"send_file({step.local}{target})"
        case GetFile():
            return f"get_file({step.remote}, {step.local})"
        case RunFunction():
            return f"run_function({step.name})"
        case _:
            assert_never(step)
