"""The answer of a host, whole and broken."""

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


def sealed(kind: bytes, record: bytes) -> bytes:
    return record + call_outcome.RECORD_TRAILER.pack(call_outcome.RECORD_MAGIC, kind, len(record))


def failure(reason: str, text: str, pickled: bytes = b"") -> bytes:
    return sealed(call_outcome.ERROR_RECORD, call_outcome._encode_error_texts(reason, text) + pickled)


ENDED = sealed(call_outcome.END_RECORD, b"ended with exit status 0")
SIMPLE = st.recursive(
    st.none() | st.integers() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("answer") / "answer"


def read(path: Path, data: bytes) -> Value[object] | Error:
    path.write_bytes(data)
    return read_file(path)


def read_file(path: Path) -> Value[object] | Error:
    with path.open("rb") as file:
        return outcome.read_outcome(file, "h", "f")


def reason_of(path: Path, data: bytes) -> str:
    got = read(path, data)
    assert isinstance(got, Error)
    assert isinstance(got.error, RemoteFunctionError)
    assert (got.error.host, got.error.function) == ("h", "f")
    return got.error.reason


@given(value=SIMPLE)
def test_value(answer: Path, value: object) -> None:
    assert read(answer, sealed(call_outcome.VALUE_RECORD, pickle.dumps(value)) + ENDED) == Value(value)


@given(value=SIMPLE, data=st.data())
def test_every_truncation_is_noticed(answer: Path, value: object, data: st.DataObject) -> None:
    whole = sealed(call_outcome.VALUE_RECORD, pickle.dumps(value)) + ENDED
    cut = data.draw(st.integers(0, len(whole) - 1))
    assert f"incomplete ({cut} bytes came)" in reason_of(answer, whole[:cut])


@given(garbage=st.binary(max_size=200))
def test_garbage_is_no_answer(answer: Path, garbage: bytes) -> None:
    assert "incomplete" in reason_of(answer, garbage)
    assert reason_of(answer, garbage + ENDED) == "its process ended with exit status 0"


@given(partial=st.binary(max_size=200), reason=st.text(), text=st.text())
def test_failure_after_part_of_a_result(answer: Path, partial: bytes, reason: str, text: str) -> None:
    got = read(answer, partial + failure(reason, text) + ENDED)
    assert isinstance(got, Error)
    assert isinstance(got.error, RemoteFunctionError)
    expected = [part.encode("utf-8", "backslashreplace").decode() for part in (reason, text)]
    assert [got.error.reason, got.error.remote_traceback] == expected


def test_process_that_died_in_the_middle(answer: Path) -> None:
    data = pickle.dumps(list(range(1000)))[:-100] + sealed(call_outcome.END_RECORD, b"was killed by signal 9 (SIGKILL)")
    assert reason_of(answer, data) == "its process was killed by signal 9 (SIGKILL)"


def test_value_that_does_not_start_at_the_beginning(answer: Path) -> None:
    assert "its process" in reason_of(answer, b"x" + sealed(call_outcome.VALUE_RECORD, pickle.dumps(1)) + ENDED)


@pytest.mark.parametrize("pickled", [b"\x80", b"cno_such_module\nname\n.", b"cbuiltins\nno_such_name\n.", b"."])
def test_what_cannot_be_unpickled_here(answer: Path, pickled: bytes) -> None:
    assert reason_of(answer, sealed(call_outcome.VALUE_RECORD, pickled) + ENDED).startswith(
        "its result cannot be unpickled here: "
    )
    assert reason_of(answer, failure("ThereError: x", "there", pickled) + ENDED) == "ThereError: x"
    got = read_file(answer)
    assert isinstance(got, Error)
    assert got.error.__cause__ is not None


@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_what_would_end_the_manager(answer: Path, raised: BaseException) -> None:
    pickled = pickle.dumps((type(raised), raised.args, {}))
    assert reason_of(answer, failure("reason", "there", pickled) + ENDED) == "reason"


def test_own_exception(answer: Path) -> None:
    got = read(answer, failure("r", "there", pickle.dumps((OSError, (2, "no"), {"more": 1}))) + ENDED)
    assert isinstance(got, Error)
    with pytest.raises(FileNotFoundError, match="no") as caught:
        got.unwrap()
    assert outcome.remote_traceback(caught.value) == "there"
    assert outcome.remote_traceback(ValueError()) == ""


def test_large_result_is_read_from_the_file(answer: Path) -> None:
    size = 50 << 20
    with answer.open("wb") as file:
        pickle.dump([os.urandom(1 << 20) for _ in range(50)], file, protocol=pickle.HIGHEST_PROTOCOL)
        file.write(
            call_outcome.RECORD_TRAILER.pack(call_outcome.RECORD_MAGIC, call_outcome.VALUE_RECORD, file.tell()) + ENDED
        )
    tracemalloc.start()
    try:
        got = read_file(answer).unwrap()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    answer.unlink()
    assert isinstance(got, list)
    assert sum(map(len, got)) == size
    assert peak < size * 1.1


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (sealed(call_outcome.VALUE_RECORD, b"not even a pickle") + ENDED, None),
        (failure("r", "there", pickle.dumps((ValueError, ("bad",), {}))) + ENDED, ValueError),
        (failure("r", "there") + ENDED, RemoteFunctionError),
        (b"cut", RemoteFunctionError),
    ],
)
def test_error_alone(answer: Path, data: bytes, expected: type[Exception] | None) -> None:
    answer.write_bytes(data)
    with answer.open("rb") as file:
        error = outcome.read_error(file, "h", "f")
    assert error is None if expected is None else type(error) is expected
