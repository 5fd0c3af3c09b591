"""The outcome of a function on a host, read from a file that its program has written."""

from __future__ import annotations

import os
import pickle
import weakref
from typing import IO, Any

import attrs

from lazycluster._remote import call_outcome
from lazycluster.exceptions import RemoteFunctionError, RemoteTraceback
from lazycluster.results import Error, Value

SENT_CLASSES: weakref.WeakSet[type] = weakref.WeakSet()
"""The classes that went to a host by value, and that outcomes must not change."""


def read_outcome(file: IO[bytes], host: str, function: str) -> Value[object] | Error:
    """Read the outcome that the host's program wrote on standard output after its hello.

    Error holds the exception of the function, whose cause is a RemoteTraceback, or RemoteFunctionError.
    """
    record = _find_outcome_record(file, host, function)
    if isinstance(record, Error):
        return record
    return (
        _read_value(file, host, function)
        if record.kind == call_outcome.VALUE_RECORD
        else _read_exception(file, record, host, function)
    )


def read_error(file: IO[bytes], host: str, function: str) -> Exception | None:
    """Return the exception in an outcome, or None if the function returned; its value is not unpickled."""
    record = _find_outcome_record(file, host, function)
    if not isinstance(record, Error):
        if record.kind == call_outcome.VALUE_RECORD:
            return None
        record = _read_exception(file, record, host, function)
    return record.error if isinstance(record.error, Exception) else None


def _find_outcome_record(file: IO[bytes], host: str, function: str) -> _OutcomeRecord | Error:
    """Find the record of the value or error, and leave the file at its start."""
    file.seek(0, os.SEEK_END)
    size = file.tell()
    ended = _read_record(file, size)
    if ended is None or ended.kind != call_outcome.END_RECORD:
        return _function_error(
            host, function, f"the outcome from the host is incomplete ({size} bytes came): the connection broke"
        )
    record = _read_record(file, ended.start)
    if record is not None and record.kind == call_outcome.END_RECORD:
        # The process itself reported its end, before it died.
        record = _read_record(file, record.start)
    if record is None or (record.kind == call_outcome.VALUE_RECORD and record.start != 0):
        file.seek(ended.start)
        return _function_error(host, function, f"its process {file.read(ended.length).decode(errors='replace')}")
    file.seek(record.start)
    return record


def remote_traceback(error: BaseException) -> str:
    """Return the traceback from the host of an exception that `read_outcome` made, otherwise ''."""
    if isinstance(error, RemoteFunctionError):
        return error.remote_traceback
    return error.__cause__.text if isinstance(error.__cause__, RemoteTraceback) else ""


@attrs.frozen
class _OutcomeRecord:
    kind: bytes
    start: int
    length: int


def _read_record(file: IO[bytes], end: int) -> _OutcomeRecord | None:
    """Find the record that ends at a position."""
    stop = end - call_outcome.RECORD_TRAILER.size
    if stop < 0:
        return None
    file.seek(stop)
    magic, kind, length = call_outcome.RECORD_TRAILER.unpack(file.read(call_outcome.RECORD_TRAILER.size))
    return (
        _OutcomeRecord(kind, stop - length, length) if magic == call_outcome.RECORD_MAGIC and length <= stop else None
    )


def _read_value(file: IO[bytes], host: str, function: str) -> Value[object] | Error:
    try:
        return Value(OutcomeUnpickler(file).load())
    except Exception as error:  # noqa: BLE001 - unpickling runs any code; the error has the cause
        return _function_error(
            host, function, f"its result cannot be unpickled here: {type(error).__name__}: {error}", error
        )


def _read_exception(file: IO[bytes], record: _OutcomeRecord, host: str, function: str) -> Error:
    lengths = call_outcome.ERROR_TEXT_LENGTHS.unpack(file.read(call_outcome.ERROR_TEXT_LENGTHS.size))
    reason, text = (file.read(length).decode(errors="backslashreplace") for length in lengths)
    if record.length == call_outcome.ERROR_TEXT_LENGTHS.size + sum(lengths):
        return Error(RemoteFunctionError(host, function, reason, text))
    try:
        form = OutcomeUnpickler(file).load()
        error = call_outcome.rebuild_exception(*form) if isinstance(form, tuple) else form
    except Exception as problem:  # noqa: BLE001 - as above
        failure = RemoteFunctionError(host, function, reason, text)
        failure.__cause__ = problem
        return Error(failure)
    if not isinstance(error, Exception):  # SystemExit and the like would end the local process
        return Error(RemoteFunctionError(host, function, reason, text))
    error.__cause__ = RemoteTraceback(host, text)
    return Error(error)


def _function_error(host: str, function: str, reason: str, cause: Exception | None = None) -> Error:
    error = RemoteFunctionError(host, function, reason)
    error.__cause__ = cause
    return Error(error)


class OutcomeUnpickler(pickle.Unpickler):
    """Unpickles an outcome without changing the classes that went to the host.

    cloudpickle sets the attributes of a class again whenever an instance of it is unpickled.
    """

    def find_class(self, module_name: str, global_name: str) -> Any:  # noqa: ANN401 - overrides one that is so typed
        found = super().find_class(module_name, global_name)
        if global_name != "_class_setstate":
            return found
        return lambda cls, state: cls if cls in SENT_CLASSES else found(cls, state)
