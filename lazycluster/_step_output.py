"""The output of steps and functions: to standard output as it comes, or line by line to the logger."""

from __future__ import annotations

import codecs
import contextlib
import functools
import logging
import sys
from collections.abc import Callable, Iterable, Iterator

from lazycluster._display import is_notebook, is_terminal, write_text
from lazycluster._model.line_splitter import LineSplitter
from lazycluster._prefixed_output import PrefixedOutput
from lazycluster.options import CallOutput
from lazycluster.results import Stream

_log = logging.getLogger("lazycluster.executor")  # the name that users know


@contextlib.contextmanager
def output_handler(
    host: str, *, debug: bool = False, prefixed: PrefixedOutput | None = None
) -> Iterator[Callable[[Stream, bytes], None]]:
    """Yield a callback for output: it prints with `debug`, line by line with `prefixed`, and logs otherwise.

    The last line is printed or logged at the end, also that of work that failed.
    """
    if prefixed is not None:
        try:
            yield functools.partial(prefixed.write, host)
        finally:
            prefixed.flush(host)
        return
    if debug:
        decoders = {stream: codecs.getincrementaldecoder("utf-8")("replace") for stream in Stream}
        yield lambda stream, data: _write_to_stdout(decoders[stream].decode(data))
        return
    if not _log.isEnabledFor(logging.DEBUG):
        yield _ignore
        return
    splitters = {stream: LineSplitter() for stream in Stream}

    def on_output(stream: Stream, data: bytes) -> None:
        _log_lines(host, splitters[stream].feed(data))

    try:
        yield on_output
    finally:
        _log_lines(host, filter(None, (splitter.rest for splitter in splitters.values())))


def choose_call_output(output: CallOutput | None) -> CallOutput:
    """Return the treatment of a function's output; by default print it if somebody may see it, and else log it."""
    return output or ("print" if is_terminal(sys.stdout) or is_notebook() else "log")


@contextlib.contextmanager
def call_output_handler(
    host: str, output: CallOutput | None, prefixed: PrefixedOutput | None
) -> Iterator[Callable[[Stream, bytes], None]]:
    """Yield a callback for the output of a function that is called.

    Output to print goes to standard output, also what the function writes to standard error: a host sends both as one
    stream.
    """
    match choose_call_output(output):
        case "discard":
            yield _ignore
        case "log":
            with output_handler(host) as on_output:
                yield on_output
        case "print":
            with output_handler(host, debug=True, prefixed=prefixed) as on_output:
                yield lambda _stream, data: on_output(Stream.STDOUT, data)


def _ignore(_stream: Stream, _data: bytes) -> None:
    pass


def _log_lines(host: str, lines: Iterable[str]) -> None:
    for line in lines:
        _log.debug("%s: %s", host, line)


def _write_to_stdout(text: str) -> None:
    """Print a piece of output; a failed write is no failure of the step."""
    with contextlib.suppress(OSError):
        write_text(text)
