"""A tree arrives on a host while another host that shares its file system receives the same tree."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from lazycluster._ssh.host_scripts import RECEIVE_TREE

END = "end"
MV = f"""\
#!/bin/sh
for last; do :; done
if [ "$last" = "$RACED" ] && [ -d "$OTHER" ]; then {shutil.which("cp")} -R "$OTHER" "$last" && rm -r "$OTHER"; fi
exec {shutil.which("mv")} "$@"
"""
"""A mv(1) that is too late once: just before it, another host has moved its tree to the same place."""


def pack_tree(*files: str) -> bytes:
    """Return a tar stream of files, with the marker of its end."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in (*files, END):
            member = tarfile.TarInfo(name)
            member.size = len(b"sent")
            member.mode = 0o644
            archive.addfile(member, io.BytesIO(b"sent"))
    return stream.getvalue()


def write_files(root: Path, *files: str) -> None:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("other")


@pytest.mark.parametrize("shell", [["sh"], ["bash"], ["busybox", "sh"]], ids=lambda shell: shell[0])
@pytest.mark.parametrize("raced", ["./site", "./site/a", "./site/a/b"])
def test_receive_tree_merges_into_directory_of_other_host(tmp_path: Path, raced: str, shell: list[str]) -> None:
    """The other host makes the directory at the top, or a new one in an existing tree."""
    if shutil.which(shell[0]) is None:
        pytest.skip(f"there is no {shell[0]} on this machine")
    place, programs, other = tmp_path / "place", tmp_path / "bin", tmp_path / "other"
    place.mkdir()
    programs.mkdir()
    (programs / "mv").write_text(MV)
    (programs / "mv").chmod(0o755)
    write_files(other, "both", "a/b/both", "a/other")
    if raced != "./site":
        write_files(place / raced.rpartition("/")[0], "old")

    done = subprocess.run(
        [*shell, "-c", RECEIVE_TREE, "sh", ".", "site", "0123", END, "755"],
        input=pack_tree("both", "a/b/both", "a/b/deep/er", "a/sent"),
        capture_output=True,
        cwd=place,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "RACED": raced, "OTHER": str(other)},
    )

    assert (done.returncode, done.stderr) == (0, b"")
    assert not other.exists(), "mv(1) found the tree of the other host"
    inside = raced.removeprefix("./site").strip("/")
    of_other_host = {str(Path(inside, name)): "other" for name in ("both", "a/b/both", "a/other")}
    old = {} if raced == "./site" else {str(Path(inside).parent / "old"): "other"}
    sent = dict.fromkeys(("both", "a/b/both", "a/b/deep/er", "a/sent"), "sent")
    found = {str(path.relative_to(place / "site")): path.read_text() for path in place.rglob("*") if path.is_file()}
    assert found == {**of_other_host, **old, **sent}
    assert [path.name for path in place.iterdir()] == ["site"], "something was left"
    assert not list(place.rglob(".*"))
