"""The treatment of a function's output by default: printed if somebody may see it, otherwise logged."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from lazycluster._step_output import choose_call_output
from tests.pseudo_terminal import pseudo_terminal


def use_ipython(monkeypatch: pytest.MonkeyPatch, shell: object) -> None:
    """Make this process look like one of IPython with a shell, None before IPython has made it."""
    module = ModuleType("IPython")
    vars(module)["get_ipython"] = lambda: shell
    monkeypatch.setitem(sys.modules, "IPython", module)


def test_call_output_in_pipe_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)

    assert choose_call_output(None) == "log"


def test_call_output_on_terminal_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pseudo_terminal(monkeypatch):
        assert choose_call_output(None) == "print"
        assert choose_call_output("log") == "log"


def test_call_output_in_notebook_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    use_ipython(monkeypatch, SimpleNamespace(kernel=object()))

    assert choose_call_output(None) == "print"
    assert choose_call_output("discard") == "discard"


@pytest.mark.parametrize("shell", [None, SimpleNamespace()], ids=["no shell", "shell of a terminal"])
def test_call_output_of_ipython_in_pipe_is_logged(monkeypatch: pytest.MonkeyPatch, shell: object) -> None:
    use_ipython(monkeypatch, shell)

    assert choose_call_output(None) == "log"


def test_call_output_while_ipython_is_imported_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))

    assert choose_call_output(None) == "log"


def test_call_output_without_stdout_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    monkeypatch.setattr(sys, "stdout", None)

    assert choose_call_output(None) == "log"
