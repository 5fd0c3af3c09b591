"""Items spread over hosts: each free host takes the next items, and the caller gets their outcomes."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Generic, TypeVar

import attrs

from lazycluster import _invoke
from lazycluster._gather import CANCEL_WAIT_SECONDS, CancelGroup, join_threads
from lazycluster._runtime_core import core_of
from lazycluster._typing import Self
from lazycluster._waiting import CancelToken, hold, start_thread, wait_for
from lazycluster.exceptions import (
    HOST_LOST_ERRORS,
    ConnectionLostError,
    FunctionNotSerializableError,
    HostsFailedError,
    PythonNotFoundError,
    PythonVersionMismatchError,
    add_host_note,
)
from lazycluster.results import Error, Value
from lazycluster.runtimes import Runtime
from lazycluster.steps import function_name

_log = logging.getLogger(__name__)
X = TypeVar("X")
T = TypeVar("T")
_BATCH_SECONDS = 0.05
"""Seconds of work in one batch for a host: long beside a round trip, and short for the caller."""
_MAX_ITEMS_PER_BATCH = 64
"""The most items that go to a host at once."""
_MAX_OUTSTANDING_ITEMS = 4096
"""The most items that are read and not yet yielded. Without it, one slow item would let them grow without end."""
_MAX_READ_AHEAD_SECONDS = 0.01
"""If the iterable takes longer than this for an item, outcomes are yielded before the next item is read."""
_BATCHES_AHEAD = 2
"""Batches that are read ahead for each host, so that it need not wait for the iterable."""
_HOST_ERRORS = (*HOST_LOST_ERRORS, PythonNotFoundError, PythonVersionMismatchError)
"""Errors that mean that no function can be called on a host, whatever the item."""


@attrs.define(eq=False)
class _MapItem(Generic[X]):
    index: int
    value: X
    moves: int = 0
    isolated: bool = False
    """Whether the item is to be tried alone, because a process or a host died with it in a batch."""

    def failure(self, error: BaseException, host: str = "") -> Error:
        """Return the error as the outcome of the item; the error gets a note with the host."""
        if host:
            add_host_note(error, host)
        return Error(error, host, self.index, self.value)


class MapScheduler(Generic[X, T]):
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
        cancel_wait: float = CANCEL_WAIT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare the work; entering the context begins it. Its end waits `cancel_wait` seconds for running items."""
        self._runtimes = runtimes
        self._function = function
        self._source = enumerate(items)
        self._ordered = ordered
        self._retries = retries
        self._cancel_wait = cancel_wait
        self._clock = clock
        self._changed = threading.Condition()
        self._pending: deque[_MapItem[X]] = deque()
        self._outcomes: dict[int, Value[T] | Error] = {}
        self._next_index = 0
        self._outstanding = 0
        self._last_read_seconds = 0.0
        self._source_exhausted = False
        self._source_error: Exception | None = None
        self._batch_size = 1
        self._failed_hosts: dict[str, Exception] = {}
        self._cancel_group = CancelGroup()
        self._threads = [
            threading.Thread(
                target=self._cancel_group.run,
                args=[functools.partial(self._run_host, runtime)],
                name=f"lazycluster-map-{runtime.host}",
                daemon=True,
            )
            for runtime in runtimes
        ]

    def __enter__(self) -> Self:
        """Begin the work."""
        try:
            for thread in self._threads:
                start_thread(thread)
        except BaseException:
            self._cancel()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the running items on the hosts."""
        self._cancel()
        for thread in join_threads(self._threads, self._cancel_wait):
            _log.warning("%s: its last items have not ended yet", thread.name)

    def _cancel(self) -> None:
        self._cancel_group.cancel()
        with self._changed:
            self._changed.notify_all()

    # The thread that iterates ----------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Value[T] | Error]:
        """Yield the outcomes, in the order of the items or as they come.

        Raises:
            HostsFailedError: If no host is left for the items that are still to be taken from the iterable.
            Exception: If the iterable raised it; the outcomes of the items before it come first.
        """
        while True:
            self._read_ahead()
            with hold(self._changed):
                wait_for(lambda: self._has_next or self._can_read or self._is_done, self._changed)
                if not self._has_next:
                    if not self._is_done:
                        continue
                    if self._source_error is not None:
                        raise self._source_error
                    return
                if self._ordered:
                    index, self._next_index = self._next_index, self._next_index + 1
                else:
                    index = next(iter(self._outcomes))
                outcome = self._outcomes.pop(index)
                self._outstanding -= 1
            yield outcome

    @property
    def _has_next(self) -> bool:
        """Whether the outcome that is to be yielded next has come."""
        return self._next_index in self._outcomes if self._ordered else bool(self._outcomes)

    @property
    def _can_read(self) -> bool:
        """Whether another item is to be read from the iterable now."""
        if self._source_exhausted:
            return False
        if self._all_hosts_failed:  # one more item shows whether the iterable has ended
            return not self._outstanding
        ahead = _BATCHES_AHEAD * self._batch_size * self._usable_host_count
        if self._has_next and (len(self._outcomes) >= ahead or self._last_read_seconds > _MAX_READ_AHEAD_SECONDS):
            return False  # yield these first: the consumer is slow, or the iterable is
        return len(self._pending) < ahead and self._outstanding < _MAX_OUTSTANDING_ITEMS

    @property
    def _is_done(self) -> bool:
        """Whether no further outcome will come."""
        return self._source_exhausted and not self._outstanding

    @property
    def _usable_host_count(self) -> int:
        return len(self._runtimes) - len(self._failed_hosts)

    @property
    def _all_hosts_failed(self) -> bool:
        return not self._usable_host_count

    def _read_ahead(self) -> None:
        while self._can_read:
            started = self._clock()
            try:
                index, value = next(self._source)
            except StopIteration:
                with self._changed:
                    self._source_exhausted = True
                return
            except Exception as error:  # noqa: BLE001 - raised after the outcomes of the items before
                with self._changed:
                    self._source_exhausted, self._source_error = True, error
                return
            self._last_read_seconds = self._clock() - started
            with self._changed:
                if self._all_hosts_failed and not self._outstanding:
                    raise self._all_hosts_failed_error()
                self._outstanding += 1
                self._pending.append(_MapItem(index, value))
                if self._all_hosts_failed:
                    self._fail_pending()
                self._changed.notify()

    def _all_hosts_failed_error(self) -> HostsFailedError:
        errors = tuple((runtime.host, self._failed_hosts[runtime.host]) for runtime in self._runtimes)
        return HostsFailedError(f"map({function_name(self._function)})", errors, len(self._runtimes))

    # The threads of the hosts ----------------------------------------------------------------------------------------

    def _run_host(self, runtime: Runtime, cancel_token: CancelToken) -> None:
        """Work on items with one host, until no item is left, the host fails, or the iteration ends."""
        while (items := self._take_batch()) and self._run_batch(items, runtime, cancel_token):
            pass

    def _run_batch(self, items: Sequence[_MapItem[X]], runtime: Runtime, cancel_token: CancelToken) -> bool:
        """Work on items with one host; return whether the host can take more."""
        started = self._clock()
        try:
            context = core_of(runtime).context(cancel_token)
            outcomes = _invoke.call_each(context, self._function, [item.value for item in items], _BATCH_SECONDS)
        except BaseException as error:  # noqa: BLE001 - the iterating thread gets it
            if self._cancel_group.is_cancelled:
                return False
            if isinstance(error, _HOST_ERRORS):
                self._reassign(items, error, runtime.host)
                return self._recover_host(runtime, error)
            self._retry_alone(items, error, "" if isinstance(error, FunctionNotSerializableError) else runtime.host)
        else:
            self._deliver(items, outcomes, runtime.host)
            self._adjust_batch_size(len(items), len(outcomes), self._clock() - started)
        return True

    def _recover_host(self, runtime: Runtime, error: Exception) -> bool:
        """Return whether a host that failed can be used again; if it cannot, the other hosts continue without it."""
        if isinstance(error, ConnectionLostError) and not runtime.closed and runtime.is_valid_runtime():
            return True
        if not self._cancel_group.is_cancelled:
            self._drop_host(runtime, error)
        return False

    def _take_batch(self) -> list[_MapItem[X]]:
        """Wait for items, and take a batch for a host; an empty one if no more items will come."""
        with self._changed:
            wait_for(lambda: self._pending or self._cancel_group.is_cancelled or self._is_done, self._changed)
            if self._cancel_group.is_cancelled or not self._pending:
                return []
            fair_share = len(self._pending) // self._usable_host_count
            batch_size = max(1, min(self._batch_size, fair_share))
            items = [self._pending.popleft()]
            while len(items) < batch_size and not items[0].isolated and not self._pending[0].isolated:
                items.append(self._pending.popleft())
            if self._can_read:
                self._changed.notify_all()
            return items

    def _adjust_batch_size(self, sent: int, completed: int, seconds: float) -> None:
        """Make batches larger if the last took little time, and smaller if a host did not finish it."""
        with self._changed:
            if completed < sent:
                self._batch_size = max(1, completed)
            elif sent == self._batch_size and seconds < _BATCH_SECONDS:
                self._batch_size = min(_MAX_ITEMS_PER_BATCH, 2 * sent)

    def _deliver(self, items: Sequence[_MapItem[X]], outcomes: Sequence[Value[T] | Error], host: str) -> None:
        with self._changed:
            for item, outcome in zip(items, outcomes, strict=False):
                self._outcomes[item.index] = (
                    outcome if isinstance(outcome, Value) else item.failure(outcome.error, host)
                )
            self._pending.extendleft(reversed(items[len(outcomes) :]))
            self._changed.notify_all()

    def _reassign(self, items: Sequence[_MapItem[X]], error: Exception, host: str) -> None:
        """Put the items of a host that failed back for other hosts; an item that was moved too often fails."""
        with self._changed:
            for item in reversed(items):
                if isinstance(error, ConnectionLostError):  # other errors come before the host begins the item
                    item.moves += 1
                    item.isolated = True  # this item may be the one that ends the hosts
                if item.moves > self._retries:
                    self._outcomes[item.index] = item.failure(error, host)
                else:
                    self._pending.appendleft(item)
            self._changed.notify_all()

    def _retry_alone(self, items: Sequence[_MapItem[X]], error: BaseException, host: str) -> None:
        """Make an error the outcome of an item that ran alone. Of several items, retry each alone."""
        with self._changed:
            if len(items) == 1:
                self._outcomes[items[0].index] = items[0].failure(error, host)
            else:
                for item in items:
                    item.isolated = True
                self._pending.extendleft(reversed(items))
            self._changed.notify_all()

    def _drop_host(self, runtime: Runtime, error: Exception) -> None:
        """Continue without a host."""
        with self._changed:
            self._failed_hosts[runtime.host] = error
            if self._all_hosts_failed:
                self._fail_pending()
            elif not runtime.closed:
                _log.warning("%s: the other hosts continue without it: %s", runtime.host, error)
            self._changed.notify_all()

    def _fail_pending(self) -> None:
        for item in self._pending:
            self._outcomes[item.index] = item.failure(self._all_hosts_failed_error())
        self._pending.clear()
