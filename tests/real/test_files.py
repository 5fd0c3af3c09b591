"""Files and directories, there and back, whole or not at all."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import pty
import shutil
import signal
import stat
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lazycluster import (
    Connection,
    LazyclusterError,
    Runtime,
    RuntimeTask,
    TaskExecutionError,
    TransferError,
)
from lazycluster._model.watch import Watch
from lazycluster._runtime_core import core_of
from lazycluster._transports.host_context import context_of
from lazycluster._transports.interface import Transport
from lazycluster.testing import LocalSshd
from tests.client_programs import ClientProgram, call_in_parallel
from tests.observation import (
    assert_no_leaks,
    count_sessions,
    mounted_small_disk,
    read_only_directory,
    record_program_starts,
    running_relay,
    skip_or_fail,
    write_script,
)
from tests.processes import child_pids, command_line
from tests.waiting import assert_eventually

if TYPE_CHECKING:
    from tests.sshd_fixtures import MakeSshd

WHEN = 1_000_000_000


@pytest.fixture(scope="module")
def connection(sshd: LocalSshd) -> Iterator[Connection]:
    with Connection(sshd.host, **sshd.connection_kwargs) as connection:
        yield connection


@pytest.fixture
def here(tmp_path: Path) -> Path:
    directory = tmp_path / "here"
    directory.mkdir()
    return directory


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """Return a directory that stands for one of the host's, which is this machine too."""
    directory = tmp_path / "there"
    directory.mkdir()
    return directory


def file(path: Path, content: str = "content") -> Path:
    path.write_text(content)
    return path


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def tree(path: Path) -> Path:
    """Make a directory with everything that a tree can hold and be copied with."""
    for directory in (path, path / "sub", path / "sub" / "empty", path / "read-only"):
        directory.mkdir()
    file(path / "script", "#!/bin/sh\n").chmod(0o750)
    file(path / "sub" / "private").chmod(0o600)
    file(path / "sub" / "nothing", "").chmod(0o444)
    file(path / "read-only" / "in it")
    (path / "to-file").symlink_to("sub/private")
    (path / "to-directory").symlink_to("sub")
    (path / "to-nowhere").symlink_to("/no/such file")
    (path / "sub" / "hard").hardlink_to(path / "script")
    (path / "read-only").chmod(0o555)
    for index, entry in enumerate(sorted(path.rglob("*"), reverse=True)):
        if not entry.is_symlink():
            os.utime(entry, (WHEN + index, WHEN + index))
    os.utime(path, (WHEN, WHEN))
    return path


def described(path: Path) -> dict[str, tuple[object, ...]]:
    """Return what a copy must have in common with the original."""
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


# Names ---------------------------------------------------------------------------------------------------------------

NAMES = [
    "with space",
    " around, and?",
    "it's",
    'a "b"',
    "a:b",
    "-dash",
    "-rf *",
    "new\nline, ends\n",
    "ünï ✓ 漢",
    "*",
    "[a-z]",
    "$HOME $(id) `id`",
    "back\\slash\\n",
    "~",
    "~root {a,b}",
    "#a;b&c|d<e>f!g%h",
    "tab\tand\x01",
    "\udcff\udcfe",
    "x" * 255,
]


@pytest.mark.parametrize("name", NAMES, ids=[ascii(name[:20]) for name in NAMES])
def test_any_name_goes_there_and_comes_back(connection: Connection, here: Path, there: Path, name: str) -> None:
    """Beside other names, which a pattern would match, too."""
    for decoy in ("a", "b", "withspace"):
        file(there / decoy, "decoy")
        file(here / decoy, "decoy")
    file(here / name)
    (here / "tree").mkdir()
    (here / "tree" / name).mkdir()
    file(here / "tree" / name / name)

    connection.put(here / name, str(there))
    connection.get(f"{there}/{name}", here / "back")
    connection.put(here / "tree" / name, f"{there}/tree-{name}"[:250] if len(name) > 200 else f"{there}/tree-{name}")
    [sent] = [entry for entry in names(there) if entry.startswith("tree-")]
    connection.get(f"{there}/{sent}", here / "back-tree")

    assert (there / name).read_text() == (here / "back").read_text() == "content"
    assert names(there) == sorted(["a", "b", "withspace", name, sent])
    assert names(here / "back-tree") == [name]
    assert (here / "back-tree" / name).read_text() == "content"
    assert all((directory / decoy).read_text() == "decoy" for directory in (here, there) for decoy in "ab")


@pytest.mark.parametrize("name", ["with space", "-dash", "a:b", "*", "new\nline", "it's"])
def test_a_relative_path_of_any_name_begins_in_the_working_directory(
    connection: Connection, here: Path, there: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here)
    file(here / name)

    connection.put(name, name, cwd=str(there))
    (here / name).unlink()
    connection.get(name, cwd=str(there))

    assert ((there / name).read_text(), (here / name).read_text()) == ("content", "content")


