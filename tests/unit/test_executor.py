"""The executor of steps, over a fake host."""

from __future__ import annotations

import io
import logging
import math
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import pytest

from lazycluster._functions.function_call import FunctionCall
from lazycluster._functions.outcome import read_outcome
from lazycluster._invoke import OutcomeFile, invoke, serialize
from lazycluster._model.command import Command
from lazycluster._model.running_command import collecting
from lazycluster._model.watch import UNWATCHED, Watch
from lazycluster._prefixed_output import PrefixedOutput
from lazycluster._transports.host_context import HostContext
from lazycluster._waiting import CancelToken
from lazycluster.exceptions import (
    CommandFailedError,
    CommandStoppedError,
    CommandTimeoutError,
    FunctionNotSerializableError,
    RemoteFunctionError,
    TransferError,
)
from lazycluster.executor import Executor
from lazycluster.results import Collector, CommandResult, StepResult, Stream
from lazycluster.steps import GetFile, RunCommand, RunFunction, SendFile, Step, describe_step
from lazycluster.testing import FakeHost
from lazycluster.testing._fake_transport import FakeTransport
from lazycluster.testing.calls import Called, Fetched, Ran, Sent
from tests.unit.fake_transports import connect_to_fake_host
from tests.waiting import wait_until


@pytest.fixture
def transport(fake_host: FakeHost) -> FakeTransport:
    """A transport of a fake host with a directory `/w`; commands print nothing unless a test says otherwise."""
    fake_host.strict = False
    fake_host.path("/w").mkdir()
    return connect_to_fake_host()


def execute(
    transport: FakeTransport,
    step: Step,
    *,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    cancel_token: CancelToken | None = None,
    debug: bool = False,
    prefixed_output: PrefixedOutput | None = None,
) -> tuple[StepResult, list[OutcomeFile]]:
    outcomes: list[OutcomeFile] = []
    executor = Executor(HostContext(transport, cwd, env or {}, cancel_token), debug, prefixed_output)
    return executor.execute(step, outcomes.append, Collector()), outcomes


OUT, ERR = Stream.STDOUT, Stream.STDERR


class PiecesTransport(FakeTransport):
    """Each command prints some pieces in their order; `FakeHost.on()` has one text for each stream."""

    def __init__(self, transport: FakeTransport, *pieces: tuple[Stream, bytes]) -> None:
        super().__init__(transport.machine, transport.host)
        self.pieces = pieces

    def run(self, command: Command, watch: Watch = UNWATCHED) -> CommandResult:
        assert watch.collector is not None
        for stream, data in self.pieces:
            collecting(watch.collector, watch)(stream, data)
        return super().run(command, watch)


# Lambdas are sent by value.
add = lambda a, b=0: a + b  # noqa: E731
print_word = lambda: (print("printed"), sys.stderr.flush(), 7)[-1]  # noqa: E731
fail = lambda: int("no number")  # noqa: E731


def test_execute_command_returns_output_and_exit_code(fake_host: FakeHost, transport: FakeTransport) -> None:
    pieces = PiecesTransport(transport, (OUT, b"out\n"), (ERR, b"err\n"), (OUT, b"more\n"))
    result, outcomes = execute(pieces, RunCommand("make", 5.0), cwd="/w", env={"A": "1"})
    assert fake_host.calls == [Ran("web1", "make", "/w", {"A": "1"}, timeout=5.0)]
    assert (result.ok, result.exit_code, result.error, outcomes) == (True, 0, None, [])
    assert result.step == "run_command(make)"
    assert (result.log, result.stdout, result.stderr) == ("out\nerr\nmore\n", "out\nmore\n", "err\n")
    assert result.duration >= 0


def test_execute_command_failed_has_error(fake_host: FakeHost, transport: FakeTransport) -> None:
    fake_host.on("make", stdout="no rule\n", exit_code=2)
    result, _ = execute(transport, RunCommand("make"))
    assert (result.ok, result.exit_code, result.log) == (False, 2, "no rule\n")
    assert isinstance(result.error, CommandFailedError)
    assert (result.error.command, result.error.exit_code, result.error.output) == ("make", 2, "no rule\n")


def test_execute_command_broken_off_keeps_output(fake_host: FakeHost, transport: FakeTransport) -> None:
    error = CommandTimeoutError("web1", "make", 1.0)
    fake_host.on("make", stdout="so far", error=error)
    result, _ = execute(transport, RunCommand("make"))
    assert (result.ok, result.exit_code, result.log, result.error) == (False, None, "so far", error)


@pytest.mark.parametrize("error", [ValueError("x"), OSError(5, "x"), KeyError("x"), RuntimeError()])
def test_execute_any_exception_is_in_the_result(
    error: Exception, fake_host: FakeHost, transport: FakeTransport
) -> None:
    fake_host.on("x", error=error)
    result, _ = execute(transport, RunCommand("x"))
    assert result.error is error


