"""A module that functions of a fake host share with the tests."""

from __future__ import annotations

import os
import sys
import threading

events: list[threading.Event] = []
"""What says that a function has begun, and what lets it end. It cannot be sent, so functions ask the module for it."""

state = {"calls": 0}


def source() -> str:
    return "of the module"


def answer() -> str:
    state["calls"] += 1
    return source()


def wait() -> str:
    begun, go = sys.modules[__name__].events
    begun.set()
    go.wait()
    return os.getcwd()  # noqa: PTH109 - as text


def print_around_wait() -> None:
    print("before")
    thread = threading.Thread(target=print, args=("of a thread",))
    thread.start()
    thread.join()
    begun, go = sys.modules[__name__].events
    begun.set()
    go.wait()
    print("after")


def fail_to_unpickle() -> Unloadable:
    raise RuntimeError("not here")


class Unloadable:
    def __reduce__(self) -> tuple[object, ...]:
        return fail_to_unpickle, ()

    def __len__(self) -> int:
        return 0
