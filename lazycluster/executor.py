"""The one interpreter of steps."""

from __future__ import annotations

import codecs
import contextlib
import functools
import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO

import attrs

from lazycluster._display import progress_bar, write_text
from lazycluster._functions.outcome import read_error
from lazycluster._model.watch import Watch
from lazycluster._prefixed_output import PrefixedOutput
from lazycluster._transports.interface import Transport
from lazycluster._typing import assert_never
from lazycluster._waiting import CancelToken
from lazycluster.exceptions import HOST_LOST_ERRORS, CommandFailedError, CommandStoppedError, RemoteFunctionError
from lazycluster.results import Collector, CommandResult, LineDecoder, StepResult, Stream
from lazycluster.steps import GetFile, RunCommand, RunFunction, SendFile, Step, describe_step

_log = logging.getLogger(__name__)
_MAX_OUTCOME_BYTES_IN_MEMORY = 1 << 20
"""Bytes up to which the outcome of a function is kept in memory; beyond, in a temporary file without a name."""

OutcomeFile = IO[bytes]


class _SpooledOutcome(tempfile.SpooledTemporaryFile[bytes]):
    """A file without a name, so that nothing can leave it behind; garbage collection closes it without a warning."""

    def __del__(self) -> None:
        """Close it."""
        self.close()


def create_outcome_file() -> OutcomeFile:
    """Return an empty file for the outcome of a function."""
    return _SpooledOutcome(max_size=_MAX_OUTCOME_BYTES_IN_MEMORY)


def _write_to_stdout(text: str) -> None:
    """Print a piece of output; a failed write is no failure of the step."""
    with contextlib.suppress(OSError):
        write_text(text)


class _FunctionRaisedError(Exception):
    """What a function raised on the host, whatever it is: the host itself has answered."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


@attrs.frozen
class Executor:
    """Carries out steps on a host, in a working directory and with an environment.

    With `debug` output is printed while it is produced. `prefixed_output` prints it line by line instead, after the
    name of the host. Without both it goes to the logger, line by line, at DEBUG.
    """

    transport: Transport
    cwd: str | None = None
    env: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    python: str | None = None
    debug: bool = False
    prefixed_output: PrefixedOutput | None = None
    cancel_token: CancelToken | None = None

    def execute(self, step: Step, on_outcome: Callable[[OutcomeFile], None]) -> StepResult:
        """Carry out one step and return what came of it; a failure is in the record.

        `on_outcome` gets the outcome of a function.
        """
        started = time.monotonic()
        collector = Collector()
        exit_code: int | None = None
        error: Exception | None = None
        host_lost = False
        with self._output_handler() as on_output, self._progress_handler(step) as on_progress:
            watch = Watch(on_output, on_progress, self.cancel_token, collector)
            try:
                if self.cancel_token is not None and self.cancel_token.is_cancelled:
                    raise CommandStoppedError(self.transport.host, describe_step(step))
                exit_code = self._execute_step(step, watch, on_outcome)
            except _FunctionRaisedError as raised:
                error = raised.error
            except Exception as raised:  # noqa: BLE001 - the boundary: whatever it was belongs into the record
                error, host_lost = raised, isinstance(raised, HOST_LOST_ERRORS)
        duration = time.monotonic() - started
        output = collector.result(describe_step(step), exit_code or 0, duration)
        if exit_code and isinstance(step, RunCommand):
            error = CommandFailedError(self.transport.host, step.command, exit_code, output.output)
        return StepResult(describe_step(step), output, exit_code, duration, error, host_lost)

    def _execute_step(self, step: Step, watch: Watch, on_outcome: Callable[[OutcomeFile], None]) -> int | None:
        match step:
            case RunCommand():
                return self._run(step, watch).exit_code
            case SendFile():
                self.transport.put(step.local, step.remote, cwd=self.cwd, watch=watch)
            case GetFile():
                local = step.local_path_for(self.transport.host)
                if step.has_host_placeholder:
                    local.parent.mkdir(parents=True, exist_ok=True)
                self.transport.get(step.remote, local, cwd=self.cwd, watch=watch)
            case RunFunction():
                self._call(step, watch, on_outcome)
            case _:
                assert_never(step)
        return None

    def _run(self, step: RunCommand, watch: Watch) -> CommandResult:
        return self.transport.run(step.command, cwd=self.cwd, env=self.env, timeout=step.timeout, watch=watch)

    def _call(self, step: RunFunction, watch: Watch, on_outcome: Callable[[OutcomeFile], None]) -> None:
        from lazycluster._functions.serialize import serialize_call  # noqa: PLC0415 - cloudpickle is for whoever calls functions

        payload = serialize_call(step.function, *step.args, **step.kwargs)
        outcome = create_outcome_file()
        on_outcome(outcome)
        self.transport.call(payload, outcome, python=self.python, cwd=self.cwd, env=self.env, watch=watch)
        error = read_error(outcome, self.transport.host, step.name)
        if isinstance(error, RemoteFunctionError) and not error.remote_traceback and watch.collector is not None:
            # Its process died, or so; what it printed last may tell why.
            printed = watch.collector.getvalue(Stream.STDERR).decode(errors="replace")
            raise attrs.evolve(error, remote_traceback=printed) from error.__cause__
        if error is not None:
            raise _FunctionRaisedError(error)

    @contextlib.contextmanager
    def _output_handler(self) -> Iterator[Callable[[Stream, bytes], None]]:
        """Yield a function that takes output: for standard output, or line by line for the logger."""
        if self.prefixed_output is not None:
            yield functools.partial(self.prefixed_output.write, self.transport.host)
            self.prefixed_output.flush(self.transport.host)
            return
        if self.debug:
            decoders = {stream: codecs.getincrementaldecoder("utf-8")("replace") for stream in Stream}
            yield lambda stream, data: _write_to_stdout(decoders[stream].decode(data))
            return
        if not _log.isEnabledFor(logging.DEBUG):
            yield lambda _stream, _data: None
            return
        line_decoders = {stream: LineDecoder() for stream in Stream}

        def on_output(stream: Stream, data: bytes) -> None:
            self._log_lines(line_decoders[stream].feed(data))

        yield on_output
        self._log_lines(filter(None, (decoder.rest for decoder in line_decoders.values())))

    def _log_lines(self, lines: Iterable[str]) -> None:
        for line in lines:
            _log.debug("%s: %s", self.transport.host, line)

    @contextlib.contextmanager
    def _progress_handler(self, step: Step) -> Iterator[Callable[[int, int | None], None]]:
        if self.debug and self.prefixed_output is None and isinstance(step, (SendFile, GetFile)):
            with progress_bar(f"{self.transport.host}: {describe_step(step)}") as advance:
                yield advance
        else:
            yield lambda _done, _total: None
