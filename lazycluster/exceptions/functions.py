"""Errors of Python functions on a host."""

from __future__ import annotations

import attrs

from lazycluster.exceptions._text import indented_tail
from lazycluster.exceptions.root import LazyclusterError


class FunctionError(LazyclusterError):
    """A function could not be called on a host, or did not finish there."""


@attrs.frozen(slots=False)
class RemoteFunctionError(FunctionError):
    """A function failed on the host, and its own exception cannot be raised here."""

    host: str
    function: str
    reason: str
    remote_traceback: str = attrs.field(default="", repr=False)

    def __str__(self) -> str:
        return f"{self.host}: function {self.function!r} failed: {self.reason}{indented_tail(self.remote_traceback)}"


@attrs.frozen(slots=False)
class FunctionTimeoutError(FunctionError, TimeoutError):
    """A function ran longer than its timeout; the host ended it with the processes that it had started.

    `output` is the text that it had printed.
    """

    host: str
    function: str
    timeout: float
    output: str = attrs.field(default="", repr=False)

    def __str__(self) -> str:
        took = f"took longer than its timeout of {self.timeout:g} s and was ended"
        return f"{self.host}: function {self.function!r} {took}.{indented_tail(self.output)}"


@attrs.frozen(slots=False)
class RemoteTraceback(LazyclusterError):
    """The traceback on the host of an exception that a function raised there, as the cause of that exception."""

    host: str
    text: str = attrs.field(repr=False)

    def __str__(self) -> str:
        return f"raised on {self.host}:\n{self.text.rstrip()}"


@attrs.frozen(slots=False)
class FunctionNotSerializableError(FunctionError):
    """A function or its arguments cannot be sent: cloudpickle refuses them."""

    function: str
    reason: str

    def __str__(self) -> str:
        return (
            f"function {self.function!r} cannot be sent to a host: {self.reason}. "
            "Create locks, sockets, files and the like inside the function."
        )


@attrs.frozen(slots=False)
class PythonNotFoundError(FunctionError):
    """The host has no python3, and the call needs one."""

    host: str
    wanted: str

    def __str__(self) -> str:
        return (
            f"{self.host}: no Python found (looked for {self.wanted}). Install python3 there, or name it with python=; "
            "commands and files need none: Runtime(..., resident=False), or --no-resident."
        )


@attrs.frozen(slots=False)
class PythonVersionMismatchError(FunctionError):
    """The local process and the host run different Python minor versions, and functions travel as bytecode."""

    host: str
    local_version: str
    remote_version: str
    remote_executable: str = ""

    def __str__(self) -> str:
        found = f" ({self.remote_executable})" if self.remote_executable else ""
        return (
            f"{self.host}: Python {self.remote_version}{found} there, {self.local_version} here; functions travel as "
            "bytecode, so both need the same minor version. "
            f"Name one there with Runtime(..., python='python{self.local_version}'), or by its path; "
            f"`lazycluster doctor {self.host}` looks for them."
        )
