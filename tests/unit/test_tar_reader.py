"""Tar streams from hosts: unsafe members, damage, and the streams of the usual tars."""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import struct
import subprocess
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazycluster._files.tar_reader import extract_tar
from lazycluster.exceptions import BrokenArchiveError, ConnectError, LazyclusterError, UnsafeArchiveError
from tests.unit.test_tar_writer import exact_link, make_hard_tree, restore_write_permission, snapshot, stamp, tar

__all__ = ["tar"]

Member: TypeAlias = tuple[tarfile.TarInfo, bytes]
Format: TypeAlias = Literal[0, 1, 2]


def member(
    name: str,
    kind: bytes = tarfile.REGTYPE,
    *,
    data: bytes = b"",
    link: str = "",
    mode: int = 0o644,
    mtime: float = 1_000_000_000,
    pax: dict[str, str] | None = None,
) -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname, info.mode, info.mtime = kind, len(data), link, mode, mtime
    info.pax_headers = pax or {}
    return info, data


def file(name: str, data: bytes = b"x", *, mode: int = 0o644, mtime: float = 1_000_000_000) -> Member:
    return member(name, data=data, mode=mode, mtime=mtime)


def directory(name: str, mode: int = 0o755, mtime: int = 1_000_000_000) -> Member:
    return member(name, tarfile.DIRTYPE, mode=mode, mtime=mtime)


def symlink(name: str, link: str) -> Member:
    return member(name, tarfile.SYMTYPE, link=link)


def hardlink(name: str, link: str) -> Member:
    return member(name, tarfile.LNKTYPE, link=link)


def stream(*members: Member, style: Format = tarfile.GNU_FORMAT) -> bytes:
    return raw(*members, style=style) + bytes(1024)


def raw(*members: Member, style: Format = tarfile.GNU_FORMAT) -> bytes:
    """Return the members without an end of the archive."""
    return b"".join(
        info.tobuf(style, "utf-8", "surrogateescape") + data + bytes(-len(data) % 512) for info, data in members
    )


@pytest.fixture
def into(tmp_path: Path) -> Path:
    path = tmp_path / "outer" / "into"
    path.mkdir(parents=True)
    (tmp_path / "outer" / "victim").write_text("untouched")
    return path


def extract(data: bytes, into: Path) -> None:
    extract_tar(io.BytesIO(data), into)


