"""Texts in the messages of errors: commands, outputs, and errors of some hosts among many."""

from __future__ import annotations

import textwrap

from lazycluster.exceptions.root import LazyclusterError

_TAIL_LINES = 20


def indented_tail(text: str) -> str:
    """Return the last lines of an output, indented, ready to follow a message on lines of their own."""
    lines = text.rstrip().splitlines()[-_TAIL_LINES:]
    return "\n" + textwrap.indent("\n".join(lines), "    ") if lines else ""


def shorten(command: str, width: int = 200) -> str:
    """Return a command on one line, cut to a width."""
    line = " ".join(command.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def error_text(error: BaseException) -> str:
    """Return the message of an error; the name of its class comes first if it is not a `LazyclusterError`."""
    if isinstance(error, LazyclusterError):
        return str(error)
    return ": ".join(filter(None, (type(error).__name__, str(error))))


def add_host_note(error: BaseException, host: str) -> None:
    """Add a note with the host to an error, unless it has that note."""
    note = f"on host {host}"
    notes = getattr(error, "__notes__", [])
    if note not in notes:
        # Not add_note(): frozen records refuse it (attrs before 24.3), and Python 3.10 lacks it.
        BaseException.__setattr__(error, "__notes__", [*notes, note])


def error_lines(host: str, error: Exception) -> list[str]:
    """Return the message of a host's error as lines, the host's name first."""
    text = error_text(error)
    return (text if text.startswith((f"{host}:", f"{host} ")) else f"{host}: {text}").splitlines()
