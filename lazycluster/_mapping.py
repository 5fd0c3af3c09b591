"""Items spread over hosts: each host takes the next as it becomes free, and what comes of them is handed back."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Generic, TypeVar

import attrs

from lazycluster import _invoke
from lazycluster._gather import Stopping, wait_for
from lazycluster._typing import Self
from lazycluster._waiting import Cancellation, holds, start
from lazycluster.exceptions import (
    HOST_LOST,
    ConnectionLostError,
    HostsFailedError,
    PythonNotFoundError,
    PythonVersionMismatchError,
)
from lazycluster.results import Error, Value
from lazycluster.runtimes import Runtime
from lazycluster.steps import function_name

_log = logging.getLogger(__name__)
X = TypeVar("X")
T = TypeVar("T")
_SHARE = 0.05
"""Seconds of work that a host gets at once, so that the way there and back is little of it."""
_MOST = 64
"""Items that go to a host at once."""
_OUTSTANDING = 4096
"""Items that are taken from the iterable and not yet handed back, at most: those behind a slow one must wait."""
_PROMPT = 0.01
"""Seconds that the next item may take to come while there is an outcome to yield."""
_OF_THE_HOST = (*HOST_LOST, PythonNotFoundError, PythonVersionMismatchError)
"""What says that no function can be called on a host, and nothing about the item."""


@attrs.define(eq=False)
class _Item(Generic[X]):
    number: int
    value: X
    moves: int = 0
    alone: bool = False
    """Whether a process or a host died with it among others: it is tried again by itself."""


class Spread(Generic[X, T]):
    """One function and many items on several hosts. A context manager that iterates over the outcomes.

    Every host has a thread that waits for it. The iterable is read in the thread that iterates, a little ahead.
    """

    def __init__(
        self,
        runtimes: Sequence[Runtime],
        function: Callable[[X], T],
        items: Iterator[X],
        *,
        ordered: bool,
        retries: int,
    ) -> None:
        """Prepare; entering it begins the work."""
        self._runtimes = runtimes
        self._function = function
        self._source = enumerate(items)
        self._ordered = ordered
        self._retries = retries
        self._changed = threading.Condition()
        self._waiting: deque[_Item[X]] = deque()
        self._outcomes: dict[int, Value[T] | Error] = {}
        self._next = 0
        self._outstanding = 0
        self._reading_took = 0.0
        self._exhausted = False
        self._broken: Exception | None = None
        self._size = 1  # of what a host gets at once
        self._failures: dict[str, Exception] = {}
        self._stopping = Stopping()
        self._threads = [
            threading.Thread(target=self._serve, args=[runtime], name=f"lazycluster-map-{runtime.host}", daemon=True)
            for runtime in runtimes
        ]

    def __enter__(self) -> Self:
        """Begin."""
        try:
            for thread in self._threads:
                start(thread)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End what is under way on the hosts."""
        self._stop()
        for thread in wait_for(self._threads):
            _log.warning("%s: still ending what was under way there", thread.name)

    def _stop(self) -> None:
        self._stopping.request()
        with self._changed:
            self._changed.notify_all()

    # The thread that iterates ----------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Value[T] | Error]:
        """Yield the outcomes, in the order of the items or as they come.

        Raises:
            HostsFailedError: No host is left for the items that are still to be taken from the iterable.
            Exception: What the iterable raised, when the outcomes of the items before that are yielded.
        """
        while True:
            self._read_ahead()
            with self._changed:
                holds(lambda: self._has_next() or self._has_room() or self._done, self._changed)
                if not self._has_next():
                    if not self._done:
                        continue
                    if self._broken is not None:
                        raise self._broken
                    return
                if self._ordered:
                    number, self._next = self._next, self._next + 1
                else:
                    number = next(iter(self._outcomes))
                outcome = self._outcomes.pop(number)
                self._outstanding -= 1
            yield outcome

    def _has_next(self) -> bool:
        return self._next in self._outcomes if self._ordered else bool(self._outcomes)

    def _has_room(self) -> bool:
        """Tell whether another item is to be taken from the iterable."""
        if self._exhausted:
            return False
        if self._all_failed:  # then one tells whether there are more
            return not self._outstanding
        ahead = 2 * self._size * (len(self._runtimes) - len(self._failures))
        if self._has_next() and (len(self._outcomes) >= ahead or self._reading_took > _PROMPT):
            return False  # these are to be taken first: whoever iterates is slow, or the iterable is
        return len(self._waiting) < ahead and self._outstanding < _OUTSTANDING

    @property
    def _done(self) -> bool:
        return self._exhausted and not self._outstanding

    @property
    def _all_failed(self) -> bool:
        return len(self._failures) == len(self._runtimes)

    def _read_ahead(self) -> None:
        while self._has_room():
            begun = time.monotonic()
            try:
                number, value = next(self._source)
            except StopIteration:
                with self._changed:
                    self._exhausted = True
                return
            except Exception as error:  # noqa: BLE001 - raised behind the outcomes of the items before
                with self._changed:
                    self._exhausted, self._broken = True, error
                return
            self._reading_took = time.monotonic() - begun
            with self._changed:
                if self._all_failed and not self._outstanding:
                    raise self._no_host_left()
                self._outstanding += 1
                self._waiting.append(_Item(number, value))
                if self._all_failed:
                    self._give_up_waiting()
                self._changed.notify()

    def _no_host_left(self) -> HostsFailedError:
        errors = tuple((runtime.host, self._failures[runtime.host]) for runtime in self._runtimes)
        error = HostsFailedError(f"map({function_name(self._function)})", errors, len(self._runtimes))
        error.__cause__ = errors[-1][1]
        return error

    # The threads of the hosts ----------------------------------------------------------------------------------------

    def _serve(self, runtime: Runtime) -> None:
        """Work on items with one host, until there are none, it fails, or nobody wants them any more."""
        with self._stopping.cancellation() as cancellation:
            while (items := self._take()) and self._work(items, runtime, cancellation):
                pass

    def _work(self, items: Sequence[_Item[X]], runtime: Runtime, cancellation: Cancellation) -> bool:
        """Work on items with one host, and return whether more is to be done there."""
        begun = time.monotonic()
        try:
            executor = runtime.executor(cancellation=cancellation)
            outcomes = _invoke.call_each(executor, self._function, [item.value for item in items], _SHARE)
        except BaseException as error:  # noqa: BLE001 - told to whoever iterates
            if self._stopping.requested:
                return False
            if isinstance(error, _OF_THE_HOST):
                self._move(items, error)
                return self._is_back(runtime, error)
            self._blame(items, error)
        else:
            self._hand_back(items, outcomes)
            self._adapt(len(items), len(outcomes), time.monotonic() - begun)
        return True

    def _is_back(self, runtime: Runtime, error: Exception) -> bool:
        """Tell whether a host that failed can be used again; else go on without it."""
        if isinstance(error, ConnectionLostError) and not runtime.closed and runtime.is_valid_runtime():
            return True
        if not self._stopping.requested:
            self._fail(runtime, error)
        return False

    def _take(self) -> list[_Item[X]]:
        """Wait for items, and take as many as may go to a host at once; none where nothing more will come."""
        with self._changed:
            holds(lambda: self._waiting or self._stopping.requested or self._done, self._changed)
            if self._stopping.requested or not self._waiting:
                return []
            living = len(self._runtimes) - len(self._failures)
            share = max(1, min(self._size, len(self._waiting) // living))
            items = [self._waiting.popleft()]
            while len(items) < share and not items[0].alone and not self._waiting[0].alone:
                items.append(self._waiting.popleft())
            if self._has_room():
                self._changed.notify_all()
            return items

    def _adapt(self, given: int, done: int, seconds: float) -> None:
        """Give out more at once if that took little time, and less if a host came back with something left."""
        with self._changed:
            if done < given:
                self._size = max(1, done)
            elif given == self._size and seconds < _SHARE:
                self._size = min(_MOST, 2 * given)

    def _hand_back(self, items: Sequence[_Item[X]], outcomes: Sequence[Value[T] | Error]) -> None:
        with self._changed:
            for item, outcome in zip(items, outcomes, strict=False):
                self._outcomes[item.number] = outcome
            self._waiting.extendleft(reversed(items[len(outcomes) :]))
            self._changed.notify_all()

    def _move(self, items: Sequence[_Item[X]], error: Exception) -> None:
        """Give the items of a host that failed to others, but for those that many died with."""
        with self._changed:
            for item in reversed(items):
                if isinstance(error, ConnectionLostError):  # else the host was not there when the item came
                    item.moves += 1
                    item.alone = True  # it may be this one that the hosts die of
                if item.moves > self._retries:
                    self._outcomes[item.number] = Error(error)
                else:
                    self._waiting.appendleft(item)
            self._changed.notify_all()

    def _blame(self, items: Sequence[_Item[X]], error: BaseException) -> None:
        """Take an error for that of the item, where there was only one; else find out whose it is."""
        with self._changed:
            if len(items) == 1:
                self._outcomes[items[0].number] = Error(error)
            else:
                for item in items:
                    item.alone = True
                self._waiting.extendleft(reversed(items))
            self._changed.notify_all()

    def _fail(self, runtime: Runtime, error: Exception) -> None:
        """Go on without a host."""
        with self._changed:
            self._failures[runtime.host] = error
            if self._all_failed:
                self._give_up_waiting()
            elif not runtime.closed:
                _log.warning("%s: the others go on without it: %s", runtime.host, error)
            self._changed.notify_all()

    def _give_up_waiting(self) -> None:
        for item in self._waiting:
            self._outcomes[item.number] = Error(self._no_host_left())
        self._waiting.clear()