OUTSIDE = "leads out of the target"
PARENT = "above it is not a directory"
UNSAFE = {
    "absolute": ([file("/tmp/lazycluster-evil")], OUTSIDE),
    "absolute directory": ([directory("/tmp/lazycluster-evil")], OUTSIDE),
    "absolute after dots": ([file("//evil")], OUTSIDE),
    "parent": ([file("../victim")], OUTSIDE),
    "parent in the middle": ([directory("a"), file("a/../../victim")], OUTSIDE),
    "parent that stays inside": ([directory("a"), file("a/../b")], OUTSIDE),
    "parent at the end": ([directory("a/..")], OUTSIDE),
    "parent as a link": ([symlink("..", "x")], OUTSIDE),
    "file through a link": ([symlink("a", ".."), file("a/victim")], PARENT),
    "file through an absolute link": ([symlink("a", "/tmp"), file("a/lazycluster-evil")], PARENT),
    "file through a link to inside": ([directory("d"), symlink("a", "d"), file("a/x")], PARENT),
    "directory through a link": ([symlink("a", ".."), directory("a/b")], PARENT),
    "link through a link": ([symlink("a", ".."), symlink("a/b", "x")], PARENT),
    "hard link through a link": ([file("f"), symlink("a", ".."), hardlink("a/b", "f")], PARENT),
    "deep inside a link": ([symlink("a", ".."), file("a/b/c/d")], PARENT),
    "link by another spelling": ([symlink("./a", ".."), file(".//a/./victim")], PARENT),
    "inside a file": ([file("a"), file("a/b")], PARENT),
    "directory becomes a link": ([directory("a"), symlink("a", "..")], "replace a directory"),
    "link becomes a directory": ([symlink("a", ".."), directory("a")], "replace a file or link"),
    "file becomes a directory": ([file("a"), directory("a")], "replace a file or link"),
    "file over a directory": ([directory("a"), file("a")], "replace a directory"),
    "file over an implied directory": ([file("a/b"), file("a")], "replace a directory"),
    "hard link over a directory": ([file("f"), directory("a"), hardlink("a", "f")], "replace a directory"),
    "hard link to outside": ([hardlink("a", "../victim")], OUTSIDE),
    "hard link to an absolute path": ([hardlink("a", "/etc/passwd")], OUTSIDE),
    "hard link to nothing": ([hardlink("a", "b")], "no file of the stream"),
    "hard link to itself": ([hardlink("a", "a")], "no file of the stream"),
    "hard link to a directory": ([directory("d"), hardlink("a", "d")], "no file of the stream"),
    "hard link to the target": ([hardlink("a", ".")], "no file of the stream"),
    "hard link through a link out": ([symlink("s", ".."), hardlink("a", "s/victim")], "no file of the stream"),
    "file as the target": ([file(".")], "replace a directory"),
    "file without a name": ([file("")], "replace a directory"),
    "link as the target": ([symlink(".", "..")], "replace a directory"),
    "link to nothing": ([symlink("a", "")], "without a valid target"),
    "character device": ([member("a", tarfile.CHRTYPE)], "neither file, directory nor link"),
    "block device": ([member("a", tarfile.BLKTYPE)], "neither file, directory nor link"),
    "fifo": ([member("a", tarfile.FIFOTYPE)], "neither file, directory nor link"),
    "unknown type": ([member("a", b"Z")], "neither file, directory nor link"),
    "multi-volume": ([member("a", b"M")], "neither file, directory nor link"),
}


