"""Records become argument vectors. What every call needs to be safe is added in one place."""

from __future__ import annotations

import math
from pathlib import Path

import attrs

from lazycluster._ssh.destination import Destination

# Written in a user's configuration for a person at a terminal, and poison for a program (ssh_config(5)).
_NO_TERMINAL = (
    ("ClearAllForwardings", "yes"),
    ("PermitLocalCommand", "no"),
    ("RemoteCommand", "none"),
    ("RequestTTY", "no"),
)
# The same, known since OpenSSH 8.7 only: left out where the client does not know them.
_NO_TERMINAL_SINCE_8_7 = (("ForkAfterAuthentication", "no"), ("StdinNull", "no"))
_COMMAND_SINCE_8_7 = (("SessionType", "default"),)
SINCE_8_7 = frozenset(keyword.lower() for keyword, _ in (*_NO_TERMINAL_SINCE_8_7, *_COMMAND_SINCE_8_7))
"""What is `unsupported` for lines that are to work with any client."""
# What a caller may set otherwise through options=, and the configuration file may not.
_DEFAULTS = (
    ("ForwardX11", "no"),
    ("ServerAliveInterval", "5"),
    ("ServerAliveCountMax", "3"),
)
MASTER_LINGERS = 4
"""Seconds that a master stays once nobody holds its control socket (ControlPersist)."""


def _supported(pairs: tuple[tuple[str, str], ...], unsupported: frozenset[str]) -> tuple[tuple[str, str], ...]:
    return tuple(pair for pair in pairs if pair[0].lower() not in unsupported)


def _options(
    to: Destination, own: tuple[tuple[str, str], ...], defaults: tuple[tuple[str, str], ...] = _DEFAULTS
) -> tuple[str, ...]:
    """Return the options in the order in which ssh, which takes the first value, must see them."""
    return _flags(to, (*own, *_NO_TERMINAL, *to.options, *defaults))


def by_hand(to: Destination) -> tuple[str, ...]:
    """Return the options that a person in a terminal needs, besides the host, for `ssh` or `ssh-copy-id`."""
    return _flags(to, to.options)


