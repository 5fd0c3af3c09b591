"""Files and directories, there and back."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from lazycluster import Runtime, RuntimeTask, TaskExecutionError, TransferError
from tests.contract.conftest import HOST_ALIAS, TransportCase, execute_and_wait

NAMES = ["plain", "with space", 'it\'s "quoted"', "new\nline", "-dash", "*", "$HOME", "ünï", "~", "back\\slash"]


def content(directory: Path) -> dict[str, str]:
    """Return what lies below a directory: the text of each file, where links lead, '/' for directories."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        else:
            found[name] = "/" if path.is_dir() else path.read_text()
    return found


def tree(directory: Path) -> Path:
    """Make a directory with a little of everything."""
    (directory / "sub" / "empty").mkdir(parents=True)
    (directory / "sub" / "it's a file\n").write_text("deep")
    (directory / "program").write_text("run")
    (directory / "program").chmod(0o750)
    (directory / "link").symlink_to("program")
    (directory / "dangling").symlink_to("/no/such")
    os.utime(directory / "program", (1_000_000_000, 1_000_000_000))
    os.utime(directory / "sub", (1_100_000_000, 1_100_000_000))
    return directory


def send(runtime: Runtime, local: Path, remote: str | None = None) -> None:
    execute_and_wait(runtime, RuntimeTask("sending").send_file(local, remote))


def fetch(runtime: Runtime, remote: str, local: Path) -> None:
    execute_and_wait(runtime, RuntimeTask("fetching").get_file(remote, local))


def refused(runtime: Runtime, task: RuntimeTask) -> TransferError:
    """Return why a task failed; nothing half done is left in the working directory."""
    with pytest.raises(TaskExecutionError) as caught:
        execute_and_wait(runtime, task)
    error = caught.value.__cause__
    assert isinstance(error, TransferError)
    assert error.host == HOST_ALIAS
    assert str(error).startswith(f"{HOST_ALIAS}: cannot ")
    return error


@pytest.fixture
def there(case: TransportCase, runtime: Runtime) -> Path:
    """Return where the working directory of the host lies on this machine."""
    return case.local_path(runtime.working_dir)


# There and back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_any_name(runtime: Runtime, there: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("content")
    remote = f"./{name}" if name == "~" else name
    task = RuntimeTask().send_file(tmp_path / name).get_file(remote, tmp_path / "back")

    execute_and_wait(runtime, task)

    assert task.execution_log == ["", ""]
    assert [result.exit_code for result in task.results] == [None, None]
    assert content(there) == {name: "content"}
    assert (tmp_path / "back").read_text() == "content"


@pytest.mark.parametrize("name", NAMES)
def test_a_directory_of_any_name(runtime: Runtime, there: Path, tmp_path: Path, name: str) -> None:
    source = tree(tmp_path / name)
    remote = f"./{name}" if name == "~" else name

    execute_and_wait(runtime, RuntimeTask().send_file(source).get_file(remote, tmp_path / "back"))

    assert content(there / name) == content(source) == content(tmp_path / "back")
    for copy in (there / name, tmp_path / "back"):
        assert stat.S_IMODE((copy / "program").stat().st_mode) == 0o750
        assert (copy / "program").stat().st_mtime == 1_000_000_000
        assert (copy / "sub").stat().st_mtime == 1_100_000_000


def test_modes_and_times_of_a_file_are_kept(runtime: Runtime, there: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "file").chmod(0o640)
    os.utime(tmp_path / "file", (1_000_000_000, 1_000_000_000))

    execute_and_wait(runtime, RuntimeTask().send_file(tmp_path / "file").get_file("file", tmp_path / "back"))

    for copy in (there / "file", tmp_path / "back"):
        assert stat.S_IMODE(copy.stat().st_mode) == 0o640
        assert copy.stat().st_mtime == 1_000_000_000


def test_empty_ones_and_big_ones(runtime: Runtime, there: Path, tmp_path: Path) -> None:
    data = os.urandom(5_000_000)
    (tmp_path / "big").write_bytes(data)
    (tmp_path / "empty").touch()
    (tmp_path / "nothing").mkdir()
    task = RuntimeTask()
    for name in ("big", "empty", "nothing"):
        task.send_file(tmp_path / name).get_file(name, tmp_path / f"{name}-back")

    execute_and_wait(runtime, task)

    assert (there / "big").read_bytes() == (tmp_path / "big-back").read_bytes() == data
    assert (tmp_path / "empty-back").read_bytes() == b""
    assert content(there / "nothing") == content(tmp_path / "nothing-back") == {}


