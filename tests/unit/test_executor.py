"""The one interpreter of steps, over a stand-in for a host."""

from __future__ import annotations

import io
import logging
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO

import pytest

from lazycluster._functions.function_call import FunctionCall
from lazycluster._functions.outcome import read_outcome
from lazycluster._invoke import OutcomeFile, invoke, serialize
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
from lazycluster.results import StepResult, Stream
from lazycluster.steps import GetFile, RunCommand, RunFunction, SendFile, Step, describe_step
from tests.unit.stub_transport import RecordedCall, StubResult, StubTransport, stub_stdout

OUT, ERR = Stream.STDOUT, Stream.STDERR


def execute(transport: StubTransport, step: Step, **keywords: object) -> tuple[StepResult, list[OutcomeFile]]:
    kept: list[OutcomeFile] = []
    shown = {name: keywords.pop(name) for name in ("debug", "prefixed_output") if name in keywords}
    context = HostContext(transport, **keywords)  # type: ignore[arg-type]  # the keywords of a table
    executor = Executor(context, **shown)  # type: ignore[arg-type]  # as above
    return executor.execute(step, kept.append), kept


# A lambda, whose module cannot be imported under another Python: sent by value.
add = lambda a, b=0: a + b  # noqa: E731
speak = lambda: (print("spoken"), sys.stderr.flush(), 7)[-1]  # noqa: E731
fail = lambda: int("no number")  # noqa: E731


def test_a_command() -> None:
    transport = StubTransport(results={"make": StubResult(((OUT, b"out\n"), (ERR, b"err\n"), (OUT, b"more\n")))})
    result, kept = execute(transport, RunCommand("make", 5.0), cwd="/w", env={"A": "1"})
    assert transport.calls == [RecordedCall("make", "/w", {"A": "1"}, 5.0)]
    assert (result.ok, result.exit_code, result.error, kept) == (True, 0, None, [])
    assert result.step == "run_command(make)"
    assert (result.log, result.stdout, result.stderr) == ("out\nerr\nmore\n", "out\nmore\n", "err\n")
    assert 0 <= result.duration < 10


def test_a_command_that_fails() -> None:
    transport = StubTransport(results={"make": stub_stdout("no rule\n", 2)})
    result, _ = execute(transport, RunCommand("make"))
    assert (result.ok, result.exit_code, result.log) == (False, 2, "no rule\n")
    assert isinstance(result.error, CommandFailedError)
    assert str(result.error) == "web1: `make` ended with exit status 2.\n    no rule"


def test_what_a_command_printed_before_it_broke_off_is_kept() -> None:
    error = CommandTimeoutError("web1", "make", 1.0)
    transport = StubTransport(results={"make": StubResult(((OUT, b"so far"),), error=error)})
    result, _ = execute(transport, RunCommand("make"))
    assert (result.ok, result.exit_code, result.log, result.error) == (False, None, "so far", error)


@pytest.mark.parametrize("error", [ValueError("x"), OSError(5, "x"), KeyError("x"), RuntimeError()])
def test_any_exception_is_in_the_record(error: Exception) -> None:
    result, _ = execute(StubTransport(results={"x": StubResult(error=error)}), RunCommand("x"))
    assert result.error is error


def test_an_interrupt_is_not_swallowed() -> None:
    class Interrupted(StubTransport):
        def put(self, *_: object, **__: object) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(Interrupted(), SendFile(Path("/a")))


@pytest.mark.parametrize(
    ("step", "call"),
    [
        (SendFile(Path("/a"), "b"), RecordedCall("put /a b", "/w")),
        (SendFile(Path("/a")), RecordedCall("put /a None", "/w")),
        (GetFile("a", Path("/b")), RecordedCall("get a /b", "/w")),
    ],
)
def test_files(step: Step, call: RecordedCall) -> None:
    transport = StubTransport()
    result, kept = execute(transport, step, cwd="/w", env={"A": "1"})
    assert transport.calls == [call]
    assert (result.ok, result.exit_code, result.log, kept) == (True, None, "", [])


def test_a_file_that_fails() -> None:
    error = TransferError("web1", "fetch", "a", "no such file")
    result, _ = execute(StubTransport(results={"get a /b": StubResult(error=error)}), GetFile("a", Path("/b")))
    assert (result.ok, result.error, result.exit_code, result.log) == (False, error, None, "")


def test_a_function() -> None:
    transport = StubTransport()
    result, kept = execute(transport, RunFunction(add, (1,), {"b": 2}), cwd="/w", env={"A": "1"})
    assert (result.ok, result.exit_code, result.error, result.log) == (True, None, None, "")
    assert transport.calls == [RecordedCall("<lambda>", "/w", {"A": "1"}, None)]
    assert [read_outcome(outcome, "web1", "f").unwrap() for outcome in kept] == [3]


def test_what_a_function_prints_is_its_log() -> None:
    result, _ = execute(StubTransport(), RunFunction(speak))
    assert result.log == "spoken\n"


def test_a_function_that_raises() -> None:
    result, kept = execute(StubTransport(), RunFunction(fail))
    assert isinstance(result.error, ValueError)
    assert "no number" in str(result.error)
    assert len(kept) == 1
    with pytest.raises(ValueError, match="no number"):
        read_outcome(kept[0], "web1", "f").unwrap()


def test_a_function_that_cannot_be_sent() -> None:
    transport = StubTransport()
    result, kept = execute(transport, RunFunction(add, (threading.Lock(),)))
    assert isinstance(result.error, FunctionNotSerializableError)
    assert (transport.calls, kept) == ([], [])


