"""The check of the prose, `scripts/check-prose`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/check-prose"


def check(path: Path, text: str) -> tuple[int, str]:
    path.write_text(text, encoding="utf-8")
    ended = subprocess.run([sys.executable, SCRIPT, path], capture_output=True, text=True)
    return ended.returncode, ended.stdout


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("a.py", '"""First.\n\nReturn the item, or None if there is\nnone."""\n', 3),
        ("a.py", "x = 1\n# It reads so\n# many bytes.\n", 2),
        ("a.py", 'print("the host gives back a port")\n', 1),
        ("a.py", "# Good.\n# What it finds is kept.\n", 1),
        ("a.md", "# Title\n\nNobody knows the way.\n", 3),
        ("a.sh", "# The session has not a terminal.\n", 1),
    ],
)
def test_check_prose_banned_phrase_names_its_line(tmp_path: Path, name: str, text: str, line: int) -> None:
    exit_code, output = check(tmp_path / name, text)

    assert exit_code == 1
    assert f"{name}:{line}: " in output


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.py", "x = None\nif x is None:\n    print('The host has not answered.')\n"),
        ("a.py", '"""What does the host print?"""\n'),
        ("a.md", "Text.\n\n```text\nthere are none\n```\n"),
    ],
)
def test_check_prose_good_text_passes(tmp_path: Path, name: str, text: str) -> None:
    assert check(tmp_path / name, text) == (0, "")
