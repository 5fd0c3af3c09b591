"""The record of a command: its checks, its text for a shell, its title."""

from __future__ import annotations

import pytest

from lazycluster._model.command import Command


def test_command_of_text_is_its_shell_text_and_title() -> None:
    command = Command("echo $HOME", cwd="/w", env={"A": "1"}, timeout=3)
    assert (command.program, command.shell_text, command.title) == ("echo $HOME", "echo $HOME", "echo $HOME")


def test_command_of_words_is_quoted_and_no_builtin() -> None:
    command = Command(["echo", "$HOME", "a b"])
    assert command.program == ("echo", "$HOME", "a b")
    assert command.title == "echo '$HOME' 'a b'"
    assert command.shell_text == "exec echo '$HOME' 'a b'"


@pytest.mark.parametrize(
    "program", ["", "a\0b", None, 3, b"ls", [], [""], ["ls", 3], ["ls", "a\0b"], ["-l"], "x" * (1 << 20) + "y"]
)
def test_command_bad_program_raises_value_error(program: object) -> None:
    with pytest.raises(ValueError, match=r"^command must "):
        Command(program)  # type: ignore[arg-type]  # as a caller without a type checker


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"env": {"a-b": "1"}}, "environment variable"),
        ({"env": {"A": 1}}, "environment variable"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"cwd": ""}, "cwd"),
        ({"cwd": "a\0b"}, "cwd"),
    ],
)
def test_command_bad_option_raises_value_error(options: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Command("true", **options)  # type: ignore[arg-type]  # as above


def test_command_stdin_of_list_raises_value_error() -> None:
    with pytest.raises(
        ValueError, match=r"^stdin must be text, bytes or a binary file, got list$"
    ):  # it may be a secret
        Command("cat", stdin=["s3cret"])  # type: ignore[arg-type]  # as above


@pytest.mark.parametrize("stdin", ["ü\udcff", bytearray(b"\xc3\xbc\xff"), memoryview(b"\xc3\xbc\xff")])
def test_command_stdin_becomes_bytes(stdin: str | bytes) -> None:
    assert Command("cat", stdin=stdin).stdin == b"\xc3\xbc\xff"


def test_command_repr_hides_program_stdin_and_environment() -> None:
    shown = repr(Command("echo s3cret", env={"TOKEN": "s3cret"}, stdin=b"s3cret", title="a title"))
    assert "s3cret" not in shown
    assert "TOKEN" not in shown
