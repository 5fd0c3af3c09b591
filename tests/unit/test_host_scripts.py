"""Texts for a host's shell: where a file that is sent will be, and in which environment a Python starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lazycluster._functions.python_finder import exec_python_script, run_python_script
from lazycluster._ssh.host_scripts import RESOLVE_FILE_TARGET
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


def prepare(shell: str, tree: Path, target: str) -> subprocess.CompletedProcess[bytes]:
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
        ("directory", "", "plain"),  # into it, where the name is a link again
    ],
)
def test_a_link_to_a_file_is_followed(shell: str, tree: Path, target: str, directory: str, name: str) -> None:
    ended = prepare(shell, tree, target)
    assert (ended.stdout.decode(), ended.stderr) == (f"{tree}{directory}\0{name}\0", b"")


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("target", "reason"), [("nowhere", "no such directory: no"), ("circle", "too many symbolic links: {tree}/circle")]
)
def test_a_link_to_nothing(shell: str, tree: Path, target: str, reason: str) -> None:
    ended = prepare(shell, tree, target)
    assert (ended.returncode, ended.stdout) == (1, b"")
    assert ended.stderr.decode() == reason.format(tree=tree) + "\n"


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("supervisor", [False, True])
def test_start_python_keeps_exported_variables(shell: str, supervisor: bool) -> None:
    """The shell text has variables of its own; an exported one of the user with such a name would change."""
    program = "import os; print(*(os.environ[name] for name in os.environ['NAMES'].split()))"
    names = ["p", "f", "d", "n", "x", "code", "list", "name", "file", "directory"]
    start = exec_python_script(sys.executable, program)
    if supervisor:
        start = run_python_script(sys.executable, program, mark="MARK=1", temp_dir_prefix="lazycluster-none.")
    script = Script(
        start,
        output_mark="mark",
        process_mark="job",
        title="",
        raw_stdin=True,
        login_shell=False,
        new_shell=not supervisor,
    )

    ended = subprocess.run(
        [shell, "-c", script.text()],
        env={**dict.fromkeys(names, "theirs"), "NAMES": " ".join(names), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )

    assert ended.stdout == f"mark<{' '.join(['theirs'] * len(names))}\nmark=0;"
