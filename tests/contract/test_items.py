"""A function called with one item after another on a host, which `RuntimeGroup.map()` does."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from lazycluster import FunctionNotSerializableError, RemoteFunctionError, RemoteTraceback, Runtime, RuntimeGroup
from lazycluster.results import Error
from tests.contract.conftest import HOST_ALIAS, TransportCase
from tests.keyboard_interrupt import library_thread_names
from tests.waiting import assert_eventually


@pytest.fixture
def group(runtime: Runtime) -> Iterator[RuntimeGroup]:
    """Return a group of the shared runtime, which it does not close."""
    group = RuntimeGroup([runtime])
    yield group
    group.remove_runtime(runtime.host)


def test_map_values_keep_order(group: RuntimeGroup) -> None:
    items = [0, 1.5, "text", b"bytes", None, [1, {"a": (2, 3)}], {4}]
    assert list(group.map(lambda item: [item], items)) == [[item] for item in items]


def test_map_function_raises_keeps_other_values(group: RuntimeGroup) -> None:
    def inverse(number: int) -> float:
        return 1 / number

    first, second, third = group.map(inverse, [1, 0, 2], on_error="collect")
    assert (first, third) == (1.0, 0.5)
    assert isinstance(second, Error)
    assert isinstance(second.error, ZeroDivisionError)
    assert isinstance(second.error.__cause__, RemoteTraceback)
    assert "in inverse" in second.error.__cause__.text
    assert "call_program" not in second.error.__cause__.text


def test_map_error_names_host_index_and_item(group: RuntimeGroup) -> None:
    item = {"divisor": 0}
    found = list(group.map(lambda each: 1 / each["divisor"], [{"divisor": 2}, item], on_error="collect"))

    assert isinstance(found[1], Error)
    assert (found[1].host, found[1].index, found[1].item) == (HOST_ALIAS, 1, item)
    with pytest.raises(ZeroDivisionError) as caught:
        list(group.map(lambda each: 1 / each["divisor"], [item]))
    assert getattr(caught.value, "__notes__", []) == [f"on host {HOST_ALIAS}"]


def test_map_unpicklable_result_keeps_other_values(group: RuntimeGroup) -> None:
    def lock_or_item(item: int) -> object:
        return threading.Lock() if item == 1 else item

    first, second, third = group.map(lock_or_item, [0, 1, 2], on_error="collect")
    assert (first, third) == (0, 2)
    assert isinstance(second, Error)
    assert isinstance(second.error, RemoteFunctionError)


def test_map_sys_exit_keeps_other_values(group: RuntimeGroup) -> None:
    def leave(item: int) -> int:
        if item == 0:
            raise SystemExit(3)
        return item

    first, second = group.map(leave, [0, 1], on_error="collect")
    assert isinstance(first, Error)
    assert second == 1


def test_map_unpicklable_item_keeps_other_values(group: RuntimeGroup) -> None:
    first, second, third = group.map(str, [1, threading.Lock(), 3], on_error="collect")
    assert (first, third) == ("1", "3")
    assert isinstance(second, Error)
    assert isinstance(second.error, FunctionNotSerializableError)
    assert (second.host, second.index) == ("", 1), "it was not sent to any host"


def test_map_process_dies_fails_only_its_item(case: TransportCase, group: RuntimeGroup) -> None:
    if case.fake is not None:
        pytest.skip("functions of the fake run in this process")

    def die_at_2(item: int) -> int:
        if item == 2:
            os._exit(3)
        return item

    found = list(group.map(die_at_2, range(5), on_error="collect"))
    died = found.pop(2)
    assert isinstance(died, Error)
    assert isinstance(died.error, RemoteFunctionError)
    assert found == [0, 1, 3, 4]


def test_map_forked_process_ends_keeps_values(case: TransportCase, group: RuntimeGroup) -> None:
    """The fork must not return from the function, too, as a second process that answers."""
    if case.fake is not None:
        pytest.skip("functions of the fake run in this process")

    def fork(item: int) -> int:
        child = os.fork()
        if child:
            os.waitpid(child, 0)
        return item

    assert list(group.map(fork, [1, 2, 3])) == [1, 2, 3]


def test_map_close_ends_running_item(
    case: TransportCase, runtime: Runtime, group: RuntimeGroup, caplog: pytest.LogCaptureFixture
) -> None:
    directory = case.local_path(runtime.working_dir)

    def wait(item: int) -> None:
        while item and not (directory / "over").exists():
            (directory / "started").touch()
            time.sleep(0.01)

    mapped = group.map(wait, [0, 1])
    assert next(mapped) is None
    assert_eventually((directory / "started").exists, "the second item runs")

    mapped.close()

    assert library_thread_names("lazycluster-map") == []
    assert caplog.messages == []
    (directory / "over").touch()
