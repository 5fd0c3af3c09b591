"""The hosts of a user's ssh configuration, and the settings that `ssh -G` finds for one host; nothing is read here.

Only ssh itself (`ssh -G`) can tell the settings of a host: it handles Match, Include, canonical names and the order of
the files. The files are parsed for one question that ssh cannot answer: which hosts there are.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs

_MAX_INCLUDE_DEPTH = 16  # the limit of ssh itself (readconf.c, READCONF_MAX_DEPTH)
_SYSTEM_CONFIG_DIRECTORY = Path("/etc/ssh")
# ssh splits words only at these (misc.c, argv_split); a non-breaking space is a letter like any other.
_ARGUMENT_SEPARATORS = " \t"
_TRAILING_WHITESPACE = " \t\r\n\f"  # ssh strips these from the end of a line (readconf.c, process_config_line_depth)
_KEYWORD_LINE = re.compile(r'[ \t\r]*"?(\w+)"?(?:[ \t\r]*=[ \t\r]*|[ \t\r]+)(.*)', re.ASCII | re.DOTALL)
_FORWARDING_KEYWORDS = ("localforward", "remoteforward", "dynamicforward")


@attrs.frozen
class HostLine:
    """A host and a line that names it."""

    host: str
    file: Path
    number: int

    def __str__(self) -> str:
        return f"{self.file}, line {self.number}"


def host_names(
    path: Path, *, read_text: Callable[[Path], str | None], glob: Callable[[str], Iterable[Path]], home: Path
) -> tuple[str, ...]:
    """Return the hosts that a configuration file and those it includes name, each once, in the order of the files.

    Patterns and negated names are not hosts. Files that a `Match` block includes are left out: whether it applies is
    known only for a given host. In a file that a `Host` block includes, only hosts that fit its patterns count.

    Args:
        path: The file to begin with.
        read_text: Returns the text of a file, or None if it cannot be read.
        glob: Returns the files that fit an absolute pattern.
        home: The home directory of the user, as the password database has it.
    """
    return tuple(dict.fromkeys(line.host for line in host_lines(path, read_text=read_text, glob=glob, home=home)))


def host_lines(
    path: Path, *, read_text: Callable[[Path], str | None], glob: Callable[[str], Iterable[Path]], home: Path
) -> tuple[HostLine, ...]:
    """Return the same hosts, each as often as the files name it."""
    walk = _ConfigWalker(
        read_text, glob, home, _SYSTEM_CONFIG_DIRECTORY if path.parent == _SYSTEM_CONFIG_DIRECTORY else home / ".ssh"
    )
    return tuple(walk.iter_hosts(path, ()))


@attrs.frozen
class _ConfigWalker:
    read_text: Callable[[Path], str | None]
    glob: Callable[[str], Iterable[Path]]
    home: Path
    relative_to: Path

    def iter_hosts(self, path: Path, including: tuple[Path, ...]) -> Iterator[HostLine]:
        """Yield the hosts of a file, which the files `including` include, the outermost first."""
        if path in including:  # ssh gives up on such files; they name no further hosts
            return
        scope: Sequence[str] | None = ("*",)  # the patterns of the block around a line; None in a Match block
        for number, line in enumerate((self.read_text(path) or "").split("\n"), 1):
            keyword, words = parse_config_line(line)
            if keyword == "host":
                scope = words
                hosts = (word for word in words if not word.startswith(("!", "-")) and not set(word) & set("*?"))
                yield from (HostLine(host, path, number) for host in hosts)
            elif keyword == "match":
                scope = ("*",) if [word.lower() for word in words] == ["all"] else None
            elif keyword == "include" and scope is not None and len(including) < _MAX_INCLUDE_DEPTH:
                for included in self._included_files(words):
                    yield from (
                        named
                        for named in self.iter_hosts(included, (*including, path))
                        if matches_patterns(named.host, scope)
                    )

    def _included_files(self, patterns: Iterable[str]) -> Iterator[Path]:
        for pattern in patterns:
            if pattern.startswith("~/"):
                full = f"{self.home}{pattern[1:]}"
            else:
                full = pattern if pattern.startswith("/") else f"{self.relative_to}/{pattern}"
            yield from self.glob(full)


def matches_patterns(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a host fits a pattern list; a negated pattern that fits rules it out (ssh_config(5), PATTERNS)."""
    fitting = [p for p in patterns if fnmatch.fnmatchcase(name.lower(), p.lstrip("!").replace("[", "[[]").lower())]
    return bool(fitting) and not any(pattern.startswith("!") for pattern in fitting)


