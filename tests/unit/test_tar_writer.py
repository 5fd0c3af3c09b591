"""The tar stream of a directory: its form, changes of the source while it is read, and the round trip."""

from __future__ import annotations

import errno
import io
import logging
import os
import shutil
import socket
import stat
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazycluster._files.install import discard
from lazycluster._files.tar_reader import extract_tar
from lazycluster._files.tar_writer import END_MARKER, NAME_ENCODING, encode_tar_header, write_tar

Snapshot: TypeAlias = "dict[str, tuple[str, int, int, bytes | str]]"

TARS = {"gnu": ("tar",), "bsd": ("bsdtar",), "busybox": ("busybox", "tar")}


@pytest.fixture(params=TARS)
def tar(request: pytest.FixtureRequest) -> tuple[str, ...]:
    command = TARS[request.param]
    if shutil.which(command[0]) is None and request.param != "gnu":
        pytest.skip(f"there is no {command[0]} on this machine")
    return command


def exact_link(path: Path) -> str:
    """Return the exact target of a link, which `Path.readlink` normalizes."""
    return os.readlink(path)  # noqa: PTH115


def snapshot(root: Path) -> Snapshot:
    """Return kind, mode, modification time in seconds and content of a directory and of everything in it."""
    found: Snapshot = {}
    entry: tuple[str, int, int, bytes | str]
    for path in [root, *root.rglob("*")]:
        status = path.lstat()
        if path.is_symlink():
            entry = ("link", 0, int(status.st_mtime), exact_link(path))
        elif path.is_dir():
            entry = ("directory", stat.S_IMODE(status.st_mode), int(status.st_mtime), b"")
        else:
            entry = ("file", stat.S_IMODE(status.st_mode), int(status.st_mtime), path.read_bytes())
        found[str(path.relative_to(root))] = entry
    return found


def pack(source: Path) -> bytes:
    out = io.BytesIO()
    write_tar(source, out)
    return out.getvalue()


def member_names(stream: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(stream), errors="surrogateescape") as archive:
        return archive.getnames()


def stamp(path: Path, seconds: int) -> None:
    os.utime(path, (seconds, seconds), follow_symlinks=False)


HARD_NAMES = [
    "plain",
    "with space",
    "-rf",
    "--checkpoint-action=exec=false",
    "new\nline",
    "tab\tand \\ backslash \\n",
    "quote'\"`$(id)",
    "ünïcödé ☃",
    "colon:name",
    "*?[]",
    " trailing ",
    "n" * 100,
    "n" * 101,
    "m" * 255,
    "~",
    "@list",
]


def make_hard_tree(root: Path) -> Path:
    """Make a tree with awkward names, modes, times and links."""
    root.mkdir()
    for number, name in enumerate(HARD_NAMES):
        directory = root / ("d" + name)[:255]
        directory.mkdir()
        (root / name).write_bytes(name.encode() * number)
        (directory / name).write_text("inner")
        (directory / "link").symlink_to(f"../{name}")
        (root / name).chmod((0o644, 0o755, 0o400, 0o640)[number % 4])
        stamp(root / name, 1_000_000_000 + number)
        stamp(directory / "link", 1_100_000_000 + number)
        stamp(directory, 1_200_000_000 + number)
    if sys.platform == "linux":
        Path(os.fsdecode(os.fsencode(root) + b"/latin-\xe9\xff")).write_text("not UTF-8")
    deep = root.joinpath(*["deep" * 20] * 8)
    deep.mkdir(parents=True)
    (deep / "file").write_text("deep")
    (root / "empty").mkdir()
    (root / "dangling").symlink_to("nowhere/at/all")
    (root / "absolute").symlink_to("/etc/passwd")
    (root / "untidy").symlink_to("./x//y/../" + "z" * 150)
    (root / "big").write_bytes(os.urandom(3_000_000))
    os.link(root / "big", root / "bigger")
    readonly = root / "readonly"
    readonly.mkdir()
    (readonly / "file").write_text("x")
    readonly.chmod(0o555)
    stamp(root, 1_300_000_000)
    return root


def restore_write_permission(root: Path) -> None:
    """Let pytest remove the read-only directories."""
    for path in root.rglob("readonly"):
        path.chmod(0o755)


def drop_times_of_links(found: Snapshot) -> Snapshot:
    """Return a snapshot without the times of links and of the directories that hold one, save the top."""
    links = {name for name, entry in found.items() if entry[0] == "link"}
    holders = {str(Path(name).parent) for name in links} - {"."}
    return {
        name: (kind, mode, 0 if name in links | holders else mtime, content)
        for name, (kind, mode, mtime, content) in found.items()
    }


