"""The errors: records of facts, rendered when somebody reads them.

Every message answers four questions: which host, which hop, what was run or said, and what to try next.
"""

from __future__ import annotations

import pickle
import shlex
import textwrap
from collections.abc import Mapping
from typing import ClassVar

import attrs

_TAIL_LINES = 20


class LazyclusterError(Exception):
    """Anything that this library raises on purpose."""

    def __reduce__(self) -> tuple[type[LazyclusterError], tuple[object, ...]]:
        """Return how to make it again from its facts; the default sets attributes, which frozen records refuse."""
        return type(self), self.args


def indented_tail(text: str) -> str:
    """Return the last lines of an output, indented, ready to follow a message on lines of their own."""
    lines = text.rstrip().splitlines()[-_TAIL_LINES:]
    return "\n" + textwrap.indent("\n".join(lines), "    ") if lines else ""


# The connection ------------------------------------------------------------------------------------------------------


@attrs.frozen(slots=False)
class ConnectError(LazyclusterError, ValueError):
    """The connection to a host could not be made.

    Also raised as itself where ssh gave a reason that none of the more precise errors below stands for.
    """

    summary: ClassVar[str] = "no connection"
    advice: ClassVar[str] = "Try `ssh -v {host} true` in a terminal."
    """What to do. `{host}` is `ssh_arguments`."""

    host: str
    reason: str
    hop: str = ""
    options: tuple[str, ...] = attrs.field(default=(), repr=False)
    """What reaches the host besides its name, such as `-F` and a configuration: words of an ssh command."""

    @property
    def fault(self) -> str:
        """Return what is wrong, and at which hop."""
        where = f" at {self.hop}" if self.hop and self.hop != self.host else ""
        reason = self.reason.removesuffix(".")
        return f"{self.summary}{where}{f' ({reason})' if reason else ''}"

    @property
    def remedy(self) -> str:
        """Return what to do about it."""
        return self.advice.format(host=self.ssh_arguments, hop=self.hop or self.host)

    @property
    def ssh_arguments(self) -> str:
        """Return what stands behind `ssh`, or `ssh-copy-id`, in a terminal to reach the host."""
        return shlex.join((*self.options, self.host))

    def __str__(self) -> str:
        return f"{self.host}: {self.fault}. {self.remedy}"


class UnknownHostError(ConnectError):
    """The name does not resolve."""

    summary = "unknown host name"
    advice = "Check the spelling, DNS, and the HostName in your ssh configuration: `ssh -G {host} | grep ^hostname`."

    @property
    def remedy(self) -> str:
        """Return what to do about it."""
        name, _, port = self.host.partition(":")  # two colons are an IPv6 address
        if name and port.isdecimal():
            return f"ssh takes no port behind a name: give it as port={port}, or as Port in your ssh configuration."
        return super().remedy


class PortRefusedError(ConnectError):
    """The machine answers, and nothing listens on the port."""

    summary = "connection refused"
    advice = "Check that sshd runs there, and the Port in your ssh configuration: `ssh -G {host} | grep ^port`."


class ConnectTimeoutError(ConnectError):
    """No answer came within `connect_timeout`."""

    summary = "no answer in time"
    advice = "Check that the machine is up and that no firewall drops its port, or give it longer (connect_timeout)."


class HostUnreachableError(ConnectError):
    """There is no route to the machine."""

    summary = "host unreachable"
    advice = "Check your network, VPN and routes to {hop}."


class ConnectionThrottledError(ConnectError):
    """sshd closed the connection before the key exchange, as it does above MaxStartups."""

    summary = "sshd closed the connection before log-in"
    advice = "Too many log-ins at once (MaxStartups), or this address is blocked there: try again later."


class UnknownHostKeyError(ConnectError):
    """The host key is not known, and the user's configuration asks for a known one."""

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
    """ssh rejected the configuration or an option before it dialled."""

    summary = "ssh does not accept the configuration"
    advice = "Check the configuration and the options, with `ssh -G {host}`."


class SshNotFoundError(ConnectError):
    """The OpenSSH client itself cannot be started."""

    summary = "the OpenSSH client cannot be started"
    advice = "Install it (Debian and Ubuntu: openssh-client) and make sure that `ssh -V` works."


