"""Options of function calls: time limit, variables, directory and output, for one host and for a group."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lazycluster import (
    CallOutput,
    Error,
    FunctionError,
    FunctionTimeoutError,
    HostsFailedError,
    Runtime,
    RuntimeClosedError,
    RuntimeGroup,
    WorkingDirectoryError,
)
from tests.contract.conftest import HOST_ALIAS, TransportCase
from tests.pseudo_terminal import pseudo_terminal


@pytest.fixture
def group(runtime: Runtime) -> Iterator[RuntimeGroup]:
    """Return a group of the shared runtime, which it does not close."""
    group = RuntimeGroup([runtime])
    yield group
    group.remove_runtime(runtime.host)


def names(*args: object, **kwargs: object) -> tuple[object, object]:
    return args, kwargs


def speak() -> int:
    print("one\ntwo")
    print("end", end="", flush=True)
    return 3


def wait_until_removed() -> None:
    """A fake host cannot end a function; this one then ends when its directory is removed."""
    print("waiting", flush=True)
    directory = Path.cwd()
    while directory.exists():
        time.sleep(0.01)


# Arguments -----------------------------------------------------------------------------------------------------------


def test_with_options_arguments_all_go_to_function(runtime: Runtime, group: RuntimeGroup) -> None:
    kwargs: dict[str, object] = dict.fromkeys(("timeout", "env", "cwd", "output", "on_error", "function", "self"), "x")
    expected = ((7,), kwargs)

    assert runtime.with_options(timeout=60).call(names, 7, **kwargs) == expected
    assert group.with_options(timeout=60).call(names, 7, **kwargs) == {HOST_ALIAS: expected}
    assert group.with_options(on_error="collect").call(names, 7, **kwargs) == {HOST_ALIAS: expected}
    assert group.call(names, 7, **kwargs) == {HOST_ALIAS: expected}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 0}, "timeout must be"),
        ({"env": {"not a name": "1"}}, "environment variable must be"),
        ({"cwd": ""}, "cwd must be"),
        ({"output": "show"}, "output must be 'print', 'log', 'discard' or None, got 'show'"),
    ],
)
def test_with_options_invalid_option_is_refused(
    runtime: Runtime, group: RuntimeGroup, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        runtime.with_options(**options)
    with pytest.raises(ValueError, match=message):
        group.with_options(**options)


def test_with_options_view_shows_host_and_options(runtime: Runtime, group: RuntimeGroup) -> None:
    caller = runtime.with_options(timeout=5, env={"TOKEN": "secret"})

    assert caller.host == HOST_ALIAS
    assert repr(caller) == f"<Caller {HOST_ALIAS}, timeout=5, env=['TOKEN']>"
    assert repr(group.with_options(cwd="/")) == f"<GroupCaller {HOST_ALIAS}, cwd='/', on_error='raise'>"


def test_with_options_view_keeps_runtime_but_owns_nothing(case: TransportCase) -> None:
    runtime = case.runtime()
    caller = runtime.with_options(timeout=60)
    assert [caller.call(len, "a"), caller.call(len, "ab")] == [1, 2]

    runtime.close()

    with pytest.raises(RuntimeClosedError):
        caller.call(len, "a")


# Time limit ----------------------------------------------------------------------------------------------------------


def test_with_options_timeout_ends_function(runtime: Runtime) -> None:
    with pytest.raises(FunctionTimeoutError) as caught:
        runtime.with_options(timeout=1.5, output="log").call(wait_until_removed)

    assert isinstance(caught.value, FunctionError)
    assert isinstance(caught.value, TimeoutError)
    error = caught.value
    assert (error.host, error.function, error.timeout) == (HOST_ALIAS, "wait_until_removed", 1.5)
    assert error.output == "waiting\n"
    assert runtime.call(len, "four") == 4


def test_with_options_timeout_in_group_names_host(group: RuntimeGroup) -> None:
    with pytest.raises(HostsFailedError) as caught:
        group.with_options(timeout=1.5).call(wait_until_removed)
    assert [(host, type(error)) for host, error in caught.value.errors] == [(HOST_ALIAS, FunctionTimeoutError)]

    collected = group.with_options(timeout=1.5, on_error="collect").call(wait_until_removed)[HOST_ALIAS]

    assert isinstance(collected, Error)
    assert isinstance(collected.error, FunctionTimeoutError)
    assert collected.host == HOST_ALIAS


# Variables and directory ---------------------------------------------------------------------------------------------


def test_with_options_env_is_added_to_that_of_runtime(runtime: Runtime, group: RuntimeGroup) -> None:
    runtime.add_env_variables({"A": "1", "B": "2"})

    def read() -> tuple[str | None, ...]:
        return tuple(os.environ.get(name) for name in ("A", "B", "C", "WORKING_DIR"))

    expected = ("1", "3", "4", runtime.working_dir)
    assert runtime.with_options(env={"B": "3", "C": "4"}).call(read) == expected
    assert group.with_options(env={"B": "3", "C": "4"}).call(read) == {HOST_ALIAS: expected}
    assert runtime.call(read) == ("1", "2", None, runtime.working_dir)


def test_with_options_cwd_starts_in_working_dir(runtime: Runtime, host_dir: Path, group: RuntimeGroup) -> None:
    (host_dir / "sub").mkdir()
    inside = f"{runtime.working_dir}/sub"

    assert runtime.with_options(cwd="sub").call(os.getcwd) == inside
    assert runtime.with_options(cwd=inside).call(os.getcwd) == inside
    assert group.with_options(cwd="sub").call(os.getcwd) == {HOST_ALIAS: inside}
    assert runtime.call(os.getcwd) == runtime.working_dir


def test_with_options_missing_cwd_is_error(runtime: Runtime) -> None:
    with pytest.raises(WorkingDirectoryError) as caught:
        runtime.with_options(cwd="missing").call(os.getcwd)

    assert caught.value.path == f"{runtime.working_dir}/missing"


# Output --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "printed", "logged"),
    [("print", True, False), ("log", False, True), ("discard", False, False), (None, False, True)],
)
def test_with_options_output_goes_where_it_should(
    runtime: Runtime,
    output: CallOutput | None,
    printed: bool,
    logged: bool,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "lazycluster.executor")

    assert runtime.with_options(output=output).call(speak) == 3

    assert capsys.readouterr() == ("one\ntwo\nend" if printed else "", "")
    lines = [f"{HOST_ALIAS}: {line}" for line in ("one", "two", "end")]
    assert [line for line in caplog.messages if line in lines] == (lines if logged else [])


@pytest.mark.parametrize(
    ("output", "printed", "logged"),
    [("print", True, False), ("log", False, True), ("discard", False, False), (None, False, True)],
)
def test_group_with_options_output_has_host_in_each_line(
    group: RuntimeGroup,
    output: CallOutput | None,
    printed: bool,
    logged: bool,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "lazycluster.executor")

    assert group.with_options(output=output).call(speak) == {HOST_ALIAS: 3}

    shown = [f"{HOST_ALIAS} | {line}\n" for line in ("one", "two", "end")]
    assert capsys.readouterr() == ("".join(shown) if printed else "", "")
    lines = [f"{HOST_ALIAS}: {line}" for line in ("one", "two", "end")]
    assert [line for line in caplog.messages if line in lines] == (lines if logged else [])


def test_call_on_terminal_prints_output_at_once(
    runtime: Runtime, host_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The function does not end before its output was seen."""

    def wait() -> None:
        print("waiting", flush=True)
        while not Path("seen").exists():
            time.sleep(0.01)

    with pseudo_terminal(monkeypatch, on_text=("waiting", (host_dir / "seen").touch)) as screen:
        runtime.call(wait)

    assert screen.text == "waiting\r\n"


def test_group_call_on_terminal_prints_lines_with_host(group: RuntimeGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    with pseudo_terminal(monkeypatch) as screen:
        group.call(speak)

    assert screen.text.splitlines() == [f"{HOST_ALIAS} | {line}" for line in ("one", "two", "end")]


def test_call_timeout_shows_unfinished_line(runtime: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "lazycluster.executor")

    def wait() -> None:
        print("half a line", end="", flush=True)
        wait_until_removed()

    with pytest.raises(FunctionTimeoutError):
        runtime.with_options(timeout=1.5, output="log").call(wait)

    assert f"{HOST_ALIAS}: half a linewaiting" in caplog.messages
