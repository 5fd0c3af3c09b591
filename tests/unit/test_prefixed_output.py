"""The output of many hosts by lines, in a pipe and on a terminal."""

from __future__ import annotations

import functools
import io
import sys

import pytest

from lazycluster._prefixed_output import PrefixedOutput
from lazycluster.results import Stream
from tests.pseudo_terminal import pseudo_terminal


def print_output(data: bytes) -> None:
    """Print the whole standard output of a host."""
    output = PrefixedOutput(["web-1", "w2"])
    output.write("web-1", Stream.STDOUT, data)
    output.flush("web-1")


def test_prefixed_output_line_follows_its_host(capsys: pytest.CaptureFixture[str]) -> None:
    output = PrefixedOutput(["web-1", "w2"])
    output.write("w2", Stream.STDOUT, b"one\ntw")
    output.write("web-1", Stream.STDERR, b"oops\n")
    output.write("w2", Stream.STDOUT, b"o\n\nrest")
    assert capsys.readouterr() == ("w2    | one\nw2    | two\nw2    | \n", "web-1 | oops\n")
    output.flush("web-1")
    assert capsys.readouterr() == ("", "")
    output.flush("w2")
    output.flush("w2")
    assert capsys.readouterr() == ("w2    | rest\n", "")


CASES = pytest.mark.parametrize(
    ("output", "line"),
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
def test_prefixed_output_in_pipe_has_no_control_characters(
    output: bytes, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_output(output)
    assert capsys.readouterr().out == f"web-1 | {line}\n"


@CASES
def test_prefixed_output_on_terminal_has_no_control_chars(
    output: bytes, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pseudo_terminal(monkeypatch) as screen:
        print_output(output)
    assert screen.text == f"\x1b[36mweb-1 | \x1b[0m{line}\r\n"


def test_prefixed_output_in_pipe_has_no_colours(capsys: pytest.CaptureFixture[str]) -> None:
    print_output(b"\x1b[31mred\n")
    assert capsys.readouterr().out == "web-1 | red\n"


def test_prefixed_output_colours_end_with_their_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pseudo_terminal(monkeypatch) as screen:
        print_output(b"\x1b[31mred\nnot\n")
    assert screen.text.splitlines() == [
        "\x1b[36mweb-1 | \x1b[0m\x1b[31mred\x1b[0m",
        "\x1b[36mweb-1 | \x1b[0mnot",
    ]


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_prefixed_output_no_color_removes_colours(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pseudo_terminal(monkeypatch) as screen, monkeypatch.context() as patch:
        patch.setenv(name, value)
        print_output(b"\x1b[31mred\n")
    assert screen.text == "web-1 | red\r\n"


class FullOutput(io.StringIO):
    """An output that fails after a number of writes."""

    def __init__(self, error: OSError, writes_left: int) -> None:
        super().__init__()
        self.error, self.writes_left = error, writes_left

    def write(self, text: str) -> int:
        self.writes_left -= 1
        if self.writes_left < 0:
            raise self.error
        return super().write(text)


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left on device")])
def test_prefixed_output_failed_write_is_reported_once(error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    out = FullOutput(error, writes_left=1)
    monkeypatch.setattr(sys, "stdout", out)
    failures: list[None] = []
    output = PrefixedOutput(["web-1", "w2"], functools.partial(failures.append, None))
    for _ in range(3):
        output.write("web-1", Stream.STDOUT, b"one\n")
        output.write("w2", Stream.STDOUT, b"two\n")
    assert out.getvalue() == "web-1 | one\n"
    assert output.write_error is error
    assert failures == [None]
