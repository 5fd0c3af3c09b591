"""The output of many hosts, line by line, each line after the name of its host."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from lazycluster._display import has_colours, strip_control_sequences, write_text
from lazycluster._model.line_splitter import LineSplitter
from lazycluster.results import Stream

_PREFIX_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92)
"""Foreground colours, as the parameters of SGR sequences (ECMA-48, 8.3.117; 90 to 97 are bright ones of xterm)."""


def _noop() -> None:
    """Do nothing."""


class PrefixedOutput:
    """Prints output as it comes, each stream of a host on the same local stream. Any thread may use it.

    A line is text for people, the same on a terminal and in a pipe. Control characters and sequences that would act on
    a terminal are removed. Colours stay if the output has colours, and end with the line. Carriage returns separate a
    line into parts, of which only the last is printed, as a screen would show it. So a progress bar becomes one line.

    After a failed write nothing more is printed; `on_failure` is called once, and `write_error` is the reason.
    """

    def __init__(self, hosts: Sequence[str], on_failure: Callable[[], object] = _noop) -> None:
        """Give each host its colour."""
        self.write_error: OSError | None = None
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._splitters = {(host, stream): LineSplitter() for host in hosts for stream in Stream}
        self._has_colours = {stream: has_colours(err=stream is Stream.STDERR) for stream in Stream}
        width = max(map(len, hosts))
        self._prefixes = {
            (host, stream): f"\x1b[{_PREFIX_COLOURS[number % len(_PREFIX_COLOURS)]}m{host.ljust(width)} | \x1b[0m"
            if self._has_colours[stream]
            else f"{host.ljust(width)} | "
            for number, host in enumerate(hosts)
            for stream in Stream
        }

    def write(self, host: str, stream: Stream, data: bytes) -> None:
        """Take a piece of a host's output, and print the lines that it completes."""
        self._print(host, stream, self._splitters[host, stream].feed(data))

    def flush(self, host: str) -> None:
        """Print the end of a host's output, if no newline ended it."""
        for stream in Stream:
            rest = self._splitters[host, stream].rest
            self._splitters[host, stream] = LineSplitter()
            if rest:
                self._print(host, stream, [rest])

    def _print(self, host: str, stream: Stream, lines: Sequence[str]) -> None:
        prefix, colours = self._prefixes[host, stream], self._has_colours[stream]
        text = "".join(
            f"{prefix}{strip_control_sequences(_after_carriage_return(line), keep_colours=colours)}\n" for line in lines
        )
        with self._lock:
            if self.write_error is not None or not text:
                return
            try:
                write_text(text, err=stream is Stream.STDERR)
            except OSError as error:
                self.write_error = error
        if self.write_error is not None:
            self._on_failure()


def _after_carriage_return(line: str) -> str:
    return line.rstrip("\r").rpartition("\r")[2]
