"""Calls of a function on a host, outside of tasks: once, or with one item after another."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast

from lazycluster._functions.outcome import read_outcome
from lazycluster._model.watch import Watch
from lazycluster.executor import Executor, OutcomeFile, create_outcome_file
from lazycluster.results import Error, Value
from lazycluster.steps import RunFunction, function_name

T = TypeVar("T")
R = TypeVar("R")


def call_function(
    executor: Executor, function: Callable[..., R], args: Sequence[object], kwargs: Mapping[str, object]
) -> R:
    """Call a function on a host and return what it returns; whatever it raises there is raised here.

    Raises:
        RemoteFunctionError: It died, or its exception cannot be raised here.
        PythonVersionMismatchError: The host's Python is of another minor version.
        FunctionNotSerializableError: It cannot be sent.
        ConnectionLostError: The link broke.
    """
    step = RunFunction(function, tuple(args), kwargs)
    outcomes: list[OutcomeFile] = []
    result = executor.execute(step, outcomes.append)
    try:
        if result.error is not None:
            raise result.error
        return cast("R", read_outcome(outcomes[0], executor.transport.host, step.name).unwrap())
    finally:
        for outcome in outcomes:
            outcome.close()


def call_each(
    executor: Executor, function: Callable[[T], R], items: Sequence[T], time_budget: float
) -> list[Value[R] | Error]:
    """Call a function on a host with one item after another, in one process there, until so many seconds have passed.

    Returns:
        What came of the first items, at least of one.

    Raises:
        RemoteFunctionError: The process died, at nobody knows which of the items.
        LazyclusterError: As `call_function()`.
    """
    from lazycluster._functions.serialize import serialize_batch  # noqa: PLC0415 - cloudpickle is for whoever calls functions

    host, name = executor.transport.host, function_name(function)
    watch = Watch(cancel_token=executor.cancel_token)
    payload = serialize_batch(function, items, time_budget)
    with create_outcome_file() as outcome:
        executor.transport.call(
            payload, outcome, python=executor.python, cwd=executor.cwd, env=executor.env, watch=watch
        )
        answers = cast("list[bytes]", read_outcome(outcome, host, name).unwrap())
    return [cast("Value[R] | Error", read_outcome(io.BytesIO(answer), host, name)) for answer in answers]
