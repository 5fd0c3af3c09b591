"""The one place that makes transports: tests put a fake one here."""

from __future__ import annotations

from lazycluster._model.checks import absolute_path, check_environment, check_grace, check_text
from lazycluster._ssh.client import SshClient
from lazycluster._ssh.destination import Destination
from lazycluster._transports.interface import RuntimeTransport
from lazycluster._transports.per_command import PerCommandTransport
from lazycluster._transports.resident import ResidentTransport
from lazycluster.options import DEFAULT_GRACE_SECONDS, DEFAULT_MAX_SESSIONS, RuntimeOptions


def make_transport(host: str, options: RuntimeOptions) -> RuntimeTransport:
    """Return the transport of a host, which does not connect yet. Tests replace this function.

    Raises:
        TypeError: If a keyword is unknown.
        ValueError: If a value is out of range.
    """
    return _make(host, options)


def check_options(options: RuntimeOptions, host: str = "any-host") -> None:
    """Check the keywords of a runtime, also if a test has replaced `make_transport`.

    Raises:
        TypeError: If a keyword is unknown.
        ValueError: If a value is out of range.
    """
    _make(host, options)


def _make(host: str, options: RuntimeOptions) -> RuntimeTransport:
    unknown = [name for name in options if name not in RuntimeOptions.__annotations__]
    if unknown:
        known = ", ".join(sorted(RuntimeOptions.__annotations__))
        raise TypeError(f"Runtime() got an unexpected keyword argument {unknown[0]!r}; there are: {known}")
    check_environment(options.get("env"))
    password = options.get("password")
    if password is not None and not isinstance(password, str):
        raise ValueError(f"password must be text, got an object of {type(password).__name__}")
    identity_file, config_file = options.get("identity_file"), options.get("config_file")
    destination = Destination(
        host,
        user=options.get("user"),
        port=options.get("port"),
        identity_file=None if identity_file is None else absolute_path(identity_file),
        config_file=None if config_file is None else absolute_path(config_file),
        connect_timeout=options.get("connect_timeout", 10.0),
        options=tuple((options.get("options") or {}).items()),
    )
    ssh_client = SshClient(
        destination,
        password=password,
        grace=check_grace(options.get("grace", DEFAULT_GRACE_SECONDS)),
        max_sessions=options.get("max_sessions", DEFAULT_MAX_SESSIONS),
    )
    python = check_text("python", options.get("python"))
    resident = options.get("resident", True)
    if not isinstance(resident, bool):
        raise ValueError(f"resident must be True or False, got {resident!r}")  # noqa: TRY004 - as every bad value
    if resident:
        return ResidentTransport(ssh_client, python)
    return PerCommandTransport(ssh_client, python)