# What is kept --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o644, 0o600, 0o755, 0o444])
def test_a_file_keeps_its_mode_and_time(connection: Connection, here: Path, there: Path, mode: int) -> None:
    source = file(here / "file")
    source.chmod(mode)
    os.utime(source, (WHEN, WHEN))

    connection.put(source, str(there / "sent"))
    connection.get(str(there / "sent"), here / "back")

    for copy in (there / "sent", here / "back"):
        status = copy.stat()
        assert (stat.S_IMODE(status.st_mode), int(status.st_mtime), copy.read_text()) == (mode, WHEN, "content")


def test_a_tree_keeps_its_modes_times_and_links(connection: Connection, here: Path, there: Path) -> None:
    source = tree(here / "tree")

    connection.put(source, str(there / "sent"))
    connection.get(str(there / "sent"), here / "back")

    assert described(there / "sent") == described(source)
    assert described(here / "back") == described(source)
    for copy in (there / "sent", here / "back"):
        assert (copy / "script").stat().st_ino == (copy / "sub" / "hard").stat().st_ino


def test_a_link_that_is_named_stands_for_its_target(connection: Connection, here: Path, there: Path) -> None:
    (here / "link").symlink_to(file(here / "file"))
    (here / "to-tree").symlink_to(tree(here / "tree"))

    connection.put(here / "link", str(there))
    connection.put(here / "to-tree", str(there))

    assert not (there / "link").is_symlink()
    assert (there / "link").read_text() == "content"
    assert described(there / "to-tree") == described(here / "tree")


def test_an_empty_file_and_an_empty_directory(connection: Connection, here: Path, there: Path) -> None:
    file(here / "file", "")
    (here / "directory").mkdir()

    connection.put(here / "file", str(there))
    connection.put(here / "directory", str(there))
    connection.get(str(there / "file"), here / "file-back")
    connection.get(str(there / "directory"), here / "directory-back")

    assert (here / "file-back").read_bytes() == b""
    assert names(here / "directory-back") == []


# Where to ------------------------------------------------------------------------------------------------------------


TARGETS = [
    (None, "work/name"),
    ("other", "work/other"),
    (".", "work/name"),
    ("sub", "work/sub/name"),
    ("sub/", "work/sub/name"),
    ("sub/other", "work/sub/other"),
    ("../up", "up"),
    ("{home}/absolute", "absolute"),
    ("{home}/work/sub", "work/sub/name"),
    ("~/tilde", "tilde"),
    ("~", "name"),
    ("~/", "name"),
    ("link", "work/sub/name"),
]


@pytest.fixture
def work(sshd: LocalSshd) -> Iterator[Path]:
    """Return a directory in the home directory of the host; what is made beside it is removed."""
    before = set(sshd.home.iterdir())
    directory = sshd.home / "work"
    (directory / "sub").mkdir(parents=True)
    (directory / "link").symlink_to("sub")
    yield directory
    for entry in set(sshd.home.iterdir()) - before:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


@pytest.mark.parametrize(("remote", "expected"), TARGETS)
@pytest.mark.parametrize("kind", ["file", "tree"])
def test_the_target_of_what_is_sent(
    sshd: LocalSshd, connection: Connection, here: Path, work: Path, kind: str, remote: str | None, expected: str
) -> None:
    source = file(here / "name", "new")
    if kind == "tree":
        source = here / "tree" / "name"
        source.mkdir(parents=True)
        file(source / "in", "new")

    connection.put(source, remote.format(home=sshd.home) if remote else remote, cwd="work")

    target = sshd.home / expected
    assert (target if kind == "file" else target / "in").read_text() == "new"
    assert not list(sshd.home.rglob(".lazycluster*"))


@pytest.mark.parametrize(
    ("remote", "expected"),
    [("name", "name"), ("sub/name", "name"), ("./sub/../name", "name"), ("~/work/name", "name"), ("link/name", "name")],
)
@pytest.mark.parametrize("kind", ["file", "tree"])
def test_the_source_of_what_is_fetched_and_its_name_here(
    connection: Connection, here: Path, work: Path, kind: str, remote: str, expected: str
) -> None:
    for directory in (work, work / "sub"):
        if kind == "file":
            file(directory / "name", str(directory))
        else:
            (directory / "name").mkdir()
            file(directory / "name" / "in", str(directory))

    connection.get(remote, here, cwd="work")

    fetched = here / expected if kind == "file" else here / expected / "in"
    assert fetched.read_text() == str(work / "sub" if remote.startswith(("sub", "link")) else work)
    assert names(here) == [expected]


@pytest.mark.parametrize(("remote", "name"), [(".", "work"), ("~/work/", "work"), ("link", "link"), ("sub/..", "work")])
def test_a_directory_without_a_name_of_its_own_is_called_as_on_the_host(
    connection: Connection, here: Path, work: Path, remote: str, name: str
) -> None:
    connection.get(remote, here, cwd="work")

    assert names(here) == [name]


