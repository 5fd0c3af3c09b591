"""A function called with one item after another, in one process on the host."""

from __future__ import annotations

import os
import threading
import time
from typing import NoReturn

import pytest

from lazycluster import CommandStoppedError, FunctionNotSerializableError, RemoteFunctionError, RemoteTraceback
from lazycluster._invoke import call_each
from lazycluster._runtime_core import core_of
from lazycluster._transports.host_context import HostContext
from lazycluster._waiting import CancelToken
from lazycluster.results import Error, Value
from tests.contract.conftest import TransportCase
from tests.waiting import wait_until

LONG = 60.0


def new_context(case: TransportCase, cancel_token: CancelToken | None = None) -> HostContext:
    return core_of(case.runtime()).context(cancel_token)


def test_values_in_order(case: TransportCase) -> None:
    items = [0, 1.5, "text", b"bytes", None, [1, {"a": (2, 3)}], {4}]
    assert call_each(new_context(case), lambda item: [item], items, LONG) == [Value([item]) for item in items]


def test_the_process_is_one(case: TransportCase) -> None:
    outcomes = call_each(new_context(case), lambda _: os.getpid(), range(5), LONG)
    assert len({outcome.unwrap() for outcome in outcomes}) == 1


def test_errors_stand_where_they_happened(case: TransportCase) -> None:
    runtime = case.runtime()

    def inverse(number: int) -> float:
        return 1 / number

    first, second, third = call_each(core_of(runtime).context(), inverse, [1, 0, 2], LONG)
    assert (first, third) == (Value(1.0), Value(0.5))
    assert isinstance(second, Error)
    assert isinstance(second.error, ZeroDivisionError)
    assert isinstance(second.error.__cause__, RemoteTraceback)
    assert "in inverse" in second.error.__cause__.text
    assert "call.py" not in second.error.__cause__.text


def test_a_result_that_cannot_be_sent_back_is_one_of_many(case: TransportCase) -> None:
    def lock_or_item(item: int) -> object:
        return threading.Lock() if item == 1 else item

    first, second, third = call_each(new_context(case), lock_or_item, [0, 1, 2], LONG)
    assert (first, third) == (Value(0), Value(2))
    assert isinstance(second, Error)
    assert isinstance(second.error, RemoteFunctionError)
    assert "its result cannot be sent back" in str(second.error)


def test_sys_exit_ends_no_other_item(case: TransportCase) -> None:
    def leave(item: int) -> int:
        if item == 0:
            raise SystemExit(3)
        return item

    first, second = call_each(new_context(case), leave, [0, 1], LONG)
    assert isinstance(first, Error)
    assert second == Value(1)


def test_the_time_is_up(case: TransportCase) -> None:
    def slow(item: int) -> int:
        time.sleep(0.2)
        return item

    context = new_context(case)
    assert call_each(context, slow, range(100), 0.0) == [Value(0)]
    assert len(call_each(context, slow, range(100), 0.3)) == 2


def test_an_item_that_cannot_be_sent(case: TransportCase) -> None:
    with pytest.raises(FunctionNotSerializableError):
        call_each(new_context(case), str, [threading.Lock()], LONG)


def test_a_process_that_dies(case: TransportCase) -> None:
    if case.fake is not None:
        pytest.skip("functions of the fake run in this process")

    def die(item: int) -> NoReturn:
        os._exit(item)

    with pytest.raises(RemoteFunctionError, match="3"):
        call_each(new_context(case), die, [3], LONG)


def test_a_fork_that_comes_back(case: TransportCase) -> None:
    if case.fake is not None:
        pytest.skip("functions of the fake run in this process")

    def forking(item: int) -> int:
        child = os.fork()
        if child:
            os.waitpid(child, 0)
        return item

    assert call_each(new_context(case), forking, [1, 2, 3], LONG) == [Value(1), Value(2), Value(3)]


def test_a_stop(case: TransportCase) -> None:
    cancel_token = CancelToken()
    context = new_context(case, cancel_token)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            call_each(context, time.sleep, [0.01, LONG], LONG)
        except CommandStoppedError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    cancel_token.cancel()
    assert wait_until(lambda: not thread.is_alive(), timeout=10)
    cancel_token.close()
    assert len(errors) == 1
