"""Ctrl-C in a call of the library: its traceback has the user's frames, and one of the library."""

from __future__ import annotations

import itertools
import math
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import lazycluster
from lazycluster import Runtime, RuntimeGroup, RuntimeTask, Stream
from tests.contract.conftest import TransportCase
from tests.keyboard_interrupt import interrupt

PACKAGE = str(Path(lazycluster.__file__).parent)


@pytest.fixture
def group(runtime: Runtime) -> Iterator[RuntimeGroup]:
    """Return a group of the shared runtime, which it does not close."""
    group = RuntimeGroup([runtime])
    yield group
    group.remove_runtime(runtime.host)


def assert_has_one_line_of_library(error: KeyboardInterrupt, method: str) -> None:
    text = "".join(traceback.format_exception(error))
    assert text.count("Traceback (most recent call last)") == 1, text
    frames = traceback.extract_tb(error.__traceback__)
    assert [frame.name for frame in frames if frame.filename.startswith(PACKAGE)] == [method], text
    assert frames[-1].name == method, text
    assert Path(frames[-2].filename).name == Path(__file__).name, text


@pytest.mark.parametrize("of_group", [False, True], ids=["runtime", "group"])
def test_run_ctrl_c_shows_one_line_of_library(
    case: TransportCase, runtime: Runtime, group: RuntimeGroup, of_group: bool
) -> None:
    command = case.script("echo begun; sleep 1000", stdout="begun\n", delay=math.inf)
    printed = threading.Event()

    def see(*_: object) -> None:
        printed.set()

    def has_begun() -> bool:
        return printed.is_set() if case.fake is None else bool(case.fake.calls)  # its output comes at the end

    def run() -> object:
        return group.run(command, on_output=see) if of_group else runtime.run(command, on_output=see)

    assert_has_one_line_of_library(interrupt(run, has_begun), "run")


@pytest.mark.parametrize("method", ["call", "call with options", "group", "task", "join", "returns", "map"])
def test_call_ctrl_c_shows_one_line_of_library(
    runtime: Runtime, group: RuntimeGroup, host_dir: Path, method: str
) -> None:
    def wait(*_: object) -> None:
        directory = Path.cwd()
        Path("begun").touch()
        while directory.exists() and not Path("over").exists():
            time.sleep(0.01)

    task = RuntimeTask().run_function(wait)

    def start_and_join() -> None:
        runtime.execute_task(task)
        task.join()

    def start_and_get_returns() -> None:
        runtime.execute_task(task)
        list(task.function_returns)

    works: dict[str, tuple[Callable[[], object], str]] = {
        "call": (lambda: runtime.call(wait), "call"),
        "call with options": (lambda: runtime.with_options(timeout=600).call(wait), "call"),
        "group": (lambda: group.call(wait), "call"),
        "task": (lambda: runtime.execute_task(task, execute_async=False), "execute_task"),
        "join": (start_and_join, "join"),
        "returns": (start_and_get_returns, "function_returns"),
        "map": (lambda: list(group.map(wait, itertools.count())), "_iter_results"),
    }
    work, name = works[method]
    try:
        assert_has_one_line_of_library(interrupt(work, (host_dir / "begun").exists), name)
    finally:
        (host_dir / "over").touch()
        if task.process is not None:
            task.process.terminate()


def test_run_on_output_raises_keeps_all_frames(case: TransportCase, runtime: Runtime) -> None:
    command = case.script("echo begun", stdout="begun\n")

    def fail(_stream: Stream, _data: bytes) -> None:
        raise LookupError("of the user")

    with pytest.raises(LookupError) as caught:
        runtime.run(command, on_output=fail)

    frames = traceback.extract_tb(caught.value.__traceback__)
    assert frames[-1].name == "fail"
    assert sum(frame.filename.startswith(PACKAGE) for frame in frames) > 2
