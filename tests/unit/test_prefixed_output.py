"""The lines of many hosts, as they are seen in a pipe and on a terminal."""

from __future__ import annotations

import functools
import io
import sys

import pytest

from lazycluster._prefixed_output import PrefixedOutput
from lazycluster.results import Stream
from tests.pseudo_terminal import pseudo_terminal


def nothing() -> None:
    pass


def fed(*pieces: bytes, host: str = "web-1") -> None:
    """Print what a host says in pieces."""
    lines = PrefixedOutput(["web-1", "w2"], nothing)
    for piece in pieces:
        lines.write(host, Stream.STDOUT, piece)
    lines.flush(host)


def test_each_line_is_behind_its_host(capsys: pytest.CaptureFixture[str]) -> None:
    lines = PrefixedOutput(["web-1", "w2"], nothing)
    lines.write("w2", Stream.STDOUT, b"one\ntw")
    lines.write("web-1", Stream.STDERR, b"oops\n")
    lines.write("w2", Stream.STDOUT, b"o\n\nrest")
    assert capsys.readouterr() == ("w2    | one\nw2    | two\nw2    | \n", "web-1 | oops\n")
    lines.flush("web-1")
    assert capsys.readouterr() == ("", "")
    lines.flush("w2")
    lines.flush("w2")
    assert capsys.readouterr() == ("w2    | rest\n", "")


CASES = pytest.mark.parametrize(
    ("said", "seen"),
    [
        (b"dos\r\n", "dos"),
        (b" 10%\r 50%\r100%\n", "100%"),
        (b" 10%\r100%\r\n", "100%"),
        (b" 10%\r100%", "100%"),
        (b"web-2 | forged\rweb-2 | \n", "web-2 | "),
        (b"nul\0 bell\a\n", "nul bell"),
        (b"\x1b]0;owned\x07\x1b[2J\x1b[3Aup\n", "up"),
        (b"\xff \xc2\x9b2J\n", "\ufffd "),
    ],
)


@CASES
def test_no_control_characters_in_a_pipe(said: bytes, seen: str, capsys: pytest.CaptureFixture[str]) -> None:
    fed(said)
    assert capsys.readouterr().out == f"web-1 | {seen}\n"


@CASES
def test_no_control_characters_on_a_terminal(said: bytes, seen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pseudo_terminal(monkeypatch) as screen:
        fed(said)
    assert screen.text == f"\x1b[36mweb-1 | \x1b[0m{seen}\r\n"


def test_colours_in_a_pipe_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    fed(b"\x1b[31mred\n")
    assert capsys.readouterr().out == "web-1 | red\n"


def test_colours_on_a_terminal_end_with_their_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pseudo_terminal(monkeypatch) as screen:
        fed(b"\x1b[31mred\nnot\n")
    assert screen.text.splitlines() == [
        "\x1b[36mweb-1 | \x1b[0m\x1b[31mred\x1b[0m",
        "\x1b[36mweb-1 | \x1b[0mnot",
    ]


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_colours_where_nobody_wants_them(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pseudo_terminal(monkeypatch) as screen, monkeypatch.context() as patch:
        patch.setenv(name, value)
        fed(b"\x1b[31mred\n")
    assert screen.text == "web-1 | red\r\n"


class Full(io.StringIO):
    """An output that takes so many writes."""

    def __init__(self, error: OSError, takes: int) -> None:
        super().__init__()
        self.error, self.takes = error, takes

    def write(self, text: str) -> int:
        self.takes -= 1
        if self.takes < 0:
            raise self.error
        return super().write(text)


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left on device")])
def test_output_that_cannot_be_written(error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Full(error, takes=1)
    monkeypatch.setattr(sys, "stdout", out)
    told: list[None] = []
    lines = PrefixedOutput(["web-1", "w2"], functools.partial(told.append, None))
    for _ in range(3):
        lines.write("web-1", Stream.STDOUT, b"one\n")
        lines.write("w2", Stream.STDOUT, b"two\n")
    assert out.getvalue() == "web-1 | one\n"
    assert lines.write_error is error
    assert told == [None]
