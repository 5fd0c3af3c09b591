"""A function of a fake host, called in this process, with the surroundings and the outcome that a real host gives.

It goes through the pickle that would be sent: it sees copies, and a value that cannot be sent fails. Modules are this
process's own, so the patches of a test apply to the function, too.
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

from lazycluster._functions.function_call import Payload
from lazycluster._functions.outcome import OutcomeUnpickler
from lazycluster._remote.call_outcome import DONE_RECORD, MemoryWriter
from lazycluster._remote.call_program import load_and_call

UnpickledCall: TypeAlias = tuple[Callable[..., object], tuple[object, ...], dict[str, object] | None]


@attrs.frozen
class FunctionEnded:
    """A function has ended; `outcome` is what `read_outcome()` reads."""

    outcome: bytes = attrs.field(repr=False)


@attrs.frozen
class FunctionNotStarted:
    """A function was not called: its working directory is gone."""

    error: OSError


InProcessEvent: TypeAlias = bytes | FunctionEnded | FunctionNotStarted | None
"""An event of a function: a piece of its output, or its end; None: a reason to check again that it may go on."""

_process_state_lock = threading.Lock()
"""Held by the function under way, because the current directory and the environment belong to the whole process."""


class _InProcessUnpickler(OutcomeUnpickler):
    """Unpickles a function without changing the module that it came from."""

    def find_class(self, module_name: str, global_name: str) -> Any:  # noqa: ANN401 - the overridden method's type
        found = super().find_class(module_name, global_name)
        if global_name != "_function_setstate":
            return found

        def set_state(function: FunctionType, state: tuple[object, dict[str, object]]) -> object:
            module = sys.modules.get(str(function.__globals__.get("__name__")))
            if module is not None and vars(module) is function.__globals__:
                state[1]["__globals__"] = {}  # copies of objects that the module has itself
            return found(function, state)

        return set_state


def unpickle_call(payload: Payload) -> UnpickledCall:
    """Return new copies of a function and its arguments; the contents of sent modules are skipped."""
    unpickler = _InProcessUnpickler(io.BytesIO(payload.pickles))
    function = unpickler.load()
    _skip_module_contents(unpickler)
    args, kwargs = unpickler.load()
    _skip_module_contents(unpickler)
    return function, args, kwargs


def _skip_module_contents(unpickler: _InProcessUnpickler) -> None:
    for _ in iter(unpickler.load, None):
        pass


class InProcessCall:
    """A function in a thread of its own, one at a time in this process."""

    def __init__(
        self, payload: Payload, cwd: Path, env: Mapping[str, str], events: queue.SimpleQueue[InProcessEvent]
    ) -> None:
        """Start the function, or have it wait for its turn; its output and its end are put into `events`."""
        self._payload = payload
        self._cwd = cwd
        self._env = env
        self._events = events
        self._lock = threading.Lock()
        self._exit_stack = contextlib.ExitStack()
        self._is_detached = False
        self._thread = threading.Thread(target=self._run, name=f"function {payload.function}", daemon=True)
        self._thread.start()

    def detach(self) -> None:
        """Let the next function run, and ignore the rest of this one, because a thread cannot be ended."""
        with self._lock:
            self._is_detached = True
            self._exit_stack.close()

    def _run(self) -> None:
        if not self._enter_process_state():
            return
        outcome = MemoryWriter()
        try:
            load_and_call(outcome, lambda: unpickle_call(self._payload))
        finally:
            with self._lock:
                self._exit_stack.close()
        self._events.put(FunctionEnded(bytes(outcome.data) + DONE_RECORD))

    def _enter_process_state(self) -> bool:
        _process_state_lock.acquire()
        with self._lock:
            if self._is_detached:
                _process_state_lock.release()
                return False
            self._exit_stack.callback(_process_state_lock.release)
            try:
                self._exit_stack.enter_context(_process_state(self._cwd, self._env, self._events.put))
            except OSError as error:
                self._exit_stack.close()
                self._events.put(FunctionNotStarted(error))
                return False
            return True


# The process's surroundings -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _process_state(cwd: Path, env: Mapping[str, str], on_output: Callable[[bytes], object]) -> Iterator[None]:
    """Set the current directory, the environment and the output of this thread and of those that it starts."""
    directory = Path.cwd()
    environment = dict(os.environ)
    other_threads = frozenset(threading.enumerate()) - {threading.current_thread()}
    streams = sys.stdout, sys.stderr
    os.chdir(cwd)
    os.environ.update(env)
    replacements = [cast("TextIO", _PerThreadStream(on_output, stream, other_threads)) for stream in streams]
    sys.stdout, sys.stderr = replacements
    try:
        yield
    finally:
        if sys.stdout is replacements[0]:  # else other code has replaced it, such as pytest
            sys.stdout = streams[0]
        if sys.stderr is replacements[1]:
            sys.stderr = streams[1]
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        os.chdir(directory)


class _PerThreadStream:
    """A standard stream that captures the output of some threads, and passes that of the others to the original."""

    def __init__(
        self, on_output: Callable[[bytes], object], stream: TextIO | None, other_threads: frozenset[threading.Thread]
    ) -> None:
        sink = io.BufferedWriter(_CallbackRawIO(on_output))
        self._captured = io.TextIOWrapper(sink, "utf-8", "backslashreplace", line_buffering=True)
        self._original = stream
        self._other_threads = other_threads

    def __getattr__(self, name: str) -> object:
        return getattr(self._original if threading.current_thread() in self._other_threads else self._captured, name)


class _CallbackRawIO(io.RawIOBase):
    """Passes the bytes that are written to a callback."""

    def __init__(self, on_output: Callable[[bytes], object]) -> None:
        super().__init__()
        self._on_output = on_output

    def writable(self) -> bool:
        return True

    def write(self, data: object, /) -> int:
        copied = bytes(cast("bytes", data))
        if copied:
            self._on_output(copied)
        return len(copied)
