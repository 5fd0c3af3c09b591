"""The output for people: aligned text anywhere, tables and bars on a terminal."""

from __future__ import annotations

import io
import re
import subprocess
import sys

import pytest

from lazycluster._display import (
    Printer,
    count_bar,
    fill_lines,
    format_table,
    has_colours,
    pluralize,
    print_table,
    progress_bar,
    show_status,
    strip_control_sequences,
    transfer_bars,
)
from tests.pseudo_terminal import pseudo_terminal, strip_escape_sequences

ROWS = [("host", "web1"), ("memory", "[bold]3 GiB[/bold]")]
PLAIN = "Facts\nkey     value\n------  ------------------\nhost    web1\nmemory  [bold]3 GiB[/bold]"


@pytest.mark.parametrize(
    ("columns", "rows", "text"),
    [
        (("key", "value"), ROWS, PLAIN),
        (("a",), [], "Facts\na\n-"),
        (("", "v"), [("long name", "")], "Facts\n           v\n---------  -\nlong name"),
    ],
)
def test_format_table_aligns_columns(columns: tuple[str, ...], rows: list[tuple[str, ...]], text: str) -> None:
    assert format_table("Facts", columns, rows) == text


def test_format_table_row_is_one_line() -> None:
    assert format_table("T", ("a", "b"), [("one\n    two\n", "x  y"), ("", "z")]) == (
        "T\na        b\n-------  ----\none two  x  y\n         z"
    )


def test_format_table_short_row_is_refused() -> None:
    with pytest.raises((ValueError, IndexError)):
        format_table("Facts", ("a", "b"), [("only one",)])


def test_print_table_without_terminal_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("Facts", ("key", "value"), ROWS)
    assert capsys.readouterr() == (PLAIN + "\n", "")


def test_print_table_on_terminal_has_lines_and_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    with pseudo_terminal(monkeypatch) as seen:
        print_table("Facts", ("key", "value"), ROWS)
    assert "\x1b[" in seen.text
    assert "━" in seen.text
    assert "web1" in seen.text
    assert "[bold]3 GiB[/bold]" in seen.text  # a cell is text, not markup


def test_progress_bar_without_terminal_prints_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stdout)
    with progress_bar("send x") as advance:
        advance(1, 2)
        advance(2, None)
    assert stdout.getvalue() == ""


