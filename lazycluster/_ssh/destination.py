"""Whom to dial and how: checked before anything runs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import attrs

# OpenSSH 9.6 refuses these in a host or user name given on its command line, because ProxyCommand and Match exec put
# them into a shell's line (CVE-2023-51385).
_SHELL_CHARACTERS = frozenset("'`\"$\\;&<>|(){}")
_LONGEST_CONNECT_TIMEOUT = 1e6
_OPTION_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

RESERVED_OPTIONS = frozenset(
    {
        "batchmode",
        "clearallforwardings",
        "controlmaster",
        "controlpath",
        "controlpersist",
        "forkafterauthentication",
        "permitlocalcommand",
        "remotecommand",
        "requesttty",
        "sessiontype",
        "stdinnull",
    }
)
"""ssh_config(5) keywords that decide whether a call works at all, in lower case; a caller cannot set them."""


def absolute(path: str | os.PathLike[str]) -> Path:
    """Return a local path that no later change of the working directory moves; links are not followed."""
    return Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100 - resolve() would follow links


def check_port(port: int) -> int:
    """Return the port.

    Raises:
        ValueError: It is no whole number from 1 to 65535.
    """
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
        raise ValueError(f"a port is a whole number from 1 to 65535, not {port!r}")
    return port


def check_command(command: str) -> str:
    """Return a command.

    Raises:
        ValueError: It is no text, empty, or holds a NUL.
    """
    if not isinstance(command, str) or not command or "\0" in command:
        raise ValueError(f"a command must be text, not empty and without NUL, not {command!r:.200}")
    return command


def check_timeout(seconds: float | None) -> float | None:
    """Return a timeout.

    Raises:
        ValueError: It is neither None nor a positive number of seconds.
    """
    if seconds is not None and not _is_duration(seconds):
        raise ValueError(f"a timeout is a positive number of seconds, or None, not {seconds!r}")
    return seconds


def check_connect_timeout(seconds: float) -> float:
    """Return a time-out of log-ins.

    Raises:
        ValueError: It is not a positive number of seconds, or more than ssh takes.
    """
    if not _is_duration(seconds) or seconds >= _LONGEST_CONNECT_TIMEOUT:
        longest = f" (less than {_LONGEST_CONNECT_TIMEOUT:,.0f})"
        raise ValueError(f"connect_timeout is a positive number of seconds, not {seconds!r}{longest}")
    return seconds


def _is_duration(seconds: object) -> bool:
    return not isinstance(seconds, bool) and isinstance(seconds, (int, float)) and seconds > 0


def check_environment(variables: Mapping[str, str] | None) -> dict[str, str]:
    """Return a copy of environment variables that a POSIX shell can export.

    Raises:
        ValueError: A name is no identifier (POSIX.1-2017, XBD 3.235), or a value is no text or holds a NUL.
    """
    checked = dict(variables or {})
    for name, value in checked.items():
        if not isinstance(name, str) or not _VARIABLE_NAME.fullmatch(name):
            raise ValueError(
                f"not a name for an environment variable: {name!r} (letters, digits and _, no digit first)"
            )
        if not isinstance(value, str) or "\0" in value:
            raise ValueError(f"the value of the environment variable {name} must be text without NUL")
    return checked


def _check_name(what: str, name: str) -> None:
    if not isinstance(name, str) or not name:
        raise ValueError(f"{what} must not be empty")
    if name.startswith("-"):
        raise ValueError(f"{what} must not begin with a dash, ssh would take it for an option: {name!r}")
    if any(not character.isprintable() or character.isspace() for character in name):
        raise ValueError(f"{what} must not hold spaces or control characters: {name!r}")
    forbidden = sorted(_SHELL_CHARACTERS.intersection(name))
    if forbidden:
        raise ValueError(f"{what} must not hold {' '.join(forbidden)} (ssh itself refuses that since 9.6): {name!r}")


def _options(options: Mapping[str, str] | Iterable[tuple[str, str]] | None) -> tuple[tuple[str, str], ...]:
    pairs = options.items() if isinstance(options, Mapping) else options or ()
    return tuple((str(keyword), str(value)) for keyword, value in pairs)


@attrs.frozen
class Destination:
    """A host and what ssh needs besides the user's configuration to reach it.

    `options` are ssh_config(5) keywords and values, `config_file` is ssh's `-F`, `connect_timeout` is in seconds.
    """

    host: str
    user: str | None = None
    port: int | None = None
    identity_file: Path | None = attrs.field(default=None, converter=attrs.converters.optional(Path))
    config_file: Path | None = attrs.field(default=None, converter=attrs.converters.optional(Path))
    connect_timeout: float = 10.0
    options: tuple[tuple[str, str], ...] = attrs.field(default=(), converter=_options)

    def __attrs_post_init__(self) -> None:
        _check_name("the host", self.host)
        if "/" in self.host:
            raise ValueError(f"the host must be a name or an address, no URL: {self.host!r} (see user= and port=)")
        if self.user is not None:
            _check_name("the user", self.user)
        if self.port is not None:
            check_port(self.port)
        check_connect_timeout(self.connect_timeout)
        for keyword, value in self.options:
            if not _OPTION_NAME.fullmatch(keyword):
                raise ValueError(f"not a keyword of ssh_config: {keyword!r}")
            if keyword.lower() in RESERVED_OPTIONS:
                raise ValueError(f"the option {keyword} is set by lazycluster itself and cannot be given")
            if any(character in value for character in "\r\n\0"):
                raise ValueError(f"the value of the option {keyword} must be one line")
