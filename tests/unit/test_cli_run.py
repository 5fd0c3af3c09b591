"""`lazycluster run` with fake hosts."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from typing import TYPE_CHECKING, Any

import pytest

from lazycluster._cli import main
from lazycluster._cli.run_on_hosts import run_on_hosts
from lazycluster.exceptions import ConnectionLostError
from lazycluster.testing import Ran
from tests.pseudo_terminal import pseudo_terminal, strip_escape_sequences

if TYPE_CHECKING:
    from collections.abc import Callable

    from lazycluster.testing import FakeHost


def run(*arguments: str) -> int:
    return main(["run", "--hosts", "a,b", *arguments])


@pytest.mark.parametrize("words", [("uname", "-s"), ("--", "uname", "-s"), ("uname -s",), ("--", "uname -s")])
def test_run_options_after_command_are_its_own(words: tuple[str, ...], fake_host: FakeHost) -> None:
    fake_host.on("uname -s", stdout="Linux\n")
    assert run(*words) == 0
    assert fake_host.commands == ["uname -s", "uname -s"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--host", "a", "--", "true"), "--hosts"),
        (("--timout", "5", "true"), "--timeout"),
        (("-x", "true"), "-x"),
        (("--stdn", "--", "cat"), "--stdin"),
    ],
)
def test_run_mistyped_option_suggests_right_one(
    words: tuple[str, ...], expected: str, fake_host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *words]) == 2
    err = capsys.readouterr().err
    assert "No such option" in err
    assert expected in err
    assert fake_host.calls == []


@pytest.mark.parametrize("words", [("",), (" ",), ("", ""), ("\n",)])
def test_run_empty_command_exits_2(
    words: tuple[str, ...], fake_host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--", *words) == 2
    assert re.search(r"^lazycluster: .*command .*empty", capsys.readouterr().err, re.MULTILINE)
    assert fake_host.calls == []


def test_run_stdin_option_sends_standard_input(fake_host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    received: dict[str, bytes] = {}
    fake_host.on(lambda asked: received.update({asked.host: asked.stdin}) is None, stdout="")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"some\n\xff\0data")))
    assert run("cat") == 0
    assert received == {"a": b"", "b": b""}
    assert run("--stdin", "cat") == 0
    assert received == {"a": b"some\n\xff\0data", "b": b"some\n\xff\0data"}


def test_run_stdin_option_closed_input_exits_2(
    fake_host: FakeHost, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert run("--stdin", "cat") == 2
    assert "standard input is closed" in capsys.readouterr().err
    assert fake_host.calls == []


def test_run_help_explains_stdin_and_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "give all of it to the command on each host" in text
    assert "1 it ended otherwise on some host, or took longer than --timeout" in text


# The summary ---------------------------------------------------------------------------------------------------------


def test_run_success_summary_has_no_failures(fake_host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    fake_host.on("true")
    assert run("true") == 0
    title, columns, *_ = capsys.readouterr().err.splitlines()
    assert title == "2 hosts, all well"
    assert columns.split("  ") == ["host", "exit status", "seconds"]
    assert main(["run", "--hosts", "a", "true"]) == 0
    assert capsys.readouterr().err.startswith("1 host, all well\n")


def test_run_success_terminal_table_has_three_columns(fake_host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_host.on("true")
    with pseudo_terminal(monkeypatch, name="stderr") as seen:
        assert run("true") == 0
    head = next(line for line in strip_escape_sequences(seen.text).splitlines() if "exit status" in line)
    assert head.count("┃") == 4


def test_run_timeout_is_in_summary(fake_host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    fake_host.on("work", stdout="so far\n", stderr="oops\n", delay=math.inf)
    assert run("--timeout", "0.01", "work") == 1
    out, err = capsys.readouterr()
    assert sorted(out.splitlines()) == ["a | so far", "b | so far"]
    table = err.partition("2 hosts, 2 failed")[2]
    assert "so far" not in table
    assert "oops" not in table
    assert re.search(r"^a +- +\d+\.\d\d +took longer than its timeout of 0\.01 s and was ended$", table, re.MULTILINE)


def test_run_json_timeout_has_output_and_error(fake_host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    fake_host.host("b").on("work", stdout="so far\n", stderr="oops\n", delay=math.inf)
    fake_host.on("work", stdout="done\n")
    assert run("--json", "--timeout", "0.2", "work") == 1
    done, late = map(json.loads, capsys.readouterr().out.splitlines())
    assert done.keys() == {"host", "exit_code", "stdout", "stderr", "seconds"}
    assert late.keys() == {*done.keys(), "error"}
    assert (late["exit_code"], late["stdout"], late["stderr"]) == (None, "so far\n", "oops\n")
    assert "timeout of 0.2 s" in late["error"]


def test_run_json_lost_host_exits_3(fake_host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    fake_host.host("b").on("work", stdout="so far\n", error=ConnectionLostError("b", "work", "gone", started=True))
    fake_host.on("work", exit_code=1)
    assert run("--json", "work") == 3
    _, lost = map(json.loads, capsys.readouterr().out.splitlines())
    assert lost["stdout"] == "so far\n"
    assert "gone" in lost["error"]


def test_run_hosts_option_given_twice_adds_hosts(fake_host: FakeHost) -> None:
    fake_host.on("work")
    assert main(["run", "--hosts", "a", "--hosts", "c,a", "work"]) == 0
    assert {call.host for call in fake_host.calls if isinstance(call, Ran)} == {"a", "c"}


def test_run_filtered_host_has_not_failed(fake_host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    fake_host.host("b").executables = {"tool"}
    fake_host.on("work", stdout="done\n")
    fake_host.on("fail", exit_code=1)
    assert run("--group-filter", "installed=tool", "work") == 0
    out, err = capsys.readouterr()
    assert out == "b | done\n"
    assert "1 host, all well; 1 left out" in err
    assert re.search(r"^a +- +- +left out: not installed: tool$", err, re.MULTILINE)
    assert run("--group-filter", "installed=tool", "--json", "work") == 0
    ended, left_out = map(json.loads, capsys.readouterr().out.splitlines())
    assert ended["exit_code"] == 0
    assert left_out == {"host": "a", "left_out": "not installed: tool"}
    assert run("--group-filter", "installed=tool", "fail") == 1


def test_run_host_lost_during_filter_has_failed(fake_host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    fake_host.host("a").on("ok", error=ConnectionLostError("a", "ok", "gone", started=True))
    fake_host.on("ok", stdout="true\n")
    fake_host.on("work")
    assert run("--group-filter", "true=ok", "work") == 3
    assert "2 hosts, 1 failed" in capsys.readouterr().err


def test_run_json_no_host_left_names_reasons(fake_host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    fake_host.host("a").go_down()
    assert run("--group-filter", "gpu", "--json", "work") == 3
    records = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert [record["host"] for record in records] == ["a", "b"]
    assert records[0].keys() == {"host", "error"}
    assert records[1] == {"host": "b", "left_out": "it has no GPU"}


@pytest.mark.parametrize("as_json", [False, True])
def test_run_ctrl_c_prints_hosts_that_ended(
    as_json: bool, fake_host: FakeHost, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: Any, on_result: Callable[[str, object], object], **keywords: Any) -> object:
        def interrupt_after(host: str, outcome: object) -> None:
            on_result(host, outcome)
            raise KeyboardInterrupt

        return run_on_hosts(*arguments, on_result=interrupt_after, **keywords)

    monkeypatch.setattr("lazycluster._cli.run.run_on_hosts", interrupted)
    fake_host.host("b").on("work", delay=math.inf)
    fake_host.on("work", exit_code=3, stdout="no newline")
    assert run(*(["--json"] if as_json else []), "work") == 130
    out, err = capsys.readouterr()
    assert out == ("" if as_json else "a | no newline\n")
    assert "lazycluster: ending the commands" in err
    rows = [
        re.search(r"^a +3 +\d+\.\d\d +failed$", err, re.MULTILINE),
        re.search(r"^b +- +- +.*\(Ctrl-C\)$", err, re.MULTILINE),
    ]
    assert [row is not None for row in rows] == [not as_json] * 2


# The output ----------------------------------------------------------------------------------------------------------


class FullOutput(io.StringIO):
    """An output to a full disk."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_run_full_disk_prints_error_of_output(
    fake_host: FakeHost, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_host.on("work", stdout="x\n", delay=math.inf)
    monkeypatch.setattr(sys, "stdout", FullOutput())
    assert run("work") == 1
    assert capsys.readouterr().err == "lazycluster: cannot write the output: No space left on device\n"