def test_count_bar_on_stderr_leaves_stdout_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in `program > file`."""
    with pseudo_terminal(monkeypatch, name="stderr") as seen, count_bar("working", 2, "hosts", shown=True) as advance:
        print("for the file")
        advance(True)
    assert capsys.readouterr().out == "for the file\n"
    assert "for the file" not in seen.text
    assert "1/2 hosts" in strip_escape_sequences(seen.text)


def test_transfer_bars_of_many_hosts_hide_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    """More bars than the screen has lines would hide those under way."""
    titles = [f"host{number:02}" for number in range(40)]
    with pseudo_terminal(monkeypatch) as seen, transfer_bars(titles) as bars:
        for title in titles:
            bars.update(title, 500, 1000)
            bars.finish(title, success=title != "host07")
    text = strip_escape_sequences(seen.text)
    assert "40/40 hosts, 1 failed" in text
    last = text.rpartition("40/40")[2]
    assert not any(title in last for title in titles)


def test_transfer_bars_of_few_hosts_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    with pseudo_terminal(monkeypatch) as seen, transfer_bars(["a", "b"]) as bars:
        bars.update("a", 1000, 1000)
        bars.finish("a", success=True)
        bars.update("b", 500, 1000)
    text = strip_escape_sequences(seen.text)
    assert "1.0/1.0 kB" in text
    assert "0.5/1.0 kB" in text


def test_transfer_bars_without_terminal_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with transfer_bars([str(number) for number in range(100)]) as bars:
        bars.update("1", 1, 2)
        bars.finish("1", success=False)
    assert capsys.readouterr() == ("", "")


def test_progress_bar_on_terminal_shows_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pseudo_terminal(monkeypatch) as seen, progress_bar("send [red]x[/red]") as advance:
        advance(10, None)
        advance(500, 1000)
        advance(1000, 1000)
    assert "send [red]x[/red]" in seen.text
    assert "1.0/1.0 kB" in seen.text


@pytest.mark.parametrize(("total", "counts"), [(3, "3/3 hosts, 1 failed"), (None, "3 hosts, 1 failed")])
def test_count_bar_on_terminal_shows_counts(monkeypatch: pytest.MonkeyPatch, total: int | None, counts: str) -> None:
    with (
        pseudo_terminal(monkeypatch, name="stderr") as seen,
        count_bar("id [red]x[/red]", total, "hosts", shown=True) as advance,
    ):
        advance(True)
        advance(False)
        advance(True)
    assert "id [red]x[/red]" in seen.text
    assert counts in strip_escape_sequences(seen.text)
    assert seen.text.endswith("\x1b[2K"), "the line is cleared at the end"


def test_count_bar_long_title_leaves_room_for_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    command = "for i in 1 2 3; do\n  echo very long >> file\ndone\n" * 20
    with (
        pseudo_terminal(monkeypatch, name="stderr", columns=80) as seen,
        count_bar(command, 2, "hosts", shown=True) as advance,
    ):
        advance(False)
        advance(False)
    assert "2/2 hosts, 2 failed" in strip_escape_sequences(seen.text)
    assert all(len(line) <= 80 for line in re.split(r"[\r\n]+", strip_escape_sequences(seen.text)))
    assert seen.text.count("\x1b[1A") == 1, "one line is removed at the end"


def test_count_bar_hidden_or_in_pipe_prints_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pseudo_terminal(monkeypatch, name="stderr") as seen, count_bar("id", 1, "hosts", shown=False) as advance:
        advance(True)
    assert seen.text == ""
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    with count_bar("id", 1, "hosts", shown=True) as advance:
        advance(True)
    assert stderr.getvalue() == ""


def test_rich_is_imported_by_first_output_only() -> None:
    program = "import sys, lazycluster._display; sys.exit(any(name.split('.')[0] == 'rich' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_printer_without_terminal_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer()
    printer.print_title("Title")
    printer.print_line("a [bold]line[/bold]")
    printer.print_line("good", success=True)
    printer.print_line("bad", success=False)
    assert capsys.readouterr().out == "\n== Title\na [bold]line[/bold]\ngood\nbad\n"


def test_printer_on_terminal_has_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    with pseudo_terminal(monkeypatch) as seen:
        printer = Printer()
        printer.print_title("Title")
        printer.print_line("a [bold]line[/bold]")
        printer.print_line("good", success=True)
        printer.print_line("bad", success=False)
    lines = seen.text.splitlines()
    assert "== Title" in seen.text
    assert "a [bold]line[/bold]" in lines
    assert any("\x1b[1;32mgood" in line for line in lines)
    assert any("\x1b[1;31mbad" in line for line in lines)


# Control sequences ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("plain\ttext, ünï 中 \U0001f600", "plain\ttext, ünï 中 \U0001f600"),
        ("two\nlines", "two\nlines"),
        ("\x1b[2J\x1b[1;1Hup\x1b[K", "up"),
        ("\x1b]0;a title\x07text", "text"),
        ("\x1b]8;;https://x.example\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("a\x1b]0;never ends\nb", "a\nb"),
        ("\x1bPq#0\x1b\\sixel", "sixel"),
        ("\x1b(Btext\x1b=\x1b7", "text"),
        ("\x1b[?25lhidden\x1b[?25h", "hidden"),
        ("\x9b2Jeight\x9d0;t\x9c bits\x85", "eight bits"),
        ("nul\x00 bell\x07 back\x08 del\x7f cr\r", "nul bell back del cr"),
        ("cut\x1b", "cut"),
        ("\x1b[>4;2mno colour", "no colour"),
    ],
)
def test_strip_control_sequences_removes_all_but_text(text: str, clean: str) -> None:
    assert strip_control_sequences(text) == clean
    assert strip_control_sequences(text, keep_colours=True) == clean


def test_strip_control_sequences_keeps_colours_if_wanted() -> None:
    assert (
        strip_control_sequences("\x1b[1;31mred\x1b[38:5:9m\x1b[2J!", keep_colours=True)
        == "\x1b[1;31mred\x1b[38:5:9m!\x1b[0m"
    )
    assert strip_control_sequences("\x1b[1;31mred\x1b[m!") == "red!"


def test_print_table_removes_control_sequences(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("web1", "text \x1b]0;owned\x07\x1b[2Jthis")]
    with pseudo_terminal(monkeypatch) as seen:
        print_table("T", ("host", "why"), rows)
    assert "text this" in seen.text
    assert "owned" not in seen.text
    assert "\x1b[2J" not in seen.text
    print_table("T", ("host", "why"), rows)
    assert capsys.readouterr().out.splitlines()[-1] == "web1  text this"


@pytest.mark.parametrize(
    ("environment", "expected"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_has_colours_follows_environment(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: bool
) -> None:
    assert not has_colours()
    with pseudo_terminal(monkeypatch, name="stderr"), monkeypatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        assert has_colours(err=True) is expected
        assert not has_colours()


# Width ---------------------------------------------------------------------------------------------------------------


def test_print_table_title_is_not_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    with pseudo_terminal(monkeypatch) as seen:
        print_table("12 active hosts", ("host",), [("a",)])
    assert "12 active hosts" in strip_escape_sequences(seen.text).splitlines()


def test_print_table_long_word_is_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    path = "/srv/" + "long-name/" * 20
    with pseudo_terminal(monkeypatch, columns=60) as seen:
        print_table("T", ("host", "why"), [("web1", path)])
    lines = strip_escape_sequences(seen.text).splitlines()
    assert all(len(line) <= 60 for line in lines)
    assert "…" not in seen.text
    assert "".join(line.split("│")[2].strip() for line in lines if line.startswith("│")) == path


@pytest.mark.parametrize(("number", "text"), [(0, "0 hosts"), (1, "1 host"), (2, "2 hosts")])
def test_pluralize_adds_s_unless_one(number: int, text: str) -> None:
    assert pluralize(number, "host") == text


def test_show_status_on_terminal_shows_and_clears_text(monkeypatch: pytest.MonkeyPatch) -> None:
    with pseudo_terminal(monkeypatch, name="stderr") as seen, show_status("connecting to [web] ..."):
        pass
    assert "connecting to [web] ..." in strip_escape_sequences(seen.text)
    assert seen.text.endswith("\x1b[2K"), "the line is cleared at the end"
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    with show_status("connecting"):
        pass
    assert stderr.getvalue() == ""


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_display_without_console_prints_nothing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A program without a console, such as one under `pythonw`, has None for its streams."""
    monkeypatch.setattr(sys, name, None)

    print_table("title", ["a"], [["1"]], err=name == "stderr")
    with show_status("waits"), count_bar("counts", 2, "hosts", shown=True) as advance, progress_bar("moves") as update:
        advance(True)
        update(1, 2)
    Printer().print_line("line")


