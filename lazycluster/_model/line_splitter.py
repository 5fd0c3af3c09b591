"""The pieces of an output stream as lines of text."""

from __future__ import annotations

import codecs


class LineSplitter:
    """Turns the pieces of one stream into lines without their newlines (UTF-8; undecodable bytes replaced)."""

    def __init__(self, max_characters: int | None = None) -> None:
        """Begin with nothing. A line that is longer than the maximum is returned in parts of at least this length."""
        self._max_characters = max_characters
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._parts: list[str] = []
        self._length = 0

    @property
    def rest(self) -> str:
        """The text after the last newline."""
        return "".join(self._parts)

    def feed(self, data: bytes, *, final: bool = False) -> list[str]:
        """Take a piece, and return the lines that end in it; with `final` also the rest, if there is any."""
        first, *lines = self._decoder.decode(data, final).split("\n")
        self._parts.append(first)
        self._length += len(first)
        if lines:
            *lines, rest = [self.rest, *lines]
            self._parts, self._length = [rest], len(rest)
        is_too_long = self._max_characters is not None and self._length >= self._max_characters
        if self._length and (final or is_too_long):
            lines.append(self.rest)
            self._parts, self._length = [], 0
        return lines
