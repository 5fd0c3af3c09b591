"""The move of a received file or tree into its place, and the removal of an incomplete one."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import pytest

from lazycluster._files.install import discard, move_into_place, temporary_path_beside

Layout: TypeAlias = "dict[str, str | None]"
"""Content by path; None is a directory, and a text that starts with -> is a link."""


def make_layout(root: Path, layout: Mapping[str, str | None]) -> Path:
    root.mkdir()
    for name, content in layout.items():
        path = root / name
        if content is None:
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if content.startswith("->"):
            path.symlink_to(content[2:])
        else:
            path.write_text(content)
    return root


def read_layout(root: Path) -> Layout:
    found: Layout = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"->{path.readlink()}"
        elif path.is_dir():
            if not any(path.iterdir()):
                found[name] = None
        else:
            found[name] = path.read_text()
    return found


@pytest.mark.parametrize("existing", [None, "old", "->elsewhere"])
def test_move_file_into_place(tmp_path: Path, existing: str | None) -> None:
    root = make_layout(tmp_path / "root", {"temporary": "new"} | ({"target": existing} if existing else {}))
    move_into_place(root / "temporary", root / "target")
    expected = {"target": "new"} if existing != "->elsewhere" else {"target": "->elsewhere", "elsewhere": "new"}
    assert read_layout(root) == expected


def test_move_file_over_link_replaces_its_target(tmp_path: Path) -> None:
    root = make_layout(tmp_path / "root", {"temporary": "new", "real/file": "old", "target": "->real/file"})
    move_into_place(root / "temporary", root / "target")
    assert read_layout(root) == {"target": "->real/file", "real/file": "new"}


def test_move_tree_into_place_keeps_mode_and_links(tmp_path: Path) -> None:
    root = make_layout(tmp_path / "root", {"temporary/a": "1", "temporary/d/b": "2", "temporary/link": "->/x"})
    (root / "temporary").chmod(0o555)
    move_into_place(root / "temporary", root / "target")
    assert stat.S_IMODE((root / "target").stat().st_mode) == 0o555
    (root / "target").chmod(0o755)
    assert read_layout(root) == {"target/a": "1", "target/d/b": "2", "target/link": "->/x"}


def test_move_tree_merges_into_directory(tmp_path: Path) -> None:
    new: Layout = {
        "a": "new a",
        "d/b": "new b",
        "d/new/c": "c",
        "d/empty": None,
        "link": "->new",
        "over-file": "->x",
        "over-link": "text",
        "over-link-to-directory": "->y",
        "readonly/x": "x",
        "opened/x": "x",
    }
    old: Layout = {
        "a": "old a",
        "kept": "kept",
        "d/kept": "kept",
        "link": "->old",
        "over-file": "text",
        "over-link": "->kept",
        "over-link-to-directory": "->d",
        "opened/y": "y",
    }
    temporary = make_layout(tmp_path / "temporary", new)
    target = make_layout(tmp_path / "target", old)
    (temporary / "readonly").chmod(0o555)
    (temporary / "opened").chmod(0o555)
    target.chmod(0o750)
    os.utime(temporary / "readonly", (10**9, 10**9))
    move_into_place(temporary, target)
    assert read_layout(target) == old | new
    assert not temporary.exists()
    assert stat.S_IMODE(target.stat().st_mode) == 0o750
    assert stat.S_IMODE((target / "readonly").stat().st_mode) == 0o555
    assert stat.S_IMODE((target / "opened").stat().st_mode) == 0o755
    assert (target / "readonly").stat().st_mtime == 10**9
    (target / "readonly").chmod(0o755)


def test_move_tree_merges_into_target_of_link(tmp_path: Path) -> None:
    root = make_layout(tmp_path / "root", {"temporary/a": "1", "real/b": "2", "target": "->real"})
    move_into_place(root / "temporary", root / "target")
    assert read_layout(root) == {"real/a": "1", "real/b": "2", "target": "->real"}


@pytest.mark.parametrize(
    ("new", "old", "error", "named_path"),
    [
        ({"temporary": "file"}, {"target": None}, IsADirectoryError, "target"),
        ({"temporary": "->link"}, {"target": None}, IsADirectoryError, "target"),
        ({"temporary/a": "1"}, {"target": "file"}, NotADirectoryError, "target"),
        ({"temporary/0": "1", "temporary/a/b": "1"}, {"target/a": "file"}, NotADirectoryError, "target/a"),
        (
            {"temporary/0": "1", "temporary/a/b": "1"},
            {"target/a": "->real", "real": None},
            NotADirectoryError,
            "target/a",
        ),
        ({"temporary/0": "1", "temporary/a": "1"}, {"target/a/b": "file"}, IsADirectoryError, "target/a"),
        ({"temporary/0": "1", "temporary/z/a": "->x"}, {"target/z/a": None}, IsADirectoryError, "target/z/a"),
        ({"temporary": "file"}, {"x": "file"}, NotADirectoryError, "x/target"),
    ],
    ids=[
        "file over directory",
        "link over directory",
        "tree over file",
        "directory over file inside",
        "directory over link inside",
        "file over directory inside",
        "link over directory inside",
        "parent is a file",
    ],
)
def test_move_conflicting_kinds_changes_nothing(
    tmp_path: Path, new: Layout, old: Layout, error: type[OSError], named_path: str
) -> None:
    root = make_layout(tmp_path / "root", new | old)
    before = read_layout(root)
    with pytest.raises(error) as caught:
        move_into_place(root / "temporary", root / named_path if named_path == "x/target" else root / "target")
    assert caught.value.filename == str(root / named_path)
    assert read_layout(root) == before


def test_move_into_unwritable_directory_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_layout(tmp_path / "root", {"temporary/0": "1", "temporary/d/a": "1", "target/d/b": "2"})
    before = read_layout(root)
    # Modes do not stop root, so the answer of access(2) is replaced.
    monkeypatch.setattr(os, "access", lambda path, mode: path != root / "target/d")
    with pytest.raises(PermissionError) as caught:
        move_into_place(root / "temporary", root / "target")
    assert caught.value.filename == str(root / "target/d")
    assert read_layout(root) == before


def test_move_failed_rename_restores_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_layout(tmp_path / "root", {"temporary/d/a": "1", "target": None})
    (root / "temporary/d").chmod(0o555)

    def fail(self: Path, target: Path) -> Path:
        raise OSError(errno.EXDEV, "Invalid cross-device link", str(self), None, str(target))

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError) as caught:
        move_into_place(root / "temporary", root / "target")
    assert caught.value.errno == errno.EXDEV
    assert stat.S_IMODE((root / "temporary/d").stat().st_mode) == 0o555
    (root / "temporary/f").write_text("x")
    discard(root / "temporary/d")
    with pytest.raises(OSError) as caught:
        move_into_place(root / "temporary", root / "target")
    assert caught.value.errno == errno.EXDEV
    assert read_layout(root) == {"temporary/f": "x", "target": None}


def test_temporary_path_for_loop_of_links_is_error(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError) as caught:
        temporary_path_beside(tmp_path / "loop")
    assert caught.value.errno == errno.ELOOP


@pytest.mark.parametrize(
    "name",
    ["file", "x" * 255, "ü" * 127, "☃" * 85, ".hidden", "-rf", "new\nline", "sp ace", "back\\slash"],
    ids=[
        "plain",
        "255 bytes",
        "254 bytes",
        "255 bytes of 85 characters",
        "hidden",
        "dash",
        "new line",
        "space",
        "backslash",
    ],
)
def test_temporary_path_is_new_hidden_and_valid(tmp_path: Path, name: str) -> None:
    first, second = temporary_path_beside(tmp_path / name), temporary_path_beside(tmp_path / name)
    assert first != second
    assert first.parent == tmp_path.resolve()
    assert first.name.startswith(f".{name[:20]}")
    assert len(os.fsencode(first.name)) <= 143
    assert not first.exists()
    first.touch()


def test_temporary_path_is_beside_target_of_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_layout(tmp_path.resolve() / "root", {"directory": None, "far/file": "x", "link": "->far/file"})
    (root / "to-directory").symlink_to("directory")
    assert temporary_path_beside(root / "directory").parent == root / "directory"
    assert temporary_path_beside(root / "to-directory").parent == root / "directory"
    assert temporary_path_beside(root / "link").parent == root / "far"
    monkeypatch.chdir(root)
    assert temporary_path_beside(Path("new")).parent == root
    assert temporary_path_beside(Path()).parent == root
    assert temporary_path_beside(Path("..")).parent == root.parent


def test_move_tree_merges_from_within_target(tmp_path: Path) -> None:
    target = make_layout(tmp_path / "target", {"a": "old", "b": "old"})
    temporary = temporary_path_beside(target)
    make_layout(temporary, {"a": "new", "c/d": "new"})
    move_into_place(temporary, target)
    assert read_layout(target) == {"a": "new", "b": "old", "c/d": "new"}


@pytest.mark.parametrize(
    "received",
    [{}, {"temporary": "file"}, {"temporary": "->kept"}, {"temporary": "->keep"}, {"temporary/a/b/c": "1"}],
    ids=["nothing", "file", "link to file", "link to directory", "tree"],
)
def test_discard_removes_incomplete_file_or_tree(tmp_path: Path, received: Layout) -> None:
    root = make_layout(tmp_path / "root", received | {"kept": "kept", "keep/x": "x"})
    if (root / "temporary/a").exists():
        (root / "temporary/out").symlink_to("../keep")
        (root / "temporary/a/b").chmod(0)
        (root / "temporary/a").chmod(0o500)
    discard(root / "temporary")
    assert read_layout(root) == {"kept": "kept", "keep/x": "x"}
