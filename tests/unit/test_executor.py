"""The one interpreter of steps, over a fake host."""

from __future__ import annotations

import io
import logging
import math
import sys
import tempfile
import threading
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
from lazycluster.results import CommandResult, StepResult, Stream
from lazycluster.steps import GetFile, RunCommand, RunFunction, SendFile, Step, describe_step
from lazycluster.testing import FakeHost
from lazycluster.testing._fake_transport import FakeTransport
from lazycluster.testing.calls import Called, Fetched, Ran, Sent
from tests.waiting import wait_until


@pytest.fixture
def transport(fake_host: FakeHost) -> FakeTransport:
    """A fake host with a directory `/w`, on which a command prints nothing unless a test says otherwise."""
    fake_host.strict = False
    fake_host.path("/w").mkdir()
    return fake_host._connect("web1", {})


def execute(transport: FakeTransport, step: Step, **keywords: object) -> tuple[StepResult, list[OutcomeFile]]:
    kept: list[OutcomeFile] = []
    shown = {name: keywords.pop(name) for name in ("debug", "prefixed_output") if name in keywords}
    context = HostContext(transport, **keywords)  # type: ignore[arg-type]  # the keywords of a table
    executor = Executor(context, **shown)  # type: ignore[arg-type]  # as above
    return executor.execute(step, kept.append), kept


OUT, ERR = Stream.STDOUT, Stream.STDERR


class PiecesTransport(FakeTransport):
    """Each command prints some pieces in their order; `FakeHost.on()` has one text for each stream."""

    pieces: tuple[tuple[Stream, bytes], ...]

    def run(self, command: Command, watch: Watch = UNWATCHED) -> CommandResult:
        assert watch.collector is not None
        for stream, data in self.pieces:
            collecting(watch.collector, watch)(stream, data)
        return super().run(command, watch)


def pieces_transport(fake_host: FakeHost, *pieces: tuple[Stream, bytes]) -> PiecesTransport:
    fake_host.strict = False
    transport = PiecesTransport(fake_host._state, "web1")
    transport.pieces = pieces
    return transport


# A lambda, whose module cannot be imported under another Python: sent by value.
add = lambda a, b=0: a + b  # noqa: E731
speak = lambda: (print("spoken"), sys.stderr.flush(), 7)[-1]  # noqa: E731
fail = lambda: int("no number")  # noqa: E731


def test_a_command(fake_host: FakeHost) -> None:
    transport = pieces_transport(fake_host, (OUT, b"out\n"), (ERR, b"err\n"), (OUT, b"more\n"))
    fake_host.path("/w").mkdir()
    result, kept = execute(transport, RunCommand("make", 5.0), cwd="/w", env={"A": "1"})
    assert fake_host.calls == [Ran("web1", "make", "/w", {"A": "1"}, timeout=5.0)]
    assert (result.ok, result.exit_code, result.error, kept) == (True, 0, None, [])
    assert result.step == "run_command(make)"
    assert (result.log, result.stdout, result.stderr) == ("out\nerr\nmore\n", "out\nmore\n", "err\n")
    assert 0 <= result.duration < 10


def test_a_command_that_fails(fake_host: FakeHost, transport: FakeTransport) -> None:
    fake_host.on("make", stdout="no rule\n", exit_code=2)
    result, _ = execute(transport, RunCommand("make"))
    assert (result.ok, result.exit_code, result.log) == (False, 2, "no rule\n")
    assert isinstance(result.error, CommandFailedError)
    assert str(result.error) == "web1: `make` ended with exit status 2.\n    no rule"


def test_what_a_command_printed_before_it_broke_off_is_kept(fake_host: FakeHost, transport: FakeTransport) -> None:
    error = CommandTimeoutError("web1", "make", 1.0)
    fake_host.on("make", stdout="so far", error=error)
    result, _ = execute(transport, RunCommand("make"))
    assert (result.ok, result.exit_code, result.log, result.error) == (False, None, "so far", error)


@pytest.mark.parametrize("error", [ValueError("x"), OSError(5, "x"), KeyError("x"), RuntimeError()])
def test_any_exception_is_in_the_record(error: Exception, fake_host: FakeHost, transport: FakeTransport) -> None:
    fake_host.on("x", error=error)
    result, _ = execute(transport, RunCommand("x"))
    assert result.error is error


