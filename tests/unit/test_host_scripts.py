"""Texts for a host's shell: the place of a file that is sent, the environment of a Python, the end of processes."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lazycluster._functions.python_finder import exec_python_script, run_python_script
from lazycluster._model.command import Command
from lazycluster._ssh.host_scripts import RESOLVE_FILE_TARGET, STOP_MARKED_PROCESSES, grace_tenths, text
from lazycluster._ssh.shell import Script

SHELLS = [found for name in ("dash", "bash", "ksh", "mksh") if (found := shutil.which(name))]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").touch()
    for name, target in {
        "link": "sub/file",
        "absolute": str(tmp_path / "sub" / "file"),
        "twice": "link",
        "missing": "sub/new",
        "line\n": "sub/new\n",
        "nowhere": "no/new",
        "directory": "sub",
        "circle": "circle",
    }.items():
        (tmp_path / name).symlink_to(target)
    (tmp_path / "sub" / "name").symlink_to("../plain")
    return tmp_path


def resolve_target(shell: str, tree: Path, target: str) -> subprocess.CompletedProcess[bytes]:
    script = f'set -- "$1" name\n{RESOLVE_FILE_TARGET}'
    return subprocess.run([shell, "-c", script, "-", target], cwd=tree, capture_output=True, check=False, timeout=30)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("target", "directory", "name"),
    [
        ("plain", "", "plain"),
        ("sub/file", "/sub", "file"),
        ("link", "/sub", "file"),
        ("absolute", "/sub", "file"),
        ("twice", "/sub", "file"),
        ("missing", "/sub", "new"),
        ("line\n", "/sub", "new\n"),
        ("directory", "", "plain"),  # in the directory the name is a link again
    ],
)
def test_resolve_file_target_follows_links(shell: str, tree: Path, target: str, directory: str, name: str) -> None:
    ended = resolve_target(shell, tree, target)
    assert (ended.stdout.decode(), ended.stderr) == (f"{tree}{directory}\0{name}\0", b"")


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("target", "reason"), [("nowhere", "no such directory: no"), ("circle", "too many symbolic links: {tree}/circle")]
)
def test_resolve_file_target_broken_link_fails(shell: str, tree: Path, target: str, reason: str) -> None:
    ended = resolve_target(shell, tree, target)
    assert (ended.returncode, ended.stdout) == (1, b"")
    assert ended.stderr.decode() == reason.format(tree=tree) + "\n"


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("supervisor", [False, True])
def test_start_python_keeps_exported_variables(shell: str, supervisor: bool) -> None:
    """An exported variable of the user keeps its value though the shell text has one of the same name."""
    program = "import os; print(*(os.environ[name] for name in os.environ['NAMES'].split()))"
    names = ["p", "f", "d", "n", "x", "code", "list", "name", "file", "directory"]
    start = exec_python_script(sys.executable, program)
    if supervisor:
        start = run_python_script(
            sys.executable, program, mark="MARK=1", temp_dir_prefix="lazycluster-none.", grace=5.0
        )
    command = Command(start, stdin=None, login_shell=False)
    script = Script(command, output_mark="mark", process_mark="job", inline=supervisor)

    ended = subprocess.run(
        [shell, "-c", script.text()],
        env={**dict.fromkeys(names, "theirs"), "NAMES": " ".join(names), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )

    assert ended.stdout == f"mark<{' '.join(['theirs'] * len(names))}\nmark=0;"


# Processes with a mark -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("grace", "tenths"), [(0, "0"), (0.5, "5"), (0.25, "3"), (5, "50"), (5.0, "50"), (0.7, "7")])
def test_grace_tenths_is_a_whole_number_rounded_up(grace: float, tenths: str) -> None:
    assert grace_tenths(grace) == tenths


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(("ignores", "tenths", "ended_by"), [(False, 600, signal.SIGTERM), (True, 3, signal.SIGKILL)])
def test_stop_marked_kills_after_grace(
    shell: str, ignores: bool, tenths: int, ended_by: signal.Signals, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir(0o500)
    mark = f"{secrets.token_hex(8)}."
    trap = "trap '' TERM; " if ignores else ""
    text = f"{trap}echo ready; while :; do sleep 0.05; done"
    with subprocess.Popen(
        ["sh", "-c", text], env={"PATH": os.environ["PATH"], "A_MARK": mark}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        words = shlex.join([f"A_MARK={mark}", str(tenths), str(tmp_path / "a")])
        started = time.monotonic()
        script = f"set -- {words}\n{STOP_MARKED_PROCESSES}"
        with subprocess.Popen([shell, "-c", script], stderr=subprocess.PIPE) as stopping:
            assert process.wait(20) == -ended_by
            assert stopping.communicate(timeout=20)[1] == b""
        assert stopping.returncode == 0
    assert time.monotonic() - started >= (0.3 if ignores else 0), "a lower bound: the host's shell keeps the time"
    assert not (tmp_path / "a").exists()


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("shell", SHELLS)
def test_stop_marked_spares_children_of_a_trap(shell: str, tmp_path: Path) -> None:
    mark = f"{secrets.token_hex(8)}."
    # The `sleep 60` becomes an orphan when its parent has cleaned up, and gets SIGTERM only then.
    clean_up = f"setsid sleep 60 & sleep 0.5 && touch {tmp_path}/cleaned; exit"
    text = f"trap '{clean_up}' TERM; echo ready; while :; do sleep 0.05; done"
    with subprocess.Popen(
        ["sh", "-c", text], env={"PATH": os.environ["PATH"], "A_MARK": mark}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        script = f"set -- A_MARK={mark} 300\n{STOP_MARKED_PROCESSES}"
        ended = subprocess.run([shell, "-c", script], capture_output=True, check=False, timeout=20)
        assert (ended.returncode, ended.stderr) == (0, b"")
    assert (tmp_path / "cleaned").exists()


@pytest.mark.skipif(shutil.which("fish") is None or shutil.which("strace") is None, reason="needs fish and strace")
def test_login_shell_probe_creates_no_home(tmp_path: Path) -> None:
    """fish creates its directories in a home directory that is missing, if it may."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "SHELL": str(shutil.which("fish"))}
    trace = tmp_path / "trace"
    tracing = ("strace", "-f", "-qq", "-e", "trace=mkdir,mkdirat", "-e", "status=successful", "-o", str(trace))

    subprocess.run([*tracing, "sh", "-c", text("doctor_login_shell")], env=environment, capture_output=True, check=True)

    created = re.findall(r'mkdir(?:at)?\((?:AT_FDCWD, )?"([^"]*)"', trace.read_text())
    assert [path for path in created if not path.startswith(str(tmp_path))] == []