@pytest.mark.parametrize("style", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("case", UNSAFE)
def test_extract_unsafe_member_is_refused(into: Path, case: str, style: Format) -> None:
    members, reason = UNSAFE[case]
    with pytest.raises(UnsafeArchiveError) as caught:
        extract(stream(*members, file("never"), style=style), into)
    assert caught.value.member == members[-1][0].name.rstrip("/")
    assert reason in caught.value.reason
    assert isinstance(caught.value, LazyclusterError)
    assert sorted(path.name for path in into.parent.iterdir()) == ["into", "victim"]
    assert (into.parent / "victim").read_text() == "untouched"
    assert not (into / "never").exists()
    assert not Path("/tmp/lazycluster-evil").exists()


@pytest.mark.parametrize(
    "pax",
    [{"path": "../victim"}, {"path": "/tmp/lazycluster-evil"}, {"path": "a\0b"}, {"path": "a/../../victim"}],
    ids=["parent", "absolute", "NUL", "parent in the middle"],
)
def test_extract_unsafe_pax_path_is_refused(into: Path, pax: dict[str, str]) -> None:
    with pytest.raises(UnsafeArchiveError) as caught:
        extract(stream(member("harmless", pax=pax), style=tarfile.PAX_FORMAT), into)
    assert OUTSIDE in caught.value.reason
    assert list(into.iterdir()) == []


def test_extract_unsafe_pax_linkpath_is_refused(into: Path) -> None:
    evil = member("a", tarfile.SYMTYPE, link="x", pax={"linkpath": "a\0b"})
    with pytest.raises(UnsafeArchiveError) as caught:
        extract(stream(evil, style=tarfile.PAX_FORMAT), into)
    assert "without a valid target" in caught.value.reason
    evil = member("a", tarfile.LNKTYPE, link="x", pax={"linkpath": "../victim"})
    with pytest.raises(UnsafeArchiveError) as caught:
        extract(stream(evil, style=tarfile.PAX_FORMAT), into)
    assert OUTSIDE in caught.value.reason


def test_extract_links_keep_any_target(into: Path) -> None:
    links = {"out": "../victim", "current": "/srv/5", "dangling": "nowhere", "untidy": "./a//b/..", "self": "self"}
    extract(stream(*(symlink(name, link) for name, link in links.items())), into)
    assert {path.name: exact_link(path) for path in into.iterdir()} == links
    assert {path.lstat().st_mtime for path in into.iterdir()} == {1_000_000_000}


def test_extract_link_without_time_support(into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "supports_follow_symlinks", set())
    extract(stream(symlink("a", "b")), into)
    assert (into / "a").readlink() == Path("b")


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([file("a", b"1"), file("a", b"2")], {"a": b"2"}),
        ([file("a", b"1"), file("./a", b"")], {"a": b""}),
        ([file("a", b"1", mode=0o400), file("a", b"2")], {"a": b"2"}),
        ([file("a", b"1"), symlink("a", "/etc/passwd")], {"a": "/etc/passwd"}),
        ([symlink("a", "../victim"), file("a", b"2")], {"a": b"2"}),
        ([symlink("a", "x"), symlink("a", "y")], {"a": "y"}),
        ([file("a", b"1"), hardlink("b", "a"), file("a", b"2")], {"a": b"2", "b": b"1"}),
        ([file("a", b"1"), file("b", b"2"), hardlink("b", "a")], {"a": b"1", "b": b"1"}),
        ([file("a", b"1"), hardlink("a", "a")], {"a": b"1"}),
        ([symlink("a", "x"), hardlink("a", "a")], {"a": "x"}),
        ([symlink("a", "../victim"), hardlink("b", "a")], {"a": "../victim", "b": "../victim"}),
        ([file("b", b"1"), symlink("a", "x"), hardlink("b", "./a")], {"a": "x", "b": "x"}),
        ([directory("d"), directory("d/"), file("d/a", b"1")], {"d/a": b"1"}),
        ([file("p/q/a", b"1"), directory("p"), directory("p/q")], {"p/q/a": b"1"}),
        ([file("p/a", b"1"), file("p/q/r/a", b"2")], {"p/a": b"1", "p/q/r/a": b"2"}),
        ([], {}),
    ],
    ids=[
        "file, file",
        "file, other spelling",
        "read-only file, file",
        "file, link",
        "link, file",
        "link, link",
        "hard link keeps old file",
        "file, hard link",
        "hard link to itself",
        "hard link to link itself",
        "hard link to link",
        "file, hard link to link",
        "directory, directory",
        "implied directory, directory",
        "implied directories",
        "no member",
    ],
)
def test_extract_last_member_of_a_name_wins(
    into: Path, members: list[Member], expected: dict[str, bytes | str]
) -> None:
    extract(stream(*members), into)
    found = {name: entry[3] for name, entry in snapshot(into).items() if entry[0] != "directory"}
    assert found == expected
    assert (into.parent / "victim").read_text() == "untouched"


def test_extract_hard_links_stay_one_file(into: Path) -> None:
    extract(stream(file("a"), directory("d"), hardlink("d/b", "./a")), into)
    assert (into / "a").stat().st_ino == (into / "d/b").stat().st_ino


def test_extract_keeps_modes_and_times_not_special_bits(into: Path) -> None:
    members = [
        directory(".", 0o7750, 1_111_111_111),
        directory("closed", 0o555, 1_222_222_222),
        file("closed/setuid", mode=0o6755, mtime=1_333_333_333),
        directory("closed/none", 0o000, 1_444_444_444),
        symlink("closed/link", "x"),
        file("none", mode=0),
        file("old", mtime=-1_000_000),
        directory("sticky", 0o1777),
    ]
    extract(stream(*members), into)
    found = {
        name: (stat.S_IMODE((into / name).lstat().st_mode), int((into / name).lstat().st_mtime))
        for name in (".", "closed", "closed/setuid", "closed/none", "none", "old", "sticky")
    }
    (into / "closed").chmod(0o755)
    (into / "closed/none").chmod(0o755)
    assert found == {
        ".": (0o750, 1_111_111_111),
        "closed": (0o555, 1_222_222_222),
        "closed/setuid": (0o755, 1_333_333_333),
        "closed/none": (0o000, 1_444_444_444),
        "none": (0o000, 1_000_000_000),
        "old": (0o644, -1_000_000),
        "sticky": (0o777, 1_000_000_000),
    }