def test_write_tar_is_restored_by_every_tar(tmp_path: Path, tar: tuple[str, ...]) -> None:
    source = make_hard_tree(tmp_path / "source")
    target = tmp_path / "target"
    target.mkdir()
    # A host extracts, looks for the marker, gives its time to the top directory, and removes it. For users other than
    # root busybox applies the umask in spite of -p.
    script = f"""
        cd "$1" && shift && umask 0 && "$@" -x -p -f - || exit
        mv ./{END_MARKER} ../reference && touch -r ../reference . && chmod 755 . && rm ../reference
    """
    argv = ["sh", "-c", script, "sh", str(target), *tar]
    done = subprocess.run(argv, input=pack(source), check=True, capture_output=True)
    assert done.stderr == b""
    expected, restored = snapshot(source), snapshot(target)
    if tar[0] == "busybox":
        # For users other than root it does not apply modes to directories that exist.
        assert restored.pop("readonly")[1] == (0o555 if os.geteuid() == 0 else 0o755)
        del expected["readonly"]
        # It makes links last and never sets their times, nor again those of the directories that hold them.
        expected, restored = drop_times_of_links(expected), drop_times_of_links(restored)
    assert restored == expected
    assert (target / "big").stat().st_ino == (target / "bigger").stat().st_ino
    restore_write_permission(tmp_path)


def test_write_tar_read_only_directory_gets_its_mode_last(tmp_path: Path, tar: tuple[str, ...]) -> None:
    source = make_hard_tree(tmp_path / "source")
    stream = pack(source)
    before = member_names(stream).index("./readonly")
    with tarfile.open(fileobj=io.BytesIO(stream)) as archive:
        first, *_, last = [member for member in archive if member.name == "./readonly"]
    assert (first.mode, last.mode) == (0o755, 0o555)
    assert member_names(stream)[before : before + 3] == ["./readonly", "./readonly/file", "./readonly"]
    restore_write_permission(tmp_path)


