"""Which way leads onto a host: the one place where a runtime gets its transport from."""

from __future__ import annotations

from lazycluster._model.options import ConnectionOptions, RuntimeOptions
from lazycluster._transports.interface import RuntimeTransport
from lazycluster._transports.per_command import PerCommandTransport
from lazycluster._transports.resident import ResidentTransport
from lazycluster.connection import Connection


def make_transport(host: str, options: RuntimeOptions) -> RuntimeTransport:
    """Return the transport of a host, which does not connect yet. Tests replace this function.

    Raises:
        TypeError: A keyword is unknown.
        ValueError: A value is out of range.
    """
    return _make(host, options)


def check_options(options: RuntimeOptions, host: str = "any-host") -> None:
    """Check the keywords of a runtime, also where a test has replaced `make_transport`.

    Raises:
        TypeError: A keyword is unknown.
        ValueError: A value is out of range.
    """
    _make(host, options)


def _make(host: str, options: RuntimeOptions) -> RuntimeTransport:
    unknown = [name for name in options if name not in RuntimeOptions.__annotations__]
    if unknown:
        known = ", ".join(sorted(RuntimeOptions.__annotations__))
        raise TypeError(f"Runtime() got an unexpected keyword argument {unknown[0]!r}; there are: {known}")
    remaining = options.copy()
    python = remaining.pop("python", None)
    resident = remaining.pop("resident", True)
    grace = remaining.pop("grace", 5.0)
    if isinstance(grace, bool) or not isinstance(grace, (int, float)) or not 0 <= grace < 1e6:
        raise ValueError(f"grace is a number of seconds, not {grace!r}")
    keywords: ConnectionOptions = remaining
    connection = Connection(host, **keywords)
    return ResidentTransport(connection, python, grace) if resident else PerCommandTransport(connection, python)