@pytest.mark.parametrize("local", ["new", "old", "directory", "link-to-old", "link-to-directory"])
def test_the_target_of_what_is_fetched(connection: Connection, here: Path, there: Path, local: str) -> None:
    file(there / "name", "new")
    file(here / "old", "old")
    (here / "directory").mkdir()
    (here / "link-to-old").symlink_to("old")
    (here / "link-to-directory").symlink_to("directory")

    connection.get(str(there / "name"), here / local)

    fetched = here / local / "name" if "directory" in local else here / local
    assert fetched.read_text() == "new"
    assert (here / "link-to-old").is_symlink()


def test_a_file_replaces_a_file(connection: Connection, here: Path, there: Path) -> None:
    """By a rename: whoever has the old one open goes on reading that."""
    file(here / "name", "new")
    file(there / "name", "old")
    with (there / "name").open() as reader:
        connection.put(here / "name", str(there / "name"))
        assert reader.read() == "old"
    assert (there / "name").read_text() == "new"


def test_a_tree_is_merged_into_the_one_that_is_there(connection: Connection, here: Path, there: Path) -> None:
    for parent, content in ((here, "new"), (there, "old")):
        (parent / "tree" / "sub").mkdir(parents=True)
        file(parent / "tree" / "both", content)
        file(parent / "tree" / "sub" / "both", content)
        file(parent / "tree" / "sub" / f"only {content}", content)

    connection.put(here / "tree", str(there))
    connection.get(str(there / "tree"), here / "back")
    file(there / "tree" / "both", "newer")
    connection.get(str(there / "tree"), here / "back-too")
    connection.get(str(there / "tree" / "sub"), here / "back-too")

    for copy in (there / "tree", here / "back"):
        assert {str(path.relative_to(copy)): path.read_text() for path in copy.rglob("*") if path.is_file()} == {
            "both": "newer" if copy.parent == there else "new",
            "sub/both": "new",
            "sub/only new": "new",
            "sub/only old": "old",
        }
    assert names(here / "back-too") == ["both", "sub"]


# What cannot be ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "tree"])
def test_a_missing_parent_is_named(connection: Connection, here: Path, there: Path, kind: str) -> None:
    source = file(here / "name") if kind == "file" else tree(here / "name")
    kept = file(there / "name") if kind == "file" else tree(there / "name")

    with pytest.raises(TransferError) as sending:
        connection.put(source, f"{there}/no/such/name")
    with pytest.raises(TransferError) as fetching:
        connection.get(str(kept), here / "no" / "such" / "name")

    assert (sending.value.host, sending.value.action) == ("local", "send")
    assert str(source) in str(sending.value)
    assert f"no such directory: {there}/no/such" in str(sending.value)
    assert str(kept) in str(fetching.value)
    assert f"No such file or directory ({here}/no/such)" in str(fetching.value)
    assert not (there / "no").exists()
    assert not (here / "no").exists()


@pytest.mark.parametrize("remote", ["no such file", "no/such", "-x", "a\nb"])
def test_a_missing_source_is_named(connection: Connection, here: Path, remote: str) -> None:
    with pytest.raises(TransferError, match="no such file or directory") as caught:
        connection.get(remote, here)
    assert (caught.value.action, caught.value.path) == ("fetch", remote)
    with pytest.raises(TransferError, match="No such file or directory") as caught:
        connection.put(here / "missing")
    assert (caught.value.action, caught.value.path) == ("send", str(here / "missing"))
    with pytest.raises(ValueError, match="must not be empty"):
        connection.get("", here)
    with pytest.raises(ValueError, match="no such file or directory"):
        RuntimeTask().send_file(here / "missing")
    assert names(here) == []


def test_a_directory_is_not_replaced_by_a_file_nor_a_file_by_a_directory(
    connection: Connection, here: Path, there: Path
) -> None:
    for parent in (here, there):
        file(parent / "file")
        (parent / "tree" / "file").mkdir(parents=True)
        file(parent / "tree" / "file" / "in")
    (here / "into").mkdir()
    (here / "into" / "file").mkdir()
    attempts: list[Callable[[], None]] = [
        lambda: connection.put(here / "file", str(there / "tree")),
        lambda: connection.put(here / "tree", str(there / "file")),
        lambda: connection.get(str(there / "file"), here / "into"),
        lambda: connection.get(str(there / "tree"), here / "file"),
    ]

    for attempt in attempts:
        with pytest.raises(TransferError, match=r"is (not )?a directory|in the way of a (file|directory)"):
            attempt()

    for parent in (here, there):
        assert (parent / "file").read_text() == (parent / "tree" / "file" / "in").read_text() == "content"
    assert names(here) == ["file", "into", "tree"]
    assert names(there) == ["file", "tree"]


