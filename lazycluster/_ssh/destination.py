"""The host to connect to, and how: checked before anything runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import attrs

from lazycluster._model.checks import check_connect_timeout, check_port

# OpenSSH 9.6 refuses these in a host or user name given on its command line, because ProxyCommand and Match exec put
# them into a shell's line (CVE-2023-51385).
_SHELL_CHARACTERS = frozenset("'`\"$\\;&<>|(){}")
_OPTION_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*")

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
"""ssh_config(5) keywords that decide whether a call works at all, in lower case; callers must not set them."""


def _check_name(parameter: str, name: str) -> None:
    if not isinstance(name, str):
        raise ValueError(f"{parameter} must be text, got {name!r}")  # noqa: TRY004 - as for every other parameter
    if not name:
        raise ValueError(f"{parameter} must not be empty, got {name!r}")
    if name.startswith("-"):
        raise ValueError(f"{parameter} must not begin with a dash, which ssh takes for an option, got {name!r}")
    if any(not character.isprintable() or character.isspace() for character in name):
        raise ValueError(f"{parameter} must not hold spaces or control characters, got {name!r}")
    forbidden = sorted(_SHELL_CHARACTERS.intersection(name))
    if forbidden:
        characters = " ".join(forbidden)
        raise ValueError(f"{parameter} must not hold {characters} (ssh refuses these since 9.6), got {name!r}")


def _option_pairs(options: Mapping[str, str] | Iterable[tuple[str, str]] | None) -> tuple[tuple[str, str], ...]:
    pairs = options.items() if isinstance(options, Mapping) else options or ()
    return tuple((str(keyword), str(value)) for keyword, value in pairs)


@attrs.frozen
class Destination:
    """A host, and the settings that ssh needs besides the user's configuration to reach it.

    `options` are ssh_config(5) keywords and values, `config_file` is ssh's `-F`, `connect_timeout` is in seconds.
    """

    host: str
    user: str | None = None
    port: int | None = None
    identity_file: Path | None = attrs.field(default=None, converter=attrs.converters.optional(Path))
    config_file: Path | None = attrs.field(default=None, converter=attrs.converters.optional(Path))
    connect_timeout: float = 10.0
    options: tuple[tuple[str, str], ...] = attrs.field(default=(), converter=_option_pairs)

    def __attrs_post_init__(self) -> None:
        _check_name("host", self.host)
        if "/" in self.host:
            raise ValueError(f"host must be a name or an address, not a URL (see user= and port=), got {self.host!r}")
        if self.user is not None:
            _check_name("user", self.user)
        if self.port is not None:
            check_port(self.port)
        check_connect_timeout(self.connect_timeout)
        for keyword, value in self.options:
            if not _OPTION_NAME.fullmatch(keyword):
                raise ValueError(f"options must have keywords of ssh_config(5), got {keyword!r}")
            if keyword.lower() in RESERVED_OPTIONS:
                raise ValueError(f"options must not set {keyword}, which lazycluster sets itself")
            if any(character in value for character in "\r\n\0"):
                # SetEnv and ProxyCommand may hold secrets.
                raise ValueError(f"options must have values of one line (that of {keyword} is not shown here)")
