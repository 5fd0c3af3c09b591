"""The records of results: of commands, steps and functions."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazycluster.exceptions import CommandFailedError
from lazycluster.results import Collector, CommandResult, Error, StepResult, Stream, Value

OUT, ERR = Stream.STDOUT, Stream.STDERR


def collect(*pieces: tuple[Stream, bytes]) -> CommandResult:
    collector = Collector()
    for stream, data in pieces:
        collector.write(stream, data)
    return collector.result("x", 0, 0.5)


def test_stream_values_are_file_descriptors() -> None:
    assert (OUT.value, ERR.value) == (1, 2)


def test_command_result_has_output_and_exit_code() -> None:
    result = CommandResult("make", 2, b"out\xff", b"err", 1.5)
    assert (result.command, result.exit_code, result.duration) == ("make", 2, 1.5)
    assert (result.stdout, result.stderr) == ("out\ufffd", "err")
    assert (result.ok, CommandResult("true", 0).ok) == (False, True)


@pytest.mark.parametrize(
    ("stdout", "stderr", "shown"),
    [
        (b"", b"", "stdout='', stderr=''"),
        (b"a" * 60, b"why\n", f"stdout='{'a' * 60}', stderr='why\\n'"),
        (b"a" * 61, b"b" * 10**6, f"stdout='{'a' * 60}'..., stderr='{'b' * 60}'..."),
        ("☃".encode() * 61, b"\xff", f"stdout='{'☃' * 60}'..., stderr='\ufffd'"),
        (b"\x1b[31mred\x1b[0m\x07\r", b"\x9b", "stdout='\\x1b[31mred\\x1b[0m\\x07\\r', stderr='\ufffd'"),
        ("\u009b2J".encode(), b"it's", "stdout='\\x9b2J', stderr=\"it's\""),
    ],
)
def test_command_result_repr_shows_first_60_characters(stdout: bytes, stderr: bytes, shown: str) -> None:
    assert repr(CommandResult("make", 2, stdout, stderr)) == f"CommandResult('make', exit_code=2, {shown})"


def test_command_result_repr_shortens_command() -> None:
    shown = f"CommandResult('{'x' * 60}'..., exit_code=0, stdout='', stderr='')"
    assert repr(CommandResult("x" * 100, 0)) == shown


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        (collect((OUT, b"1\n"), (ERR, b"2\n"), (OUT, b"3\n")), "1\n2\n3"),
        (CommandResult("x", 0, b"a\n\n"), "a\n"),
        (CommandResult("false", 1), "CommandResult('false', exit_code=1, stdout='', stderr='')"),
    ],
)
def test_command_result_pretty_is_text_in_ipython(result: CommandResult, shown: str) -> None:
    class Printer:
        shown = ""

        def text(self, text: str, /) -> None:
            self.shown += text

    printer = Printer()
    result._repr_pretty_(printer, False)
    assert printer.shown == shown


def test_command_result_check_returns_itself_or_raises() -> None:
    success = CommandResult("x", 0)
    assert success.check() is success
    with pytest.raises(CommandFailedError) as caught:
        CommandResult("x", 3, b"out", b"why\n", host="web1").check()
    error = caught.value
    assert (error.host, error.command, error.exit_code, error.output) == ("web1", "x", 3, "outwhy\n")


def test_command_result_check_without_host_names_command_first() -> None:
    with pytest.raises(CommandFailedError, match=r"^`x` ended"):
        CommandResult("x", 3).check()


def test_command_result_equality_ignores_host() -> None:
    assert CommandResult("x", 0, host="web1") == CommandResult("x", 0, host="web2")


def test_command_result_equality_ignores_order_of_pieces() -> None:
    assert collect((OUT, b"a"), (ERR, b"b")) == collect((ERR, b"b"), (OUT, b"a"))


@pytest.mark.parametrize(
    ("exit_code", "number"),
    [
        (0, None),
        (127, None),
        (128, None),
        (130, signal.SIGINT),
        (137, signal.SIGKILL),
        (143, signal.SIGTERM),
        (255, None),
    ],
)
def test_command_result_signal_follows_exit_code(exit_code: int, number: int | None) -> None:
    assert CommandResult("x", exit_code).signal == number


@pytest.mark.parametrize(
    ("pieces", "output"),
    [
        ([], ""),
        ([(OUT, b"a"), (OUT, b"b")], "ab"),
        ([(ERR, b"a")], "a"),
        ([(OUT, b"1\n"), (ERR, b"2\n"), (OUT, b"3\n")], "1\n2\n3\n"),
        ([(OUT, b"\xc3"), (ERR, b"!"), (OUT, b"\xa4")], "!ä"),  # a character in two pieces around another stream
        ([(OUT, b"\xc3"), (ERR, b"!")], "!\ufffd"),  # an incomplete character
        ([(ERR, b"\xe2\x98"), (OUT, b"x"), (ERR, b"\x83")], "x☃"),
    ],
)
def test_output_is_in_order_of_arrival(pieces: list[tuple[Stream, bytes]], output: str) -> None:
    assert collect(*pieces).output == output


def test_output_of_uncollected_result_is_stdout_first() -> None:
    assert CommandResult("x", 0, b"out", b"err").output == "outerr"


@given(st.lists(st.tuples(st.sampled_from(Stream), st.text(max_size=5)), max_size=20))
def test_output_whole_characters_keep_their_order(pieces: list[tuple[Stream, str]]) -> None:
    result = collect(*((stream, text.encode()) for stream, text in pieces))
    assert result.output == "".join(text for _, text in pieces)
    for stream, data in ((OUT, result.stdout), (ERR, result.stderr)):
        assert data == "".join(text for kind, text in pieces if kind is stream)


@given(st.lists(st.tuples(st.sampled_from(Stream), st.binary(min_size=1, max_size=4)), max_size=20))
def test_collector_keeps_every_byte(pieces: list[tuple[Stream, bytes]]) -> None:
    result = collect(*pieces)
    assert result.stdout_bytes == b"".join(data for stream, data in pieces if stream is OUT)
    assert result.stderr_bytes == b"".join(data for stream, data in pieces if stream is ERR)


def test_collector_getvalue_before_the_end() -> None:
    collector = Collector()
    collector.write(OUT, b"a")
    assert collector.getvalue(OUT) == b"a"
    collector.write(OUT, b"b")
    assert (collector.getvalue(OUT), collector.getvalue(ERR)) == (b"ab", b"")
    assert collector.result("x", 3, 0.0).stdout == "ab"


def test_step_result_ok_and_log() -> None:
    output = collect((OUT, b"out"), (ERR, b"err"))
    done = StepResult("run_command(x)", output, 0, 0.5)
    assert (done.ok, done.log, done.stdout, done.stderr) == (True, "outerr", "out", "err")
    assert not StepResult("run_command(x)", output, 0, 0.5, KeyError("x")).ok


def test_outcome_unwrap_returns_value_or_raises() -> None:
    assert Value(3).unwrap() == 3
    assert Value(None) == Value(None)
    error = KeyError("x")
    with pytest.raises(KeyError) as caught:
        Error(error).unwrap()
    assert caught.value is error


def test_error_equality_and_repr_tolerate_any_item() -> None:
    class Array:
        def __eq__(self, other: object) -> bool:
            raise ValueError("ambiguous")

        __hash__ = None  # type: ignore[assignment]  # as arrays have none

    error = ValueError("x")
    assert Error(error, "a", 0, Array()) == Error(error, "a", 0, Array())
    assert len({Error(error, "a", 0, Array())}) == 1
    assert len(repr(Error(error, "a", 0, "long" * 10_000))) < 200


def test_error_of_one_argument_has_no_place() -> None:
    bare = Error(ValueError("x"))
    assert (bare.host, bare.index, bare.item) == ("", None, None)