def test_extract_implied_directory_has_default_mode(into: Path) -> None:
    (into.parent / "ordinary").mkdir()
    extract(stream(file("a/b/c")), into)
    assert (into / "a").stat().st_mode == (into / "a/b").stat().st_mode == (into.parent / "ordinary").stat().st_mode


def test_extract_pax_time_keeps_fraction(into: Path) -> None:
    extract(stream(member("a", pax={"mtime": "1000000000.25"}), style=tarfile.PAX_FORMAT), into)
    assert (into / "a").stat().st_mtime_ns == 1_000_000_000_250_000_000


# Broken streams ------------------------------------------------------------------------------------------------------

LONG = "long" * 60
PIECES: dict[Format, list[Member]] = {
    tarfile.GNU_FORMAT: [
        directory("."),
        file("a", b"1" * 700),
        file(LONG, b"2" * 1500),
        symlink("s", LONG),
        file("empty", b""),
        file("zeros", bytes(512)),
    ],
    tarfile.PAX_FORMAT: [directory("d"), member("d/" + LONG, data=b"3" * 700, mtime=1.5), file("é", b"4")],
}


@pytest.mark.parametrize("offset", [0, 1, 100, 511])
@pytest.mark.parametrize("style", PIECES)
def test_extract_truncated_anywhere_is_error(tmp_path: Path, style: Format, offset: int) -> None:
    complete = stream(*PIECES[style], style=style)
    end = len(complete) - 1024
    for cut in range(offset, end + 512, 512):
        target = tmp_path / str(cut)
        target.mkdir()
        with pytest.raises(BrokenArchiveError):
            extract(complete[:cut], target)
    for cut in (end + 512, end + 700, len(complete)):
        target = tmp_path / f"enough{cut}"
        target.mkdir()
        extract(complete[:cut], target)


def _with_checksum(block: bytes) -> bytes:
    cleared = block[:148] + b" " * 8 + block[156:]
    return cleared[:148] + b"%06o\0 " % sum(cleared) + cleared[156:]


def _patched(info: Member, at: int, field: bytes) -> bytes:
    block = raw(info)
    return _with_checksum(block[:at] + field + block[at + len(field) : 512]) + block[512:]


def _size(size: int) -> bytes:
    return (b"\xff" if size < 0 else b"\x80") + size.to_bytes(11, "big", signed=True)


