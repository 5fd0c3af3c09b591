"""Argument vectors of the OpenSSH programs. The options that keep every call safe are added in one place."""

from __future__ import annotations

import math
from pathlib import Path

import attrs

from lazycluster._ssh.destination import Destination

# Options that users may set for work at a terminal, and that break a program's calls (ssh_config(5)).
_NON_INTERACTIVE_OPTIONS = (
    ("ClearAllForwardings", "yes"),
    ("PermitLocalCommand", "no"),
    ("RemoteCommand", "none"),
    ("RequestTTY", "no"),
)
# The same, known since OpenSSH 8.7 only: left out if the client does not know them.
_NON_INTERACTIVE_OPTIONS_SINCE_8_7 = (("ForkAfterAuthentication", "no"), ("StdinNull", "no"))
_COMMAND_OPTIONS_SINCE_8_7 = (("SessionType", "default"),)
OPTIONS_SINCE_8_7 = frozenset(
    keyword.lower() for keyword, _ in (*_NON_INTERACTIVE_OPTIONS_SINCE_8_7, *_COMMAND_OPTIONS_SINCE_8_7)
)
"""The `unsupported_options` for calls that must work with any client."""
# A caller may change these through options=; the configuration file may not.
_DEFAULT_OPTIONS = (
    ("ForwardX11", "no"),
    ("ServerAliveInterval", "5"),
    ("ServerAliveCountMax", "3"),
)
MASTER_PERSIST_SECONDS = 4
"""Seconds that a master stays after the last connection to its control socket (ControlPersist)."""


def _supported_options(
    pairs: tuple[tuple[str, str], ...], unsupported_options: frozenset[str]
) -> tuple[tuple[str, str], ...]:
    return tuple(pair for pair in pairs if pair[0].lower() not in unsupported_options)


def _ordered_flags(
    destination: Destination,
    own_options: tuple[tuple[str, str], ...],
    defaults: tuple[tuple[str, str], ...] = _DEFAULT_OPTIONS,
) -> tuple[str, ...]:
    """Return the options in the order in which ssh, which takes the first value, must see them."""
    return _flags(destination, (*own_options, *_NON_INTERACTIVE_OPTIONS, *destination.options, *defaults))


def user_ssh_arguments(destination: Destination) -> tuple[str, ...]:
    """Return the options that a person in a terminal needs, besides the host, for `ssh` or `ssh-copy-id`."""
    return _flags(destination, destination.options)


