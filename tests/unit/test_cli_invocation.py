"""Options before and after the name of a command, the log, and errors as JSON."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from lazycluster._cli import main
from lazycluster.testing import Ran

if TYPE_CHECKING:
    from lazycluster.testing import FakeHost


def write_hosts(path: Path, *hosts: str) -> str:
    path.write_text("".join(f"Host {host}\n" for host in hosts))
    return str(path)


def hosts_that_ran(fake_host: FakeHost) -> list[str]:
    return sorted(call.host for call in fake_host.calls if isinstance(call, Ran))


# --config ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [True, False])
def test_config_option_before_or_after_command(before: bool, tmp_path: Path, fake_host: FakeHost) -> None:
    config = write_hosts(tmp_path / "config", "one", "two")
    fake_host.on("work")
    words = ["--config", config, "run"] if before else ["run", "--config", config]
    assert main([*words, "work"]) == 0
    assert hosts_that_ran(fake_host) == ["one", "two"]


def test_config_option_after_command_wins(tmp_path: Path, fake_host: FakeHost) -> None:
    before, after = write_hosts(tmp_path / "before", "one"), write_hosts(tmp_path / "after", "two")
    fake_host.on("work")
    assert main(["--config", before, "run", "--config", after, "work"]) == 0
    assert hosts_that_ran(fake_host) == ["two"]


@pytest.mark.parametrize("before", [True, False])
def test_config_option_wins_over_variable(
    before: bool, tmp_path: Path, fake_host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_hosts(tmp_path / "config", "one")
    fake_host.on("work")
    monkeypatch.setenv("LAZYCLUSTER_CONFIG", str(tmp_path / "missing"))
    assert main([*(["--config", config, "run"] if before else ["run", "--config", config]), "work"]) == 0
    assert hosts_that_ran(fake_host) == ["one"]


def test_config_variable_names_hosts(tmp_path: Path, fake_host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAZYCLUSTER_CONFIG", write_hosts(tmp_path / "config", "one"))
    fake_host.on("work")
    assert main(["run", "work"]) == 0
    assert hosts_that_ran(fake_host) == ["one"]


@pytest.mark.parametrize("command", [("list-runtimes",), ("info", "a"), ("expose", "a", "80"), ("shell", "a")])
def test_config_variable_of_missing_file_exits_2(
    command: tuple[str, ...],
    tmp_path: Path,
    fake_host: FakeHost,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LAZYCLUSTER_CONFIG", str(tmp_path / "missing"))
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "LAZYCLUSTER_CONFIG" in error
    assert str(tmp_path / "missing") in error
    assert fake_host.calls == []


@pytest.mark.parametrize("by_variable", [True, False])
def test_config_before_command_holds_for_add_runtime(
    by_variable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config"
    if by_variable:
        monkeypatch.setenv("LAZYCLUSTER_CONFIG", str(config))
    words = [] if by_variable else ["--config", str(config)]
    assert main([*words, "add-runtime", "one", "127.0.0.1"]) == 0
    assert "one" in (tmp_path / "config.lazycluster").read_text()


# list-runtimes --hosts -----------------------------------------------------------------------------------------------


def test_list_runtimes_hosts_option_selects(
    tmp_path: Path, fake_host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_hosts(tmp_path / "config", "one", "two", "three")
    fake_host.host("other").go_down()
    assert main(["list-runtimes", "--config", config, "--json", "--hosts", "two,other"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [record["host"] for record in listed["active"]] == ["two"]
    assert [record["host"] for record in listed["inactive"]] == ["other"]


# -v ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "levels"),
    [
        (["info", "a"], {"WARNING"}),
        (["-v", "info", "a"], {"WARNING", "INFO"}),
        (["info", "a", "-v"], {"WARNING", "INFO"}),
        (["-v", "info", "-v", "a"], {"WARNING", "INFO", "DEBUG"}),
        (["info", "a", "-vv"], {"WARNING", "INFO", "DEBUG"}),
    ],
)
def test_verbose_option_shows_log(
    words: list[str],
    levels: set[str],
    fake_host: FakeHost,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def log_at_each_level(_runtime: object) -> None:
        for level in (logging.DEBUG, logging.INFO, logging.WARNING):
            logging.getLogger("lazycluster.test").log(level, "said \x1b[2Jat %s", logging.getLevelName(level))

    logger = logging.getLogger("lazycluster")
    before = (logger.level, list(logger.handlers))
    monkeypatch.setattr("lazycluster.runtimes.Runtime.print_info", log_at_each_level)
    assert main(words) == 0
    err = capsys.readouterr().err
    shown = {level for level in ("DEBUG", "INFO", "WARNING") if f" said at {level}" in err}
    # Without -v it is `logging` itself that prints warnings, except under pytest, which has handlers of its own.
    assert shown == (levels if len(levels) > 1 else set())
    assert (logger.level, logger.handlers) == before


# Errors under --json -------------------------------------------------------------------------------------------------


def test_json_error_has_kind_host_and_message(fake_host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    fake_host.host("a").go_down()
    assert main(["info", "a", "--json"]) == 1
    out, err = capsys.readouterr()
    record = json.loads(err)
    assert out == ""
    assert err.count("\n") == 1
    assert record["host"] == "a"
    assert record["kind"].endswith("Error")
    assert record["kind"] not in {"Error", "InvalidRuntimeError"}
    assert "lazycluster doctor a" in record["message"]


def test_json_error_of_run_keeps_records(fake_host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    fake_host.host("a").go_down()
    assert main(["run", "--hosts", "a", "--json", "work"]) == 3
    out, err = capsys.readouterr()
    assert json.loads(out)["host"] == "a"
    assert json.loads(err).keys() == {"kind", "message"}


@pytest.mark.parametrize(
    "words",
    [
        ("run", "--json", "--timeout", "x", "--hosts", "a", "work"),
        ("run", "--timeout", "x", "--json", "--hosts", "a", "work"),
        ("run", "--bogus", "--json", "--hosts", "a", "work"),
        ("info", "--json"),
        ("doctor", "--json", "a b"),
    ],
)
def test_json_wrong_call_exits_2(
    words: tuple[str, ...], fake_host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    record = json.loads(err)
    assert (out, record["kind"]) == ("", "UsageError")
    assert record["message"]
    assert fake_host.calls == []


def test_json_word_of_command_is_no_option(fake_host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--bogus", "--", "tool", "--json"]) == 2
    assert "lazycluster: No such option" in capsys.readouterr().err
    assert fake_host.calls == []


def test_json_ctrl_c_is_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_arguments: object, **_keywords: object) -> None:
        raise click.Abort from KeyboardInterrupt()

    monkeypatch.setattr("lazycluster._cli.doctor.Runtime", interrupt)
    assert main(["info", "a", "--json"]) == 130
    assert json.loads(capsys.readouterr().err)["kind"] == "KeyboardInterrupt"


# run --tty and shell -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ("--hosts", "a,b"),
        ("--hosts", "a", "--json"),
        ("--hosts", "a", "--stdin"),
        ("--hosts", "a", "--timeout", "5"),
        ("--hosts", "a", "--group-filter", "gpu"),
    ],
)
def test_run_tty_needs_one_host_and_no_more(
    options: tuple[str, ...], fake_host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--tty", *options, "work"]) == 2
    assert "--tty must " in capsys.readouterr().err
    assert fake_host.calls == []


def test_shell_blank_command_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shell", "a", "--", " "]) == 2
    assert "must not be empty" in capsys.readouterr().err


def test_shell_without_ssh_exits_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["shell", "a"]) == 1
    assert capsys.readouterr().err.startswith("lazycluster: a: the OpenSSH client cannot be started")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc that shows ignored signals")
def test_shell_ssh_ignores_no_signal(tmp_path: Path) -> None:
    """Python ignores SIGPIPE, and a program that it becomes would, too."""
    (tmp_path / "ssh").write_text("#!/bin/sh\nexec grep SigIgn /proc/self/status\n")
    (tmp_path / "ssh").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-m", "lazycluster", "shell", "a"]
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
    assert int(ended.stdout.split()[1], 16) & 1 << (signal.SIGPIPE - 1) == 0, ended.stderr