def test_execute_keyboard_interrupt_is_raised(transport: FakeTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(transport, "put", raise_interrupt)
    with pytest.raises(KeyboardInterrupt):
        execute(transport, SendFile(Path("/a")))


@pytest.mark.parametrize(
    ("step", "call"),
    [
        (SendFile(Path("a"), "b"), Sent("web1", Path("a"), "b", "/w")),
        (SendFile(Path("a")), Sent("web1", Path("a"), None, "/w")),
        (GetFile("a", Path("b")), Fetched("web1", "a", Path("b"), "/w")),
    ],
)
def test_execute_file_step_calls_the_transport(
    step: Step,
    call: Sent | Fetched,
    fake_host: FakeHost,
    transport: FakeTransport,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (Path("a"), fake_host.path("/w/a")):
        path.touch()
    result, outcomes = execute(transport, step, cwd="/w", env={"A": "1"})
    assert fake_host.calls == [call]
    assert (result.ok, result.exit_code, result.log, outcomes) == (True, None, "", [])


def test_execute_file_step_failed_has_error(fake_host: FakeHost, transport: FakeTransport) -> None:
    error = TransferError("web1", "fetch", "a", "no such file")
    fake_host.go_down(error)
    result, _ = execute(transport, GetFile("a", Path("/b")))
    assert (result.ok, result.error, result.exit_code, result.log) == (False, error, None, "")


def test_execute_function_keeps_its_outcome(fake_host: FakeHost, transport: FakeTransport) -> None:
    result, outcomes = execute(transport, RunFunction(add, (1,), {"b": 2}), cwd="/w", env={"A": "1"})
    assert (result.ok, result.exit_code, result.error, result.log) == (True, None, None, "")
    (call,) = fake_host.calls
    assert isinstance(call, Called)
    assert (call.function, call.cwd, call.env, call.timeout) == ("<lambda>", "/w", {"A": "1"}, None)
    assert [read_outcome(outcome, "web1", "f").unwrap() for outcome in outcomes] == [3]


def test_execute_function_output_is_the_log(transport: FakeTransport) -> None:
    result, _ = execute(transport, RunFunction(print_word))
    assert result.log == "printed\n"


def test_execute_function_that_raises_has_error(transport: FakeTransport) -> None:
    result, outcomes = execute(transport, RunFunction(fail))
    assert isinstance(result.error, ValueError)
    assert len(outcomes) == 1
    with pytest.raises(ValueError):
        read_outcome(outcomes[0], "web1", "f").unwrap()


def test_execute_function_unserializable_calls_nothing(fake_host: FakeHost, transport: FakeTransport) -> None:
    result, outcomes = execute(transport, RunFunction(add, (threading.Lock(),)))
    assert isinstance(result.error, FunctionNotSerializableError)
    assert (fake_host.calls, outcomes) == ([], [])


def test_execute_function_host_error_keeps_no_outcome(fake_host: FakeHost, transport: FakeTransport) -> None:
    error = RemoteFunctionError("web1", "f", "died")
    fake_host.go_down(error)
    result, outcomes = execute(transport, RunFunction(add))
    assert result.error is error
    assert outcomes == []


def test_execute_cancelled_stops_the_command(fake_host: FakeHost, transport: FakeTransport) -> None:
    cancel_token = CancelToken()
    fake_host.on("wait", delay=math.inf)
    results: list[StepResult] = []
    thread = threading.Thread(
        target=lambda: results.append(execute(transport, RunCommand("wait"), cancel_token=cancel_token)[0])
    )
    thread.start()
    assert wait_until(lambda: fake_host.commands == ["wait"], 10)
    cancel_token.cancel()
    thread.join(10)
    cancel_token.close()
    assert [type(result.error) for result in results] == [CommandStoppedError]


@pytest.mark.parametrize("step", [RunCommand("make"), SendFile(Path("/a")), GetFile("a", Path("/b")), RunFunction(add)])
def test_execute_after_cancel_starts_no_step(step: Step, fake_host: FakeHost, transport: FakeTransport) -> None:
    cancel_token = CancelToken()
    cancel_token.cancel()
    result, outcomes = execute(transport, step, cancel_token=cancel_token)
    cancel_token.close()
    assert isinstance(result.error, CommandStoppedError)
    assert (result.error.host, result.error.command) == ("web1", describe_step(step))
    assert (fake_host.calls, outcomes, result.log) == ([], [], "")


def test_executor_repr_hides_environment(transport: FakeTransport) -> None:
    shown = repr(Executor(HostContext(transport, env={"TOKEN": "s3cret"})))
    assert "s3cret" not in shown
    assert "TOKEN" not in shown


# Output as it comes -------------------------------------------------------------------------------------------------


@pytest.fixture
def umlaut_transport(transport: FakeTransport) -> FakeTransport:
    """Every command prints one letter in two pieces, and a warning between them."""
    return PiecesTransport(transport, (OUT, b"a \xc3"), (ERR, b"warning\n"), (OUT, b"\xa4\nb\xff"), (OUT, b"\nrest"))


def test_debug_prints_output_as_it_comes(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, umlaut_transport: FakeTransport
) -> None:
    caplog.set_level(logging.DEBUG, "lazycluster")
    execute(umlaut_transport, RunCommand("x"), debug=True)
    assert capsys.readouterr() == ("a warning\nä\nb\ufffd\nrest", "")
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", b"a warning\n\\xe4\nb\\ufffd\nrest"),
        ("latin-1", b"a warning\n\xe4\nb\\ufffd\nrest"),
        ("utf-8", "a warning\nä\nb\ufffd\nrest".encode()),
    ],
)
def test_debug_unencodable_output_is_escaped(
    encoding: str, shown: bytes, monkeypatch: pytest.MonkeyPatch, umlaut_transport: FakeTransport
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    result, _ = execute(umlaut_transport, RunCommand("x"), debug=True)
    assert raw.getvalue() == shown
    assert (result.ok, result.log) == (True, "a warning\nä\nb\ufffd\nrest")


class BrokenPipe(io.StringIO):
    """A pipe without a reader."""

    def write(self, _text: str, /) -> int:
        raise BrokenPipeError


def closed_stream() -> io.TextIOWrapper:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    stream.close()
    return stream


UNWRITABLE = pytest.mark.parametrize(
    "stdout", [None, closed_stream(), BrokenPipe()], ids=["missing", "closed", "broken pipe"]
)


@UNWRITABLE
def test_debug_output_unwritable_is_no_failure(
    stdout: io.TextIOBase | None, monkeypatch: pytest.MonkeyPatch, umlaut_transport: FakeTransport
) -> None:
    monkeypatch.setattr(sys, "stdout", stdout)
    result, _ = execute(umlaut_transport, RunCommand("x"), debug=True)
    assert (result.ok, result.error, result.log) == (True, None, "a warning\nä\nb\ufffd\nrest")


@UNWRITABLE
def test_prefixed_output_unwritable_is_no_failure(
    stdout: io.TextIOBase | None, monkeypatch: pytest.MonkeyPatch, umlaut_transport: FakeTransport
) -> None:
    monkeypatch.setattr(sys, "stdout", stdout)
    output = PrefixedOutput(["web1", "w2"])
    result, _ = execute(umlaut_transport, RunCommand("x"), prefixed_output=output)
    assert (result.ok, result.error, result.log) == (True, None, "a warning\nä\nb\ufffd\nrest")


def test_prefixed_output_of_each_step_ends_with_newline(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, umlaut_transport: FakeTransport
) -> None:
    caplog.set_level(logging.DEBUG, "lazycluster")
    output = PrefixedOutput(["web1", "other"])
    for _ in range(2):
        execute(umlaut_transport, RunCommand("x"), prefixed_output=output)
    assert capsys.readouterr() == (
        "web1  | a ä\nweb1  | b\ufffd\nweb1  | rest\n" * 2,
        "web1  | warning\n" * 2,
    )
    assert caplog.messages == []


def test_output_without_debug_is_logged_by_line(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, umlaut_transport: FakeTransport
) -> None:
    caplog.set_level(logging.DEBUG, "lazycluster")
    execute(umlaut_transport, RunCommand("x"))
    assert caplog.messages == ["web1: warning", "web1: a ä", "web1: b\ufffd", "web1: rest"]
    assert capsys.readouterr() == ("", "")


def test_output_with_logger_off_is_not_logged(
    caplog: pytest.LogCaptureFixture, umlaut_transport: FakeTransport
) -> None:
    caplog.set_level(logging.INFO, "lazycluster")
    result, _ = execute(umlaut_transport, RunCommand("x"))
    assert caplog.messages == []
    assert result.log == "a warning\nä\nb\ufffd\nrest"


@pytest.mark.parametrize("step", [SendFile(Path("a")), GetFile("a", Path("b"))])
@pytest.mark.parametrize("debug", [True, False])
def test_progress_bar_without_terminal_prints_nothing(
    step: Step,
    debug: bool,
    transport: FakeTransport,
    fake_host: FakeHost,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (Path("a"), fake_host.path("~/a")):
        path.touch()
    result, _ = execute(transport, step, debug=debug)
    assert result.ok
    assert capsys.readouterr() == ("", "")


# The file of an outcome -----------------------------------------------------------------------------------------------


def test_outcome_file_has_no_name_on_disk(
    transport: FakeTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_much(_call: FunctionCall, outcome: IO[bytes], _watch: Watch) -> None:
        outcome.write(b"x" * (3 << 20))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(transport, "call", write_much)
    outcome = invoke(HostContext(transport), serialize(add, (1,), {}), UNWATCHED)
    outcome.seek(0)
    assert list(tmp_path.iterdir()) == []
    assert len(outcome.read()) == 3 << 20
    outcome.close()
