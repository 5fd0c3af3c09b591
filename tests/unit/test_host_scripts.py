"""Where a file that is sent will be, as the host's shell tells it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from lazycluster._ssh.host_scripts import PREPARE_FILE

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
    script = f'set -- "$1" name\n{PREPARE_FILE}'
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