def test_what_is_neither_file_nor_directory_is_refused(connection: Connection, here: Path, there: Path) -> None:
    for parent in (here, there):
        os.mkfifo(parent / "fifo")
    with pytest.raises(TransferError, match="neither a regular file nor a directory"):
        connection.put(here / "fifo", str(there))
    with pytest.raises(TransferError, match="neither a regular file nor a directory"):
        connection.get(str(there / "fifo"), here)
    (there / "tree").mkdir()
    os.mkfifo(there / "tree" / "fifo")
    with pytest.raises(TransferError, match="fifo"):
        connection.get(str(there / "tree"), here)
    assert names(here) == ["fifo"]


@pytest.mark.parametrize("kind", ["file", "tree"])
def test_a_directory_in_which_one_may_not_write(connection: Connection, here: Path, there: Path, kind: str) -> None:
    source = file(here / "name", "new") if kind == "file" else tree(here / "name")
    target = there / "target"
    target.mkdir()
    if kind == "file":
        file(target / "name", "old")

    with read_only_directory(target):
        with pytest.raises(TransferError, match="cannot write in the directory") as sending:
            connection.put(source, str(target))
        with pytest.raises(TransferError, match=r"Read-only file system|Permission denied") as fetching:
            connection.get(str(source), target)

    assert str(target) in str(sending.value)
    assert str(target) in str(fetching.value)
    assert {entry.name: entry.read_text() for entry in target.iterdir()} == ({"name": "old"} if kind == "file" else {})


@pytest.mark.parametrize("kind", ["file", "tree"])
@pytest.mark.parametrize("action", ["send", "fetch"])
def test_a_full_disk_leaves_the_old_file(
    connection: Connection, here: Path, there: Path, kind: str, action: str
) -> None:
    with mounted_small_disk(there / "disk") as disk:
        source = here / "big"
        if kind == "tree":
            source.mkdir()
            (disk / "big").mkdir()
        inside = "" if kind == "file" else "in"
        (source / inside).write_bytes(os.urandom(6_000_000))
        file(disk / "big" / inside, "old")

        transfer = connection.put if action == "send" else connection.get
        with pytest.raises(TransferError, match=r"No space left on device|disk full") as caught:
            transfer(str(source), str(disk))

        assert caught.value.action == action
        assert str(source) in caught.value.path
        assert (disk / "big" / inside).read_text() == "old"
        assert names(disk) == ["big"]
        (source / inside).write_bytes(b"small")
        connection.put(source, str(disk))
        assert (disk / "big" / inside).read_text() == "small"


# Broken off ----------------------------------------------------------------------------------------------------------

BIG = 60_000_000
SMALL = 12_000_000
"""Bytes that a resident runtime sends through its one channel, and does not leave to scp."""
KINDS = [("file", False), ("tree", False), ("file", True), ("tree", True), ("small file", True)]
"""What is moved, and whether by a resident runtime."""


@contextlib.contextmanager
def reached(server: LocalSshd, resident: bool, **keywords: Any) -> Iterator[Transport]:
    """Give the transport of a resident runtime, or that of a connection."""
    if resident:
        with Runtime(server.host, str(server.home), **keywords) as runtime:
            yield core_of(runtime).transport
    else:
        with Connection(server.host, **keywords) as connection:
            yield context_of(connection).transport


class Interrupted:
    """A big transfer over a slow link, with something done to it in its middle."""

    def __init__(self, kind: str, action: str, here: Path, there: Path) -> None:
        self.action = action
        self.source, target = (here, there) if action == "send" else (there, here)
        self.source = self.source / "big"
        self.old = target / "big"
        if kind == "tree":
            self.source.mkdir()
            self.old.mkdir()
        inside = "in" if kind == "tree" else ""
        self.size = SMALL if kind == "small file" else BIG
        self.files = [self.source / inside, self.old / inside]
        with self.files[0].open("wb") as big:
            big.truncate(self.size)
        self.files[1].write_text("old")
        self.moved = 0

    def __call__(self, transport: Transport, trouble: Callable[[], object]) -> LazyclusterError:
        """Transfer, make trouble once some of it is over, and return the error."""

        def on_progress(done: int, _total: int | None) -> None:
            if done > 1_000_000 and not self.moved:
                self.moved = done
                trouble()

        with pytest.raises(LazyclusterError) as caught:
            self.transfer(transport, on_progress)
        assert 0 < self.moved < self.size
        return caught.value

    def transfer(self, transport: Transport, on_progress: Callable[[int, int | None], None]) -> None:
        if self.action == "send":
            transport.put(self.source, str(self.old.parent), watch=Watch(on_progress=on_progress))
        else:
            transport.get(str(self.source), self.old.parent, watch=Watch(on_progress=on_progress))

    def is_as_before(self) -> bool:
        """Tell whether the old file is whole, and nothing lies beside it."""
        return self.files[1].read_text() == "old" and not self.temporary

    @property
    def temporary(self) -> set[Path]:
        """Return the paths beside the old file; one that the host is just removing counts."""
        found = set()
        for path in self.old.parent.iterdir():
            found.add(path)
            with contextlib.suppress(FileNotFoundError):
                found.update(path.rglob("*"))
        return found - {self.old, self.files[1]}


