"""What transfers do on the host, where another host that shares its file system does the same."""

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
"""mv(1), which is late once: just before, another host has moved its tree to the same place."""


def tree(*files: str) -> bytes:
    """Return a stream of files in a directory, and of what tells that it is whole."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in (*files, END):
            member = tarfile.TarInfo(name)
            member.size = len(b"ours")
            member.mode = 0o644
            archive.addfile(member, io.BytesIO(b"ours"))
    return stream.getvalue()


def write(root: Path, *files: str) -> None:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("theirs")


@pytest.mark.parametrize("shell", [["sh"], ["bash"], ["busybox", "sh"]], ids=lambda shell: shell[0])
@pytest.mark.parametrize("raced", ["./site", "./site/a", "./site/a/b"])
def test_a_directory_that_another_host_makes_meanwhile_is_merged_into(
    tmp_path: Path, raced: str, shell: list[str]
) -> None:
    """Each way down: at the top, and at what is new in a tree that is there."""
    if shutil.which(shell[0]) is None:
        pytest.skip(f"no {shell[0]} here")
    place, programs, other = tmp_path / "place", tmp_path / "bin", tmp_path / "other"
    place.mkdir()
    programs.mkdir()
    (programs / "mv").write_text(MV)
    (programs / "mv").chmod(0o755)
    write(other, "both", "a/b/both", "a/theirs")
    if raced != "./site":
        write(place / raced.rpartition("/")[0], "old")

    done = subprocess.run(
        [*shell, "-c", RECEIVE_TREE, "sh", ".", "site", "0123", END, "755"],
        input=tree("both", "a/b/both", "a/b/deep/er", "a/ours"),
        capture_output=True,
        cwd=place,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "RACED": raced, "OTHER": str(other)},
    )

    assert (done.returncode, done.stderr) == (0, b"")
    assert not other.exists(), "the other host was not there in between"
    inside = raced.removeprefix("./site").strip("/")
    theirs = {str(Path(inside, name)): "theirs" for name in ("both", "a/b/both", "a/theirs")}
    old = {} if raced == "./site" else {str(Path(inside).parent / "old"): "theirs"}
    ours = dict.fromkeys(("both", "a/b/both", "a/b/deep/er", "a/ours"), "ours")
    found = {str(path.relative_to(place / "site")): path.read_text() for path in place.rglob("*") if path.is_file()}
    assert found == {**theirs, **old, **ours}
    assert [path.name for path in place.iterdir()] == ["site"], "something was left"
    assert not list(place.rglob(".*"))
