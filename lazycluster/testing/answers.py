"""The answers of a fake host to commands: a table, the last line of which wins."""

from __future__ import annotations

import re
import shlex
import threading
from collections.abc import Callable, Mapping
from typing import TypeAlias

import attrs

from lazycluster._model.checks import is_whole_number
from lazycluster.testing.calls import Ran

CommandMatcher: TypeAlias = str | list[str] | re.Pattern[str] | Callable[[Ran], bool]
"""The commands of a line: one text, the words of one program, all that a pattern matches, or a function picks."""

_MAX_ANSWERS_IN_MESSAGE = 10


@attrs.frozen(slots=False)
class UnexpectedCommandError(AssertionError):
    """A command was run for which the test gives no answer. Not a `LazyclusterError`, so that no code handles it."""

    host: str
    command: str
    scripted: tuple[str, ...] = ()

    def __str__(self) -> str:
        known = "".join(f"\n    {line}" for line in self.scripted[-_MAX_ANSWERS_IN_MESSAGE:]) or " nothing"
        return (
            f"{self.host}: the test does not say what this command answers: {self.command!r}\n"
            f"Say it before it is run: fake_host.on({self.command!r}, stdout=...), or have every command answer with "
            f"nothing and exit status 0: fake_host.strict = False\nThere are answers for:{known}"
        )

    def __reduce__(self) -> tuple[type[UnexpectedCommandError], tuple[object, ...]]:
        """Return how to make it again from its facts."""
        return type(self), self.args


def _as_bytes(text: str | bytes) -> bytes:
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text


def _contents_as_bytes(files: Mapping[str, str | bytes]) -> dict[str, bytes]:
    return {path: _as_bytes(content) for path, content in files.items()}


@attrs.frozen
class ScriptedAnswer:
    """The output that a command prints at once, and its end `delay` seconds later.

    One that reads standard input does not end before that does.
    """

    stdout: bytes = attrs.field(default=b"", converter=_as_bytes)
    stderr: bytes = attrs.field(default=b"", converter=_as_bytes)
    exit_code: int = attrs.field(default=0, kw_only=True)
    delay: float = attrs.field(default=0.0, kw_only=True)
    reads_stdin: bool = attrs.field(default=False, kw_only=True)
    error: Exception | None = attrs.field(default=None, kw_only=True)
    writes: Mapping[str, bytes] = attrs.field(factory=dict, kw_only=True, converter=_contents_as_bytes)

    def __attrs_post_init__(self) -> None:
        code, delay = self.exit_code, self.delay
        if not is_whole_number(code, 0) or code > 255:
            raise ValueError(f"exit_code must be a whole number from 0 to 255, got {code!r}")
        if isinstance(delay, bool) or not isinstance(delay, (int, float)) or not delay >= 0:
            raise ValueError(f"delay must be a number of seconds from 0 on, got {delay!r}")


@attrs.define
class _ScriptedCommand:
    matcher: CommandMatcher
    answer: ScriptedAnswer
    remaining_uses: int | None

    def matches(self, call: Ran) -> bool:
        match self.matcher:
            case str(text):
                return call.command == text
            case list(words):
                return call.command == shlex.join(words)
            case re.Pattern() as pattern:
                return pattern.fullmatch(call.command) is not None
            case pick:
                return bool(pick(call))

    def __str__(self) -> str:
        name = None if isinstance(self.matcher, str) else getattr(self.matcher, "__qualname__", None)
        words = repr(self.matcher) if name is None else f"{name}()"
        return words if self.remaining_uses is None else f"{words}, {self.remaining_uses} times"


class AnswerTable:
    """The answers to commands, of which the last that fits wins. Any thread may use it."""

    def __init__(self) -> None:
        self._entries: list[_ScriptedCommand] = []
        self._lock = threading.RLock()  # a function that picks may add lines

    def add(self, matcher: CommandMatcher, answer: ScriptedAnswer, times: int | None = None) -> None:
        """Add a line, which answers `times` times, or always."""
        is_words = isinstance(matcher, list) and all(isinstance(word, str) for word in matcher)
        if not is_words and not isinstance(matcher, (str, re.Pattern)) and not callable(matcher):
            raise TypeError(f"command must be text, a list of words, a compiled pattern or a function, got {matcher!r}")
        if times is not None and not is_whole_number(times, 1):
            raise ValueError(f"times must be a whole number from 1 on, or None for always, got {times!r}")
        with self._lock:
            self._entries.append(_ScriptedCommand(matcher, answer, times))

    def find(self, call: Ran) -> ScriptedAnswer | None:
        """Return the answer to a command by the last line that fits and is not used up; None if no line fits."""
        with self._lock:
            for line in reversed(self._entries):
                if line.remaining_uses != 0 and line.matches(call):
                    if line.remaining_uses is not None:
                        line.remaining_uses -= 1
                    return line.answer
        return None

    def describe(self) -> tuple[str, ...]:
        """Return the lines in words."""
        with self._lock:
            return tuple(str(line) for line in self._entries)