@attrs.frozen(slots=False)
class ConnectionLostError(LazyclusterError, ConnectionError):
    """The link broke while something was under way.

    `started` is False when the command can not have begun on the host, True when it had; None when nobody knows.
    """

    host: str
    command: str
    reason: str
    started: bool | None = None

    def __str__(self) -> str:
        fate = {
            True: "It had started on the host, which ends it when it sees the link gone.",
            False: "It had not started on the host.",
            None: "It may or may not have started on the host.",
        }[self.started]
        return f"{self.host}: connection lost during `{_shorten(self.command)}` ({self.reason}). {fate}"


@attrs.frozen(slots=False)
class SessionRefusedError(LazyclusterError):
    """The host lets us log in and refuses sessions, even one at a time."""

    host: str
    command: str
    reason: str

    def __str__(self) -> str:
        return (
            f"{self.host}: refused a session for `{_shorten(self.command)}` ({self.reason}). "
            "Check MaxSessions in its sshd_config; 0 forbids sessions."
        )


@attrs.frozen(slots=False)
class LoginShellError(LazyclusterError):
    """The account's login shell ended before the command began: it, or a start-up file of it, allows no commands."""

    host: str
    command: str
    exit_status: int | None
    output: str = attrs.field(default="", repr=False)

    def __str__(self) -> str:
        return (
            f"{self.host}: the login shell ended with exit status {self.exit_status} before `{_shorten(self.command)}` "
            f"began. Check the account's shell and its start-up files: `ssh {self.host} true`."
            f"{indented_tail(self.output)}"
        )


@attrs.frozen(slots=False)
class SupervisorError(LazyclusterError):
    """The program that a runtime keeps running on its host did not start, or ended."""

    host: str
    reason: str
    output: str = attrs.field(default="", repr=False)

    def __str__(self) -> str:
        return (
            f"{self.host}: the supervisor on the host: {self.reason}. Check that `ssh {self.host} python3 -V` works; "
            f"Runtime(..., resident=False), or --no-resident, does without it.{indented_tail(self.output)}"
        )


# Commands, functions, tasks ------------------------------------------------------------------------------------------


def _shorten(command: str, width: int = 200) -> str:
    """Return a command on one line and not too long, for a message."""
    line = " ".join(command.split())
    return line if len(line) <= width else line[: width - 1] + "…"


@attrs.frozen(slots=False)
class CommandTimeoutError(LazyclusterError, TimeoutError):
    """A command ran longer than its timeout, and was ended on the host with its children."""

    host: str
    command: str
    timeout: float
    stdout: bytes = attrs.field(default=b"", repr=False)
    stderr: bytes = attrs.field(default=b"", repr=False)

    def __str__(self) -> str:
        output = indented_tail((self.stdout + self.stderr).decode(errors="replace"))
        took = f"took longer than its timeout of {self.timeout:g} s and was ended"
        return f"{self.host}: `{_shorten(self.command)}` {took}.{output}"


@attrs.frozen(slots=False)
class CommandStoppedError(LazyclusterError):
    """A command or function was stopped from this side before it ended."""

    host: str
    command: str

    def __str__(self) -> str:
        return f"{self.host}: `{_shorten(self.command)}` was stopped before it ended."


@attrs.frozen(slots=False)
class CommandFailedError(LazyclusterError):
    """A command ended with another exit status than 0 where 0 was needed."""

    host: str
    command: str
    exit_code: int
    output: str = attrs.field(default="", repr=False)

    def __str__(self) -> str:
        output = indented_tail(self.output)
        return f"{self.host}: `{_shorten(self.command)}` ended with exit status {self.exit_code}.{output}"


@attrs.frozen(slots=False)
class WorkingDirectoryError(LazyclusterError):
    """The directory that a command was to run in cannot be entered."""

    host: str
    path: str
    reason: str
    advice: str = "Create it first."

    def __str__(self) -> str:
        return f"{self.host}: cannot enter the working directory {self.path!r} ({self.reason}). {self.advice}"