def test_an_interrupt_is_not_swallowed(transport: FakeTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(transport, "put", interrupt)
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
def test_files(
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
    result, kept = execute(transport, step, cwd="/w", env={"A": "1"})
    assert fake_host.calls == [call]
    assert (result.ok, result.exit_code, result.log, kept) == (True, None, "", [])


def test_a_file_that_fails(fake_host: FakeHost, transport: FakeTransport) -> None:
    error = TransferError("web1", "fetch", "a", "no such file")
    fake_host.go_down(error)
    result, _ = execute(transport, GetFile("a", Path("/b")))
    assert (result.ok, result.error, result.exit_code, result.log) == (False, error, None, "")


def test_a_function(fake_host: FakeHost, transport: FakeTransport) -> None:
    result, kept = execute(transport, RunFunction(add, (1,), {"b": 2}), cwd="/w", env={"A": "1"})
    assert (result.ok, result.exit_code, result.error, result.log) == (True, None, None, "")
    (call,) = fake_host.calls
    assert isinstance(call, Called)
    assert (call.function, call.cwd, call.env, call.timeout) == ("<lambda>", "/w", {"A": "1"}, None)
    assert [read_outcome(outcome, "web1", "f").unwrap() for outcome in kept] == [3]


def test_what_a_function_prints_is_its_log(transport: FakeTransport) -> None:
    result, _ = execute(transport, RunFunction(speak))
    assert result.log == "spoken\n"


def test_a_function_that_raises(transport: FakeTransport) -> None:
    result, kept = execute(transport, RunFunction(fail))
    assert isinstance(result.error, ValueError)
    assert "no number" in str(result.error)
    assert len(kept) == 1
    with pytest.raises(ValueError, match="no number"):
        read_outcome(kept[0], "web1", "f").unwrap()


def test_a_function_that_cannot_be_sent(fake_host: FakeHost, transport: FakeTransport) -> None:
    result, kept = execute(transport, RunFunction(add, (threading.Lock(),)))
    assert isinstance(result.error, FunctionNotSerializableError)
    assert (fake_host.calls, kept) == ([], [])


def test_a_function_whose_host_fails(fake_host: FakeHost, transport: FakeTransport) -> None:
    error = RemoteFunctionError("web1", "f", "died")
    fake_host.go_down(error)
    result, kept = execute(transport, RunFunction(add))
    assert result.error is error
    assert kept == []


def test_the_cancellation_reaches_the_host(fake_host: FakeHost, transport: FakeTransport) -> None:
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
    assert [str(result.error) for result in results] == ["web1: `wait` was stopped before it ended."]


@pytest.mark.parametrize("step", [RunCommand("make"), SendFile(Path("/a")), GetFile("a", Path("/b")), RunFunction(add)])
def test_after_the_cancellation_no_step_begins(step: Step, fake_host: FakeHost, transport: FakeTransport) -> None:
    cancel_token = CancelToken()
    cancel_token.cancel()
    result, kept = execute(transport, step, cancel_token=cancel_token)
    cancel_token.close()
    assert isinstance(result.error, CommandStoppedError)
    assert str(result.error) == f"web1: `{describe_step(step)}` was stopped before it ended."
    assert (fake_host.calls, kept, result.log) == ([], [], "")


def test_the_environment_is_not_shown(transport: FakeTransport) -> None:
    shown = repr(Executor(HostContext(transport, env={"TOKEN": "s3cret"})))
    assert "s3cret" not in shown
    assert "TOKEN" not in shown


# Output while it is produced ------------------------------------------------------------------------------------------


@pytest.fixture
def umlaut_transport(fake_host: FakeHost) -> FakeTransport:
    """A host on which every command prints one letter in two pieces, and a warning between them."""
    return pieces_transport(fake_host, (OUT, b"a \xc3"), (ERR, b"warning\n"), (OUT, b"\xa4\nb\xff"), (OUT, b"\nrest"))


def test_debug_prints_as_it_comes(
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
def test_what_standard_output_cannot_show_is_escaped(
    encoding: str, shown: bytes, monkeypatch: pytest.MonkeyPatch, umlaut_transport: FakeTransport
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    result, _ = execute(umlaut_transport, RunCommand("x"), debug=True)
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
    stdout: io.TextIOBase | None, monkeypatch: pytest.MonkeyPatch, umlaut_transport: FakeTransport
) -> None:
    monkeypatch.setattr(sys, "stdout", stdout)
    result, _ = execute(umlaut_transport, RunCommand("x"), debug=True)
    assert (result.ok, result.error, result.log) == (True, None, "a warning\nä\nb\ufffd\nrest")


@UNSEEN
def test_prefixed_output_unseen_is_no_failure_of_the_step(
    stdout: io.TextIOBase | None, monkeypatch: pytest.MonkeyPatch, umlaut_transport: FakeTransport
) -> None:
    monkeypatch.setattr(sys, "stdout", stdout)
    output = PrefixedOutput(["web1", "w2"])
    result, _ = execute(umlaut_transport, RunCommand("x"), prefixed_output=output)
    assert (result.ok, result.error, result.log) == (True, None, "a warning\nä\nb\ufffd\nrest")


def test_prefixed_output_of_each_step_ends_with_a_newline(
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


def test_otherwise_lines_are_logged(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, umlaut_transport: FakeTransport
) -> None:
    caplog.set_level(logging.DEBUG, "lazycluster")
    execute(umlaut_transport, RunCommand("x"))
    assert caplog.messages == ["web1: warning", "web1: a ä", "web1: b\ufffd", "web1: rest"]
    assert capsys.readouterr() == ("", "")


def test_without_debug_logging_nothing_is_decoded(
    caplog: pytest.LogCaptureFixture, umlaut_transport: FakeTransport
) -> None:
    caplog.set_level(logging.INFO, "lazycluster")
    result, _ = execute(umlaut_transport, RunCommand("x"))
    assert caplog.messages == []
    assert result.log == "a warning\nä\nb\ufffd\nrest"


@pytest.mark.parametrize("step", [SendFile(Path("a")), GetFile("a", Path("b"))])
@pytest.mark.parametrize("debug", [True, False])
def test_no_bar_without_a_terminal(
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


def test_an_outcome_has_no_name(transport: FakeTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_much(_call: FunctionCall, outcome: IO[bytes], _watch: Watch) -> None:
        outcome.write(b"x" * (3 << 20))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(transport, "call", write_much)
    outcome = invoke(HostContext(transport), serialize(add, (1,), {}), UNWATCHED)
    outcome.seek(0)
    assert list(tmp_path.iterdir()) == []
    assert len(outcome.read()) == 3 << 20
    outcome.close()
