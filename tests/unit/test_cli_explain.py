"""`lazycluster explain`: the file that it executes, its output, and its errors."""

from __future__ import annotations

import io
import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lazycluster._cli import main
from lazycluster._functions.outcome import read_outcome

TASKS = """\
import os, sys
from lazycluster import RuntimeTask
from number import NUMBER

def double(number):
    print("doubling", number)
    return 2 * number

second = RuntimeTask("the second one").run_command("echo second")
first = RuntimeTask().run_command("echo first").run_function(double, NUMBER)
again = second
assert sys.argv == [__file__], sys.argv

if __name__ == "__main__":
    raise AssertionError("explain must not run this")
"""


@pytest.fixture(autouse=True)
def _restore_sys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore what the command changes in its process, as `python TASK.py` would: sys.argv and sys.path."""
    monkeypatch.setattr(sys, "argv", [*sys.argv])
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    (tmp_path / "number.py").write_text("NUMBER = 21\n")
    return write_tasks(tmp_path, TASKS)


def write_tasks(directory: Path, text: str) -> Path:
    path = directory / "tasks.py"
    path.write_text(text)
    return path


def test_explain_prints_tasks_in_order_of_definition(tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(tasks), "--host", "gpu-1"]) == 0

    out, err = capsys.readouterr()
    titles = [line for line in out.splitlines() if line.startswith("# Task ")]
    assert titles == ["# Task 'the second one' for gpu-1, 1 step.", "# Task 'first' for gpu-1, 2 steps."]
    assert "\n# 1. run_command: 'echo first'\nlc_ssh 'echo first' </dev/null\n" in out
    assert out.count("ssh -f -N") == 1
    assert out.endswith("\nlc_close\n\n")
    assert "\x1b" not in out
    assert err == ""


@pytest.mark.parametrize("name", ["second", "again", "the second one"])
def test_explain_task_option_selects_one(tasks: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert main(["explain", str(tasks), "--task", name]) == 0
    out = capsys.readouterr().out
    assert (out.count("# Task "), out.count("echo second")) == (1, 2)


def test_explain_unknown_task_lists_names(tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(tasks), "--task", "third"]) == 2
    assert "has no task 'third'; it has: the second one, first" in capsys.readouterr().err


def test_explain_json_has_lines_of_each_step(tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(tasks), "--host", "gpu-1", "--working-dir", "/w", "--json"]) == 0

    explained = json.loads(capsys.readouterr().out)
    assert explained["host"] == "gpu-1"
    assert [(task["task"], task["variable"]) for task in explained["tasks"]] == [
        ("the second one", "second"),
        ("first", "first"),
    ]
    assert explained["tasks"][0]["steps"] == [
        {
            "comment": "1. run_command: 'echo second'",
            "lines": ["lc_ssh <<'EOF'", 'cd /w && export WORKING_DIR="$PWD" || exit', "echo second", "EOF"],
        }
    ]
    assert explained["close"]["lines"] == ["lc_close"]
    assert explained["open"][-1]["lines"] == ["lc_ssh 'mkdir -p -- /w' </dev/null"]


def test_explain_write_payloads_run_without_library(
    tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A payload needs Python only, and the line after it reads the outcome."""
    directory = tmp_path / "it's" / "payloads"
    for _ in range(2):  # the second time it replaces the files
        assert main(["explain", str(tasks), "--task", "first", "--write-payloads", str(directory)]) == 0

    (file,) = directory.iterdir()
    assert file.name == "first-2-double.py"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert f'<"{file}" >"{file.with_suffix(".answer")}"' in capsys.readouterr().out
    bare = (sys.executable, "-I", "-S", "-")
    with file.open("rb") as text:
        ended = subprocess.run(bare, stdin=text, capture_output=True, cwd=tmp_path, check=True)
    assert ended.stderr == b"doubling 21\n"
    assert read_outcome(io.BytesIO(ended.stdout), "gpu-1", "double").unwrap() == 42