def test_a_function_whose_host_fails() -> None:
    error = RemoteFunctionError("web1", "f", "died")
    result, kept = execute(StubTransport(results={"<lambda>": StubResult(error=error)}), RunFunction(add))
    assert result.error is error
    assert kept == []


def test_the_cancellation_reaches_the_host() -> None:
    cancel_token, transport = CancelToken(), StubTransport()
    results: list[StepResult] = []
    thread = threading.Thread(
        target=lambda: results.append(execute(transport, RunCommand("wait"), cancel_token=cancel_token)[0])
    )
    thread.start()
    assert transport.waiting_event.wait(10)
    cancel_token.cancel()
    thread.join(10)
    cancel_token.close()
    assert [str(result.error) for result in results] == ["web1: `wait` was stopped before it ended."]


@pytest.mark.parametrize("step", [RunCommand("make"), SendFile(Path("/a")), GetFile("a", Path("/b")), RunFunction(add)])
def test_after_the_cancellation_no_step_begins(step: Step) -> None:
    cancel_token, transport = CancelToken(), StubTransport()
    cancel_token.cancel()
    result, kept = execute(transport, step, cancel_token=cancel_token)
    cancel_token.close()
    assert isinstance(result.error, CommandStoppedError)
    assert str(result.error) == f"web1: `{describe_step(step)}` was stopped before it ended."
    assert (transport.calls, kept, result.log) == ([], [], "")


def test_the_environment_is_not_shown() -> None:
    shown = repr(Executor(HostContext(StubTransport(), env={"TOKEN": "s3cret"})))
    assert "s3cret" not in shown
    assert "TOKEN" not in shown


# Output while it is produced ------------------------------------------------------------------------------------------

UMLAUT = StubResult(((OUT, b"a \xc3"), (ERR, b"warning\n"), (OUT, b"\xa4\nb\xff"), (OUT, b"\nrest")))


def test_debug_prints_as_it_comes(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "lazycluster")
    execute(StubTransport(results={"x": UMLAUT}), RunCommand("x"), debug=True)
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
def test_what_standard_output_cannot_show_is_escaped(
    encoding: str, shown: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    result, _ = execute(StubTransport(results={"x": UMLAUT}), RunCommand("x"), debug=True)
    assert raw.getvalue() == shown
    assert (result.ok, result.log) == (True, "a warning\nä\nb\ufffd\nrest")


class Broken(io.StringIO):
    """What a pipe is that nobody reads any more."""

    def write(self, _text: str, /) -> int:
        raise BrokenPipeError


def closed() -> io.TextIOWrapper:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    stream.close()
    return stream


UNSEEN = pytest.mark.parametrize("stdout", [None, closed(), Broken()], ids=["none", "closed", "broken"])


@UNSEEN
def test_a_step_does_not_fail_because_nobody_sees_its_output(
    stdout: io.TextIOBase | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", stdout)
    result, _ = execute(StubTransport(results={"x": UMLAUT}), RunCommand("x"), debug=True)
    assert (result.ok, result.error, result.log) == (True, None, "a warning\nä\nb\ufffd\nrest")


@UNSEEN
def test_prefixed_output_unseen_is_no_failure_of_the_step(
    stdout: io.TextIOBase | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", stdout)
    output = PrefixedOutput(["web1", "w2"])
    result, _ = execute(StubTransport(results={"x": UMLAUT}), RunCommand("x"), prefixed_output=output)
    assert (result.ok, result.error, result.log) == (True, None, "a warning\nä\nb\ufffd\nrest")


def test_prefixed_output_of_each_step_ends_with_a_newline(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "lazycluster")
    output = PrefixedOutput(["web1", "other"])
    for _ in range(2):
        execute(StubTransport(results={"x": UMLAUT}), RunCommand("x"), prefixed_output=output)
    assert capsys.readouterr() == (
        "web1  | a ä\nweb1  | b\ufffd\nweb1  | rest\n" * 2,
        "web1  | warning\n" * 2,
    )
    assert caplog.messages == []


def test_otherwise_lines_are_logged(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "lazycluster")
    execute(StubTransport(results={"x": UMLAUT}), RunCommand("x"))
    assert caplog.messages == ["web1: warning", "web1: a ä", "web1: b\ufffd", "web1: rest"]
    assert capsys.readouterr() == ("", "")


def test_without_debug_logging_nothing_is_decoded(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lazycluster")
    result, _ = execute(StubTransport(results={"x": UMLAUT}), RunCommand("x"))
    assert caplog.messages == []
    assert result.log == "a warning\nä\nb\ufffd\nrest"


@pytest.mark.parametrize("step", [SendFile(Path("/a")), GetFile("a", Path("/b"))])
@pytest.mark.parametrize("debug", [True, False])
def test_no_bar_without_a_terminal(step: Step, debug: bool, capsys: pytest.CaptureFixture[str]) -> None:
    execute(StubTransport(), step, debug=debug)
    assert capsys.readouterr() == ("", "")


# The file of an outcome -----------------------------------------------------------------------------------------------


def test_an_outcome_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    class Prolific(StubTransport):
        def call(self, call: FunctionCall, outcome: IO[bytes], watch: Watch = UNWATCHED) -> None:
            outcome.write(b"x" * (3 << 20))

    outcome = invoke(HostContext(Prolific()), serialize(add, (1,), {}), UNWATCHED)
    outcome.seek(0)
    assert list(tmp_path.iterdir()) == []
    assert len(outcome.read()) == 3 << 20
    outcome.close()