def parse_config_line(line: str) -> tuple[str, tuple[str, ...]]:
    """Return the keyword of a line in lower case and its arguments; for a line without one, an empty keyword."""
    match = _KEYWORD_LINE.match(line.rstrip(_TRAILING_WHITESPACE))
    if match is None:
        return "", ()
    try:
        return match[1].lower(), tuple(_split_arguments(match.string, match.start(2)))
    except ValueError:
        return "", ()


def _split_arguments(text: str, position: int) -> Iterator[str]:
    """Split arguments as ssh does: quotes of both kinds, backslashes before quotes, backslashes and spaces, comments.

    Raises:
        ValueError: If a quote is not closed.
    """
    while position < len(text):
        if text[position] in _ARGUMENT_SEPARATORS:
            position += 1
        elif text[position] == "#":
            return
        else:
            word, position = _parse_argument(text, position)
            yield word


def _parse_argument(text: str, position: int) -> tuple[str, int]:
    word, quote = [], ""
    while position < len(text):
        char, following = text[position], text[position + 1 : position + 2]
        if char == "\\" and following and (following in "\\'\"" or (not quote and following == " ")):
            word.append(following)
            position += 1
        elif not quote and char in _ARGUMENT_SEPARATORS:
            break
        elif char == quote:
            quote = ""
        elif not quote and char in "'\"":
            quote = char
        else:
            word.append(char)
        position += 1
    if quote:
        raise ValueError("a quote is not closed")
    return "".join(word), position


@attrs.frozen
class EffectiveConfig:
    """The settings that ssh finds in its whole configuration for one host.

    `settings` maps each keyword, in lower case, to its values: one for each line, in ssh's order.
    """

    settings: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)

    def value(self, keyword: str) -> str | None:
        """Return the first value of a keyword; None if it is not set, or set to none."""
        value = next(iter(self.settings.get(keyword.lower(), ())), "none")
        return None if value.lower() == "none" else value

    @property
    def hostname(self) -> str | None:
        """The name or address to which ssh connects."""
        return self.value("hostname")

    @property
    def user(self) -> str | None:
        """The user who logs in."""
        return self.value("user")

    @property
    def port(self) -> int | None:
        """The port to which ssh connects."""
        port = self.value("port")
        return int(port) if port is not None and port.isdecimal() else None

    @property
    def proxy_jump(self) -> str | None:
        """The jump hosts, separated by commas."""
        return self.value("proxyjump")

    @property
    def host_key_alias(self) -> str | None:
        """The name under which the host key is known, which is also the one in ssh's prompts."""
        return self.value("hostkeyalias")

    @property
    def identity_files(self) -> tuple[str, ...]:
        """The private keys that ssh tries, as written; they may not exist."""
        return tuple(file for file in self.settings.get("identityfile", ()) if file.lower() != "none")

    @property
    def forwardings(self) -> tuple[tuple[str, str], ...]:
        """The forwardings in the user's configuration, as keyword and value."""
        return tuple((keyword, value) for keyword in _FORWARDING_KEYWORDS for value in self.settings.get(keyword, ()))


def parse_effective_config(output: str) -> EffectiveConfig:
    """Read the output of `ssh -G host`: on each line a keyword, a space and the value."""
    settings: dict[str, tuple[str, ...]] = {}
    for line in output.splitlines():
        keyword, space, value = line.strip().partition(" ")
        if space and keyword.isalnum():
            settings[keyword.lower()] = (*settings.get(keyword.lower(), ()), value.strip())
    return EffectiveConfig(settings)
