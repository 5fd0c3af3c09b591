"""A pseudo-terminal in place of standard output or standard error."""

from __future__ import annotations

import os
import pty
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest


class PseudoTerminal:
    """The output of a pseudo-terminal, which is complete at the end of the `with` block."""

    text = ""


@contextmanager
def pseudo_terminal(
    monkeypatch: pytest.MonkeyPatch,
    *,
    name: str = "stdout",
    columns: int = 200,
    on_text: tuple[str, Callable[[], object]] | None = None,
) -> Iterator[PseudoTerminal]:
    """Make standard output or standard error a terminal within a `with` block.

    `on_text` is a text, and a function to call when it has come.
    """
    reading, writing = pty.openpty()

    result, pieces = PseudoTerminal(), []

    def read() -> None:
        try:
            while data := os.read(reading, 4096):
                pieces.append(data)
                if on_text is not None and on_text[0].encode() in b"".join(pieces):
                    on_text[1]()
        except OSError:  # Linux: the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with os.fdopen(writing, "w") as stream, monkeypatch.context() as patch:
            patch.setattr(sys, name, stream)
            patch.setenv("COLUMNS", str(columns))
            yield result
    finally:
        reader.join(10)
        os.close(reading)
        result.text = b"".join(pieces).decode()


def strip_escape_sequences(text: str) -> str:
    """Return text without escape sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
