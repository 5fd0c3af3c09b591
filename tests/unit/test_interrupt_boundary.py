"""The traceback of Ctrl-C at a public method, whatever code of the library and of the user it strikes."""

from __future__ import annotations

import logging
import queue
import re
import subprocess
import sys
import traceback
from collections.abc import Callable

import pytest

from lazycluster._waiting import interrupt_boundary

LIBRARY = """
def method(work):
    with interrupt_boundary:
        inner(work)

def inner(work):
    if work is None:
        raise KeyboardInterrupt
    work()

def poll():
    try:
        raise Empty
    except Empty:
        raise KeyboardInterrupt

def cancel():
    try:
        raise KeyboardInterrupt
    except BaseException:
        raise KeyboardInterrupt
"""


@pytest.fixture(scope="module")
def library() -> dict[str, Callable[..., None]]:
    """Return functions that look like those of a module of the library."""
    namespace = {"__name__": "lazycluster.made_up", "interrupt_boundary": interrupt_boundary, "Empty": queue.Empty}
    exec(LIBRARY, namespace)
    return {name: value for name, value in namespace.items() if callable(value)}


def names(error: BaseException) -> list[str]:
    """Return the names of the functions in a traceback, without that of the test."""
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)][1:]


def test_interrupt_boundary_leaves_one_frame(library: dict[str, Callable[..., None]]) -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        library["method"](None)

    assert names(caught.value) == ["method"]


def test_interrupt_boundary_keeps_frames_of_callback(library: dict[str, Callable[..., None]]) -> None:
    def callback() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        library["method"](callback)

    assert names(caught.value) == ["method", "callback"]


def test_interrupt_boundary_keeps_other_errors(library: dict[str, Callable[..., None]]) -> None:
    def callback() -> None:
        raise SystemExit

    with pytest.raises(SystemExit) as caught:
        library["method"](callback)

    assert names(caught.value) == ["method", "inner", "callback"]


@pytest.mark.parametrize("function", ["poll", "cancel"])
def test_interrupt_boundary_drops_internal_context(library: dict[str, Callable[..., None]], function: str) -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        library["method"](library[function])

    assert names(caught.value) == ["method"]
    assert caught.value.__context__ is None


@pytest.mark.parametrize("kind", [ValueError, queue.Empty, KeyboardInterrupt])
def test_interrupt_boundary_keeps_context_of_user(
    library: dict[str, Callable[..., None]], kind: type[BaseException]
) -> None:
    handled = kind()

    def handle() -> None:
        try:
            raise handled
        except kind:
            library["method"](library["poll"])

    with pytest.raises(KeyboardInterrupt) as caught:
        handle()

    assert caught.value.__context__ is handled


def test_interrupt_boundary_logs_all_frames(
    library: dict[str, Callable[..., None]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "lazycluster")
    with pytest.raises(KeyboardInterrupt):
        library["method"](None)

    assert "in inner" in caplog.text


PROGRAM = """
import math, os, signal, threading, time
from lazycluster import Runtime
from lazycluster.testing import FakeHost

def stop():
    while not fake.calls:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
with FakeHost() as fake, Runtime("a") as runtime:
    fake.on("sleep", delay=math.inf)
    threading.Thread(target=stop).start()
    runtime.run("sleep")
"""


def test_interpreter_prints_two_frames_after_ctrl_c() -> None:
    ended = subprocess.run((sys.executable, "-c", PROGRAM), capture_output=True, text=True, check=False, timeout=60)

    assert ended.stderr.count("Traceback (most recent call last)") == 1, ended.stderr
    assert re.findall(r'^  File ".*", line \d+, in (\S+)$', ended.stderr, re.MULTILINE) == ["<module>", "run"]
    assert ended.stderr.endswith("\nKeyboardInterrupt\n")
