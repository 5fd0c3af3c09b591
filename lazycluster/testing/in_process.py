"""A function of a fake host: called in this process, with what a real host would give it, and answered for as there.

It goes through the pickle that would be sent, so that it sees copies, and what cannot be sent fails. Modules are this
process's own: what a test has patched in them is patched for the function, too.
"""

from __future__ import annotations

import contextlib
import io
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FunctionType
from typing import Any, TextIO, TypeAlias, cast

import attrs

from lazycluster._functions.outcome import _Unpickler
from lazycluster._functions.serialize import Payload
from lazycluster._remote.call_program import DONE, InMemory, answer

Loaded: TypeAlias = tuple[Callable[..., object], tuple[object, ...], dict[str, object] | None]


@attrs.frozen
class Answered:
    """A function has ended; `outcome` is what `read_outcome()` reads."""

    outcome: bytes = attrs.field(repr=False)


@attrs.frozen
class NotBegun:
    """A function was not called: its working directory is gone."""

    error: OSError


Event: TypeAlias = bytes | Answered | NotBegun | None
"""What comes of a function: something that it printed, or its end; None: a reason to look again how things stand."""

_turn = threading.Lock()
"""Held for the function under way: the current directory and the environment are those of the process."""


class _HereUnpickler(_Unpickler):
    """Unpickles what was to be sent, without changing the modules that it came from."""

    def find_class(self, module_name: str, global_name: str) -> Any:  # noqa: ANN401 - overrides one that is so typed
        found = super().find_class(module_name, global_name)
        if global_name != "_function_setstate":
            return found

        def set_state(function: FunctionType, state: tuple[object, dict[str, object]]) -> object:
            module = sys.modules.get(str(function.__globals__.get("__name__")))
            if module is not None and vars(module) is function.__globals__:
                state[1]["__globals__"] = {}  # copies of what the module has itself
            return found(function, state)

        return set_state


def unpickled(payload: Payload) -> Loaded:
    """Return new copies of a function and its arguments; contents of modules that were sent are passed over."""
    unpickler = _HereUnpickler(io.BytesIO(payload.pickles))
    function = unpickler.load()
    _pass_over(unpickler)
    args, kwargs = unpickler.load()
    _pass_over(unpickler)
    return function, args, kwargs


def _pass_over(unpickler: _HereUnpickler) -> None:
    for _ in iter(unpickler.load, None):
        pass


class FunctionUnderWay:
    """A function in a thread of its own, one at a time in this process."""

    def __init__(self, payload: Payload, cwd: Path, env: Mapping[str, str], events: queue.SimpleQueue[Event]) -> None:
        """Start it, or have it wait for its turn; what comes of it is put into `events`."""
        self._payload = payload
        self._cwd = cwd
        self._env = env
        self._events = events
        self._lock = threading.Lock()
        self._stage = contextlib.ExitStack()
        self._given_up = False
        self._thread = threading.Thread(target=self._run, name=f"function {payload.function}", daemon=True)
        self._thread.start()

    def give_up(self) -> None:
        """Let go of it: others get their turn, and what it does from now on is nobody's. Nothing can end a thread."""
        with self._lock:
            self._given_up = True
            self._stage.close()

    def _run(self) -> None:
        if not self._enter():
            return
        outcome = InMemory()
        try:
            answer(outcome, lambda: unpickled(self._payload))
        finally:
            with self._lock:
                self._stage.close()
        self._events.put(Answered(bytes(outcome.data) + DONE))

    def _enter(self) -> bool:
        _turn.acquire()
        with self._lock:
            if self._given_up:
                _turn.release()
                return False
            self._stage.callback(_turn.release)
            try:
                self._stage.enter_context(_surroundings(self._cwd, self._env, self._events.put))
            except OSError as error:
                self._stage.close()
                self._events.put(NotBegun(error))
                return False
            return True


# The process's surroundings -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _surroundings(cwd: Path, env: Mapping[str, str], printed: Callable[[bytes], object]) -> Iterator[None]:
    """Set the current directory, the environment and the output of this thread and of those that it starts."""
    directory = Path.cwd()
    environment = dict(os.environ)
    others = frozenset(threading.enumerate()) - {threading.current_thread()}
    streams = sys.stdout, sys.stderr
    os.chdir(cwd)
    os.environ.update(env)
    ours = [cast("TextIO", _Output(printed, stream, others)) for stream in streams]
    sys.stdout, sys.stderr = ours
    try:
        yield
    finally:
        if sys.stdout is ours[0]:  # else somebody has replaced it, such as pytest
            sys.stdout = streams[0]
        if sys.stderr is ours[1]:
            sys.stderr = streams[1]
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        os.chdir(directory)


class _Output:
    """A standard stream that hands on what some threads print, and leaves that of the others to them."""

    def __init__(
        self, printed: Callable[[bytes], object], stream: TextIO | None, others: frozenset[threading.Thread]
    ) -> None:
        sink = io.BufferedWriter(_Sink(printed))
        self._ours = io.TextIOWrapper(sink, "utf-8", "backslashreplace", line_buffering=True)
        self._theirs = stream
        self._others = others

    def __getattr__(self, name: str) -> object:
        return getattr(self._theirs if threading.current_thread() in self._others else self._ours, name)


class _Sink(io.RawIOBase):
    """Takes bytes and hands them on."""

    def __init__(self, printed: Callable[[bytes], object]) -> None:
        super().__init__()
        self._printed = printed

    def writable(self) -> bool:
        return True

    def write(self, data: object, /) -> int:
        copied = bytes(cast("bytes", data))
        if copied:
            self._printed(copied)
        return len(copied)