# Paths ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_relative_absolute_and_of_the_home(
    case: TransportCase, runtime: Runtime, there: Path, tmp_path: Path, kind: str
) -> None:
    source = tmp_path / "source"
    tree(source) if kind == "directory" else source.write_text("x")
    absolute = runtime.create_tempdir()
    (there / "sub").mkdir()
    targets = {
        "relative": there / "relative",
        "sub/../sub/./relative": there / "sub" / "relative",
        f"{absolute}/absolute": case.local_path(absolute) / "absolute",
        f"~/{kind}, {case.kind}": case.home / f"{kind}, {case.kind}",  # the real ways share a home
    }
    for number, (remote, expected) in enumerate(targets.items()):
        send(runtime, source, remote)
        fetch(runtime, remote, tmp_path / str(number))
        for copy in (expected, tmp_path / str(number)):
            assert copy.read_text() == "x" if kind == "file" else content(copy) == content(source)


def test_default_targets(runtime: Runtime, there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path)
    task = RuntimeTask().send_file("file")
    monkeypatch.chdir(tmp_path / "away")
    task.get_file("file")
    monkeypatch.chdir(tmp_path)

    execute_and_wait(runtime, task)

    assert content(there) == {"file": "x"}
    assert content(tmp_path / "away") == {"file": "x"}, "as the current directory was when the step was added"


@pytest.mark.parametrize("remote", [".", "sub/..", "", "{cwd}", "{cwd}/"])
def test_into_the_working_directory_itself(runtime: Runtime, there: Path, tmp_path: Path, remote: str) -> None:
    (there / "sub").mkdir()
    (tmp_path / "file").write_text("x")

    send(runtime, tmp_path / "file", remote.format(cwd=runtime.working_dir))

    assert content(there) == {"file": "x", "sub": "/"}


@pytest.mark.parametrize("remote", [".", "{cwd}/", "../{name}"])
def test_fetching_the_working_directory_itself(runtime: Runtime, there: Path, tmp_path: Path, remote: str) -> None:
    (there / "file").write_text("x")
    (tmp_path / "into").mkdir()

    fetch(runtime, remote.format(cwd=runtime.working_dir, name=there.name), tmp_path / "into")
    fetch(runtime, remote.format(cwd=runtime.working_dir, name=there.name), tmp_path / "as")

    assert content(tmp_path / "into") == {there.name: "/", f"{there.name}/file": "x"}
    assert content(tmp_path / "as") == {"file": "x"}


# Onto what exists ----------------------------------------------------------------------------------------------------


def test_a_file_onto_a_file_and_into_a_directory(runtime: Runtime, there: Path, tmp_path: Path) -> None:
    (there / "old").write_text("old")
    (there / "into").mkdir()
    (tmp_path / "new").write_text("new")
    (tmp_path / "back").mkdir()
    (tmp_path / "replaced").write_text("old")
    task = RuntimeTask().send_file(tmp_path / "new", "old").send_file(tmp_path / "new", "into")
    task.send_file(tmp_path / "new", "into/")
    task.get_file("old", tmp_path / "back").get_file("old", tmp_path / "replaced")

    execute_and_wait(runtime, task)

    assert content(there) == {"old": "new", "into": "/", "into/new": "new"}
    assert content(tmp_path / "back") == {"old": "new"}
    assert (tmp_path / "replaced").read_text() == "new"


def test_a_tree_onto_a_tree_is_merged(runtime: Runtime, there: Path, tmp_path: Path) -> None:
    source = tmp_path / "tree"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "new").write_text("new")
    (source / "both").write_text("new")
    (there / "tree" / "sub").mkdir(parents=True)
    (there / "tree" / "sub" / "kept").write_text("kept")
    (there / "tree" / "both").write_text("old")
    expected = {"both": "new", "sub": "/", "sub/kept": "kept", "sub/new": "new"}

    send(runtime, source)
    assert content(there / "tree") == expected
    (tmp_path / "back" / "tree").mkdir(parents=True)
    (tmp_path / "back" / "tree" / "both").write_text("old")
    fetch(runtime, "tree", tmp_path / "back")

    assert content(tmp_path / "back" / "tree") == expected


def test_links_on_the_way(runtime: Runtime, there: Path, tmp_path: Path) -> None:
    """A link at the target is followed, and a link that is sent or fetched by name stands for what it leads to."""
    (there / "directory").mkdir()
    (there / "file").write_text("old")
    (there / "to directory").symlink_to("directory")
    (there / "to file").symlink_to("file")
    (tmp_path / "new").write_text("new")
    (tmp_path / "link").symlink_to("new")

    execute_and_wait(
        runtime,
        RuntimeTask()
        .send_file(tmp_path / "new", "to directory")
        .send_file(tmp_path / "link", "to file")
        .get_file("to file", tmp_path / "fetched"),
    )

    assert content(there / "directory") == {"new": "new"}
    assert (there / "file").read_text() == "new"
    assert (there / "to file").is_symlink()
    assert (tmp_path / "fetched").read_text() == "new"
    assert not (tmp_path / "fetched").is_symlink()


