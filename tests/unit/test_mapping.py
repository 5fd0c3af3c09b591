"""Items spread over stub hosts: each item has exactly one outcome, whatever fails."""

from __future__ import annotations

import itertools
import threading
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

MAX_OUTSTANDING_ITEMS = 4096
MAX_ITEMS_PER_BATCH = 64
Outcomes = list[Value[Any] | Error]
Script = Callable[["StubHost", Sequence[int]], Outcomes | None]


@attrs.define(eq=False)
class StubHost:
    """A host that answers each call as a test says; a script that returns None lets the function be called."""

    host: str
    script: Script = lambda _host, _items: None
    reconnects: bool = False
    closed: bool = False
    calls: list[list[int]] = attrs.field(factory=list)
    cancel_token: CancelToken | None = None

    def context(self, cancel_token: CancelToken) -> StubHost:
        self.cancel_token = cancel_token
        return self

    def is_valid_runtime(self) -> bool:
        return self.reconnects

    def lost_error(self) -> ConnectionLostError:
        return ConnectionLostError(self.host, "f", "scripted", started=True)

    @property
    def items(self) -> list[int]:
        return [item for items in self.calls for item in items]


def call_each(host: StubHost, function: Callable[[int], object], items: Sequence[int], seconds: float) -> Outcomes:
    host.calls.append(list(items))
    assert host.cancel_token is not None
    if host.cancel_token.is_cancelled:
        raise CommandStoppedError(host.host, "f")
    outcomes = host.script(host, items)
    return [Value(function(item)) for item in items] if outcomes is None else outcomes


@pytest.fixture(autouse=True, scope="module")
def use_stub_hosts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_invoke, "call_each", call_each)
        patch.setattr(_mapping, "core_of", lambda host: host)
        yield


def identity(item: int) -> int:
    return item


def schedule(
    hosts: Sequence[StubHost],
    items: Iterator[int],
    *,
    ordered: bool = True,
    retries: int = 2,
    cancel_wait: float = 20.0,
    clock: Callable[[], float] = lambda: 0.0,
) -> MapScheduler[int, Any]:
    """Return a scheduler; by its default clock all work takes no time, so that the batches grow."""
    return MapScheduler(
        cast("list[Runtime]", list(hosts)),
        identity,
        items,
        ordered=ordered,
        retries=retries,
        cancel_wait=cancel_wait,
        clock=clock,
    )


def outcomes(scheduler: MapScheduler[int, Any]) -> Outcomes:
    with scheduler:
        return list(scheduler)


def failed_items(found: Outcomes) -> list[int]:
    """Return the items with an error, of outcomes in the order of the items 0, 1, 2, ..."""
    return [item for item, outcome in enumerate(found) if isinstance(outcome, Error)]


def act_when(condition: Callable[[], bool], act: Callable[[], object]) -> threading.Thread:
    """Do something in another thread when a condition holds, or after 20 seconds."""

    def wait() -> None:
        wait_until(condition, 20)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def has_ended() -> bool:
    """Return whether no thread of a scheduler is left."""
    return not library_thread_names("lazycluster-map")


# Order ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("count", [0, 1, 2, 10_000])
def test_map_all_items_have_outcomes(count: int, ordered: bool) -> None:
    hosts = [StubHost("a"), StubHost("b"), StubHost("c")]
    found = [outcome.unwrap() for outcome in outcomes(schedule(hosts, iter(range(count)), ordered=ordered))]
    assert (found if ordered else sorted(found)) == list(range(count))
    assert sorted(item for host in hosts for item in host.items) == list(range(count))
    assert has_ended()


def test_map_slow_item_delays_ordered_outcomes_only() -> None:
    release = threading.Event()

    def slow(_host: StubHost, items: Sequence[int]) -> None:
        if 0 in items:
            assert release.wait(20)

    with schedule([StubHost("a", slow), StubHost("b", slow)], iter(range(100)), ordered=False) as unordered:
        first = list(itertools.islice((outcome.unwrap() for outcome in unordered), 99))
        assert sorted(first) == list(range(1, 100))
        release.set()
        assert [outcome.unwrap() for outcome in unordered] == [0]

    release.clear()
    hosts = [StubHost("a", slow), StubHost("b", slow)]
    with schedule(hosts, iter(range(100))) as in_order:
        timer = act_when(lambda: sum(len(host.items) for host in hosts) == 100, release.set)
        assert [outcome.unwrap() for outcome in in_order] == list(range(100)), "the hosts did all other items before"
        timer.join()