@pytest.mark.parametrize(("kind", "resident"), KINDS)
@pytest.mark.parametrize("action", ["send", "fetch"])
def test_a_link_that_breaks_in_the_middle_leaves_the_old_file(
    sshd: LocalSshd, here: Path, there: Path, tmp_path: Path, kind: str, action: str, resident: bool
) -> None:
    interrupted = Interrupted(kind, action, here, there)
    with assert_no_leaks(sshd), running_relay(sshd, tmp_path) as (relay, keywords):
        relay.delay = 0.02
        with reached(sshd, resident, **keywords) as transport:
            error = interrupted(transport, relay.drop)

            assert isinstance(error, TransferError)
            assert (error.action, error.host) == (action, "local")
            assert str(interrupted.source) in error.path
            assert_eventually(interrupted.is_as_before, f"nothing temporary: {interrupted.temporary}")

            relay.delay = 0
            interrupted.transfer(transport, lambda _done, _total: None)
            assert interrupted.files[1].stat().st_size == interrupted.size


@pytest.mark.parametrize(("kind", "resident"), KINDS)
@pytest.mark.parametrize("action", ["send", "fetch"])
def test_a_host_that_dies_in_the_middle_leaves_the_old_file(
    make_sshd: MakeSshd, here: Path, there: Path, tmp_path: Path, kind: str, action: str, resident: bool
) -> None:
    server = make_sshd()
    interrupted = Interrupted(kind, action, here, there)
    with (
        running_relay(server, tmp_path) as (relay, keywords),
        reached(server, resident, connect_timeout=5, **keywords) as transport,
    ):
        relay.delay = 0.02
        error = interrupted(transport, server.stop)

    assert str(interrupted.source) in str(error)
    assert interrupted.files[1].read_text() == "old"
    if action == "fetch":
        assert interrupted.is_as_before()


@pytest.mark.parametrize("action", ["send", "fetch"])
def test_an_scp_that_is_killed_leaves_the_old_file(
    sshd: LocalSshd, here: Path, there: Path, tmp_path: Path, action: str
) -> None:
    interrupted = Interrupted("file", action, here, there)

    def kill() -> None:
        [scp] = [pid for pid in child_pids(os.getpid()) if command_line(pid).startswith("scp ")]
        os.kill(scp, signal.SIGKILL)

    with assert_no_leaks(sshd), running_relay(sshd, tmp_path) as (relay, keywords):
        relay.delay = 0.02
        with Connection(sshd.host, **keywords) as connection:
            error = interrupted(context_of(connection).transport, kill)

            assert isinstance(error, TransferError)
            assert "SIGKILL" in error.reason or "-9" in error.reason
            assert_eventually(interrupted.is_as_before, f"nothing temporary: {interrupted.temporary}")


@pytest.mark.parametrize(("kind", "resident"), KINDS)
@pytest.mark.parametrize("action", ["send", "fetch"])
def test_a_transfer_that_is_stopped_leaves_the_old_file(
    sshd: LocalSshd, here: Path, there: Path, tmp_path: Path, kind: str, action: str, resident: bool
) -> None:
    interrupted = Interrupted(kind, action, here, there)
    with (
        assert_no_leaks(sshd),
        running_relay(sshd, tmp_path) as (relay, keywords),
        Runtime(sshd.host, resident=resident, **keywords) as runtime,
    ):
        relay.delay = 0.1
        task = RuntimeTask("stopped")
        if action == "send":
            task.send_file(interrupted.source, str(interrupted.old.parent))
        else:
            task.get_file(str(interrupted.source), interrupted.old.parent)
        runtime.execute_task(task.run_command("touch never"))
        assert_eventually(lambda: bool(interrupted.temporary), "some of it is there")
        [key] = runtime.get_processes()
        runtime.stop_process(key)

        assert runtime.get_process(key).exitcode == -signal.SIGTERM
        relay.delay = 0
        assert_eventually(interrupted.is_as_before, f"nothing temporary: {interrupted.temporary}")
        with pytest.raises(TaskExecutionError, match="was stopped before it ended"):
            task.join()
        assert len(task.results) == 1


