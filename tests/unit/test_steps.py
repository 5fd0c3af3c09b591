"""Steps: frozen records, and their names."""

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


def work() -> None: ...


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (work, "work"),
        (len, "len"),
        (Callee, "Callee"),
        (Callee().method, "Callee.method"),
        (Callee(), "Callee"),
        (functools.partial(work), "work"),
        (functools.partial(Callee()), "Callee"),
        (functools.partial(functools.partial(len)), "len"),
        ((lambda: None), "<lambda>"),
    ],
)
def test_function_name_of_any_callable(function: Callable[..., object], name: str) -> None:
    assert function_name(function) == name
    assert RunFunction(function).name == name


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
        (RunFunction(work, (1,), {"password": "x"}), "run_function(work)"),
    ],
)
def test_describe_step_is_one_short_line(step: Step, text: str) -> None:
    assert describe_step(step) == text


def test_run_function_repr_hides_arguments() -> None:
    shown = repr(RunFunction(work, ("s3cret",), {"password": "s3cret"}))
    assert "s3cret" not in shown
    assert "password" not in shown


@pytest.mark.parametrize("step", [RunCommand("x"), SendFile(Path("/a")), GetFile("a", Path("/b")), RunFunction(work)])
def test_step_fields_are_frozen(step: Step) -> None:
    for field in attrs.fields(type(step)):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(step, field.name, None)