def _flags(to: Destination, options: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    pairs = list(options)
    if to.user is not None:
        pairs.append(("User", to.user))
    if to.port is not None:
        pairs.append(("Port", str(to.port)))
    argv = ["-F", str(to.config_file)] if to.config_file is not None else []
    if to.identity_file is not None:
        argv += ["-i", str(to.identity_file).replace("%", "%%")]
    for keyword, value in pairs:
        argv += ["-o", f"{keyword}={value}"]
    return tuple(argv)


def _through(socket: Path) -> tuple[tuple[str, str], ...]:
    """Return the options that make a call ride on a master or fail at once.

    Without the master ssh would silently dial a connection of its own. A ProxyCommand that fails prevents it, and is
    not looked at while the master lives.
    """
    return (
        ("BatchMode", "yes"),
        ("ControlMaster", "no"),
        ("ControlPath", str(socket)),
        ("LogLevel", "ERROR"),
        ("ProxyCommand", "false"),
    )


def master_argv(
    to: Destination, socket: Path, log: Path | None, *, batch: bool = True, lingers: int = MASTER_LINGERS
) -> tuple[str, ...]:
    """Return the call that logs in, leaves a master in the background and exits with 0 once it is there.

    It ends by itself once nobody has held its control socket for `lingers` seconds.
    """
    own = (
        ("BatchMode", "yes" if batch else "no"),
        ("ControlMaster", "yes"),
        ("ControlPath", str(socket)),
        ("ControlPersist", str(lingers)),
        ("LogLevel", "INFO"),
        ("NumberOfPasswordPrompts", "1"),
    )
    # Later than our own deadline: ssh would end only itself, and leave what its ProxyCommand has started.
    timeout = ("ConnectTimeout", str(math.ceil(to.connect_timeout) + 1))
    logging = ("-E", str(log)) if log is not None else ()
    return ("ssh", "-f", "-N", "-T", *logging, *_options(to, own, (*_DEFAULTS, timeout)), "--", to.host)


def exit_argv(to: Destination, socket: Path) -> tuple[str, ...]:
    """Return the call that ends a master; where there is none it dials nobody."""
    return ("ssh", "-O", "exit", *_options(to, _through(socket)), "--", to.host)


def attempt_argv(to: Destination, *, batch: bool = True, log_level: str = "INFO") -> tuple[str, ...]:
    """Return the call that logs in without a master and out again, to hear what a jump host or ProxyCommand says.

    With ControlPersist ssh gives these /dev/null for their standard error. A `log_level` other than INFO (DEBUG1) is
    this ssh's alone; -v would be handed on to those of the jump hosts, whose lines could not be told from its own.
    """
    own = (
        ("BatchMode", "yes" if batch else "no"),
        ("ControlMaster", "no"),
        ("ControlPath", "none"),
        ("LogLevel", log_level),
        ("NumberOfPasswordPrompts", "1"),
    )
    return ("ssh", "-T", *_options(to, own), "--", to.host, "true")


def session_argv(
    to: Destination, socket: Path, command: tuple[str, ...], *, unsupported: frozenset[str] = frozenset()
) -> tuple[str, ...]:
    """Return the call that runs a command in a session through a master.

    ssh joins the words of `command` with spaces and hands them to the login shell. `unsupported` names the keywords, in
    lower case, that this client does not know.
    """
    newer = _supported((*_NO_TERMINAL_SINCE_8_7, *_COMMAND_SINCE_8_7), unsupported)
    return ("ssh", "-T", *_options(to, (*_through(socket), *newer)), "--", to.host, *command)


def scp_argv(
    to: Destination,
    socket: Path,
    source: str,
    target: str,
    *,
    legacy: bool = False,
    unsupported: frozenset[str] = frozenset(),
) -> tuple[str, ...]:
    """Return the call that copies one file through a master, with its mode and times.

    `legacy` asks for the protocol of before OpenSSH 9.0, which runs a command, for hosts without the sftp subsystem.
    `unsupported` names the keywords, in lower case, that this client does not know.
    """
    # Not -q: scp hands it on to ssh, which then does not tell that the host refused the session.
    flags = ("-p", "-O") if legacy else ("-p",)
    newer = _supported((*_NO_TERMINAL_SINCE_8_7, *(_COMMAND_SINCE_8_7 if legacy else ())), unsupported)
    return ("scp", *flags, *_options(to, (*_through(socket), *newer)), "--", source, target)


def remote_operand(to: Destination, path: str) -> str:
    """Return the host's side of a copy as scp writes it; an IPv6 address goes into brackets."""
    user, at, name = to.host.rpartition("@")
    return f"{user}{at}[{name}]:{path}" if ":" in name else f"{to.host}:{path}"


def settings_argv(config_file: Path, host: str) -> tuple[str, ...]:
    """Return the call that prints what one configuration file says for a host: no option of ours is in it."""
    return ("ssh", "-G", "-F", str(config_file), "--", host)


def copy_key_argv(to: Destination) -> tuple[str, ...]:
    """Return the call that installs a public key on a host: that of the identity file, or what ssh-copy-id finds.

    It is for a terminal, where it may ask for a password, for a passphrase, and whether to trust a host key.
    """
    own = (
        ("ControlMaster", "no"),
        ("ControlPath", "none"),
        ("ConnectTimeout", str(math.ceil(to.connect_timeout) + 1)),
    )
    key = () if to.identity_file is None else ("-i", str(to.identity_file))
    return ("ssh-copy-id", *key, *_options(attrs.evolve(to, identity_file=None), own), to.host)


def effective_argv(to: Destination) -> tuple[str, ...]:
    """Return the call that prints what ssh makes of the whole configuration for a host, without dialling."""
    return ("ssh", "-G", *_options(to, (("BatchMode", "yes"),)), "--", to.host)
