"""One call of the command line: its log on standard error, and the form of its errors."""

from __future__ import annotations

import io
import json
import logging
import re

import attrs
import click

from lazycluster._display import strip_control_sequences, write_text
from lazycluster.exceptions import LazyclusterError

_LOG_FORMAT, _LOG_TIME_FORMAT = "%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"
_logger = logging.getLogger("lazycluster")


class _LogHandler(logging.Handler):
    """Writes to the standard error of the moment: a progress bar replaces it, and keeps lines above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            write_text(strip_control_sequences(self.format(record)) + "\n", err=True)
        except Exception:  # noqa: BLE001 - as every handler of `logging`
            self.handleError(record)


@attrs.define
class Invocation:
    """The settings of one call that any of its options may change."""

    as_json: bool = False
    """Whether the output and the errors are JSON."""
    verbosity: int = 0
    _handler: logging.Handler | None = None
    _earlier_level: int = logging.NOTSET

    def show_log(self, verbosity: int) -> None:
        """Show the log of the library, at INFO for 1 and at DEBUG for more; what earlier calls asked for is added."""
        self.verbosity += verbosity
        if self._handler is None:
            self._handler = _LogHandler()
            self._handler.setFormatter(logging.Formatter(_LOG_FORMAT, _LOG_TIME_FORMAT))
            self._earlier_level = _logger.level
            _logger.addHandler(self._handler)
        _logger.setLevel(logging.INFO if self.verbosity == 1 else logging.DEBUG)

    def close(self) -> None:
        """Show no more of the log."""
        if self._handler is not None:
            _logger.removeHandler(self._handler)
            _logger.setLevel(self._earlier_level)
            self._handler = None


def print_error(error: click.ClickException | LazyclusterError, *, as_json: bool) -> None:
    """Print an error on standard error: as text, or as one line of JSON.

    It is JSON on standard error, too, as with gh, kubectl and docker: standard output has nothing but results.
    """
    if as_json:
        click.echo(json.dumps(_error_record(error)), err=True)
    elif isinstance(error, click.ClickException):
        rendered = io.StringIO()
        error.show(rendered)  # as click does, but with the prefix of all errors of this program
        text = re.sub(r"^Error: ", "lazycluster: ", rendered.getvalue(), count=1, flags=re.MULTILINE)
        click.echo(text, err=True, nl=False)
    else:
        click.echo(f"lazycluster: {error}", err=True)


def print_interruption(*, as_json: bool) -> None:
    """Print on standard error that Ctrl-C has ended the command."""
    message = "interrupted; everything under way was ended"
    text = json.dumps({"kind": "KeyboardInterrupt", "message": message}) if as_json else f"lazycluster: {message}"
    click.echo(text, err=True)


def _error_record(error: click.ClickException | LazyclusterError) -> dict[str, str]:
    """Return the class of an error, its host if it has one, and its text."""
    from lazycluster.manager import underlying_error  # noqa: PLC0415 - completion in a shell needs no manager

    message = error.format_message() if isinstance(error, click.ClickException) else str(error)
    cause: BaseException | None = error
    if isinstance(error, click.ClickException):
        cause = error.__cause__ if isinstance(error.__cause__, LazyclusterError) else None
    if isinstance(cause, LazyclusterError):
        cause = underlying_error(cause)
    usage_or_other = "UsageError" if isinstance(error, click.UsageError) else "Error"
    kind = usage_or_other if cause is None else type(cause).__name__
    host = getattr(cause, "host", None)
    return {"kind": kind, **({"host": host} if host else {}), "message": message}