def test_display_on_minimal_stream_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program may replace standard output by an object that has only these methods."""

    class MinimalStream:
        text = ""

        def write(self, text: str) -> None:
            self.text += text

        def isatty(self) -> bool:
            return False

    stream = MinimalStream()
    monkeypatch.setattr(sys, "stdout", stream)
    print_table("Facts", ("key", "value"), ROWS)
    with progress_bar("sending"), transfer_bars(["web1"]):
        pass

    assert stream.text == f"{PLAIN}\n"
    assert not has_colours()


# Commands to copy ----------------------------------------------------------------------------------------------------

REASON = (
    "connection refused. Check that sshd runs there, and the Port in your settings: `ssh -G some-host | grep ^port`."
)


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("", 10, []),
        ("a b", 10, ["a b"]),
        ("one two three", 7, ["one two", "three"]),
        ("say (`a  b c`), or not", 9, ["say", "(`a  b c`),", "or not"]),
        ("`a b`, `c d`", 12, ["`a b`, `c d`"]),
        ("`a b`, `c d`", 11, ["`a b`,", "`c d`"]),
        ("lone ` quote here", 6, ["lone `", "quote", "here"]),
        ("two\nlines", 20, ["two", "lines"]),
        ("\u6f22\u5b57 x", 5, ["\u6f22\u5b57", "x"]),
    ],
)
def test_fill_lines_never_breaks_commands(text: str, width: int, lines: list[str]) -> None:
    assert fill_lines(text, width) == lines


@pytest.mark.parametrize("columns", [200, 80, 60, 40, 20])
def test_print_table_never_breaks_commands(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pseudo_terminal(monkeypatch, columns=columns) as seen:
        print_table("title", ("host", "why"), [("a", REASON), ("another", "no command, and some more words for it")])
    text = strip_escape_sequences(seen.text)
    assert "`ssh -G some-host | grep ^port`" in text
    assert ("\u2502" in text) is (columns >= 60)
    if "\u2502" in text:
        assert max(map(len, text.splitlines())) <= columns


def test_printer_on_terminal_breaks_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pseudo_terminal(monkeypatch, columns=20) as seen:
        Printer().print_line(f"{REASON} {REASON}")
    assert strip_escape_sequences(seen.text) == f"{REASON} {REASON}\r\n"