def _flags(destination: Destination, options: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    pairs = list(options)
    if destination.user is not None:
        pairs.append(("User", destination.user))
    if destination.port is not None:
        pairs.append(("Port", str(destination.port)))
    argv = ["-F", str(destination.config_file)] if destination.config_file is not None else []
    if destination.identity_file is not None:
        argv += ["-i", str(destination.identity_file).replace("%", "%%")]
    for keyword, value in pairs:
        argv += ["-o", f"{keyword}={value}"]
    return tuple(argv)


def _mux_client_options(socket_path: Path) -> tuple[tuple[str, str], ...]:
    """Return the options that make a call use a master or fail at once.

    Without the master ssh would silently make a connection of its own. A ProxyCommand that fails prevents that; while
    the master lives, ssh does not run it.
    """
    return (
        ("BatchMode", "yes"),
        ("ControlMaster", "no"),
        ("ControlPath", str(socket_path)),
        ("LogLevel", "ERROR"),
        ("ProxyCommand", "false"),
    )


def master_argv(
    destination: Destination,
    socket_path: Path,
    log_path: Path | None,
    *,
    batch: bool = True,
    persist_seconds: int = MASTER_PERSIST_SECONDS,
) -> tuple[str, ...]:
    """Return the call that logs in, leaves a master in the background and exits with 0 once it is there.

    It ends by itself `persist_seconds` seconds after the last connection to its control socket.
    """
    own = (
        ("BatchMode", "yes" if batch else "no"),
        ("ControlMaster", "yes"),
        ("ControlPath", str(socket_path)),
        ("ControlPersist", str(persist_seconds)),
        ("LogLevel", "INFO"),
        ("NumberOfPasswordPrompts", "1"),
    )
    # Later than our own deadline: ssh would end only itself, and leave the processes of its ProxyCommand.
    timeout = ("ConnectTimeout", str(math.ceil(destination.connect_timeout) + 1))
    logging = ("-E", str(log_path)) if log_path is not None else ()
    return (
        "ssh",
        "-f",
        "-N",
        "-T",
        *logging,
        *_ordered_flags(destination, own, (*_DEFAULT_OPTIONS, timeout)),
        "--",
        destination.host,
    )


def exit_argv(destination: Destination, socket_path: Path) -> tuple[str, ...]:
    """Return the call that ends a master; without a master it connects to no host."""
    return ("ssh", "-O", "exit", *_ordered_flags(destination, _mux_client_options(socket_path)), "--", destination.host)


def login_attempt_argv(destination: Destination, *, batch: bool = True, log_level: str = "INFO") -> tuple[str, ...]:
    """Return the call that logs in without a master and out again, to read the messages of a jump host or ProxyCommand.

    With ControlPersist ssh gives these /dev/null for their standard error. A `log_level` other than INFO (DEBUG1) is
    this ssh's alone; -v would also reach the ssh of each jump host, whose lines would look like its own.
    """
    own = (
        ("BatchMode", "yes" if batch else "no"),
        ("ControlMaster", "no"),
        ("ControlPath", "none"),
        ("LogLevel", log_level),
        ("NumberOfPasswordPrompts", "1"),
    )
    return ("ssh", "-T", *_ordered_flags(destination, own), "--", destination.host, "true")


def session_argv(
    destination: Destination,
    socket_path: Path,
    command: tuple[str, ...],
    *,
    unsupported_options: frozenset[str] = frozenset(),
) -> tuple[str, ...]:
    """Return the call that runs a command in a session through a master.

    ssh joins the words of `command` with spaces and passes them to the login shell. `unsupported_options` names the
    keywords, in lower case, that this client does not know.
    """
    newer = _supported_options((*_NON_INTERACTIVE_OPTIONS_SINCE_8_7, *_COMMAND_OPTIONS_SINCE_8_7), unsupported_options)
    return (
        "ssh",
        "-T",
        *_ordered_flags(destination, (*_mux_client_options(socket_path), *newer)),
        "--",
        destination.host,
        *command,
    )


def scp_argv(
    destination: Destination,
    socket_path: Path,
    source: str,
    target: str,
    *,
    legacy: bool = False,
    unsupported_options: frozenset[str] = frozenset(),
) -> tuple[str, ...]:
    """Return the call that copies one file through a master, with its mode and times.

    `legacy` asks for the protocol of before OpenSSH 9.0, which runs a command, for hosts without the sftp subsystem.
    `unsupported_options` names the keywords, in lower case, that this client does not know.
    """
    # Not -q: scp passes it to ssh, which then prints nothing when the host refuses the session.
    flags = ("-p", "-O") if legacy else ("-p",)
    newer = _supported_options(
        (*_NON_INTERACTIVE_OPTIONS_SINCE_8_7, *(_COMMAND_OPTIONS_SINCE_8_7 if legacy else ())), unsupported_options
    )
    return (
        "scp",
        *flags,
        *_ordered_flags(destination, (*_mux_client_options(socket_path), *newer)),
        "--",
        source,
        target,
    )


def remote_operand(destination: Destination, path: str) -> str:
    """Return the host's side of a copy as scp writes it; an IPv6 address goes into brackets."""
    user, at, name = destination.host.rpartition("@")
    return f"{user}{at}[{name}]:{path}" if ":" in name else f"{destination.host}:{path}"


def config_file_argv(config_file: Path, host: str) -> tuple[str, ...]:
    """Return the call that prints the settings of one configuration file for a host, with no option of ours."""
    return ("ssh", "-G", "-F", str(config_file), "--", host)


def config_check_argv(config_file: Path | None) -> tuple[str, ...]:
    """Return the call that has ssh read a configuration, by default the user's own; it prints settings of any host."""
    return ("ssh", "-G", *(() if config_file is None else ("-F", str(config_file))), "localhost")


def terminal_argv(destination: Destination, command: str | None) -> tuple[str, ...]:
    """Return the call for a person at a terminal: a shell on the host, or one command there.

    ssh asks its questions there, and the forwardings and the like of the configuration hold. Only a RemoteCommand of
    the configuration gives way to `command`: ssh refuses both together.
    """
    own = () if command is None else (("RemoteCommand", "none"),)
    timeout = ("ConnectTimeout", str(math.ceil(destination.connect_timeout)))
    words = () if command is None else (command,)
    return ("ssh", "-t", *_flags(destination, (*own, *destination.options, timeout)), "--", destination.host, *words)


def copy_key_argv(destination: Destination) -> tuple[str, ...]:
    """Return the call that installs a public key on a host: that of the identity file, or the one ssh-copy-id finds.

    It is for a terminal, where it may ask for a password, for a passphrase, and whether to trust a host key.
    """
    own = (
        ("ControlMaster", "no"),
        ("ControlPath", "none"),
        ("ConnectTimeout", str(math.ceil(destination.connect_timeout) + 1)),
    )
    key = () if destination.identity_file is None else ("-i", str(destination.identity_file))
    return ("ssh-copy-id", *key, *_ordered_flags(attrs.evolve(destination, identity_file=None), own), destination.host)


def effective_config_argv(destination: Destination) -> tuple[str, ...]:
    """Return the call that prints the settings of the whole configuration for a host, without a connection."""
    return ("ssh", "-G", *_ordered_flags(destination, (("BatchMode", "yes"),)), "--", destination.host)