# Hosts that are not to be trusted ------------------------------------------------------------------------------------


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "members",
    [
        [member("../out")],
        [member("a/../../out")],
        [member("{outside}/out")],
        [member("link", tarfile.SYMTYPE, ".."), member("link/out")],
        [member("link", tarfile.SYMTYPE, "{outside}"), member("link/out")],
        [member("hard", tarfile.LNKTYPE, "{outside}/secret"), member("hard")],
        [member("device", tarfile.CHRTYPE)],
    ],
    ids=["dots", "dots behind a name", "absolute", "link upwards", "link away", "hard link", "device"],
)
def test_a_host_cannot_write_outside_of_the_target(
    make_sshd: MakeSshd, here: Path, there: Path, tmp_path: Path, members: list[tarfile.TarInfo]
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    file(outside / "secret", "secret")
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        for info in members:
            info.name = info.name.format(outside=outside)
            info.linkname = info.linkname.format(outside=outside)
            info.size = 4 if info.isreg() else 0
            archive.addfile(info, io.BytesIO(b"evil"))
    programs = tmp_path / "programs"
    programs.mkdir()
    write_script(programs / "tar", f"exec cat {tmp_path}/evil.tar\n")
    server = make_sshd(environment={"PATH": f"{programs}:{os.environ['PATH']}"})

    with (
        Connection(server.host, **server.connection_kwargs) as connection,
        pytest.raises(TransferError, match=r"refused|outside") as caught,
    ):
        connection.get(str(there), here / "fetched")

    assert str(there) in caught.value.path
    assert names(here) == []
    assert names(outside) == ["secret"]
    assert (outside / "secret").read_text() == "secret"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("cut", [0, 100, 700, 1100])
def test_a_stream_that_is_cut_short_is_not_taken_for_a_tree(
    make_sshd: MakeSshd, here: Path, there: Path, tmp_path: Path, cut: int
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    write_script(programs / "tar", f"/bin/tar -cf - . | head -c {cut}\n")
    server = make_sshd(environment={"PATH": f"{programs}:{os.environ['PATH']}"})
    file(there / "file")

    with (
        Connection(server.host, **server.connection_kwargs) as connection,
        pytest.raises(TransferError, match="stream broken"),
    ):
        connection.get(str(there), here / "fetched")

    assert names(here) == []


# Hosts of all kinds --------------------------------------------------------------------------------------------------


def round_trip(connection: Connection, here: Path, there: Path) -> None:
    source = tree(here / "it's a tree")
    connection.put(source, f"{there}/sent to 'it'")
    connection.get(f"{there}/sent to 'it'", here / "back")
    assert described(here / "back") == described(source)
    single = file(here / "a: 'file'", "x" * 100_000)
    connection.put(single, f"{there}/file $1")
    connection.get(f"{there}/file $1", here / "file-back")
    assert (here / "file-back").read_text() == single.read_text()
    for directory in (here, there):
        assert not [name for name in names(directory) if "lazycluster" in name]


@pytest.mark.parametrize("subsystem", ["other /bin/true", "sftp /no/such/sftp-server"])
def test_a_host_without_sftp(make_sshd: MakeSshd, here: Path, there: Path, subsystem: str) -> None:
    server = make_sshd(options={"Subsystem": subsystem})
    with assert_no_leaks(server), Connection(server.host, **server.connection_kwargs) as connection:
        round_trip(connection, here, there)
        with pytest.raises(TransferError, match="no such directory"):
            connection.put(here / "a: 'file'", f"{there}/no/such")


@pytest.mark.parametrize("shell", ["dash", "zsh", "fish", "tcsh", ("busybox", "sh")])
def test_a_login_shell_of_any_kind(make_sshd: MakeSshd, here: Path, there: Path, shell: str | tuple[str, str]) -> None:
    program = shell if isinstance(shell, str) else shell[0]
    if shutil.which(program) is None:
        skip_or_fail(f"there is no {program} on this machine")
    server = make_sshd(shell=shell)
    with Connection(server.host, **server.connection_kwargs) as connection:
        connection.run("true")  # fish makes files in the home at its first start
    with assert_no_leaks(server), Connection(server.host, **server.connection_kwargs) as connection:
        round_trip(connection, here, there)


def test_a_host_that_allows_one_session_at_a_time(make_sshd: MakeSshd, here: Path, there: Path) -> None:
    server = make_sshd(options={"MaxSessions": "1"})
    with Connection(server.host, max_sessions=1, **server.connection_kwargs) as connection:
        round_trip(connection, here, there)
        call_in_parallel([functools.partial(connection.put, here / "back", f"{there}/{number}") for number in range(3)])
        assert all(described(there / str(number)) == described(here / "back") for number in range(3))


def test_scp_asks_for_no_more_sessions_than_max_sessions(make_sshd: MakeSshd, here: Path, there: Path) -> None:
    """The lifeline of an scp takes a session of its own, if one is free."""
    server = make_sshd(options={"MaxSessions": "2"})
    large = file(here / "large", "x" * (16 << 20))
    with Connection(server.host, max_sessions=2, **server.connection_kwargs) as connection:
        call_in_parallel([functools.partial(connection.put, large, f"{there}/{number}") for number in range(4)])
    assert all((there / str(number)).read_bytes() == large.read_bytes() for number in range(4))
    assert "no more sessions" not in server.log


def test_a_start_up_file_that_prints(make_sshd: MakeSshd, here: Path, there: Path) -> None:
    """It spoils both protocols of scp, for everybody; a tree goes through, and the error of a file says what it is."""
    server = make_sshd(shell="bash")
    file(server.home / ".bashrc", "echo Welcome to the machine\necho and to its errors >&2\n")
    with Connection(server.host, **server.connection_kwargs) as connection:
        connection.put(tree(here / "tree"), str(there))
        connection.get(str(there / "tree"), here / "back")
        assert described(here / "back") == described(here / "tree")

        with pytest.raises(TransferError, match="Ensure the remote shell produces no output") as caught:
            connection.put(file(here / "file"), str(there))
        assert str(here / "file") in caught.value.path
        assert names(there) == ["tree"]


# How it is done ------------------------------------------------------------------------------------------------------


def test_a_file_takes_one_scp_and_a_tree_one_session(make_sshd: MakeSshd, here: Path, there: Path) -> None:
    server = make_sshd()
    many = here / "many"
    many.mkdir()
    for number in range(50):
        file(many / f"file {number}")
    with Connection(server.host, **server.connection_kwargs) as connection:
        connection.run("true")
        for transfer, source, target in (
            (connection.put, many, there),
            (connection.get, there / "many", here / "back"),
        ):
            before = count_sessions(server)
            with record_program_starts() as programs:
                transfer(str(source), str(target))
            assert [argv[0] for argv in programs] == ["ssh"]
            assert count_sessions(server) == before + 1
        for transfer, source, target in (
            (connection.put, many / "file 1", there),
            (connection.get, there / "file 1", here),
        ):
            with record_program_starts() as programs:
                transfer(str(source), str(target))
            assert [argv[0] for argv in programs].count("scp") == 1
            assert {argv[0] for argv in programs} == {"ssh", "scp"}
    assert names(here / "back") == names(many)


_TRANSFERS = """
    from pathlib import Path
    here, there = map(Path, sys.argv[1:])
    (here / "tree").mkdir()
    (here / "tree" / "in it").write_text("content")
    with connection:
        assert connection.run("echo $((1 + 1))").stdout == "2\\n"
        connection.put(here / "tree", str(there))
        connection.put(here / "tree" / "in it", str(there))
        connection.get(f"{there}/tree", here / "back")
        connection.get(f"{there}/in it", here / "back")
    assert (here / "back" / "in it").read_text() == "content"
    say("done")
"""


def transfers(here: Path, there: Path) -> str:
    return f"    sys.argv[1:] = [{str(here)!r}, {str(there)!r}]\n{_TRANSFERS}"


def test_nothing_but_openssh_is_executed(sshd: LocalSshd, here: Path, there: Path, tmp_path: Path) -> None:
    """Traced by the kernel: the manager, the ssh and scp that it starts, and what these start."""
    strace = shutil.which("strace")
    if strace is None:
        skip_or_fail("there is no strace on this machine")
    trace = tmp_path / "trace"
    prefix = (strace, "-f", "-qq", "-e", "trace=execve", "-o", str(trace))
    with ClientProgram(transfers(here, there), server=sshd, prefix=prefix) as program:
        assert program.wait(60) == (0, "done\n", "")

    calls = [line.split("execve(", 1)[1] for line in trace.read_text().splitlines() if "execve(" in line]
    programs = [call.split('"')[1] for call in calls if call.endswith("= 0")]
    assert programs[0] == sys.executable
    assert {Path(program).name for program in programs[1:]} == {"ssh", "scp"}


def test_neither_a_shell_nor_other_programs_are_needed_here(
    sshd: LocalSshd, here: Path, there: Path, tmp_path: Path
) -> None:
    programs = tmp_path / "only"
    programs.mkdir()
    for name in ("ssh", "scp"):
        (programs / name).symlink_to(str(shutil.which(name)))
    environment = {"PATH": str(programs), "SHELL": "/nonexistent"}
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0 and sys.platform == "linux" and shutil.which("unshare"):
        # In a name space of its own the program sees no shell; the host, which is outside, has its own.
        hide = 'for s in sh bash dash; do mount --bind /dev/null "$(readlink -f /bin/$s)" || exit; done; exec "$@"'
        prefix = (str(shutil.which("unshare")), "-m", str(shutil.which("busybox") or "/bin/sh"), "sh", "-c", hide, "sh")
        environment["PATH"] += ":/usr/bin:/bin:/usr/sbin"

    with ClientProgram(transfers(here, there), server=sshd, environment=environment, prefix=prefix) as program:
        assert program.wait(60) == (0, "done\n", "")


def test_no_process_of_this_program_is_anything_but_ssh_and_scp(
    sshd: LocalSshd, here: Path, there: Path, resident: bool
) -> None:
    with (
        record_program_starts() as programs,
        Runtime(sshd.host, resident=resident, **sshd.connection_kwargs) as runtime,
    ):
        task = RuntimeTask().send_file(file(here / "file")).send_file(tree(here / "tree")).run_command("ls")
        task.get_file("file", there).get_file("tree", there).run_function(os.getcwd)
        runtime.execute_task(task, execute_async=False)

    assert {argv[0] for argv in programs} == ({"ssh"} if resident else {"ssh", "scp"})


@pytest.mark.soak
def test_five_thousand_files(
    connection: Connection, here: Path, there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = here / "many"
    for directory in range(50):
        (many / str(directory)).mkdir(parents=True)
        for number in range(100):
            (many / str(directory) / str(number)).write_bytes(b"%d" % number * 1024)
    begun = time.perf_counter()
    connection.put(many, str(there))
    sent = time.perf_counter()
    connection.get(str(there / "many"), here / "back")
    fetched = time.perf_counter()
    with capsys.disabled():
        print(f"\n5,000 files of 1 to 2 KiB: {sent - begun:.2f} s there, {fetched - sent:.2f} s back")

    assert len(list((here / "back").rglob("*"))) == 5050
    assert (here / "back" / "49" / "99").read_bytes() == b"99" * 1024


# Progress ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "tree"])
@pytest.mark.parametrize("action", ["send", "fetch"])
def test_progress_is_told(connection: Connection, here: Path, there: Path, kind: str, action: str) -> None:
    size = 8_000_000
    (here / "tree").mkdir()
    (here / "tree" / "file").write_bytes(os.urandom(size))
    source = here / "tree" if kind == "tree" else here / "tree" / "file"
    reports: list[tuple[int, int | None]] = []

    def on_progress(done: int, total: int | None) -> None:
        reports.append((done, total))

    if action == "send":
        connection.put(source, str(there), on_progress=on_progress)
    else:
        connection.get(str(source), there, on_progress=on_progress)

    done = [amount for amount, _ in reports]
    assert done == sorted(done)
    assert {total for _, total in reports} == ({size} if kind == "file" else {None})
    assert done[-1] == size if kind == "file" else size <= done[-1] < size + 30_000


def test_a_progress_bar_is_shown_on_a_terminal_with_debug(sshd: LocalSshd, here: Path, there: Path) -> None:
    (here / "big").write_bytes(bytes(3_000_000))
    text = f"""
    from lazycluster import RuntimeTask
    task = RuntimeTask().send_file({str(here / "big")!r}, {str(there)!r}).run_command("echo printed")
    terminal = os.open({{terminal!r}}, os.O_WRONLY | os.O_NOCTTY)
    os.dup2(terminal, 1)
    with connection:
        task.execute(connection, debug=True)
    """
    ours, theirs = pty.openpty()
    try:
        with ClientProgram(text.format(terminal=os.ttyname(theirs)), server=sshd) as program:
            assert program.wait(60)[0] == 0
        os.set_blocking(ours, False)
        shown = os.read(ours, 1 << 20).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "send_file" in shown
    assert "3.0/3.0 MB" in shown
    assert "printed" in shown


# In tasks ------------------------------------------------------------------------------------------------------------


def test_the_steps_of_a_task_begin_in_the_working_directory(
    sshd: LocalSshd, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resident: bool
) -> None:
    monkeypatch.chdir(here)
    file(here / "name")
    (here / "sub").mkdir()
    with Runtime(sshd.host, resident=resident, **sshd.connection_kwargs) as runtime:
        task = RuntimeTask().send_file("name").run_command("mkdir sub; cat name; mv name sub/renamed")
        task.send_file("name", "sub").get_file("sub/renamed").get_file("sub", "fetched").get_file("sub")
        monkeypatch.chdir(tmp_path)

        runtime.execute_task(task, execute_async=False)

        assert task.execution_log == ["", "content", "", "", "", ""]
        assert names(here) == ["fetched", "name", "renamed", "sub"]
        assert names(here / "fetched") == names(here / "sub") == ["name", "renamed"]
        assert runtime.run("ls sub").stdout.split() == ["name", "renamed"]


def test_a_step_that_fails_ends_the_task_and_names_the_path(sshd: LocalSshd, here: Path, resident: bool) -> None:
    with Runtime(sshd.host, resident=resident, **sshd.connection_kwargs) as runtime:
        task = RuntimeTask("fetching").get_file("no such file", here).run_command("touch never")
        with pytest.raises(TaskExecutionError) as caught:
            runtime.execute_task(task, execute_async=False)

        assert isinstance(caught.value.__cause__, TransferError)
        assert "cannot fetch 'no such file': no such file or directory" in str(caught.value)
        assert (caught.value.step_index, [result.ok for result in task.results]) == (0, [False])
        assert runtime.run("ls").stdout == ""
