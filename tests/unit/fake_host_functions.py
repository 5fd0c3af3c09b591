"""A module that functions of a fake host share with the tests."""

from __future__ import annotations

import os
import sys
import threading

events: list[threading.Event] = []
"""The event that a function sets when it runs, and the one that lets it end.

Events cannot be sent, so functions look them up in this module.
"""

state = {"calls": 0}


def source() -> str:
    return "of the module"


def answer() -> str:
    state["calls"] += 1
    return source()


def wait() -> str:
    started, release = sys.modules[__name__].events
    started.set()
    release.wait()
    return os.getcwd()  # noqa: PTH109 - as text


def print_around_wait() -> None:
    print("before")
    thread = threading.Thread(target=print, args=("of a thread",))
    thread.start()
    thread.join()
    started, release = sys.modules[__name__].events
    started.set()
    release.wait()
    print("after")


def fail_to_unpickle() -> Unloadable:
    raise RuntimeError("cannot be loaded")


class Unloadable:
    def __reduce__(self) -> tuple[object, ...]:
        return fail_to_unpickle, ()

    def __len__(self) -> int:
        return 0
