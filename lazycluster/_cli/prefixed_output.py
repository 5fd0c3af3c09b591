"""The output of many hosts, line by line, each line behind the name of its host."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import click

from lazycluster._display import has_colours, strip_control_sequences
from lazycluster.results import LineDecoder, Stream

_PREFIX_COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "bright_cyan", "bright_yellow", "bright_green")


class PrefixedOutput:
    """Prints output as it comes. Any thread may use it.

    A line is text for people, the same on a terminal and in a pipe: what would act on a terminal is left out, NUL and
    other control characters too, but colours stay where there are colours, and end with the line. Of what carriage
    returns part only the last is printed, as a screen would show it: a bar that is drawn again and again is one line
    when it has come to its end, not hundreds for each host. `--json` has every character.

    Where the output cannot be written, nothing more is, `on_failure` is called once, and `write_error` says why.
    """

    def __init__(self, hosts: Sequence[str], on_failure: Callable[[], object]) -> None:
        """Give each host its colour."""
        self.write_error: OSError | None = None
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._decoders = {(host, stream): LineDecoder() for host in hosts for stream in Stream}
        self._has_colours = {stream: has_colours(err=stream is Stream.STDERR) for stream in Stream}
        width = max(map(len, hosts))
        self._prefixes = {
            (host, stream): click.style(f"{host.ljust(width)} | ", fg=_PREFIX_COLOURS[number % len(_PREFIX_COLOURS)])
            if self._has_colours[stream]
            else f"{host.ljust(width)} | "
            for number, host in enumerate(hosts)
            for stream in Stream
        }

    def write(self, host: str, stream: Stream, data: bytes) -> None:
        """Take a piece of output, and print the lines that are complete with it."""
        self._print(host, stream, self._decoders[host, stream].feed(data))

    def flush(self) -> None:
        """Print what did not end with a newline."""
        for (host, stream), decoder in self._decoders.items():
            if decoder.rest:
                self._print(host, stream, [decoder.rest])

    def _print(self, host: str, stream: Stream, lines: Sequence[str]) -> None:
        if not lines:
            return
        prefix, colours = self._prefixes[host, stream], self._has_colours[stream]
        text = "\n".join(
            prefix + strip_control_sequences(_after_carriage_return(line), keep_colours=colours) for line in lines
        )
        with self._lock:
            if self.write_error is not None:
                return
            try:
                click.echo(text, err=stream is Stream.STDERR, color=colours)
            except OSError as error:
                self.write_error = error
        if self.write_error is not None:
            self._on_failure()


def _after_carriage_return(line: str) -> str:
    """Return what stands behind the last carriage return of a line."""
    return line.rstrip("\r").rpartition("\r")[2]
