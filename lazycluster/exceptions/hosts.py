"""Errors of a host that cannot be used, whatever its work: no connection, a lost one, no supervisor, no runtime."""

from __future__ import annotations

import shlex
from typing import ClassVar

import attrs

from lazycluster.exceptions._text import indented_tail, shorten
from lazycluster.exceptions.root import LazyclusterError


class HostError(LazyclusterError):
    """The host cannot be used, whatever its work."""


@attrs.frozen(slots=False)
class ConnectError(HostError, ValueError):
    """The connection to a host could not be made.

    It is raised itself if none of its subclasses fits the reason that ssh printed.
    """

    summary: ClassVar[str] = "no connection"
    advice: ClassVar[str] = "Try `ssh -v {host} true` in a terminal."
    """The remedy. `{host}` is `ssh_arguments`."""

    host: str
    reason: str
    hop: str = ""
    options: tuple[str, ...] = attrs.field(default=(), repr=False)
    """The words of an ssh command before the name of the host, such as `-F` and a configuration."""

    @property
    def fault(self) -> str:
        """The fault and its hop."""
        where = f" at {self.hop}" if self.hop and self.hop != self.host else ""
        reason = self.reason.removesuffix(".")
        return f"{self.summary}{where}{f' ({reason})' if reason else ''}"

    @property
    def remedy(self) -> str:
        """A way to repair the fault."""
        return self.advice.format(host=self.ssh_arguments, hop=self.hop or self.host)

    @property
    def ssh_arguments(self) -> str:
        """The words after `ssh` or `ssh-copy-id` that reach the host from a terminal."""
        return shlex.join((*self.options, self.host))

    def __str__(self) -> str:
        return f"{self.host}: {self.fault}. {self.remedy}"


class UnknownHostError(ConnectError):
    """The name does not resolve."""

    summary = "unknown host name"
    advice = "Check the spelling, DNS, and the HostName in your ssh configuration: `ssh -G {host} | grep ^hostname`."

    @property
    def remedy(self) -> str:
        """A way to repair the fault."""
        name, _, port = self.host.partition(":")  # two colons are an IPv6 address
        if name and port.isdecimal():
            return f"ssh takes no port after a name: give it as port={port}, or as Port in your ssh configuration."
        return super().remedy


class PortRefusedError(ConnectError):
    """The machine answers, but no program listens on the port."""

    summary = "connection refused"
    advice = "Check that sshd runs there, and the Port in your ssh configuration: `ssh -G {host} | grep ^port`."


class ConnectTimeoutError(ConnectError):
    """No answer came within `connect_timeout`."""

    summary = "no answer in time"
    advice = (
        "Check that the machine is up and that no firewall drops its port, or allow it more time (connect_timeout)."
    )


class HostUnreachableError(ConnectError):
    """The network has no route to the machine."""

    summary = "host unreachable"
    advice = "Check your network, VPN and routes to {hop}."


class ConnectionThrottledError(ConnectError):
    """sshd closed the connection before the key exchange, as it does above MaxStartups."""

    summary = "sshd closed the connection before log-in"
    advice = "Too many log-ins at once (MaxStartups), or this address is blocked there: try again later."


class UnknownHostKeyError(ConnectError):
    """The host key is not known, and the user's configuration demands a known one."""

    summary = "the host key is not known"
    advice = "Run `ssh {host} true` once in a terminal, compare the fingerprint, and answer yes."


class ChangedHostKeyError(ConnectError):
    """The host shows another key than the known one: a new machine under an old name, or an attack."""

    summary = "the host key has changed"
    advice = "Make sure that this is expected; then remove the old key with `ssh-keygen -R`, as `ssh {host}` explains."


class AuthenticationError(ConnectError):
    """The host refused every key and password offered."""

    summary = "authentication refused"
    advice = (
        "Check the password if you gave one; or install your key with `ssh-copy-id {host}`, load it into the agent, "
        "or name its file (identity_file=, or IdentityFile in your ssh configuration)."
    )


class SshConfigurationError(ConnectError):
    """ssh rejected the configuration or an option before it connected."""

    summary = "ssh does not accept the configuration"
    advice = "Check the configuration and the options, with `ssh -G {host}`."


class SshNotFoundError(ConnectError):
    """The OpenSSH client itself cannot be started."""

    summary = "the OpenSSH client cannot be started"
    advice = "Install it (Debian and Ubuntu: openssh-client) and make sure that `ssh -V` works."


@attrs.frozen(slots=False)
class ConnectionLostError(HostError, ConnectionError):
    """The connection broke during a command, a call or a transfer.

    `started` is True if the command had begun on the host, False if it cannot have begun, None if that is unknown.
    """

    host: str
    command: str
    reason: str
    started: bool | None = None

    def __str__(self) -> str:
        fate = {
            True: "It had started on the host, which ends it when it sees the connection gone.",
            False: "It had not started on the host.",
            None: "It may or may not have started on the host.",
        }[self.started]
        return f"{self.host}: connection lost during `{shorten(self.command)}` ({self.reason}). {fate}"


@attrs.frozen(slots=False)
class SessionRefusedError(HostError):
    """The host accepts the log-in but refuses a session: it allows fewer at once than `max_sessions`, or none."""

    host: str
    command: str
    reason: str

    def __str__(self) -> str:
        return (
            f"{self.host}: refused a session for `{shorten(self.command)}` ({self.reason}). "
            "Set `max_sessions=` to the MaxSessions of its sshd_config; 0 forbids sessions."
        )


@attrs.frozen(slots=False)
class LoginShellError(HostError):
    """The login shell ended before the command began: it, or one of its start-up files, allows no commands."""

    host: str
    command: str
    exit_code: int | None
    output: str = attrs.field(default="", repr=False)

    def __str__(self) -> str:
        return (
            f"{self.host}: the login shell ended with exit status {self.exit_code} before `{shorten(self.command)}` "
            f"began. Check the account's shell and its start-up files: `ssh {self.host} true`."
            f"{indented_tail(self.output)}"
        )


@attrs.frozen(slots=False)
class SupervisorError(HostError):
    """The supervisor, which a runtime keeps running on its host, did not start, or ended."""

    host: str
    reason: str
    output: str = attrs.field(default="", repr=False)

    def __str__(self) -> str:
        return (
            f"{self.host}: the supervisor on the host: {self.reason}. Check that `ssh {self.host} python3 -V` works; "
            f"Runtime(..., resident=False), or --no-resident, does without it.{indented_tail(self.output)}"
        )


@attrs.frozen(slots=False)
class InvalidRuntimeError(HostError, ValueError):
    """A `Runtime` could not be set up on the host; `__cause__` is the reason."""

    host: str
    reason: str

    def __str__(self) -> str:
        return f"{self.host} cannot be used as a runtime: {self.reason}"


@attrs.frozen(slots=False)
class RuntimeClosedError(HostError):
    """A runtime or connection was used after its clean-up."""

    host: str

    def __str__(self) -> str:
        return f"{self.host}: closed already. Make a new one."
