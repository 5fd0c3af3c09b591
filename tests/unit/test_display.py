"""What people see: aligned text anywhere, tables and bars on a terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lazycluster.display import Printer, count_bar, plain_table, print_table, progress_bar

ROWS = [("host", "web1"), ("memory", "[bold]3 GiB[/bold]")]
PLAIN = "Facts\nkey     value\n------  ------------------\nhost    web1\nmemory  [bold]3 GiB[/bold]"


class Terminal:
    """What was written to a pseudo-terminal."""

    text = ""


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch, *, name: str = "stdout", columns: int = 200) -> Iterator[Terminal]:
    """Make standard output, or standard error, a terminal for a while."""
    reading, writing = pty.openpty()

    seen, pieces = Terminal(), []

    def read() -> None:
        try:
            while data := os.read(reading, 4096):
                pieces.append(data)
        except OSError:  # Linux: the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with os.fdopen(writing, "w") as stream, monkeypatch.context() as patch:
            patch.setattr(sys, name, stream)
            patch.setenv("TERM", "xterm-256color")
            patch.setenv("COLUMNS", str(columns))
            patch.delenv("NO_COLOR", raising=False)
            yield seen
    finally:
        reader.join(10)
        os.close(reading)
        seen.text = b"".join(pieces).decode()


@pytest.mark.parametrize(
    ("columns", "rows", "text"),
    [
        (("key", "value"), ROWS, PLAIN),
        (("a",), [], "Facts\na\n-"),
        (("", "v"), [("long name", "")], "Facts\n           v\n---------  -\nlong name"),
    ],
)
def test_plain_table(columns: tuple[str, ...], rows: list[tuple[str, ...]], text: str) -> None:
    assert plain_table("Facts", columns, rows) == text


def test_a_row_is_one_line() -> None:
    assert plain_table("T", ("a", "b"), [("one\n    two\n", "x  y"), ("", "z")]) == (
        "T\na        b\n-------  ----\none two  x  y\n         z"
    )


def test_rows_of_different_lengths_are_refused() -> None:
    with pytest.raises((ValueError, IndexError)):
        plain_table("Facts", ("a", "b"), [("only one",)])


def test_a_table_elsewhere_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("Facts", ("key", "value"), ROWS)
    assert capsys.readouterr() == (PLAIN + "\n", "")


def test_a_table_on_a_terminal_has_lines_and_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as seen:
        print_table("Facts", ("key", "value"), ROWS)
    assert "\x1b[" in seen.text
    assert "━" in seen.text
    assert "web1" in seen.text
    assert "[bold]3 GiB[/bold]" in seen.text  # a cell is text, no markup


def test_no_bar_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stdout)
    with progress_bar("send x") as advance:
        advance(1, 2)
        advance(2, None)
    assert stdout.getvalue() == ""


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as seen, progress_bar("send [red]x[/red]") as advance:
        advance(10, None)
        advance(500, 1000)
        advance(1000, 1000)
    assert "send [red]x[/red]" in seen.text
    assert "1.0/1.0 kB" in seen.text


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.mark.parametrize(("total", "counts"), [(3, "3/3 hosts, 1 failed"), (None, "3 hosts, 1 failed")])
def test_a_bar_that_counts(monkeypatch: pytest.MonkeyPatch, total: int | None, counts: str) -> None:
    with (
        terminal(monkeypatch, name="stderr") as seen,
        count_bar("id [red]x[/red]", total, "hosts", shown=True) as advance,
    ):
        advance(True)
        advance(False)
        advance(True)
    assert "id [red]x[/red]" in seen.text
    assert counts in plain(seen.text)
    assert seen.text.endswith("\x1b[2K"), "nothing of it is left"


def test_a_long_command_leaves_the_counts_their_room(monkeypatch: pytest.MonkeyPatch) -> None:
    command = "for i in 1 2 3; do\n  echo very long >> file\ndone\n" * 20
    with (
        terminal(monkeypatch, name="stderr", columns=80) as seen,
        count_bar(command, 2, "hosts", shown=True) as advance,
    ):
        advance(False)
        advance(False)
    assert "2/2 hosts, 2 failed" in plain(seen.text)
    assert all(len(line) <= 80 for line in re.split(r"[\r\n]+", plain(seen.text)))
    assert seen.text.count("\x1b[1A") == 1, "it is one line, which is removed at the end"


def test_a_bar_that_nobody_asked_for_or_looks_at(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch, name="stderr") as seen, count_bar("id", 1, "hosts", shown=False) as advance:
        advance(True)
    assert seen.text == ""
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    with count_bar("id", 1, "hosts", shown=True) as advance:
        advance(True)
    assert stderr.getvalue() == ""


def test_rich_is_not_imported_before_something_is_printed() -> None:
    program = "import sys, lazycluster.display; sys.exit(any(name.split('.')[0] == 'rich' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_printer_elsewhere_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer()
    printer.title("Title")
    printer.line("a [bold]line[/bold]")
    printer.line("good", good=True)
    printer.line("bad", good=False)
    assert capsys.readouterr().out == "\n== Title\na [bold]line[/bold]\ngood\nbad\n"


def test_a_printer_on_a_terminal_has_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as seen:
        printer = Printer()
        printer.title("Title")
        printer.line("a [bold]line[/bold]")
        printer.line("good", good=True)
        printer.line("bad", good=False)
    lines = seen.text.splitlines()
    assert "== Title" in seen.text
    assert "a [bold]line[/bold]" in lines
    assert any("\x1b[1;32mgood" in line for line in lines)
    assert any("\x1b[1;31mbad" in line for line in lines)
