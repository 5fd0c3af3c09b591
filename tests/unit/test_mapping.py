"""Items spread over hosts that a test plays: each item has exactly one outcome, whatever fails."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazycluster import (
    CommandStoppedError,
    ConnectionLostError,
    FunctionNotSerializableError,
    HostsFailedError,
    PythonVersionMismatchError,
    RemoteFunctionError,
    Runtime,
    _invoke,
    _mapping,
)
from lazycluster._mapping import MapScheduler
from lazycluster._waiting import CancelToken
from lazycluster.results import Error, Value
from tests.keyboard_interrupt import interrupt, library_thread_names
from tests.waiting import wait_until

Outcomes = list[Value[Any] | Error]
Play = Callable[["Played", Sequence[int]], Outcomes | None]


@attrs.define(eq=False)
class Played:
    """A host that answers each call as a test says; what it does not say is done well."""

    host: str
    play: Play = lambda _host, _items: None
    is_back: bool = False
    closed: bool = False
    calls: list[list[int]] = attrs.field(factory=list)
    cancel_token: CancelToken | None = None

    def context(self, cancel_token: CancelToken) -> Played:
        self.cancel_token = cancel_token
        return self

    def is_valid_runtime(self) -> bool:
        return self.is_back

    def lost(self) -> ConnectionLostError:
        return ConnectionLostError(self.host, "f", "the test says so", started=True)

    @property
    def items(self) -> list[int]:
        return [item for items in self.calls for item in items]


def call_each(host: Played, function: Callable[[int], object], items: Sequence[int], seconds: float) -> Outcomes:
    host.calls.append(list(items))
    assert host.cancel_token is not None
    if host.cancel_token.is_cancelled:
        raise CommandStoppedError(host.host, "f")
    outcomes = host.play(host, items)
    return [Value(function(item)) for item in items] if outcomes is None else outcomes


@pytest.fixture(autouse=True, scope="module")
def hosts_are_played() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_invoke, "call_each", call_each)
        patch.setattr(_mapping, "core_of", lambda host: host)
        yield


def identity(item: int) -> int:
    return item


def spread(
    hosts: Sequence[Played],
    items: Iterator[int],
    function: Callable[[int], Any] = identity,
    *,
    ordered: bool = True,
    retries: int = 2,
) -> MapScheduler[int, Any]:
    return MapScheduler(cast("list[Runtime]", list(hosts)), function, items, ordered=ordered, retries=retries)


def outcomes(scheduler: MapScheduler[int, Any]) -> Outcomes:
    with scheduler:
        return list(scheduler)


def when(condition: Callable[[], bool], act: Callable[[], object]) -> threading.Thread:
    """Do something in another thread when a condition holds, or after a long time."""

    def wait() -> None:
        wait_until(condition, 20)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def is_over() -> bool:
    return not library_thread_names("lazycluster-map")


# In the order --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("count", [0, 1, 2, 10_000])
def test_every_item_has_its_outcome(count: int, ordered: bool) -> None:
    hosts = [Played("a"), Played("b"), Played("c")]
    found = [outcome.unwrap() for outcome in outcomes(spread(hosts, iter(range(count)), ordered=ordered))]
    assert (found if ordered else sorted(found)) == list(range(count))
    assert sorted(item for host in hosts for item in host.items) == list(range(count))
    assert is_over()


def test_an_item_that_takes_long_holds_up_the_ordered_only() -> None:
    going_on = threading.Event()

    def slow(_host: Played, items: Sequence[int]) -> None:
        if 0 in items:
            assert going_on.wait(20)

    with spread([Played("a", slow), Played("b", slow)], iter(range(100)), ordered=False) as unordered:
        first = list(itertools.islice((outcome.unwrap() for outcome in unordered), 99))
        assert sorted(first) == list(range(1, 100))
        going_on.set()
        assert [outcome.unwrap() for outcome in unordered] == [0]

    going_on.clear()
    hosts = [Played("a", slow), Played("b", slow)]
    with spread(hosts, iter(range(100))) as in_order:
        timer = when(lambda: sum(len(host.items) for host in hosts) == 100, going_on.set)
        assert [outcome.unwrap() for outcome in in_order] == list(range(100)), "and all others are worked on meanwhile"
        timer.join()


def test_each_host_takes_the_next_as_it_becomes_free() -> None:
    going_on = threading.Event()

    def busy(_host: Played, items: Sequence[int]) -> None:
        going_on.wait(20)

    def free(_host: Played, items: Sequence[int]) -> None:
        assert wait_until(lambda: bool(hosts[0].calls), timeout=10)

    hosts = [Played("busy", busy), Played("free", free)]
    with spread(hosts, iter(range(1000)), ordered=False) as scheduler:
        found = [outcome.unwrap() for outcome in itertools.islice(scheduler, 900)]
        assert len(hosts[0].calls) == 1
        going_on.set()
        found += [outcome.unwrap() for outcome in scheduler]
    assert sorted(found) == list(range(1000))


def test_more_go_at_once_where_they_take_little_time() -> None:
    host = Played("a")
    outcomes(spread([host], iter(range(5000))))
    assert len(host.calls[0]) == 1
    assert 16 <= max(map(len, host.calls)) <= 64


def test_what_was_not_begun_comes_back_for_others() -> None:
    def some(_host: Played, items: Sequence[int]) -> Outcomes | None:
        return [Value(items[0])] if len(items) > 1 else None

    hosts = [Played("a", some), Played("b", some)]
    found = outcomes(spread(hosts, iter(range(300))))
    assert [outcome.unwrap() for outcome in found] == list(range(300))
    assert any(len(items) > 1 for host in hosts for items in host.calls)


# How much is read ----------------------------------------------------------------------------------------------------


def counted(read: list[int], items: Iterator[int] | None = None) -> Iterator[int]:
    for item in itertools.count() if items is None else items:
        read.append(item)
        yield item


@pytest.mark.parametrize("ordered", [True, False])
def test_an_endless_iterable(ordered: bool) -> None:
    read: list[int] = []
    with spread([Played("a"), Played("b")], counted(read), ordered=ordered) as scheduler:
        found = [outcome.unwrap() for outcome in itertools.islice(scheduler, 3000)]
    assert len(set(found)) == 3000
    assert len(read) < 3000 + 4200
    assert is_over()


@pytest.mark.parametrize("ordered", [True, False])
def test_whoever_is_slow_does_not_have_it_all_read(ordered: bool) -> None:
    read: list[int] = []
    hosts = [Played("a"), Played("b")]
    with spread(hosts, counted(read, iter(range(100_000))), ordered=ordered) as scheduler:
        for number, _ in enumerate(scheduler):
            if number == 200:
                break
            assert wait_until(lambda: sum(len(host.items) for host in hosts) == len(read), 10)  # all done meanwhile
    assert len(read) < 200 + 3 * 2 * 2 * 64


def test_an_item_that_takes_long_is_waited_for_with_a_bound() -> None:
    going_on = threading.Event()

    def slow(_host: Played, items: Sequence[int]) -> None:
        if 0 in items:
            going_on.wait(20)

    read: list[int] = []
    hosts = [Played("a", slow), Played("b", slow)]
    iterating = spread(hosts, counted(read))
    with iterating as scheduler:
        timer = when(lambda: len(read) >= 4096, going_on.set)
        assert next(iter(scheduler)).unwrap() == 0
        timer.join()
        assert len(read) == 4096


@pytest.mark.parametrize("ordered", [True, False])
def test_what_is_done_is_not_held_back_by_an_iterable_that_is_slow(ordered: bool) -> None:
    """Of an iterable that waits for something, such as for messages, every outcome comes with the next item."""
    read: list[int] = []

    def slow() -> Iterator[int]:
        for item in counted(read):
            time.sleep(0.03)
            yield item

    behind = []
    with spread([Played("a"), Played("b")], slow(), ordered=ordered) as scheduler:
        for number, _ in enumerate(itertools.islice(scheduler, 10)):
            behind.append(len(read) - number)
    assert max(behind) <= 5, behind


def test_it_is_read_in_the_thread_that_iterates() -> None:
    seen = set()

    def items() -> Iterator[int]:
        for item in range(100):
            seen.add(threading.get_ident())
            yield item

    outcomes(spread([Played("a"), Played("b")], items()))
    assert seen == {threading.get_ident()}


def test_an_iterable_that_raises() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise LookupError("no more")

    for ordered in (True, False):
        hosts = [Played("a"), Played("b")]
        with spread(hosts, items(), ordered=ordered) as scheduler:
            seen = [outcome.unwrap() for outcome in itertools.islice(scheduler, 5)]
            with pytest.raises(LookupError, match="no more"):
                next(iter(scheduler))
        assert sorted(seen) == [0, 1, 2, 3, 4], "as with Python's own map() what came before it is not lost"
        assert is_over()


# The end before the end ----------------------------------------------------------------------------------------------


def stoppable(host: Played, items: Sequence[int]) -> Outcomes | None:
    """Take for ever, until it is stopped."""
    if items[0] == 0:
        return None
    assert host.cancel_token is not None
    assert wait_until(lambda: host.cancel_token is not None and host.cancel_token.is_cancelled, 20)
    raise CommandStoppedError(host.host, "f")


def test_whoever_stops_to_iterate_stops_the_hosts() -> None:
    hosts = [Played("a", stoppable), Played("b", stoppable)]
    with spread(hosts, itertools.count()) as scheduler:
        assert next(iter(scheduler)).unwrap() == 0
        assert wait_until(lambda: all(host.calls for host in hosts), 10)
    assert is_over()
    begun = sum(len(host.calls) for host in hosts)
    assert begun <= 3
    assert all(host.cancel_token is not None and host.cancel_token.fileno() == -1 for host in hosts)


def test_ctrl_c_while_it_waits() -> None:
    hosts = [Played("a", stoppable), Played("b", stoppable)]
    interrupt(lambda: outcomes(spread(hosts, itertools.count(1))), lambda: all(host.calls for host in hosts))
    assert is_over()


def test_what_does_not_stop_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("lazycluster._gather._CANCEL_WAIT_SECONDS", 0.1)
    going_on = threading.Event()

    def stubborn(_host: Played, _items: Sequence[int]) -> None:
        going_on.wait(20)

    host = Played("a", stubborn)
    with spread([host], itertools.count()) as scheduler:
        scheduler._read_ahead()
        assert wait_until(lambda: bool(host.calls), 10)
    assert caplog.messages == ["lazycluster-map-a: its last items have not ended yet"]
    assert host.cancel_token is not None
    assert host.cancel_token.fileno() >= 0, "it is in use still"
    going_on.set()
    assert wait_until(is_over, 10)
    assert host.cancel_token.fileno() == -1


def test_what_is_never_begun_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr("lazycluster._gather.CancelToken", lambda: made.append(None))
    spread([Played("a")], itertools.count())
    assert made == []


def test_threads_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = spread([Played("a"), Played("b")], itertools.count())

    def fail() -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(scheduler._threads[1], "start", fail)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        scheduler.__enter__()
    assert wait_until(is_over, 10)


# Failures ------------------------------------------------------------------------------------------------------------


def test_an_item_whose_function_raises() -> None:
    def odd(_host: Played, items: Sequence[int]) -> Outcomes:
        return [Error(KeyError(item)) if item % 2 else Value(item) for item in items]

    found = outcomes(spread([Played("a", odd), Played("b", odd)], iter(range(100))))
    assert [isinstance(outcome, Error) for outcome in found] == [False, True] * 50
    with pytest.raises(KeyError, match="7"):
        found[7].unwrap()


def kills_its_process(poison: set[int]) -> Play:
    def play(host: Played, items: Sequence[int]) -> None:
        if poison & set(items):
            raise RemoteFunctionError(host.host, "f", "its process was killed")

    return play


def test_an_item_that_kills_its_process_is_found_out() -> None:
    play = kills_its_process({50, 51, 90})
    hosts = [Played("a", play), Played("b", play)]
    found = outcomes(spread(hosts, iter(range(200))))
    assert [number for number, outcome in enumerate(found) if isinstance(outcome, Error)] == [50, 51, 90]
    assert any(len(items) > 1 and 90 in items for host in hosts for items in host.calls), "it was among others"
    assert all(isinstance(cast("Error", found[number]).error, RemoteFunctionError) for number in (50, 51, 90))


def test_an_item_that_cannot_be_sent_is_no_fault_of_others() -> None:
    def play(_host: Played, items: Sequence[int]) -> None:
        if 30 in items:
            raise FunctionNotSerializableError("f", "no")

    found = outcomes(spread([Played("a", play)], iter(range(60))))
    assert [number for number, outcome in enumerate(found) if isinstance(outcome, Error)] == [30]


def test_a_stop_that_nobody_here_has_asked_for_is_an_outcome() -> None:
    def play(host: Played, items: Sequence[int]) -> None:
        if 30 in items:
            raise CommandStoppedError(host.host, "f")

    found = outcomes(spread([Played("a", play)], iter(range(60))))
    assert [number for number, outcome in enumerate(found) if isinstance(outcome, Error)] == [30]


def dies(at: int) -> Play:
    """Return how a host behaves that is dead from some call on."""

    def play(host: Played, _items: Sequence[int]) -> None:
        if len(host.calls) >= at:
            raise host.lost()

    return play


def test_the_items_of_a_host_that_dies_are_moved(caplog: pytest.LogCaptureFixture) -> None:
    hosts = [Played("a", dies(3)), Played("b", lambda _host, _items: time.sleep(0.002)), Played("c", dies(1))]
    found = outcomes(spread(hosts, iter(range(200))))
    assert [outcome.unwrap() for outcome in found] == list(range(200))
    assert len(hosts[0].calls) == 3
    assert len(hosts[2].calls) == 1
    assert sorted(caplog.messages) == [
        f"{host}: the other hosts continue without it: {host}: connection lost during `f` (the test says so). "
        "It had started on the host, which ends it when it sees the connection gone."
        for host in "ac"
    ]


def test_a_host_that_was_closed_on_purpose_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    hosts = [Played("a", dies(1), is_back=True, closed=True), Played("b")]
    found = outcomes(spread(hosts, iter(range(20))))
    assert [outcome.unwrap() for outcome in found] == list(range(20))
    assert len(hosts[0].calls) <= 1
    assert caplog.messages == []


def test_a_host_that_cannot_be_used_is_none() -> None:
    def old(host: Played, _items: Sequence[int]) -> None:
        raise PythonVersionMismatchError(host.host, "3.11", "2.7")

    hosts = [Played("old", old, is_back=True), Played("b")]
    found = outcomes(spread(hosts, iter(range(50))))
    assert [outcome.unwrap() for outcome in found] == list(range(50))
    assert len(hosts[0].calls) <= 1


def test_a_host_whose_link_comes_back_goes_on() -> None:
    def flickers(host: Played, _items: Sequence[int]) -> None:
        if len(host.calls) == 2:
            raise host.lost()

    host = Played("a", flickers, is_back=True)
    assert [outcome.unwrap() for outcome in outcomes(spread([host], iter(range(50))))] == list(range(50))


def kills_its_host(poison: int) -> Play:
    def play(host: Played, items: Sequence[int]) -> None:
        if poison in items:
            raise host.lost()

    return play


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_an_item_is_moved_so_many_times_and_no_more(retries: int) -> None:
    play = kills_its_host(40)
    hosts = [Played(name, play, is_back=True) for name in "abcde"]
    found = outcomes(spread(hosts, iter(range(100)), retries=retries))
    failed = [number for number, outcome in enumerate(found) if isinstance(outcome, Error)]
    tries = [items for host in hosts for items in host.calls if 40 in items]
    assert len(tries) == retries + 1
    assert 40 in failed
    if retries:
        assert failed == [40], "those that were sent together with it are not lost with it"
        assert tries[1:] == [[40]] * retries
    assert isinstance(cast("Error", found[40]).error, ConnectionLostError)


def test_an_item_that_kills_host_after_host_leaves_some() -> None:
    play = kills_its_host(40)
    hosts = [Played(name, play) for name in "abcd"]
    found = outcomes(spread(hosts, iter(range(100)), retries=2))
    assert [number for number, outcome in enumerate(found) if isinstance(outcome, Error)] == [40]


def test_no_host_is_left() -> None:
    hosts = [Played("b", dies(3)), Played("a", dies(2))]
    found: Outcomes = []
    with spread(hosts, itertools.count()) as scheduler, pytest.raises(HostsFailedError) as caught:
        found.extend(scheduler)
    assert str(caught.value).startswith("map(identity) failed on 2 of 2 hosts:\n  b: conn")
    assert [host for host, _ in caught.value.errors] == ["b", "a"], "in the order of the hosts"
    assert all(isinstance(error, ConnectionLostError) for error in caught.value.exceptions)
    assert found, "what was done before was handed out"
    assert any(isinstance(outcome, Error) for outcome in found), "and those that were under way have an outcome each"


def test_no_host_is_left_and_no_item_either() -> None:
    found = outcomes(spread([Played("a", dies(1))], iter(range(1)), retries=5))
    assert len(found) == 1
    assert isinstance(found[0], Error)
    assert isinstance(found[0].error, HostsFailedError)


# Whatever fails ------------------------------------------------------------------------------------------------------

EVENTS = st.sampled_from(["well", "well", "some", "died", "lost", "lost for good", "not to be used", "odd"])


@settings(max_examples=150)
@given(
    plans=st.lists(st.lists(EVENTS, max_size=8), min_size=1, max_size=4),
    steady=st.booleans(),
    count=st.integers(0, 150),
    poison=st.sets(st.integers(0, 150), max_size=3),
    ordered=st.booleans(),
    retries=st.integers(0, 3),
)
def test_each_item_has_exactly_one_outcome(
    plans: list[list[str]], steady: bool, count: int, poison: set[int], ordered: bool, retries: int
) -> None:
    """Whatever hosts do, and `steady`: there is one more that does well."""

    def planned(plan: list[str]) -> Play:
        def play(host: Played, items: Sequence[int]) -> Outcomes | None:
            if poison & set(items):
                raise RemoteFunctionError(host.host, "f", "its process was killed")
            event = plan.pop(0) if plan else "well"
            match event:
                case "some":
                    return [Value(item) for item in items[: (len(items) + 1) // 2]]
                case "died":
                    raise RemoteFunctionError(host.host, "f", "its process was killed")
                case "lost" | "lost for good":
                    host.is_back = event == "lost"
                    raise host.lost()
                case "not to be used":
                    raise PythonVersionMismatchError(host.host, "3.11", "2.7")
                case "odd":
                    raise LookupError
            return None

        return play

    hosts = [Played(f"h{number}", planned(list(plan))) for number, plan in enumerate(plans)]
    hosts += [Played("steady", planned([]))] if steady else []
    read: list[int] = []
    found: Outcomes = []
    try:
        with spread(hosts, counted(read, iter(range(count))), ordered=ordered, retries=retries) as scheduler:
            for outcome in scheduler:
                found.append(outcome)
    except HostsFailedError:
        assert not steady
        assert len(found) == len(read) - 1, "each that was taken has an outcome, but for the one that told of more"
    else:
        assert len(found) == count
    done = [outcome.value for outcome in found if isinstance(outcome, Value)]
    assert len(set(done)) == len(done)
    assert not poison & set(done)
    if ordered:
        assert all(isinstance(outcome, Error) or outcome.value == number for number, outcome in enumerate(found))
    assert is_over()
