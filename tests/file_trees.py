"""Names of files, a tree with everything that a transfer keeps, and the facts that a copy must share with it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

MTIME_SECONDS = 1_000_000_000

FILE_NAMES = [
    "plain",
    "with space",
    " around, and?",
    'it\'s "quoted"',
    "a:b",
    "new\nline, ends\n",
    "-dash",
    "-rf *",
    "*",
    "[a-z]",
    "$HOME $(id) `id`",
    "ünï ✓ 漢",
    "~",
    "~root {a,b}",
    "back\\slash\\n",
    "#a;b&c|d<e>f!g%h",
    "tab\tand\x01",
    "\udcff\udcfe",
    "x" * 255,
]
FILE_NAME_IDS = [ascii(name[:20]) for name in FILE_NAMES]


def write_file(path: Path, content: str = "content") -> Path:
    path.write_text(content)
    return path


def make_full_tree(path: Path) -> Path:
    """Make a directory with everything that a tree can hold and be copied with."""
    for directory in (path, path / "sub", path / "sub" / "empty", path / "read-only"):
        directory.mkdir()
    (path / "script").write_text("#!/bin/sh\n")
    (path / "script").chmod(0o750)
    (path / "sub" / "private").write_text("content")
    (path / "sub" / "private").chmod(0o600)
    (path / "sub" / "nothing").touch()
    (path / "sub" / "nothing").chmod(0o444)
    (path / "read-only" / "in it").write_text("content")
    (path / "to-file").symlink_to("sub/private")
    (path / "to-directory").symlink_to("sub")
    (path / "to-nowhere").symlink_to("/no/such file")
    (path / "sub" / "hard").hardlink_to(path / "script")
    (path / "read-only").chmod(0o555)
    for index, entry in enumerate(sorted(path.rglob("*"), reverse=True)):
        if not entry.is_symlink():
            os.utime(entry, (MTIME_SECONDS + index, MTIME_SECONDS + index))
    os.utime(path, (MTIME_SECONDS, MTIME_SECONDS))
    return path


def describe_tree(path: Path) -> dict[str, tuple[object, ...]]:
    """Return what a copy must have in common with the original: kinds, modes, times, contents and targets of links."""
    found: dict[str, tuple[object, ...]] = {}
    for entry in [path, *path.rglob("*")]:
        status = entry.lstat()
        name = str(entry.relative_to(path))
        if entry.is_symlink():
            found[name] = ("link", str(entry.readlink()))
        else:
            content = entry.read_bytes() if entry.is_file() else b""
            found[name] = (stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode), int(status.st_mtime), content)
    return found
