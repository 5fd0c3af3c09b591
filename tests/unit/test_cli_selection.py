"""The options that select hosts, and wrong calls, which contact no host."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lazycluster._cli import main
from lazycluster._cli.selection import parse_hosts, parse_requirements
from lazycluster._requirements import Requirements

if TYPE_CHECKING:
    from lazycluster.testing import FakeHost


def run_wrong_call(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that is refused, and return what it prints to standard error."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "1e6", "x"])
def test_timeout_options_invalid_value_exit_2(capsys: pytest.CaptureFixture[str], seconds: str) -> None:
    for command in (["list-runtimes"], ["run", "--hosts", "a", "true"], ["doctor", "a"]):
        assert "'--connect-timeout'" in run_wrong_call(capsys, command[0], "--connect-timeout", seconds, *command[1:])
    if seconds not in {"inf", "1e6"}:
        assert "'--timeout'" in run_wrong_call(capsys, "run", "--timeout", seconds, "--hosts", "a", "true")


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        ((), ()),
        (("a",), ("a",)),
        (("a,b",), ("a", "b")),
        ((" a , b ",), ("a", "b")),
        (("b,a,b",), ("b", "a")),
        (("b", "c,a", "b"), ("b", "c", "a")),
    ],
)
def test_parse_hosts_splits_at_commas(texts: tuple[str, ...], names: tuple[str, ...]) -> None:
    assert parse_hosts(texts) == names


@pytest.mark.parametrize("command", [("run", "true"), ("get", "x"), ("put", "/dev/null")], ids=lambda words: words[0])
@pytest.mark.parametrize("hosts", ["", " ", ",", " , "])
def test_hosts_option_empty_exits_2(
    hosts: str, command: tuple[str, ...], fake_host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    error = run_wrong_call(capsys, command[0], "--hosts", hosts, *command[1:])
    assert repr(hosts) in error
    assert fake_host.calls == []


@pytest.mark.parametrize("hosts", ["alpha,", ",alpha", "alpha,,beta", "alpha, ,beta"])
def test_hosts_option_missing_name_exits_2(hosts: str, fake_host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    error = run_wrong_call(capsys, "run", "--hosts", hosts, "beta", "uname")
    assert repr(hosts) in error
    assert fake_host.calls == []


@pytest.mark.parametrize(
    "arguments",
    [("run", "--hosts", "a,{}", "true"), ("expose", "--", "{}", "80"), ("info", "--", "{}"), ("doctor", "--", "{}")],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize(("host", "expected"), [("-x", "must not begin with a dash"), ("a b", "must not hold spaces")])
def test_host_name_invalid_exits_2(
    arguments: tuple[str, ...], host: str, expected: str, fake_host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in run_wrong_call(capsys, *(word.format(host) for word in arguments))
    assert fake_host.calls == []


@pytest.mark.parametrize("command", [("doctor", "a"), ("explain", "/dev/null")], ids=lambda words: words[0])
def test_python_option_empty_exits_2(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert "empty" in run_wrong_call(capsys, command[0], "--python", "", *command[1:])


def test_parse_requirements_reads_each_filter() -> None:
    texts = ("gpu", "min-memory=16000", "min-cores=1.5", "installed=git", "true=[ -d /x ] && echo true", "installed=sh")
    assert parse_requirements(texts) == Requirements(
        gpu_required=True,
        min_memory=16000,
        min_cpu_cores=1.5,
        installed_executables=("git", "sh"),
        filter_commands=("[ -d /x ] && echo true",),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("min-memory=lots", "min-memory must be a whole number of MB, got 'lots'"),
        ("min-memory", "min-memory must be a whole number of MB, got ''"),
        ("min-memory=1.5", "min-memory must be a whole number of MB, got '1.5'"),
        ("min-cores=1.5.2", "min-cores must be a number, got '1.5.2'"),
        ("gpu=2", "gpu must have no value, got '2'"),
        ("installed=", "installed must be the name of a program, got ''"),
        ("true", "true must be a command, got ''"),
        (
            "memory=1",
            "unknown filter 'memory=1' (filters: gpu, min-memory=MB, min-cores=N, installed=PROGRAM, true=COMMAND)",
        ),
    ],
)
def test_group_filter_invalid_exits_2(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in " ".join(run_wrong_call(capsys, "run", "--group-filter", text, "true").split())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("list-runtime",), "lazycluster: No such command 'list-runtime'. Did you mean list-runtimes?\n"),
        (("add_runtime",), "lazycluster: No such command 'add_runtime'. Did you mean add-runtime?\n"),
        (("xyzzy",), "lazycluster: No such command 'xyzzy'.\n"),
        (("--xyzzy",), "lazycluster: No such option"),
        (("expose", "web-1", "0"), "lazycluster: Invalid value"),
        (("completion", "tcsh"), "lazycluster: Invalid value"),
    ],
)
def test_usage_error_begins_with_program_name(
    arguments: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = run_wrong_call(capsys, *arguments)
    assert lines.startswith("Usage: lazycluster")
    assert f"\n{expected}" in lines
    assert "Error:" not in lines


def test_command_line_without_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    out, err = capsys.readouterr()
    assert "list-runtimes" in out + err
    assert "lazycluster:" not in out + err