def test_map_free_host_takes_next_items() -> None:
    release = threading.Event()

    def busy(_host: StubHost, items: Sequence[int]) -> None:
        release.wait(20)

    def free(_host: StubHost, items: Sequence[int]) -> None:
        assert wait_until(lambda: bool(hosts[0].calls), timeout=10)

    hosts = [StubHost("busy", busy), StubHost("free", free)]
    with schedule(hosts, iter(range(1000)), ordered=False) as scheduler:
        found = [outcome.unwrap() for outcome in itertools.islice(scheduler, 900)]
        assert len(hosts[0].calls) == 1, "the busy host still has its first batch"
        release.set()
        found += [outcome.unwrap() for outcome in scheduler]
    assert sorted(found) == list(range(1000))


def test_map_short_items_make_larger_batches() -> None:
    host = StubHost("a")
    outcomes(schedule([host], iter(range(5000))))
    assert len(host.calls[0]) == 1
    assert 16 <= max(map(len, host.calls)) <= MAX_ITEMS_PER_BATCH


def test_map_long_items_go_one_by_one() -> None:
    now = 0.0

    def take_a_second(_host: StubHost, _items: Sequence[int]) -> None:
        nonlocal now
        now += 1.0

    host = StubHost("a", take_a_second)
    outcomes(schedule([host], iter(range(100)), clock=lambda: now))
    assert host.calls == [[item] for item in range(100)]


def test_map_unfinished_batch_goes_to_other_hosts() -> None:
    def do_first(_host: StubHost, items: Sequence[int]) -> Outcomes | None:
        return [Value(items[0])] if len(items) > 1 else None

    hosts = [StubHost("a", do_first), StubHost("b", do_first)]
    found = outcomes(schedule(hosts, iter(range(300))))
    assert [outcome.unwrap() for outcome in found] == list(range(300))
    assert any(len(items) > 1 for host in hosts for items in host.calls)


# Reading the iterable ------------------------------------------------------------------------------------------------


def counted(read: list[int], items: Iterator[int] | None = None) -> Iterator[int]:
    for item in itertools.count() if items is None else items:
        read.append(item)
        yield item


@pytest.mark.parametrize("ordered", [True, False])
def test_map_endless_iterable_reads_little_ahead(ordered: bool) -> None:
    read: list[int] = []
    with schedule([StubHost("a"), StubHost("b")], counted(read), ordered=ordered) as scheduler:
        found = [outcome.unwrap() for outcome in itertools.islice(scheduler, 3000)]
    assert len(set(found)) == 3000
    assert len(read) <= 3000 + MAX_OUTSTANDING_ITEMS
    assert has_ended()


@pytest.mark.parametrize("ordered", [True, False])
def test_map_slow_consumer_reads_little_ahead(ordered: bool) -> None:
    consumed, batches_ahead = 200, 12
    read: list[int] = []
    hosts = [StubHost("a"), StubHost("b")]
    with schedule(hosts, counted(read, iter(range(100_000))), ordered=ordered) as scheduler:
        for number, _ in enumerate(scheduler):
            if number == consumed:
                break
            assert wait_until(lambda: sum(len(host.items) for host in hosts) == len(read), 10)
    assert len(read) < consumed + batches_ahead * MAX_ITEMS_PER_BATCH


def test_map_slow_item_limits_outstanding_items() -> None:
    release = threading.Event()

    def slow(_host: StubHost, items: Sequence[int]) -> None:
        if 0 in items:
            release.wait(20)

    read: list[int] = []
    hosts = [StubHost("a", slow), StubHost("b", slow)]
    with schedule(hosts, counted(read)) as scheduler:
        timer = act_when(lambda: len(read) >= MAX_OUTSTANDING_ITEMS, release.set)
        assert next(iter(scheduler)).unwrap() == 0
        timer.join()
        assert len(read) == MAX_OUTSTANDING_ITEMS