@attrs.frozen(slots=False)
class TaskExecutionError(LazyclusterError):
    """A step of a task failed; `__cause__` is why. The steps after it did not run."""

    host: str
    task: str
    step_index: int
    step: str
    reason: str

    def __str__(self) -> str:
        return f"{self.host}: task {self.task!r} failed at step {self.step_index}, {self.step}: {self.reason}"


@attrs.frozen(slots=False)
class RemoteFunctionError(LazyclusterError):
    """A function failed on the host in a way that cannot be raised here as the exception itself."""

    host: str
    function: str
    reason: str
    remote_traceback: str = attrs.field(default="", repr=False)

    def __str__(self) -> str:
        return f"{self.host}: function {self.function!r} failed: {self.reason}{indented_tail(self.remote_traceback)}"


@attrs.frozen(slots=False)
class RemoteTraceback(LazyclusterError):
    """The cause of an exception that a function raised on a host: its traceback there."""

    host: str
    text: str = attrs.field(repr=False)

    def __str__(self) -> str:
        return f"raised on {self.host}:\n{self.text.rstrip()}"


@attrs.frozen(slots=False)
class FunctionNotSerializableError(LazyclusterError):
    """A function or its arguments cannot be sent: cloudpickle refuses them."""

    function: str
    reason: str

    def __str__(self) -> str:
        return (
            f"function {self.function!r} cannot be sent to a host: {self.reason}. "
            "Create locks, sockets, files and the like inside the function."
        )


@attrs.frozen(slots=False)
class PythonNotFoundError(LazyclusterError):
    """There is no python3 on the host where one is needed."""

    host: str
    wanted: str

    def __str__(self) -> str:
        return (
            f"{self.host}: no Python found (looked for {self.wanted}). Install python3 there, or name it with python=; "
            "commands and files go without one: Runtime(..., resident=False), or --no-resident."
        )


@attrs.frozen(slots=False)
class PythonVersionMismatchError(LazyclusterError):
    """The manager and the host run different Python minor versions, and functions travel as bytecode."""

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


# Files, tunnels, runtimes --------------------------------------------------------------------------------------------


@attrs.frozen(slots=False)
class TransferError(LazyclusterError):
    """A file or directory could not be sent or fetched. What stood at the target stands there still."""

    host: str
    action: str
    path: str
    reason: str
    target: str = ""

    def __str__(self) -> str:
        to = f" to {self.target!r}" if self.target else ""
        return f"{self.host}: cannot {self.action} {self.path!r}{to}: {self.reason}"


@attrs.frozen(slots=False)
class UnsafeArchiveError(LazyclusterError):
    """A member of a tar stream would land outside of the target, or is neither file, directory nor link."""

    member: str
    reason: str

    def __str__(self) -> str:
        return f"tar member {self.member!r} refused: {self.reason}. Nothing was written outside of the target."


@attrs.frozen(slots=False)
class BrokenArchiveError(LazyclusterError):
    """A tar stream ends early or is damaged. `member` is the last one that was begun, empty before the first."""

    member: str
    reason: str

    def __str__(self) -> str:
        where = f"at or after member {self.member!r}" if self.member else "at its beginning"
        return f"tar stream broken {where}: {self.reason}."


@attrs.frozen(slots=False)
class TunnelError(LazyclusterError):
    """A tunnel could not be made or did not carry traffic."""

    host: str
    forwarding: str
    reason: str

    def __str__(self) -> str:
        return f"{self.host}: tunnel {self.forwarding}: {self.reason}"


@attrs.frozen(slots=False)
class ForwardingRefusedError(TunnelError):
    """The host does not allow the forwarding (AllowTcpForwarding, PermitOpen, PermitListen)."""

    def __str__(self) -> str:
        return (
            f"{self.host}: tunnel {self.forwarding}: forwarding refused by the host ({self.reason}). "
            "See AllowTcpForwarding, PermitOpen and PermitListen in its sshd_config."
        )


@attrs.frozen(slots=False)
class PortInUseError(LazyclusterError, ValueError):
    """A port that was to be listened on is taken."""

    host: str
    port: int

    def __str__(self) -> str:
        reserved = " (or reserved for root, as all below 1024 are)" if self.port < 1024 else ""
        where = "on this machine" if self.host == "localhost" else "there"
        return f"{self.host}: port {self.port} is in use{reserved}. Choose another one {where}."


