"""Steps: frozen records, and what they are called."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from lazycluster.steps import GetFile, RunCommand, RunFunction, SendFile, Step, describe_step, function_name


class Callee:
    def method(self) -> None: ...

    def __call__(self) -> None: ...


def function() -> None: ...


@pytest.mark.parametrize(
    ("what", "name"),
    [
        (function, "function"),
        (len, "len"),
        (Callee, "Callee"),
        (Callee().method, "Callee.method"),
        (Callee(), "Callee"),
        (functools.partial(function), "function"),
        (functools.partial(Callee()), "Callee"),
        (functools.partial(functools.partial(len)), "len"),
        ((lambda: None), "<lambda>"),
    ],
)
def test_function_name(what: Callable[..., object], name: str) -> None:
    assert function_name(what) == name
    assert RunFunction(what).name == name


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (RunCommand("nproc"), "run_command(nproc)"),
        (RunCommand("a\n  b\tc"), "run_command(a b c)"),
        (RunCommand("x" * 100), f"run_command({'x' * 100})"),
        (RunCommand("x" * 101), f"run_command({'x' * 99}…)"),
        (SendFile(Path("/a/b c")), "send_file(/a/b c)"),
        (SendFile(Path("/a"), "b"), "send_file(/a, b)"),
        (GetFile("a", Path("/b")), "get_file(a, /b)"),
        (RunFunction(function, (1,), {"password": "x"}), "run_function(function)"),
    ],
)
def test_describe(step: Step, text: str) -> None:
    assert describe_step(step) == text


def test_the_arguments_of_a_function_are_not_shown() -> None:
    shown = repr(RunFunction(function, ("s3cret",), {"password": "s3cret"}))
    assert "s3cret" not in shown
    assert "password" not in shown


@pytest.mark.parametrize(
    "step", [RunCommand("x"), SendFile(Path("/a")), GetFile("a", Path("/b")), RunFunction(function)]
)
def test_steps_are_frozen(step: Step) -> None:
    for field in attrs.fields(type(step)):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(step, field.name, None)