@pytest.mark.parametrize("ordered", [True, False])
def test_map_slow_iterable_yields_outcomes_at_once(ordered: bool) -> None:
    """If the iterable waits, for instance for messages, every outcome comes with the next item."""
    read: list[int] = []
    now = 0.0

    def slow_items() -> Iterator[int]:
        nonlocal now
        for item in counted(read):
            assert wait_until(lambda: sum(len(host.items) for host in hosts) >= len(read) - 1, 10)
            now += 1.0
            yield item

    hosts = [StubHost("a"), StubHost("b")]
    lags = []
    with schedule(hosts, slow_items(), ordered=ordered, clock=lambda: now) as scheduler:
        for number, _ in enumerate(itertools.islice(scheduler, 20)):
            lags.append(len(read) - number)
    assert max(lags) <= 5, lags


def test_map_iterable_is_read_in_iterating_thread() -> None:
    seen = set()

    def items() -> Iterator[int]:
        for item in range(100):
            seen.add(threading.get_ident())
            yield item

    outcomes(schedule([StubHost("a"), StubHost("b")], items()))
    assert seen == {threading.get_ident()}


@pytest.mark.parametrize("ordered", [True, False])
def test_map_iterable_raises_after_earlier_outcomes(ordered: bool) -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise LookupError("no more")

    with schedule([StubHost("a"), StubHost("b")], items(), ordered=ordered) as scheduler:
        seen = [outcome.unwrap() for outcome in itertools.islice(scheduler, 5)]
        with pytest.raises(LookupError):
            next(iter(scheduler))
    assert sorted(seen) == [0, 1, 2, 3, 4], "as with Python's own map(), the values before the error are kept"
    assert has_ended()


# Early end -----------------------------------------------------------------------------------------------------------


def stoppable(host: StubHost, items: Sequence[int]) -> Outcomes | None:
    """Run until it is stopped, except for item 0."""
    if items[0] == 0:
        return None
    assert wait_until(lambda: host.cancel_token is not None and host.cancel_token.is_cancelled, 20)
    raise CommandStoppedError(host.host, "f")


def test_map_early_exit_stops_hosts() -> None:
    hosts = [StubHost("a", stoppable), StubHost("b", stoppable)]
    with schedule(hosts, itertools.count()) as scheduler:
        assert next(iter(scheduler)).unwrap() == 0
        assert wait_until(lambda: all(host.calls for host in hosts), 10)
    assert has_ended()
    assert sum(len(host.calls) for host in hosts) <= 3
    assert all(host.cancel_token is not None and host.cancel_token.fileno() == -1 for host in hosts)


def test_map_ctrl_c_stops_hosts() -> None:
    hosts = [StubHost("a", stoppable), StubHost("b", stoppable)]
    interrupt(lambda: outcomes(schedule(hosts, itertools.count(1))), lambda: all(host.calls for host in hosts))
    assert has_ended()


def test_map_stuck_host_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    release = threading.Event()

    def block(_host: StubHost, items: Sequence[int]) -> None:
        if 0 not in items:
            release.wait(20)

    host = StubHost("a", block)
    with schedule([host], itertools.count(), cancel_wait=0.1) as scheduler:
        assert next(iter(scheduler)).unwrap() == 0
        assert wait_until(lambda: len(host.calls) == 2, 10)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert host.cancel_token is not None
    assert host.cancel_token.fileno() >= 0, "the host still uses it"
    release.set()
    assert wait_until(has_ended, 10)
    assert host.cancel_token.fileno() == -1


