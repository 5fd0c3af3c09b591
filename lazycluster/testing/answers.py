"""What the commands of a fake host answer: a table, the last line of which wins."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from typing import TypeAlias

import attrs

from lazycluster.testing.asked import Ran

Wanted: TypeAlias = str | re.Pattern[str] | Callable[[Ran], bool]
"""Which commands a line is for: one text, those that a pattern matches as a whole, or those that a function picks."""

_SHOWN = 10


@attrs.frozen(slots=False)
class UnexpectedCommandError(AssertionError):
    """A command was run that the test did not say anything about. No `LazyclusterError`: nobody is to handle it."""

    host: str
    command: str
    scripted: tuple[str, ...] = ()

    def __str__(self) -> str:
        known = "".join(f"\n    {line}" for line in self.scripted[-_SHOWN:]) or " nothing"
        return (
            f"{self.host}: the test does not say what this command answers: {self.command!r}\n"
            f"Say it before it is run: fake_host.on({self.command!r}, stdout=...), or have every command answer with "
            f"nothing and exit status 0: fake_host.strict = False\nAnswers there are for:{known}"
        )

    def __reduce__(self) -> tuple[type[UnexpectedCommandError], tuple[object, ...]]:
        """Return how to make it again from its facts."""
        return type(self), self.args


def _as_bytes(text: str | bytes) -> bytes:
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text


def _all_as_bytes(files: Mapping[str, str | bytes]) -> dict[str, bytes]:
    return {path: _as_bytes(content) for path, content in files.items()}


@attrs.frozen
class Answer:
    """What a command prints at once, and how it ends `delay` seconds later."""

    stdout: bytes = attrs.field(default=b"", converter=_as_bytes)
    stderr: bytes = attrs.field(default=b"", converter=_as_bytes)
    exit_code: int = attrs.field(default=0, kw_only=True)
    delay: float = attrs.field(default=0.0, kw_only=True)
    error: Exception | None = attrs.field(default=None, kw_only=True)
    writes: Mapping[str, bytes] = attrs.field(factory=dict, kw_only=True, converter=_all_as_bytes)

    def __attrs_post_init__(self) -> None:
        code, delay = self.exit_code, self.delay
        if isinstance(code, bool) or not isinstance(code, int) or not 0 <= code <= 255:
            raise ValueError(f"an exit status is a whole number from 0 to 255, not {code!r}")
        if isinstance(delay, bool) or not isinstance(delay, (int, float)) or not delay >= 0:
            raise ValueError(f"a delay is a number of seconds, not {delay!r}")


@attrs.define
class _Line:
    wanted: Wanted
    answer: Answer
    left: int | None

    def is_for(self, asked: Ran) -> bool:
        match self.wanted:
            case str(text):
                return asked.command == text
            case re.Pattern() as pattern:
                return pattern.fullmatch(asked.command) is not None
            case pick:
                return bool(pick(asked))

    def __str__(self) -> str:
        name = None if isinstance(self.wanted, str) else getattr(self.wanted, "__qualname__", None)
        words = repr(self.wanted) if name is None else f"{name}()"
        return words if self.left is None else f"{words}, {self.left} times"


class Answers:
    """The table. Any thread may use it."""

    def __init__(self) -> None:
        self._lines: list[_Line] = []
        self._lock = threading.RLock()  # a function that picks may add lines

    def add(self, wanted: Wanted, answer: Answer, times: int | None = None) -> None:
        """Add a line, which serves so many times, or always."""
        if not isinstance(wanted, (str, re.Pattern)) and not callable(wanted):
            raise TypeError(f"commands are named by a text, a compiled pattern or a function, not by {wanted!r}")
        if times is not None and (isinstance(times, bool) or not isinstance(times, int) or times < 1):
            raise ValueError(f"times is a whole number from 1 on, or None for always, not {times!r}")
        with self._lock:
            self._lines.append(_Line(wanted, answer, times))

    def find(self, asked: Ran) -> Answer | None:
        """Return what a command answers, by the last line that is for it and not used up; None where there is none."""
        with self._lock:
            for line in reversed(self._lines):
                if line.left != 0 and line.is_for(asked):
                    if line.left is not None:
                        line.left -= 1
                    return line.answer
        return None

    def described(self) -> tuple[str, ...]:
        """Return the lines in words."""
        with self._lock:
            return tuple(str(line) for line in self._lines)