def test_write_tar_read_only_source_is_writable_at_top(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    stamp(source, 1_000_000_000)
    source.chmod(0o555)
    with tarfile.open(fileobj=io.BytesIO(pack(source))) as archive:
        top, marker = archive.getmembers()
    source.chmod(0o755)
    assert (top.name, top.mode, top.mtime) == (".", 0o755, 1_000_000_000)
    assert (marker.name, marker.size, marker.mtime) == (f"./{END_MARKER}", 0, 1_000_000_000)


def test_write_tar_is_whole_gnu_records_without_owner(tmp_path: Path) -> None:
    source = make_hard_tree(tmp_path / "source")
    stream = pack(source)
    assert len(stream) % tarfile.RECORDSIZE == 0
    assert stream.endswith(bytes(1024))
    with tarfile.open(fileobj=io.BytesIO(stream), errors="surrogateescape") as archive:
        members = archive.getmembers()
    assert {(member.uid, member.gid, member.uname, member.gname) for member in members} == {(0, 0, "", "")}
    assert members[-1].name == f"./{END_MARKER}"
    assert members[0].name == "."
    assert {member.name.startswith("./") for member in members[1:]} == {True}
    assert stream[257:265] == tarfile.GNU_MAGIC
    restore_write_permission(tmp_path)


def test_write_tar_reports_progress_and_joins_small_files(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(1000):
        (source / str(number)).write_bytes(b"x" * 2048)
    steps: list[int] = []

    class Sink:
        def __init__(self) -> None:
            self.sizes: list[int] = []

        def write(self, data: bytes, /) -> None:
            self.sizes.append(len(data))

    sink = Sink()
    write_tar(source, sink, on_progress=steps.append)
    assert steps == sink.sizes
    assert sum(steps) % tarfile.RECORDSIZE == 0
    assert min(sink.sizes[:-1]) >= 256 * 1024


def test_write_tar_five_thousand_files(tmp_path: Path) -> None:
    for directory in range(50):
        (tmp_path / str(directory)).mkdir()
        for number in range(100):
            (tmp_path / str(directory) / f"file{number}.txt").write_bytes(b"x" * 2048)

    stream = pack(tmp_path)

    assert len(member_names(stream)) == 5000 + 2 * 50 + 2


def test_write_tar_deeper_than_recursion_limit(tmp_path: Path) -> None:
    deep = source = tmp_path / "source"
    source.mkdir()
    for _ in range(1500):
        deep /= "d"
        deep.mkdir()
    target = tmp_path / "target"
    target.mkdir()
    try:
        stream = pack(source)
        extract_tar(io.BytesIO(stream), target)
        assert target.joinpath(*["d"] * 1500).is_dir()
    finally:
        # pytest's own removal of the directory would exceed the recursion limit.
        discard(source)
        discard(target)
    assert not source.exists()


def test_write_tar_source_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_text("x")
    (tmp_path / "link").symlink_to("real")
    assert member_names(pack(tmp_path / "link")) == [".", "./file", f"./{END_MARKER}"]


def test_write_tar_skips_special_files_with_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_text("x")
    directory = os.open(tmp_path, os.O_RDONLY)
    # The path of a socket has about 100 bytes, and that of the temporary directory may be longer.
    previous = Path.cwd()
    with socket.socket(socket.AF_UNIX) as listener:
        os.fchdir(directory)
        listener.bind("socket")
        os.chdir(previous)
    os.close(directory)
    with caplog.at_level(logging.WARNING, "lazycluster._files.tar_writer"):
        stream = pack(tmp_path)
    assert member_names(stream) == [".", "./file", f"./{END_MARKER}"]
    assert [record.getMessage().split(" ")[0] for record in caplog.records] == [
        f"{tmp_path}/fifo",
        f"{tmp_path}/socket",
    ]


def test_write_tar_skips_old_end_marker_at_top(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / END_MARKER).write_text("from an earlier transfer")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / END_MARKER).write_text("kept")
    found = member_names(pack(tmp_path))
    assert found == [".", "./inner", f"./inner/{END_MARKER}", "./inner", f"./{END_MARKER}"]
    assert "left out" in caplog.text


@pytest.mark.parametrize(("name", "error"), [("missing", FileNotFoundError), ("file", NotADirectoryError)])
def test_write_tar_source_must_be_a_directory(tmp_path: Path, name: str, error: type[OSError]) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(error) as caught:
        pack(tmp_path / name)
    assert caught.value.filename == str(tmp_path / name)


class SourceChangingSink:
    """A sink that changes the source when the first bytes arrive."""

    def __init__(self, path: Path, action: str) -> None:
        self.path, self.action, self.data = path, action, b""

    def write(self, data: bytes, /) -> None:
        if not self.data:
            if self.action == "shrink":
                os.truncate(self.path, 100)
            elif self.action == "grow":
                with self.path.open("ab") as file:
                    file.write(b"more")
            else:
                self.path.unlink()
                if self.action == "link":
                    self.path.symlink_to("/etc/passwd")
                elif self.action == "fifo":
                    os.mkfifo(self.path)
        self.data += data


@pytest.mark.parametrize(
    ("victim", "action", "reason"),
    [
        ("a", "shrink", "became shorter by 4000000 bytes"),
        ("b", "remove", "No such file or directory"),
    ],
)
def test_write_tar_vanished_or_shrunk_file_is_error(tmp_path: Path, victim: str, action: str, reason: str) -> None:
    (tmp_path / "a").write_bytes(b"a" * (4_000_000 + (1 << 20)))
    (tmp_path / "b").write_bytes(b"b" * 1000)
    sink = SourceChangingSink(tmp_path / victim, action)
    with pytest.raises(OSError) as caught:
        write_tar(tmp_path, sink)
    assert caught.value.filename == str(tmp_path / victim)
    assert reason in str(caught.value.strerror)


def test_write_tar_growing_file_keeps_first_size(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a" * 4_000_000)
    sink = SourceChangingSink(tmp_path / "a", "grow")
    write_tar(tmp_path, sink)
    with tarfile.open(fileobj=io.BytesIO(sink.data)) as archive:
        assert [member.size for member in archive] == [0, 4_000_000, 0]


@pytest.mark.parametrize(("replacement", "error"), [("link", True), ("fifo", False)])
def test_write_tar_replaced_file_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replacement: str, error: bool
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("x")
    real_open = os.open

    def slow_open(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        SourceChangingSink(victim, replacement).write(b"now")
        return real_open(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", slow_open)
    if error:
        with pytest.raises(OSError) as caught:
            pack(tmp_path)
        assert caught.value.filename == str(victim)
    else:
        assert member_names(pack(tmp_path)) == [".", f"./{END_MARKER}"]


def test_write_tar_read_error_names_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad sector").write_text("x")

    def fail(descriptor: int, size: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "read", fail)
    with pytest.raises(OSError) as caught:
        pack(tmp_path)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(tmp_path / "bad sector"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_write_tar_unreadable_entry_is_named(tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret"
    secret.mkdir() if kind == "directory" else secret.touch()
    secret.chmod(0)
    with pytest.raises(PermissionError) as caught:
        pack(tmp_path)
    secret.chmod(0o700)
    assert caught.value.filename == str(secret)


def test_write_tar_error_of_sink_is_raised(tmp_path: Path) -> None:
    class Closed:
        def write(self, data: bytes, /) -> None:
            raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError) as caught:
        write_tar(tmp_path, Closed())
    assert caught.value.filename is None


@pytest.mark.parametrize("size", [8**11 - 1, 8**11, 9 << 30])
def test_write_tar_size_of_more_than_eight_gibibytes(tmp_path: Path, size: int) -> None:
    class EnoughError(Exception):
        pass

    class First:
        data = b""

        def write(self, data: bytes, /) -> None:
            self.data = data
            raise EnoughError

    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", size)
    sink = First()
    with pytest.raises(EnoughError):
        write_tar(tmp_path, sink)
    header = tarfile.TarInfo.frombuf(sink.data[512:1024], NAME_ENCODING, "surrogateescape")
    assert (header.name, header.size) == ("./huge", size)


@pytest.mark.parametrize("mtime", [-1, -(2**31), 0, 2**31, 8**11 - 1, 8**11])
def test_encode_tar_header_times_before_1970_after_2038(tmp_path: Path, mtime: int) -> None:
    info = tarfile.TarInfo("x")
    info.mtime = mtime
    assert tarfile.TarInfo.frombuf(encode_tar_header(info), NAME_ENCODING, "surrogateescape").mtime == mtime


file_names = st.binary(min_size=1, max_size=120).map(
    lambda name: os.fsdecode(name.replace(b"\0", b"0").rstrip(b"/") or b"x")
)


@given(
    name=file_names,
    linkname=st.just("") | file_names,
    kind=st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE]),
    mode=st.integers(0, 0o7777),
    size=st.integers(0, 9 << 30),
    mtime=st.integers(-(2**33), 2**35),
)
def test_encode_tar_header_is_the_same_as_tarfile(
    name: str, linkname: str, kind: bytes, mode: int, size: int, mtime: int
) -> None:
    info = tarfile.TarInfo(name)
    info.linkname, info.type, info.mode, info.size, info.mtime = linkname, kind, mode, size, mtime
    assert encode_tar_header(info) == info.tobuf(tarfile.GNU_FORMAT, NAME_ENCODING, "surrogateescape")


# The round trip ------------------------------------------------------------------------------------------------------

if sys.platform == "linux":
    _texts = st.binary(min_size=1, max_size=255).map(os.fsdecode)
else:
    _texts = st.text(st.characters(max_codepoint=0x7E), min_size=1, max_size=60)
entry_names = st.one_of(
    st.sampled_from(HARD_NAMES),
    _texts.map(lambda name: name.replace("/", "_").replace("\0", "0")).filter(lambda name: name not in {".", ".."}),
)
contents = st.binary(max_size=2000)
targets = _texts.map(lambda name: name.replace("\0", "0"))
Tree: TypeAlias = "dict[str, Tree | bytes | str]"
trees = st.recursive(
    st.dictionaries(entry_names, contents | targets, max_size=4),
    lambda inner: st.dictionaries(entry_names, inner | contents | targets, max_size=4),
    max_leaves=12,
)


def build(root: Path, tree: Tree, moment: int) -> None:
    for name, entry in tree.items():
        path = root / name
        if isinstance(entry, dict):
            path.mkdir()
            build(path, entry, moment + 7)
            path.chmod(0o700 | moment % 0o100)
        elif isinstance(entry, str):
            path.symlink_to(entry)
        else:
            path.write_bytes(entry)
            path.chmod(0o400 | moment % 0o400)
        stamp(path, moment)
    stamp(root, moment)


@settings(deadline=None, max_examples=60)
@given(tree=trees, moment=st.integers(0, 2**31 - 1000))
def test_write_and_extract_any_tree(tree: Tree, moment: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        source, target, by_tar = (Path(scratch, name) for name in ("source", "target", "by-tar"))
        source.mkdir(0o750)
        target.mkdir()
        by_tar.mkdir()
        build(source, tree, moment)
        stream = pack(source)
        extract_tar(io.BytesIO(stream), target)
        subprocess.run(["tar", "-xpf", "-", "-C", by_tar], input=stream, check=True)
        for restored in (target, by_tar):
            (restored / END_MARKER).unlink()
            stamp(restored, moment)
            assert snapshot(restored) == snapshot(source)


def test_write_tar_truncated_fails_or_lacks_end_marker(tmp_path: Path, tar: tuple[str, ...]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("a", "b"):
        (source / name).write_bytes(b"x" * 700)
    stream = pack(source)
    end = stream.index(END_MARKER.encode()) - 2
    for cut in range(0, end + 1, 256):
        target = tmp_path / f"cut{cut}"
        target.mkdir()
        argv = [*tar, "-x", "-f", "-", "-C", str(target)]
        done = subprocess.run(argv, input=stream[:cut], check=False, capture_output=True)
        assert done.returncode != 0 or not (target / END_MARKER).exists()