def test_map_never_entered_makes_no_cancel_token(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens: list[object] = []
    monkeypatch.setattr("lazycluster._gather.CancelToken", lambda: tokens.append(None))
    schedule([StubHost("a")], itertools.count())
    assert tokens == []


def test_map_thread_cannot_start_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def start_thread(thread: threading.Thread) -> None:
        if thread.name == "lazycluster-map-b":
            raise RuntimeError("can't start new thread")
        thread.start()

    monkeypatch.setattr(_mapping, "start_thread", start_thread)
    with pytest.raises(RuntimeError), schedule([StubHost("a"), StubHost("b")], itertools.count()):
        pytest.fail("the scheduler runs without one of its threads")
    assert wait_until(has_ended, 10)


# Failures ------------------------------------------------------------------------------------------------------------


def test_map_function_raises_is_outcome_of_item() -> None:
    def fail_odd_items(_host: StubHost, items: Sequence[int]) -> Outcomes:
        return [Error(KeyError(item)) if item % 2 else Value(item) for item in items]

    found = outcomes(schedule([StubHost("a", fail_odd_items), StubHost("b", fail_odd_items)], iter(range(100))))
    assert failed_items(found) == list(range(1, 100, 2))
    with pytest.raises(KeyError, match="7"):
        found[7].unwrap()


def process_killer(poison: set[int]) -> Script:
    """Return the script of a host on which some items kill the process that works on them."""

    def script(host: StubHost, items: Sequence[int]) -> None:
        if poison & set(items):
            raise RemoteFunctionError(host.host, "f", "its process was killed")

    return script


def test_map_process_dies_isolates_item() -> None:
    script = process_killer({50, 51, 90})
    hosts = [StubHost("a", script), StubHost("b", script)]
    found = outcomes(schedule(hosts, iter(range(200))))
    assert failed_items(found) == [50, 51, 90]
    assert any(len(items) > 1 and 90 in items for host in hosts for items in host.calls), (
        "it was in a batch with others"
    )
    assert all(isinstance(cast("Error", found[number]).error, RemoteFunctionError) for number in (50, 51, 90))


def test_map_unpicklable_item_isolates_item() -> None:
    def script(_host: StubHost, items: Sequence[int]) -> None:
        if 30 in items:
            raise FunctionNotSerializableError("f", "no")

    found = outcomes(schedule([StubHost("a", script)], iter(range(60))))
    assert failed_items(found) == [30]


def test_map_unrequested_stop_is_outcome_of_item() -> None:
    def script(host: StubHost, items: Sequence[int]) -> None:
        if 30 in items:
            raise CommandStoppedError(host.host, "f")

    found = outcomes(schedule([StubHost("a", script)], iter(range(60))))
    assert failed_items(found) == [30]


def lost_from_call(first_call: int) -> Script:
    """Return the script of a host that is lost from this call on, counted from 1."""

    def script(host: StubHost, _items: Sequence[int]) -> None:
        if len(host.calls) >= first_call:
            raise host.lost_error()

    return script


def test_map_all_hosts_dead_errors_have_items_and_no_host() -> None:
    def die(host: StubHost, _items: Sequence[int]) -> None:
        raise host.lost_error()

    found = outcomes(schedule([StubHost("a", die)], iter([7])))

    assert [(each.host, each.index, each.item) for each in found if isinstance(each, Error)] == [("", 0, 7)]


def test_map_dead_host_moves_items(caplog: pytest.LogCaptureFixture) -> None:
    def wait_for_deaths(_host: StubHost, _items: Sequence[int]) -> None:
        assert wait_until(lambda: len(hosts[0].calls) == 3 and len(hosts[2].calls) == 1, 10)

    hosts = [StubHost("a", lost_from_call(3)), StubHost("b", wait_for_deaths), StubHost("c", lost_from_call(1))]
    found = outcomes(schedule(hosts, iter(range(200))))
    assert [outcome.unwrap() for outcome in found] == list(range(200))
    assert len(hosts[0].calls) == 3
    assert len(hosts[2].calls) == 1
    assert sorted(message.partition(":")[0] for message in caplog.messages) == ["a", "c"]


def test_map_closed_host_logs_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    hosts = [StubHost("a", lost_from_call(1), reconnects=True, closed=True), StubHost("b")]
    found = outcomes(schedule(hosts, iter(range(20))))
    assert [outcome.unwrap() for outcome in found] == list(range(20))
    assert len(hosts[0].calls) <= 1
    assert caplog.messages == []


def test_map_wrong_python_version_drops_host() -> None:
    def old(host: StubHost, _items: Sequence[int]) -> None:
        raise PythonVersionMismatchError(host.host, "3.11", "2.7")

    hosts = [StubHost("old", old, reconnects=True), StubHost("b")]
    found = outcomes(schedule(hosts, iter(range(50))))
    assert [outcome.unwrap() for outcome in found] == list(range(50))
    assert len(hosts[0].calls) <= 1


def test_map_reconnected_host_continues() -> None:
    def lose_once(host: StubHost, _items: Sequence[int]) -> None:
        if len(host.calls) == 2:
            raise host.lost_error()

    host = StubHost("a", lose_once, reconnects=True)
    assert [outcome.unwrap() for outcome in outcomes(schedule([host], iter(range(50))))] == list(range(50))


def host_killer(poison: int) -> Script:
    """Return the script of a host that is lost whenever it gets a certain item."""

    def script(host: StubHost, items: Sequence[int]) -> None:
        if poison in items:
            raise host.lost_error()

    return script


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_map_retries_limit_moves_of_item(retries: int) -> None:
    script = host_killer(40)
    hosts = [StubHost(name, script, reconnects=True) for name in "abcde"]
    found = outcomes(schedule(hosts, iter(range(100)), retries=retries))
    failed = failed_items(found)
    tries = [items for host in hosts for items in host.calls if 40 in items]
    assert len(tries) == retries + 1
    assert 40 in failed
    if retries:
        assert failed == [40], "the other items of its batch are not lost"
        assert tries[1:] == [[40]] * retries
    assert isinstance(cast("Error", found[40]).error, ConnectionLostError)


def test_map_item_that_kills_hosts_leaves_some() -> None:
    script = host_killer(40)
    hosts = [StubHost(name, script) for name in "abcd"]
    found = outcomes(schedule(hosts, iter(range(100)), retries=2))
    assert failed_items(found) == [40]


def test_map_no_host_left_raises() -> None:
    hosts = [StubHost("b", lost_from_call(3)), StubHost("a", lost_from_call(2))]
    found: Outcomes = []
    with schedule(hosts, itertools.count()) as scheduler, pytest.raises(HostsFailedError) as caught:
        found.extend(scheduler)
    assert (caught.value.action, caught.value.total) == ("map(identity)", 2)
    assert [host for host, _ in caught.value.errors] == ["b", "a"], "in the order of the hosts"
    assert all(isinstance(error, ConnectionLostError) for error in caught.value.exceptions)
    assert found, "the outcomes before the failure were yielded"
    assert any(isinstance(outcome, Error) for outcome in found), "each running item has an outcome"


def test_map_no_host_left_for_last_item() -> None:
    found = outcomes(schedule([StubHost("a", lost_from_call(1))], iter(range(1)), retries=5))
    assert len(found) == 1
    assert isinstance(found[0], Error)
    assert isinstance(found[0].error, HostsFailedError)


# Any failure ---------------------------------------------------------------------------------------------------------

EVENTS = st.sampled_from(["done", "done", "half done", "died", "lost", "lost for good", "unusable", "error"])


@settings(max_examples=150)
@given(
    plans=st.lists(st.lists(EVENTS, max_size=8), min_size=1, max_size=4),
    steady=st.booleans(),
    count=st.integers(0, 150),
    poison=st.sets(st.integers(0, 150), max_size=3),
    ordered=st.booleans(),
    retries=st.integers(0, 3),
)
def test_map_random_failures_one_outcome_per_item(
    plans: list[list[str]], steady: bool, count: int, poison: set[int], ordered: bool, retries: int
) -> None:
    """With `steady` there is one more host, which never fails."""

    def planned(plan: list[str]) -> Script:
        def script(host: StubHost, items: Sequence[int]) -> Outcomes | None:
            if poison & set(items):
                raise RemoteFunctionError(host.host, "f", "its process was killed")
            event = plan.pop(0) if plan else "done"
            match event:
                case "half done":
                    return [Value(item) for item in items[: (len(items) + 1) // 2]]
                case "died":
                    raise RemoteFunctionError(host.host, "f", "its process was killed")
                case "lost" | "lost for good":
                    host.reconnects = event == "lost"
                    raise host.lost_error()
                case "unusable":
                    raise PythonVersionMismatchError(host.host, "3.11", "2.7")
                case "error":
                    raise LookupError
            return None

        return script

    hosts = [StubHost(f"h{number}", planned(list(plan))) for number, plan in enumerate(plans)]
    hosts += [StubHost("steady", planned([]))] if steady else []
    read: list[int] = []
    found: Outcomes = []
    try:
        with schedule(hosts, counted(read, iter(range(count))), ordered=ordered, retries=retries) as scheduler:
            for outcome in scheduler:
                found.append(outcome)
    except HostsFailedError:
        assert not steady
        assert len(found) == len(read) - 1, (
            "each item that was read has an outcome, except the last, which showed that there are more"
        )
    else:
        assert len(found) == count
    done = [outcome.value for outcome in found if isinstance(outcome, Value)]
    assert len(set(done)) == len(done)
    assert not poison & set(done)
    if ordered:
        assert all(isinstance(outcome, Error) or outcome.value == number for number, outcome in enumerate(found))
    assert has_ended()