GOOD = raw(file("good"))
SPARSE = tarfile.GNUTYPE_SPARSE
BROKEN = {
    "nothing": (b"", "the stream ends before"),
    "output of a shell": (b"Welcome to host!\n" * 100, "header"),
    "short text": (b"no such file\n", "truncated header"),
    "bad checksum": (GOOD + raw(file("a")).replace(b"a", b"b", 1), "bad checksum"),
    "garbage after a member": (GOOD + b"\xff" * 512, "bad checksum"),
    "negative size": (GOOD + _patched(file("a"), 124, _size(-512)), "record of -512 bytes"),
    "negative size of a name": (_patched(member("a", b"L"), 124, _size(-1024)), "record of -1024 bytes"),
    "name of a gigabyte": (_patched(member("a", b"L"), 124, b"10000000000\0"), "record of 1073741824 bytes"),
    "pax record of a gigabyte": (_patched(member("a", b"x"), 124, b"10000000000\0"), "record of 1073741824 bytes"),
    "huge time": (_patched(file("a"), 136, b"\x80" + b"\x7f" * 11), "out of range"),
    "chain of names": (raw(member("././@LongLink", b"L", data=b"x")) * 2000, "."),
    "name without a member": (raw(member("././@LongLink", b"L", data=b"x")) + bytes(1024), "."),
    "pax without a member": (raw(member("x", b"x", data=b"12 path=abc\n")) + bytes(1024), "."),
    "negative pax size": (raw(member("a", pax={"size": "-1024"}), style=tarfile.PAX_FORMAT), "out of range"),
    "infinite pax time": (raw(member("a", pax={"mtime": "inf"}), style=tarfile.PAX_FORMAT), "out of range"),
    "pax time NaN": (raw(member("a", pax={"mtime": "nan"}), style=tarfile.PAX_FORMAT), "out of range"),
    "pax sparse map of words": (
        raw(member("a", pax={"GNU.sparse.map": "x,y", "GNU.sparse.size": "5"}), style=tarfile.PAX_FORMAT),
        "invalid literal",
    ),
    "sparse map out of the file": (
        _patched(
            member("a", SPARSE, data=b"x" * 512), 386, b"00000001000\0" * 2 + bytes(72) + b"\0" + b"00000000010\0"
        ),
        "leads out",
    ),
    "sparse map that ends": (
        _patched(member("a", SPARSE), 386, b"00000001000\0" * 2 + bytes(72) + b"\1" + b"00000000010\0"),
        ".",
    ),
    "sparse data that ends": (
        _patched(member("a", SPARSE), 386, b"00000000000\0" + b"00000001000\0" + bytes(72) + b"\0" + b"00000001000\0"),
        "512 bytes before the file does",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_extract_damaged_stream_is_error(into: Path, case: str) -> None:
    data, reason = BROKEN[case]
    with pytest.raises(BrokenArchiveError) as caught:
        extract(data, into)
    assert caught.value.member in {"", "good", "a"}
    assert re.search(reason, str(caught.value))


def test_extract_overlapping_sparse_map_is_error(into: Path) -> None:
    map_of_one = b"00000000000\0" + b"00000002000\0" + bytes(72) + b"\0" + b"00000002000\0"
    data = _patched(member("a", SPARSE, data=b"x" * 512), 386, map_of_one) + raw(file("b"), file("c")) + bytes(1024)
    with pytest.raises(BrokenArchiveError) as caught:
        extract(data, into)
    assert "overlaps" in caught.value.reason


def test_extract_old_gnu_sparse_file_keeps_holes(into: Path) -> None:
    size = 1 << 30
    sparse_map = struct.pack("12s12s", b"%011o\0" % (size - 512), b"%011o\0" % 512)
    data = _patched(member("a", SPARSE, data=b"x" * 512), 386, sparse_map + bytes(72) + b"\0" + b"%011o\0" % size)
    extract(data + raw(file("b", b"after")) + bytes(1024), into)
    status = (into / "a").stat()
    assert status.st_size == size
    assert status.st_blocks * 512 < 1 << 20
    with (into / "a").open("rb") as sparse:
        sparse.seek(size - 513)
        assert sparse.read() == b"\0" + b"x" * 512
    assert (into / "b").read_bytes() == b"after"


@settings(deadline=None, max_examples=300)
@given(
    style=st.sampled_from(sorted(PIECES)),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
    repair=st.booleans(),
)
def test_extract_damaged_stream_never_writes_outside(
    style: Format, changes: list[tuple[int, int]], repair: bool
) -> None:
    data = bytearray(stream(*PIECES[style], style=style))
    for position, value in changes:
        at = position % len(data)
        data[at] = value
        start = at - at % 512
        if repair and any(data[start : start + 512]):
            data[start : start + 512] = _with_checksum(bytes(data[start : start + 512]))
    with tempfile.TemporaryDirectory() as scratch:
        into = Path(scratch, "into")
        into.mkdir()
        with suppress(BrokenArchiveError, UnsafeArchiveError, OSError):
            extract(bytes(data), into)
        assert list(Path(scratch).iterdir()) == [into]


# The stream and the disk ---------------------------------------------------------------------------------------------


class SlowPipe:
    """A pipe that returns only a few bytes a call."""

    def __init__(self, data: bytes, step: int) -> None:
        self.inner, self.step = io.BytesIO(data), step

    def read(self, size: int, /) -> bytes:
        return self.inner.read(min(size, self.step))


@pytest.mark.parametrize("step", [1, 7, 512, 1000, 1 << 20])
def test_extract_short_reads(into: Path, step: int) -> None:
    extract_from = SlowPipe(stream(*PIECES[tarfile.GNU_FORMAT]), step)
    extract_tar(extract_from, into)
    assert (into / LONG).read_bytes() == b"2" * 1500
    assert extract_from.inner.read() == b""


def test_extract_reads_to_the_end_and_reports_progress(into: Path) -> None:
    data = stream(file("a", b"x" * 1_000_000)) + bytes(300_000)
    source = io.BytesIO(data)
    steps: list[int] = []
    extract_tar(source, into, on_progress=steps.append)
    assert source.read() == b""
    assert sum(steps) == len(data)
    assert len(steps) > 3


@pytest.mark.parametrize(
    "error", [ConnectionResetError(104, "reset"), ConnectError("host", "gone")], ids=["OSError", "ConnectError"]
)
@pytest.mark.parametrize("read", [0, 512, 1200])
def test_extract_error_of_stream_is_raised(into: Path, error: Exception, read: int) -> None:
    class Failing(SlowPipe):
        def read(self, size: int, /) -> bytes:
            if self.inner.tell() == read:
                raise error
            return super().read(min(size, read - self.inner.tell()))

    with pytest.raises(type(error)) as caught:
        extract_tar(Failing(stream(file("a", b"x" * 5000)), 10**6), into)
    assert caught.value is error
    assert getattr(error, "filename", None) is None


def test_extract_disk_error_names_file(into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError) as caught:
        extract(stream(file("d/a")), into)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(into / "d/a"))


def test_extract_partial_write_is_continued(into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite

    def part(descriptor: int, data: bytes, offset: int) -> int:
        return pwrite(descriptor, data[:100], offset)

    monkeypatch.setattr(os, "pwrite", part)
    extract(stream(file("a", bytes(range(256)) * 4)), into)
    assert (into / "a").read_bytes() == bytes(range(256)) * 4


def test_extract_does_not_write_through_existing_link(into: Path) -> None:
    (into / "a").symlink_to("../victim")
    with pytest.raises(FileExistsError):
        extract(stream(file("a")), into)
    assert (into.parent / "victim").read_text() == "untouched"


# The tars of hosts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [(), ("--format=posix",), ("--format=gnu", "--sparse"), ("--format=posix", "-S")],
    ids=["default", "posix", "gnu sparse", "posix sparse"],
)
def test_extract_stream_of_gnu_tar(tmp_path: Path, options: tuple[str, ...]) -> None:
    assert_round_trip(tmp_path, ("tar", *options))


def test_extract_stream_of_every_tar(tmp_path: Path, tar: tuple[str, ...]) -> None:
    assert_round_trip(tmp_path, tar)


def assert_round_trip(tmp_path: Path, command: tuple[str, ...]) -> None:
    source = make_hard_tree(tmp_path / "source")
    with (source / "holes").open("wb") as holes:
        for at in range(0, 1 << 20, 1 << 16):
            holes.seek(at)
            holes.write(b"data")
        holes.truncate(2 << 20)
    stamp(source, 1_300_000_000)
    done = subprocess.run([*command, "-c", "-f", "-", "-C", source, "."], check=True, capture_output=True)
    into = tmp_path / "into"
    into.mkdir()
    extract(done.stdout, into)
    assert snapshot(into) == snapshot(source)
    assert (into / "big").stat().st_ino == (into / "bigger").stat().st_ino
    restore_write_permission(tmp_path)


@pytest.mark.parametrize("style", ["ustar", "v7"])
def test_extract_old_formats(tmp_path: Path, style: str) -> None:
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    (source / "d" / "file").write_text("x")
    (source / "link").symlink_to("d/file")
    argv = ["tar", f"--format={style}", "-c", "-C", str(source), "."]
    done = subprocess.run(argv, check=True, capture_output=True)
    into = tmp_path / "into"
    into.mkdir()
    extract(done.stdout, into)
    assert snapshot(into) == snapshot(source)


def test_extract_five_thousand_files(tmp_path: Path) -> None:
    data = stream(*(file(f"d{number % 50}/file{number}", b"x" * 2048) for number in range(5000)))

    extract(data, tmp_path)

    assert sum(1 for _ in tmp_path.glob("*/*")) == 5000