@attrs.frozen(slots=False)
class NoPortsLeftError(LazyclusterError):
    """None of the ports asked for is free."""

    host: str
    ports: tuple[int, ...]

    def __str__(self) -> str:
        if not self.ports:
            return f"{self.host}: no port to choose from, the list is empty."
        return f"{self.host}: none of the {len(self.ports)} ports from {min(self.ports)} to {max(self.ports)} is free."


@attrs.frozen(slots=False)
class InvalidRuntimeError(LazyclusterError, ValueError):
    """A `Runtime` could not be set up on the host; `__cause__` is why."""

    host: str
    reason: str

    def __str__(self) -> str:
        return f"{self.host} cannot be used as a runtime: {self.reason}"


# Many hosts ----------------------------------------------------------------------------------------------------------


@attrs.frozen(slots=False)
class HostsFailedError(LazyclusterError):
    """Something failed on some of several hosts, as an `ExceptionGroup` would say it.

    `errors` pairs each host with what failed there, in the order of the hosts; `total` is how many hosts were asked;
    `values` is what came of the others, by host; a pickle is without those that are none, such as tasks.
    """

    action: str
    errors: tuple[tuple[str, Exception], ...]
    total: int = 0
    values: Mapping[str, object] = attrs.field(factory=dict, repr=False, eq=False)

    @property
    def exceptions(self) -> tuple[Exception, ...]:
        """Return what failed, without the hosts."""
        return tuple(error for _, error in self.errors)

    def __reduce__(self) -> tuple[type[LazyclusterError], tuple[object, ...]]:
        """Return how to make it again from its facts."""
        values = {host: value for host, value in self.values.items() if _can_pickle(value)}
        return type(self), (self.action, self.errors, self.total, values)

    def __str__(self) -> str:
        hosts = len({host for host, _ in self.errors})
        of = f" of {self.total}" if self.total else ""
        head = f"{_shorten(self.action)} failed on {hosts}{of} host{'s' if max(hosts, self.total) > 1 else ''}:"
        return "\n".join([head, *(f"  {line}" for host, error in self.errors for line in _error_lines(host, error))])


def _can_pickle(value: object) -> bool:
    try:
        pickle.dumps(value)
    except Exception:  # noqa: BLE001 - it calls methods that users write
        return False
    return True


def error_text(error: BaseException) -> str:
    """Return an error's message, behind its kind where it is none of this library's."""
    return str(error) if isinstance(error, LazyclusterError) else f"{type(error).__name__}: {error}"


def _error_lines(host: str, error: Exception) -> list[str]:
    """Return what is wrong with a host, the host's name first."""
    text = error_text(error)
    return (text if text.startswith((f"{host}:", f"{host} ")) else f"{host}: {text}").splitlines()


@attrs.frozen(slots=False)
class NoRuntimesError(LazyclusterError, ValueError):
    """A group has no host that could do what is asked for."""

    reason: str

    def __str__(self) -> str:
        return self.reason


@attrs.frozen(slots=False)
class NoRuntimesDetectedError(LazyclusterError):
    """No host can be used: none is configured, none answers, or none has what was asked for.

    `tried` pairs each host with why it cannot be used; `source` is where their names came from.
    """

    source: str
    tried: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        if not self.tried:
            advice = "Add a `Host` entry (`lazycluster add-runtime`), or name them yourself."
            return f"no hosts: {self.source} names none. {advice}"
        lines = [f"  {line}" for host, reason in self.tried for line in f"{host}: {reason}".splitlines()]
        return "\n".join([f"no host can be used, of {len(self.tried)} that {self.source} names:", *lines])


@attrs.frozen(slots=False)
class RuntimeClosedError(LazyclusterError):
    """Something was asked of a runtime or connection after its clean-up."""

    host: str

    def __str__(self) -> str:
        return f"{self.host}: closed already. Make a new one."


HOST_LOST_ERRORS = (
    ConnectionLostError,
    ConnectError,
    LoginShellError,
    RuntimeClosedError,
    SessionRefusedError,
    SupervisorError,
    WorkingDirectoryError,
)
"""What says that a host cannot be used, and nothing about the work that it was given."""