def test_explain_write_payloads_failure_exits_1(
    tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", str(tasks), "--write-payloads", str(tasks / "x")]) == 1
    assert "lazycluster: cannot write" in capsys.readouterr().err


def test_explain_unpicklable_function_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "import threading\nfrom lazycluster import RuntimeTask as T\nt = T().run_function(print, threading.Lock())\n"
    arguments = ["explain", str(write_tasks(tmp_path, text)), "--write-payloads", str(tmp_path)]
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith("lazycluster: ")


def test_explain_empty_working_dir_exits_2(tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(tasks), "--working-dir", ""]) == 2
    assert "--working-dir" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["-x", "a b", "ssh://x"])
def test_explain_invalid_host_exits_2(tasks: Path, capsys: pytest.CaptureFixture[str], host: str) -> None:
    assert main(["explain", str(tasks), "--host", host]) == 2
    assert "--host" in capsys.readouterr().err


def test_explain_missing_file_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(tmp_path / "none.py")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_explain_file_without_task_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_tasks(tmp_path, "x = 1\n")
    assert main(["explain", str(file)]) == 1
    out, err = capsys.readouterr()
    advice = "write one there, such as: task = RuntimeTask('name')"
    assert (out, err) == ("", f"lazycluster: {file}: there is no RuntimeTask at its top level; {advice}\n")


def test_explain_file_raises_prints_traceback_of_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_tasks(tmp_path, "def f():\n    return 1 / 0\n\nf()\n")
    assert main(["explain", str(file)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"lazycluster: {file} raised ZeroDivisionError, so there is nothing to explain:"
    assert lines[1:3] == ["Traceback (most recent call last):", f'  File "{file}", line 4, in <module>']
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert main(["explain", str(file), "--json"]) == 1
    assert json.loads(capsys.readouterr().err)["message"].endswith("\nZeroDivisionError: division by zero")
    assert not any("runpy" in line for line in lines)


def test_explain_syntax_error_prints_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_tasks(tmp_path, "x = (\n")
    assert main(["explain", str(file)]) == 1
    err = capsys.readouterr().err
    assert err.partition("\n")[2].startswith(f'  File "{file}", line 1\n')
    assert "SyntaxError" in err


def test_explain_file_that_exits_names_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(write_tasks(tmp_path, "raise SystemExit(3)\n"))]) == 1
    assert "it ended by itself, with exit status 3" in capsys.readouterr().err


CONNECTING_CALLS = {
    "a runtime": "Runtime('gpu-1')",
    "a runtime without a supervisor": "Runtime('gpu-1', resident=False)",
    "a connection": "Connection('gpu-1').run('true')",
    "a password": "Connection('gpu-1', password='x').run('true')",
    "by hand": "__import__('subprocess').run(['ssh', 'gpu-1'])",
    "by hand with a path": "__import__('subprocess').run(['/usr/bin/scp', 'a', 'gpu-1:'])",
}


@pytest.mark.parametrize("call", CONNECTING_CALLS.values(), ids=CONNECTING_CALLS.keys())
def test_explain_file_that_connects_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], call: str
) -> None:
    for name in ("ssh", "scp"):
        fake = tmp_path / name
        fake.write_text(f"#!/bin/sh\necho ran >>'{tmp_path}/ran'\nexit 255\n")
        fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    file = write_tasks(tmp_path, f"from lazycluster import Connection, Runtime\nr = {call}\n")

    assert main(["explain", str(file)]) == 1

    err = capsys.readouterr().err
    assert f'File "{file}", line 2, in <module>' in err
    assert not (tmp_path / "ran").exists()
    assert err.count("Traceback") == 1
    assert "/lazycluster/" not in err
    assert "put what makes a Runtime or a Connection under `if __name__ == '__main__':`" in err


def test_explain_file_may_start_other_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "import subprocess\nfrom lazycluster import RuntimeTask\nsubprocess.run(['true'])\nt = RuntimeTask()\n"
    assert main(["explain", str(write_tasks(tmp_path, text))]) == 0
    subprocess.run(("ssh", "-V"), stderr=subprocess.DEVNULL, check=True)  # and ssh, too, when explain has ended
