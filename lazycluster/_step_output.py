"""The output of steps and functions: to standard output as it comes, or line by line to the logger."""

from __future__ import annotations

import codecs
import contextlib
import functools
import logging
from collections.abc import Callable, Iterable, Iterator

from lazycluster._display import write_text
from lazycluster._prefixed_output import PrefixedOutput
from lazycluster.results import LineDecoder, Stream

_log = logging.getLogger("lazycluster.executor")  # the name that users know


@contextlib.contextmanager
def output_handler(
    host: str, *, debug: bool = False, prefixed: PrefixedOutput | None = None
) -> Iterator[Callable[[Stream, bytes], None]]:
    """Yield a callback for output: it prints with `debug`, line by line with `prefixed`, and logs otherwise."""
    if prefixed is not None:
        yield functools.partial(prefixed.write, host)
        prefixed.flush(host)
        return
    if debug:
        decoders = {stream: codecs.getincrementaldecoder("utf-8")("replace") for stream in Stream}
        yield lambda stream, data: _write_to_stdout(decoders[stream].decode(data))
        return
    if not _log.isEnabledFor(logging.DEBUG):
        yield lambda _stream, _data: None
        return
    line_decoders = {stream: LineDecoder() for stream in Stream}

    def on_output(stream: Stream, data: bytes) -> None:
        _log_lines(host, line_decoders[stream].feed(data))

    yield on_output
    _log_lines(host, filter(None, (decoder.rest for decoder in line_decoders.values())))


def _log_lines(host: str, lines: Iterable[str]) -> None:
    for line in lines:
        _log.debug("%s: %s", host, line)


def _write_to_stdout(text: str) -> None:
    """Print a piece of output; a failed write is no failure of the step."""
    with contextlib.suppress(OSError):
        write_text(text)
