"""Tables and progress bars for people; plain text if there is no terminal.

rich is imported only when something is printed.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID, TextColumn

_MAX_RULE_WIDTH = 60
_MAX_BARS = 16
_CONTROL_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: the cursor, the screen, colours
    r"|(?:\x1b[]PX^_]|[\x90\x98\x9d-\x9f])[^\n]*?(?:\x1b\\|[\x07\x9c]|(?=\n)|\Z)"  # OSC and the like: titles, links
    r"|\x1b[ -/]*[0-~]?"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
"""Control sequences of terminals (ECMA-48, chapters 5 and 8), except newlines and tabs."""
_COLOUR_SEQUENCE = re.compile(r"\x1b\[[0-9;:]*m")
_RESET_COLOURS = "\x1b[0m"
_UNBREAKABLE = re.compile(r"[^\s`]*(?:`[^`\n]*`[^\s`]*)+|\S+")
"""A word, or words in backquotes: a command to copy."""


def pluralize(number: int, noun: str) -> str:
    """Return a number with its noun, such as `1 host` or `2 hosts`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def write_text(text: str, *, err: bool = False) -> None:
    """Write text to standard output, or to standard error with `err`; escape characters that its encoding lacks.

    Raises:
        OSError: If the text cannot be written, or the stream is closed.
    """
    out: TextIO | None = sys.stderr if err else sys.stdout  # None if the process was started without one
    if out is None:
        return
    encoding = out.encoding or "utf-8"
    try:
        out.write(text.encode(encoding, "backslashreplace").decode(encoding))
        out.flush()
    except ValueError as error:
        raise OSError(errno.EBADF, "the stream is closed") from error


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a stream is a terminal. A program without a console has None for it, as with `pythonw`."""
    # A program may have replaced sys.stdout by an object that has only some of the methods.
    return stream is not None and not getattr(stream, "closed", False) and stream.isatty()


def is_notebook() -> bool:
    """Return whether the program runs in a kernel of Jupyter, whose user sees prints. IPython is not imported."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return get_ipython is not None and hasattr(get_ipython(), "kernel")


def has_colours(*, err: bool = False) -> bool:
    """Return whether standard output, or standard error, is a terminal with colours, and NO_COLOR is not set.

    rich decides, so that everything on a screen agrees.
    """
    if not is_terminal(sys.stderr if err else sys.stdout):
        return False
    from rich.console import Console  # noqa: PLC0415

    console = Console(stderr=err)
    return console.color_system is not None and not console.no_color


def strip_control_sequences(text: str, *, keep_colours: bool = False) -> str:
    """Return text without the control sequences of terminals, such as those that move the cursor.

    With `keep_colours`, colours (SGR) stay, and are reset at the end of the text.
    """
    if not keep_colours:
        return _CONTROL_SEQUENCES.sub("", text)
    kept = _CONTROL_SEQUENCES.sub(lambda found: found[0] if _COLOUR_SEQUENCE.fullmatch(found[0]) else "", text)
    return kept + _RESET_COLOURS if _COLOUR_SEQUENCE.search(kept) else kept


def fill_lines(text: str, width: int) -> list[str]:
    """Return text as lines of at most `width` columns, broken at spaces, but never within a command in backquotes.

    A command that is wider has a line of its own, which the terminal itself must continue, so that it can be copied.
    """
    from rich.cells import cell_len  # noqa: PLC0415

    lines: list[str] = []
    for paragraph in text.splitlines():
        lines.append("")
        for piece in _UNBREAKABLE.findall(paragraph):
            if lines[-1] and cell_len(lines[-1]) + 1 + cell_len(piece) > width:
                lines.append(piece)
            else:
                lines[-1] += f" {piece}" if lines[-1] else piece
    return lines


def _fit_last_column(columns: Sequence[str], rows: list[list[str]], width: int) -> list[list[str]] | None:
    """Return the rows of a table with lines in the last column that keep commands whole; None if one is too wide."""
    from rich.cells import cell_len  # noqa: PLC0415

    table = [list(columns), *rows]
    others = [
        max(cell_len(line) for row in table for line in row[index].split("\n")) for index in range(len(columns) - 1)
    ]
    available = (
        width - sum(others) - 3 * len(columns) - 1
    )  # of a column rich needs three for itself, and one at the end
    filled = [[*row[:-1], "\n".join(fill_lines(row[-1], available))] for row in rows]
    is_too_wide = any("`" in line and cell_len(line) > available for row in filled for line in row[-1].splitlines())
    return None if is_too_wide else filled


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, err: bool = False) -> None:
    """Print a table, on standard error with `err`: with lines and colours on a terminal, else as aligned plain text.

    Cells may hold output of hosts, so control sequences are removed from them. A command in backquotes in the last
    column stays on one line. If it is too wide for that, a terminal gets plain text, too.
    """
    out = sys.stderr if err else sys.stdout
    cells = [[strip_control_sequences(cell) for cell in row] for row in rows]
    if not is_terminal(out):
        print(format_table(title, columns, cells), file=out)
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console(stderr=err)
    if any("`" in row[-1] for row in cells):
        filled = _fit_last_column(columns, cells, console.width)
        if filled is None:
            console.print(Text(format_table(title, columns, cells)), soft_wrap=True)
            return
        cells = filled
    table = Table(header_style="bold cyan")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    # The title is printed by itself: rich would wrap a title of the table to the table's width.
    console.print(Text(title, "italic"), table, sep="\n")


