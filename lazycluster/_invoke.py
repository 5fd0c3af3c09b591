"""The call of a function on a host, for `call`, `map` and the steps of tasks."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import IO, TypeAlias, TypeVar, cast

import attrs

from lazycluster._functions.function_call import FunctionCall, Payload
from lazycluster._functions.outcome import read_error, read_outcome
from lazycluster._model.call_options import CallOptions
from lazycluster._model.watch import Watch
from lazycluster._prefixed_output import PrefixedOutput
from lazycluster._step_output import call_output_handler
from lazycluster._transports.host_context import HostContext
from lazycluster.exceptions import CommandTimeoutError, FunctionTimeoutError, RemoteFunctionError
from lazycluster.results import Collector, Error, Stream, Value
from lazycluster.steps import check_callable

T = TypeVar("T")
R = TypeVar("R")
OutcomeFile: TypeAlias = IO[bytes]
_MAX_OUTCOME_BYTES_IN_MEMORY = 1 << 20
"""The most bytes of an outcome that stay in memory. A larger outcome goes to a temporary file without a name."""


class _SpooledOutcome(tempfile.SpooledTemporaryFile[bytes]):
    """A file without a name, so that nothing can leave it behind; garbage collection closes it without a warning."""

    def __del__(self) -> None:
        """Close it."""
        self.close()


def serialize(function: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, object]) -> Payload:
    """Serialize a function with its arguments; any number of hosts can get the result.

    Raises:
        ValueError: If it is not callable.
        FunctionNotSerializableError: If the function or an argument cannot be pickled.
    """
    check_callable(function)
    from lazycluster._functions.serialize import serialize_call  # noqa: PLC0415 - only calls need cloudpickle

    return serialize_call(function, *args, **kwargs)


def invoke(context: HostContext, payload: Payload, watch: Watch, timeout: float | None = None) -> OutcomeFile:
    """Call a function on a host and return the file with its outcome, for `read_outcome()`; the caller closes it.

    Raises:
        FunctionTimeoutError: If it took longer than `timeout`.
        PythonNotFoundError: If there is no Python on the host.
        PythonVersionMismatchError: If the host's Python has another minor version.
        CommandStoppedError: If the cancel token was cancelled.
        ConnectionLostError: If the connection broke.
    """
    outcome = _SpooledOutcome(max_size=_MAX_OUTCOME_BYTES_IN_MEMORY)
    try:
        context.transport.call(FunctionCall(payload, context.cwd, context.env, timeout), outcome, watch)
    except CommandTimeoutError as error:
        outcome.close()
        if timeout is None:
            raise
        raise FunctionTimeoutError(context.host, payload.function, timeout, error.stderr) from None
    except BaseException:
        outcome.close()
        raise
    return outcome


def find_error(outcome: OutcomeFile, host: str, function: str, collector: Collector) -> Exception | None:
    """Return the exception of a function, None if it returned. If its process died, its last output is in the error."""
    error = read_error(outcome, host, function)
    if isinstance(error, RemoteFunctionError) and not error.remote_traceback:
        printed = collector.getvalue(Stream.STDERR).decode(errors="replace")
        cause = error.__cause__
        error = attrs.evolve(error, remote_traceback=printed)
        error.__cause__ = cause
    return error


def call_function(
    context: HostContext, payload: Payload, options: CallOptions, prefixed_output: PrefixedOutput | None = None
) -> object:
    """Call a function on a host and return its value; its exception is raised here.

    The context has the directory and the variables; of the options, the time limit and the output are used here.

    Raises:
        RemoteFunctionError: If its process died, or its exception cannot be raised here.
        LazyclusterError: If `invoke()` raises it.
    """
    collector = Collector()
    with call_output_handler(context.host, options.output, prefixed_output) as on_output:
        watch = Watch(on_output, cancel_token=context.cancel_token, collector=collector)
        outcome = invoke(context, payload, watch, options.timeout)
    with outcome:
        error = find_error(outcome, context.host, payload.function, collector)
        if error is not None:
            raise error
        return read_outcome(outcome, context.host, payload.function).unwrap()


def call_each(
    context: HostContext, function: Callable[[T], R], items: Sequence[T], time_budget: float
) -> list[Value[R] | Error]:
    """Call a function on a host with one item after another, in one process there, for `time_budget` seconds.

    Returns:
        The outcomes of the first items, at least of one.

    Raises:
        RemoteFunctionError: If the process died; which item caused it is unknown.
        LazyclusterError: If `invoke()` raises it.
    """
    from lazycluster._functions.serialize import serialize_batch  # noqa: PLC0415 - only calls need cloudpickle

    payload = serialize_batch(function, items, time_budget)
    with invoke(context, payload, Watch(cancel_token=context.cancel_token)) as outcome:
        answers = cast("list[bytes]", read_outcome(outcome, context.host, payload.function).unwrap())
    return [
        cast("Value[R] | Error", read_outcome(io.BytesIO(answer), context.host, payload.function)) for answer in answers
    ]
