"""Add and remove hosts in the text of an ssh configuration; every byte that is no part of the change stays.

Where a block begins and ends, and which names its line has, is read as ssh reads it (`config.parse_config_line`).
sshconf, a library for this, does not: for 0.2.7 neither `Host=a` nor `Host a b` names a host `a`, a Match block belongs
to the host above it and is removed with it, as is all that stands between two blocks of one name; where it reads and
writes files itself, CRLF and the last newline are lost. So it writes new blocks only, in the style of the file, and
what it wrote is read again here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import attrs

from lazycluster._ssh.config import ConfigArgument, matches_patterns, parse_config_line

HostSettings = Sequence[tuple[str, str]]
"""Keywords and values of a block, the values as they stand in a file, quotes and all."""

_LINE_WHITESPACE = " \t\r\n\f"
_BLOCK_KEYWORDS = frozenset({"host", "match"})


class ConfigEditError(Exception):
    """The text cannot be changed in the way that was asked for; it says why."""


@attrs.frozen
class _ConfigLine:
    number: int
    start: int
    text: str  # the newline included
    keyword: str
    arguments: tuple[ConfigArgument, ...]

    @property
    def end(self) -> int:
        return self.start + len(self.text)

    @property
    def indentation(self) -> int:
        return len(self.text) - len(self.text.lstrip(" \t"))

    @property
    def unicode_indentation(self) -> int:
        """The same with anything that somebody may take for space."""
        return len(self.text) - len(self.text.lstrip())

    @property
    def is_empty(self) -> bool:
        return not self.text.strip(_LINE_WHITESPACE)

    @property
    def is_comment(self) -> bool:
        return self.text.lstrip(_LINE_WHITESPACE).startswith("#")

    def is_part_of(self, header: _ConfigLine) -> bool:
        """Tell whether the block of a header reaches as far as here; a line that cannot be read counts as a setting."""
        return not self.is_empty and (not self.is_comment or self.indentation > header.indentation)


@attrs.frozen
class _ConfigBlock:
    """A Host or Match line with what follows it up to the next one.

    `end` is where its last setting ends. Comments after that belong to what follows, unless they come at once and are
    indented deeper than the first line.
    """

    header: _ConfigLine
    end: int

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(word.text for word in self.header.arguments) if self.header.keyword == "host" else ()

    def may_apply_to(self, name: str) -> bool:
        return self.header.keyword == "match" or matches_patterns(name, self.names)

    def applies_to_others(self, name: str) -> bool:
        """Tell whether the block is for something else than this host, too."""
        return any(other != name and not other.startswith("!") for other in self.names)


def host_line_numbers(text: str, name: str) -> tuple[int, ...]:
    """Return the numbers of the Host lines that have a name as such, no pattern; the first line has number 1."""
    return tuple(block.header.number for block in _parse_blocks(text) if name in block.names)


def global_setting_line_number(text: str, keyword: str) -> int | None:
    """Return the number of the line that sets a keyword before any Host or Match line, and so for all hosts."""
    for line in _parse_lines(text):
        if line.keyword in _BLOCK_KEYWORDS:
            return None
        if line.keyword == keyword.lower():
            return line.number
    return None


def format_block(name: str, settings: HostSettings, *, style_source: str = "") -> str:
    """Return a block for a host, indented as most settings in the blocks of another text are.

    Raises:
        EditingError: It would say something else than the settings.
    """
    import sshconf  # noqa: PLC0415 - needed by few

    values: dict[str, list[str]] = {}
    for keyword, value in settings:
        values.setdefault(keyword, []).append(value)
    model = [
        line.text.rstrip("\n")
        for line in _setting_lines(style_source)
        if line.keyword and line.indentation == line.unicode_indentation
    ]
    try:
        with warnings.catch_warnings():
            # 0.2.7 calls re.split() in a way of which Python 3.13 warns.
            warnings.simplefilter("ignore", DeprecationWarning)
            config = sshconf.SshConfigFile(model)
        config.add(name, **values)
    except (TypeError, ValueError) as error:
        raise ConfigEditError(f"sshconf cannot write the block: {error}") from error
    written = config.config()[len("\n".join(model)) :].strip("\n") + "\n"
    lines = tuple(_parse_lines(written))
    expected = [keyword.lower() for keyword, several in values.items() for _ in several]
    written_keywords = [line.keyword for line in lines]
    if (
        written_keywords != ["host", *expected]
        or _BLOCK_KEYWORDS & {*expected}
        or [word.text for word in lines[0].arguments] != [name]
    ):
        raise ConfigEditError(f"the block would not say what it is to say:\n{written}")
    return written.replace("\n", _line_ending(style_source))


def add_host(text: str, name: str, settings: HostSettings) -> str:
    """Return the text with a block for a host that it does not name yet.

    It comes before the first block that may hold for the host, and before the comment on top of that, because ssh takes
    the first value that it finds; at the end where there is no such block.

    Raises:
        EditingError: The block would say something else than the settings.
    """
    block, newline = format_block(name, settings, style_source=text), _line_ending(text)
    other = next((block for block in _parse_blocks(text) if block.may_apply_to(name)), None)
    if other is not None:
        at = _leading_comment_start(text, other)
        return f"{text[:at]}{block}{newline}{text[at:]}"
    ending = newline if text and not text.endswith("\n") else ""
    return f"{text}{ending}{newline if text else ''}{block}"


def remove_host(text: str, name: str) -> str:
    """Return the text without a host: a Host line for several loses the name, a block of its own goes.

    With a block one empty line goes, so that this is the reverse of `add_host()`.

    Raises:
        EditingError: No Host line has the name.
    """
    found = [block for block in _parse_blocks(text) if name in block.names]
    if not found:
        raise ConfigEditError(f"no Host line names {name}")
    for block in reversed(found):  # from the end on, which leaves the places before it as they are
        if block.applies_to_others(name):
            header = block.header
            text = text[: header.start] + _remove_argument(header.text, name) + text[header.end :]
        else:
            text = _remove_block(text, block)
    return text


def replace_host(text: str, name: str, settings: HostSettings) -> str:
    """Return the text with another block for a host that it names, in the place of the old one where that will do.

    Raises:
        EditingError: No Host line has the name, or the block would say something else than the settings.
    """
    blocks = tuple(_parse_blocks(text))
    first = next((block for block in blocks if block.may_apply_to(name)), None)
    named = [block for block in blocks if name in block.names]
    if first is None or named != [first] or first.applies_to_others(name):
        return add_host(remove_host(text, name), name, settings)
    return text[: first.header.start] + format_block(name, settings, style_source=text) + text[first.end :]


def _parse_lines(text: str) -> Iterator[_ConfigLine]:
    """Return the lines; only a newline ends one, as for ssh."""
    start, number = 0, 1
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        yield _ConfigLine(number, start, text[start:end], *parse_config_line(text[start:end]))
        start, number = end, number + 1


def _parse_blocks(text: str) -> Iterator[_ConfigBlock]:
    block: _ConfigBlock | None = None
    for line in _parse_lines(text):
        if line.keyword in _BLOCK_KEYWORDS:
            if block is not None:
                yield block
            block = _ConfigBlock(line, line.end)
        elif block is not None and line.is_part_of(block.header) and (not line.is_comment or line.start == block.end):
            block = attrs.evolve(block, end=line.end)
    if block is not None:
        yield block


def _setting_lines(text: str) -> Iterator[_ConfigLine]:
    """Return the lines below those that begin blocks."""
    inside = False
    for line in _parse_lines(text):
        if line.keyword in _BLOCK_KEYWORDS:
            inside = True
        elif inside:
            yield line


def _leading_comment_start(text: str, block: _ConfigBlock) -> int:
    """Return where the comment on top of a block begins, or the block where it has none."""
    top = block.header.start
    for line in reversed(tuple(_parse_lines(text[:top]))):
        if line.is_empty or line.is_part_of(block.header):
            break
        top = line.start
    return top


def _remove_argument(line: str, name: str) -> str:
    """Return a line without an argument that is not its only one, and the space before or after it."""
    _, words = parse_config_line(line)
    index = next((index for index, word in enumerate(words) if word.text == name), None)
    if index is None:
        return line
    start, end = (words[index - 1].end, words[index].end) if index else (words[0].start, words[1].start)
    return _remove_argument(line[:start] + line[end:], name)


def _remove_block(text: str, block: _ConfigBlock) -> str:
    before, after = text[: block.header.start], text[block.end :]
    following = next(_parse_lines(after), None)
    if following is not None:
        return before + (after[following.end :] if following.is_empty else after)
    *_, last = (None, *_parse_lines(before))
    return before[: last.start] if last is not None and last.is_empty else before


def _line_ending(text: str) -> str:
    """Return what ends the first line of a text."""
    return "\r\n" if text[: text.find("\n") + 1].endswith("\r\n") else "\n"