def format_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as plain text, its columns aligned, a row on one line."""
    lines = [list(columns), *([" ".join(map(str.strip, cell.splitlines())) for cell in row] for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    rule = ["-" * min(width, _MAX_RULE_WIDTH) for width in widths]
    body = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [lines[0], rule, *lines[1:]]
    ]
    return "\n".join([title, *body])


@contextlib.contextmanager
def show_status(text: str) -> Iterator[None]:
    """Show on standard error, if that is a terminal, what the program waits for; the text is removed at the end."""
    if not is_terminal(sys.stderr):
        yield
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    with Console(stderr=True).status(Text(text)):
        yield


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show a progress bar of bytes on a terminal; elsewhere show nothing.

    Yields a function that takes the bytes done and the total (None: unknown).
    """
    with transfer_bars([title]) as bars:
        yield functools.partial(bars.update, title)


class TransferBars:
    """Progress bars of bytes for several transfers; this class shows nothing."""

    def update(self, title: str, completed: int, total: int | None) -> None:
        """Show the bytes done and the total (None: unknown)."""

    def finish(self, title: str, *, success: bool) -> None:
        """Show that a transfer has ended."""


class _PermanentBars(TransferBars):
    """A bar for each transfer, shown from beginning to end."""

    def __init__(self, progress: Progress, titles: Sequence[str]) -> None:
        self._progress = progress
        self._tasks = {title: progress.add_task(title, total=None) for title in titles}

    def update(self, title: str, completed: int, total: int | None) -> None:
        self._progress.update(self._tasks[title], completed=completed, total=total)


class _TransientBars(TransferBars):
    """A bar for each transfer under way, and a line that counts those that have ended or failed."""

    def __init__(self, progress: Progress, on_finish: Callable[[bool], None]) -> None:
        self._progress = progress
        self._on_finish = on_finish
        self._lock = threading.Lock()
        self._tasks: dict[str, TaskID] = {}

    def update(self, title: str, completed: int, total: int | None) -> None:
        with self._lock:
            if title not in self._tasks:
                self._tasks[title] = self._progress.add_task(title, total=total)
            self._progress.update(self._tasks[title], completed=completed, total=total)

    def finish(self, title: str, *, success: bool) -> None:
        with self._lock:
            self._on_finish(success)
            if title in self._tasks:
                self._progress.remove_task(self._tasks.pop(title))


@contextlib.contextmanager
def transfer_bars(titles: Sequence[str]) -> Iterator[TransferBars]:
    """Show progress bars of bytes for several transfers on a terminal; elsewhere show nothing.

    If there are too many for a screen, each has a bar only while it is under way, and another bar counts them.
    """
    if not is_terminal(sys.stdout):
        yield TransferBars()
        return
    from rich.console import Group  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn  # noqa: PLC0415

    progress = Progress(_title_column(), BarColumn(bar_width=None), DownloadColumn(), TransferSpeedColumn())
    if len(titles) <= _MAX_BARS:
        with progress:
            yield _PermanentBars(progress, titles)
        return
    count = Progress(BarColumn(bar_width=None), _count_column())
    with Live(Group(count, progress)):
        yield _TransientBars(progress, _add_count_bar(count, "", len(titles), "hosts"))


@contextlib.contextmanager
def count_bar(title: str, total: int | None, unit: str, *, shown: bool) -> Iterator[Callable[[bool], None]]:
    """Show on standard error, if that is a terminal, how many units are done, and how many of them failed.

    Yields a function to call for each, with whether it succeeded. A `total` of None means that it is unknown.
    """
    if not (shown and is_terminal(sys.stderr)):
        yield lambda _good: None
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, Progress, TimeElapsedColumn  # noqa: PLC0415

    columns = _title_column(), BarColumn(bar_width=None), _count_column(), TimeElapsedColumn()
    # Standard output that goes to a file must stay untouched.
    stdout_is_terminal = is_terminal(sys.stdout)
    with Progress(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=stdout_is_terminal
    ) as progress:
        yield _add_count_bar(progress, " ".join(title.split()), total, unit)


def _add_count_bar(progress: Progress, title: str, total: int | None, unit: str) -> Callable[[bool], None]:
    """Add a bar for a `_count_column()`; return a function to call for each unit, with whether it succeeded."""
    of = "" if total is None else f"/{total}"
    task = progress.add_task(title, total=total, of=of, unit=unit, failed="")
    failed = 0

    def advance(success: bool) -> None:
        nonlocal failed
        failed += not success
        progress.update(task, advance=1, failed=f", [red]{failed} failed[/]" if failed else "")

    return advance


def _count_column() -> TextColumn:
    """Return a column with the number done, the total, and the number failed."""
    from rich.progress import TextColumn  # noqa: PLC0415

    return TextColumn("{task.completed:.0f}{task.fields[of]} {task.fields[unit]}{task.fields[failed]}")


def _title_column() -> TextColumn:
    """Return a column for a title that leaves the figures their room on a terminal of 80 columns."""
    from rich.progress import TextColumn  # noqa: PLC0415
    from rich.table import Column  # noqa: PLC0415

    shortened = Column(max_width=30, no_wrap=True, overflow="ellipsis")
    return TextColumn("{task.description}", markup=False, table_column=shortened)


class Printer:
    """Prints titles and lines, in colour on a terminal."""

    def print_title(self, text: str) -> None:
        """Print a title after an empty line."""
        self._print(f"\n== {text}", "bold cyan")

    def print_line(self, text: str, *, success: bool | None = None) -> None:
        """Print a line: green for a success, red for a failure, plain for None."""
        self._print(text, {None: "", True: "bold green", False: "bold red"}[success])

    def _print(self, text: str, style: str) -> None:
        if not is_terminal(sys.stdout):
            print(text, flush=True)  # noqa: T201
            return
        from rich.console import Console  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        Console().print(
            Text(text, style=style), soft_wrap=True
        )  # the terminal breaks lines, so that they can be copied
