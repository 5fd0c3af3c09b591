"""The outcome of a function as its host sends it, whole and broken."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazycluster._functions import outcome
from lazycluster._remote import call_outcome
from lazycluster.exceptions import RemoteFunctionError
from lazycluster.results import Error, Value

if TYPE_CHECKING:
    from pathlib import Path


def pack_record(kind: bytes, record: bytes) -> bytes:
    return record + call_outcome.RECORD_TRAILER.pack(call_outcome.RECORD_MAGIC, kind, len(record))


def pack_error(reason: str, text: str, pickled: bytes = b"") -> bytes:
    return pack_record(call_outcome.ERROR_RECORD, call_outcome.encode_error_texts(reason, text) + pickled)


ENDED = pack_record(call_outcome.END_RECORD, b"ended with exit status 0")
SIMPLE = st.recursive(
    st.none() | st.integers() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.fixture(scope="module")
def outcome_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outcome") / "outcome"


def read(path: Path, data: bytes) -> Value[object] | Error:
    path.write_bytes(data)
    return read_file(path)


def read_file(path: Path) -> Value[object] | Error:
    with path.open("rb") as file:
        return outcome.read_outcome(file, "h", "f")


def reason_of(path: Path, data: bytes) -> str:
    result = read(path, data)
    assert isinstance(result, Error)
    assert isinstance(result.error, RemoteFunctionError)
    assert (result.error.host, result.error.function) == ("h", "f")
    return result.error.reason


@given(value=SIMPLE)
def test_read_outcome_value(outcome_path: Path, value: object) -> None:
    assert read(outcome_path, pack_record(call_outcome.VALUE_RECORD, pickle.dumps(value)) + ENDED) == Value(value)


@given(value=SIMPLE, data=st.data())
def test_read_outcome_truncated_is_incomplete(outcome_path: Path, value: object, data: st.DataObject) -> None:
    complete = pack_record(call_outcome.VALUE_RECORD, pickle.dumps(value)) + ENDED
    cut = data.draw(st.integers(0, len(complete) - 1))
    assert f"incomplete ({cut} bytes came)" in reason_of(outcome_path, complete[:cut])


@given(garbage=st.binary(max_size=200))
def test_read_outcome_garbage_is_incomplete(outcome_path: Path, garbage: bytes) -> None:
    assert "incomplete" in reason_of(outcome_path, garbage)
    assert reason_of(outcome_path, garbage + ENDED) == "its process ended with exit status 0"


@given(partial=st.binary(max_size=200), reason=st.text(), text=st.text())
def test_read_outcome_error_after_part_of_value(outcome_path: Path, partial: bytes, reason: str, text: str) -> None:
    result = read(outcome_path, partial + pack_error(reason, text) + ENDED)
    assert isinstance(result, Error)
    assert isinstance(result.error, RemoteFunctionError)
    expected = [part.encode("utf-8", "backslashreplace").decode() for part in (reason, text)]
    assert [result.error.reason, result.error.remote_traceback] == expected


def test_read_outcome_of_killed_process_names_signal(outcome_path: Path) -> None:
    data = pickle.dumps(list(range(1000)))[:-100] + pack_record(
        call_outcome.END_RECORD, b"was killed by signal 9 (SIGKILL)"
    )
    assert reason_of(outcome_path, data) == "its process was killed by signal 9 (SIGKILL)"


def test_read_outcome_value_must_start_the_file(outcome_path: Path) -> None:
    assert "its process" in reason_of(
        outcome_path, b"x" + pack_record(call_outcome.VALUE_RECORD, pickle.dumps(1)) + ENDED
    )


@pytest.mark.parametrize(
    "pickled",
    [b"\x80", b"cno_such_module\nname\n.", b"cbuiltins\nno_such_name\n.", b"."],
    ids=["truncated", "missing module", "missing name", "empty stack"],
)
def test_read_outcome_that_cannot_be_unpickled(outcome_path: Path, pickled: bytes) -> None:
    assert reason_of(outcome_path, pack_record(call_outcome.VALUE_RECORD, pickled) + ENDED).startswith(
        "its result cannot be unpickled here: "
    )
    assert reason_of(outcome_path, pack_error("HostError: x", "traceback", pickled) + ENDED) == "HostError: x"
    result = read_file(outcome_path)
    assert isinstance(result, Error)
    assert result.error.__cause__ is not None


@pytest.mark.parametrize(
    "raised",
    [SystemExit(3), KeyboardInterrupt(), GeneratorExit()],
    ids=["SystemExit", "KeyboardInterrupt", "GeneratorExit"],
)
def test_read_outcome_never_raises_system_exit(outcome_path: Path, raised: BaseException) -> None:
    pickled = pickle.dumps((type(raised), raised.args, {}))
    assert reason_of(outcome_path, pack_error("reason", "traceback", pickled) + ENDED) == "reason"


def test_read_outcome_exception_has_its_traceback(outcome_path: Path) -> None:
    result = read(outcome_path, pack_error("r", "traceback", pickle.dumps((OSError, (2, "no"), {"more": 1}))) + ENDED)
    assert isinstance(result, Error)
    with pytest.raises(FileNotFoundError) as caught:
        result.unwrap()
    assert outcome.remote_traceback(caught.value) == "traceback"
    assert outcome.remote_traceback(ValueError()) == ""


def test_read_outcome_large_value_is_not_copied(outcome_path: Path) -> None:
    size = 50 << 20
    with outcome_path.open("wb") as file:
        pickle.dump([os.urandom(1 << 20) for _ in range(50)], file, protocol=pickle.HIGHEST_PROTOCOL)
        file.write(
            call_outcome.RECORD_TRAILER.pack(call_outcome.RECORD_MAGIC, call_outcome.VALUE_RECORD, file.tell()) + ENDED
        )
    tracemalloc.start()
    try:
        result = read_file(outcome_path).unwrap()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    outcome_path.unlink()
    assert isinstance(result, list)
    assert sum(map(len, result)) == size
    assert peak < size * 1.1


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (pack_record(call_outcome.VALUE_RECORD, b"not even a pickle") + ENDED, None),
        (pack_error("r", "traceback", pickle.dumps((ValueError, ("bad",), {}))) + ENDED, ValueError),
        (pack_error("r", "traceback") + ENDED, RemoteFunctionError),
        (b"cut", RemoteFunctionError),
    ],
    ids=["value", "exception", "error texts", "truncated"],
)
def test_read_error_does_not_unpickle_value(outcome_path: Path, data: bytes, expected: type[Exception] | None) -> None:
    outcome_path.write_bytes(data)
    with outcome_path.open("rb") as file:
        error = outcome.read_error(file, "h", "f")
    assert error is None if expected is None else type(error) is expected