# Refused -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("remote", "reason"),
    [
        ("no/such", "no such directory"),
        ("no/", "no such directory"),
        ("file/below", "no such directory"),
        ("holder", "is a directory"),
    ],
)
def test_a_file_that_has_no_place(runtime: Runtime, there: Path, tmp_path: Path, remote: str, reason: str) -> None:
    (there / "file").write_text("old")
    (there / "holder" / "source").mkdir(parents=True)
    before = content(there)
    (tmp_path / "source").write_text("new")

    error = refused(runtime, RuntimeTask().send_file(tmp_path / "source", remote))

    assert reason in error.reason
    assert (error.action, error.path, error.target) == ("send", str(tmp_path / "source"), remote)
    assert content(there) == before


@pytest.mark.parametrize(
    ("remote", "reason"),
    [
        ("no/such", "no such directory"),
        ("file", "not a directory"),
        ("file/below", "no such directory"),
        ("clash", "directory"),
        ("clash back", "directory"),
    ],
)
def test_a_tree_that_has_no_place(runtime: Runtime, there: Path, tmp_path: Path, remote: str, reason: str) -> None:
    """The last two are trees where a directory stands against a file: found out before anything is changed."""
    (there / "file").write_text("old")
    (there / "clash" / "source" / "deep").mkdir(parents=True)
    (there / "clash back" / "source").mkdir(parents=True)
    (there / "clash back" / "source" / "sub").touch()
    before = content(there)
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "deep").write_text("new")

    error = refused(runtime, RuntimeTask().send_file(source, remote))

    assert reason in error.reason
    assert (error.action, error.path) == ("send", str(source))
    assert content(there) == before


@pytest.mark.parametrize(
    ("remote", "reason"),
    [
        ("no such file", "no such file or directory"),
        ("no/such/file", "no such file or directory"),
        ("dangling", "no such file or directory"),
        ("file/", "no such file or directory"),
        ("file/below", "no such file or directory"),
        ("pipe", "neither a regular file nor a directory"),
    ],
)
def test_what_cannot_be_fetched(runtime: Runtime, there: Path, tmp_path: Path, remote: str, reason: str) -> None:
    (there / "file").write_text("x")
    (there / "dangling").symlink_to("no such")
    os.mkfifo(there / "pipe")
    before = content(tmp_path)

    error = refused(runtime, RuntimeTask().get_file(remote, tmp_path / "back"))

    assert (error.action, error.path, error.reason) == ("fetch", remote, reason)
    assert content(tmp_path) == before


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_local_target_whose_parent_is_missing(runtime: Runtime, there: Path, tmp_path: Path, kind: str) -> None:
    (there / "directory").mkdir()
    (there / "file").write_text("x")

    error = refused(runtime, RuntimeTask().get_file(kind, tmp_path / "no" / "such"))

    assert (error.action, error.path) == ("fetch", kind)
    assert "No such file or directory" in error.reason
    assert str(tmp_path / "no") in error.reason


def test_a_local_target_that_is_in_the_way(runtime: Runtime, there: Path, tmp_path: Path) -> None:
    (there / "directory").mkdir()
    (there / "file").write_text("x")
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "file").mkdir()
    (tmp_path / "old").write_text("old")

    for remote, local in (("directory", tmp_path / "old"), ("file", tmp_path / "file")):
        error = refused(runtime, RuntimeTask().get_file(remote, local))
        assert (error.action, error.path) == ("fetch", remote)
    assert content(tmp_path) == {"file": "/", "file/file": "/", "old": "old"}


def test_what_is_gone_when_it_is_to_be_sent(runtime: Runtime, there: Path, tmp_path: Path) -> None:
    (tmp_path / "gone").touch()
    task = RuntimeTask().send_file(tmp_path / "gone")
    (tmp_path / "gone").unlink()

    error = refused(runtime, task)

    assert (error.action, error.path, error.reason) == ("send", str(tmp_path / "gone"), "No such file or directory")
    assert content(there) == {}


def test_what_is_neither_file_nor_directory(runtime: Runtime, there: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    error = refused(runtime, RuntimeTask().send_file(tmp_path / "pipe"))

    assert error.reason == "neither a regular file nor a directory"
    assert content(there) == {}


def test_mistakes_are_told_when_the_step_is_added(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or directory"):
        RuntimeTask().send_file(tmp_path / "no such")
    with pytest.raises(ValueError, match="must not be empty"):
        RuntimeTask().get_file("")


def test_a_working_directory_that_is_not_there(case: TransportCase, tmp_path: Path) -> None:
    runtime = case.runtime()
    case.local_path(runtime.working_dir).rmdir()
    (tmp_path / "file").touch()
    (tmp_path / "tree").mkdir()
    tasks = [RuntimeTask().send_file(tmp_path / name) for name in ("file", "tree")]
    tasks.append(RuntimeTask().get_file("file", tmp_path))

    for task in tasks:
        error = refused(runtime, task)
        assert runtime.working_dir in error.reason
        assert "cannot enter the working directory" in error.reason
