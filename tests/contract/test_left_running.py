"""Processes that a command leaves running: they end with the runtime, and a warning names them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.contract.conftest import TransportCase


def left_running(program: str) -> str:
    """Return a command that starts a program in the background, and ends when it has begun."""
    name = program.partition(" ")[0]
    return f"nohup {program} >/dev/null 2>&1 & until ps -o command= -p $! | grep -q '^{name} '; do :; done"


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_close_names_what_command_left_running(case: TransportCase, caplog: pytest.LogCaptureFixture) -> None:
    runtime = case.runtime()
    runtime.run(case.script(left_running("sleep 1234")))
    with caplog.at_level(logging.WARNING, "lazycluster"):
        runtime.close()
    if case.fake is not None:  # it starts no processes
        assert warnings_of(caplog) == []
        return
    assert warnings_of(caplog) == [f"{runtime.host}: ended what commands had left running: `sleep 1234`"]


def test_close_without_left_processes_warns_of_nothing(case: TransportCase, caplog: pytest.LogCaptureFixture) -> None:
    runtime = case.runtime()
    runtime.run(case.script("true"))
    runtime.call(abs, -1)
    with caplog.at_level(logging.WARNING, "lazycluster"):
        runtime.close()
    assert warnings_of(caplog) == []


def test_close_left_process_is_named_on_one_line(case: TransportCase, caplog: pytest.LogCaptureFixture) -> None:
    runtime = case.runtime()
    runtime.run(case.script(left_running("tail -f /dev/null '\x1b[2J\n'")))
    with caplog.at_level(logging.WARNING, "lazycluster"):
        runtime.close()
    if case.fake is None:
        (text,) = warnings_of(caplog)
        assert "`tail -f /dev/null " in text
        assert text.isprintable()


def test_close_many_left_processes_names_some(case: TransportCase, caplog: pytest.LogCaptureFixture) -> None:
    runtime = case.runtime()
    runtime.run(case.script("; ".join(left_running(f"sleep 12{number}") for number in range(15))))
    with caplog.at_level(logging.WARNING, "lazycluster"):
        runtime.close()
    if case.fake is None:
        (text,) = warnings_of(caplog)
        assert text.count("`sleep 12") == 10
        assert text.endswith(", and others")
