"""Files and directories, to the host and from it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from lazycluster import Runtime, RuntimeTask, TaskExecutionError, TransferError
from tests.contract.conftest import HOST_ALIAS, TransportCase, execute_and_wait
from tests.file_trees import FILE_NAME_IDS, FILE_NAMES, MTIME_SECONDS, describe_tree, make_full_tree


def read_tree(directory: Path) -> dict[str, str]:
    """Return what a directory holds: the text of each file, the target of each link, '/' for directories."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        else:
            found[name] = "/" if path.is_dir() else path.read_text()
    return found


def make_small_tree(directory: Path) -> Path:
    """Make a directory that may have any name; `make_full_tree()` makes one with every kind of entry."""
    (directory / "sub" / "empty").mkdir(parents=True)
    (directory / "sub" / "it's a file\n").write_text("deep")
    (directory / "program").write_text("run")
    (directory / "program").chmod(0o750)
    (directory / "link").symlink_to("program")
    (directory / "dangling").symlink_to("/no/such")
    os.utime(directory / "program", (MTIME_SECONDS, MTIME_SECONDS))
    os.utime(directory / "sub", (MTIME_SECONDS + 1, MTIME_SECONDS + 1))
    return directory


def remote_path(name: str) -> str:
    """Return a path on the host of a file in the working directory, whose name may begin with a tilde."""
    return f"./{name}" if name.startswith("~") else name


def send(runtime: Runtime, local: Path, remote: str | None = None) -> None:
    execute_and_wait(runtime, RuntimeTask("sending").send_file(local, remote))


def fetch(runtime: Runtime, remote: str, local: Path) -> None:
    execute_and_wait(runtime, RuntimeTask("fetching").get_file(remote, local))


def transfer_error(runtime: Runtime, task: RuntimeTask) -> TransferError:
    """Carry out a task that fails by a transfer, and return the error."""
    with pytest.raises(TaskExecutionError) as caught:
        execute_and_wait(runtime, task)
    error = caught.value.__cause__
    assert isinstance(error, TransferError)
    assert error.host == HOST_ALIAS
    return error


# To the host and from it ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILE_NAMES, ids=FILE_NAME_IDS)
def test_send_and_get_file_of_any_name(runtime: Runtime, host_dir: Path, tmp_path: Path, name: str) -> None:
    """The decoys have names that a pattern or a split of the name would match."""
    for decoy in ("a", "b", "withspace"):
        (host_dir / decoy).write_text("decoy")
    (tmp_path / name).write_text("content")
    task = RuntimeTask().send_file(tmp_path / name).get_file(remote_path(name), tmp_path / "back")

    execute_and_wait(runtime, task)

    assert task.execution_log == ["", ""]
    assert [result.exit_code for result in task.results] == [None, None]
    assert read_tree(host_dir) == {name: "content", "a": "decoy", "b": "decoy", "withspace": "decoy"}
    assert (tmp_path / "back").read_text() == "content"


@pytest.mark.parametrize("name", FILE_NAMES, ids=FILE_NAME_IDS)
def test_send_and_get_tree_of_any_name(runtime: Runtime, host_dir: Path, tmp_path: Path, name: str) -> None:
    source = make_small_tree(tmp_path / name)
    (source / name).write_text("inside")

    execute_and_wait(runtime, RuntimeTask().send_file(source).get_file(remote_path(name), tmp_path / "back"))

    assert read_tree(host_dir / name) == read_tree(source) == read_tree(tmp_path / "back")
    for copy in (host_dir / name, tmp_path / "back"):
        assert stat.S_IMODE((copy / "program").stat().st_mode) == 0o750
        assert (copy / "program").stat().st_mtime == MTIME_SECONDS
        assert (copy / "sub").stat().st_mtime == MTIME_SECONDS + 1


def test_send_and_get_tree_keep_modes_times_and_links(runtime: Runtime, host_dir: Path, tmp_path: Path) -> None:
    source = make_full_tree(tmp_path / "tree")

    execute_and_wait(runtime, RuntimeTask().send_file(source).get_file("tree", tmp_path / "back"))

    for copy in (host_dir / "tree", tmp_path / "back"):
        assert describe_tree(copy) == describe_tree(source)
        assert (copy / "script").stat().st_ino == (copy / "sub" / "hard").stat().st_ino
        (copy / "read-only").chmod(0o755)  # so that it can be removed


@pytest.mark.parametrize("mode", [0o640, 0o600, 0o755, 0o444], ids=oct)
def test_send_and_get_file_keep_mode_and_time(runtime: Runtime, host_dir: Path, tmp_path: Path, mode: int) -> None:
    (tmp_path / "file").write_text("content")
    (tmp_path / "file").chmod(mode)
    os.utime(tmp_path / "file", (MTIME_SECONDS, MTIME_SECONDS))

    execute_and_wait(runtime, RuntimeTask().send_file(tmp_path / "file").get_file("file", tmp_path / "back"))

    for copy in (host_dir / "file", tmp_path / "back"):
        assert stat.S_IMODE(copy.stat().st_mode) == mode
        assert (copy.stat().st_mtime, copy.read_text()) == (MTIME_SECONDS, "content")


def test_send_and_get_empty_and_large_arrive_whole(runtime: Runtime, host_dir: Path, tmp_path: Path) -> None:
    data = os.urandom(5_000_000)
    (tmp_path / "large").write_bytes(data)
    (tmp_path / "empty").touch()
    (tmp_path / "empty directory").mkdir()
    task = RuntimeTask()
    for name in ("large", "empty", "empty directory"):
        task.send_file(tmp_path / name).get_file(name, tmp_path / f"{name}-back")

    execute_and_wait(runtime, task)

    assert (host_dir / "large").read_bytes() == (tmp_path / "large-back").read_bytes() == data
    assert (tmp_path / "empty-back").read_bytes() == b""
    assert read_tree(host_dir / "empty directory") == read_tree(tmp_path / "empty directory-back") == {}


# Paths ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "tree"])
def test_send_and_get_paths_relative_absolute_and_home(
    case: TransportCase, runtime: Runtime, host_dir: Path, tmp_path: Path, kind: str
) -> None:
    source = tmp_path / "source"
    make_small_tree(source) if kind == "tree" else source.write_text("x")
    absolute = runtime.create_tempdir()
    (host_dir / "sub").mkdir()
    targets = {
        "relative": host_dir / "relative",
        "sub/../sub/./relative": host_dir / "sub" / "relative",
        f"{absolute}/absolute": case.local_path(absolute) / "absolute",
        f"~/{kind}, {case.kind}": case.home / f"{kind}, {case.kind}",  # the real transports share a home
    }
    for number, (remote, expected) in enumerate(targets.items()):
        send(runtime, source, remote)
        fetch(runtime, remote, tmp_path / str(number))
        for copy in (expected, tmp_path / str(number)):
            assert copy.read_text() == "x" if kind == "file" else read_tree(copy) == read_tree(source)


def test_send_and_get_file_without_target_keep_the_name(
    runtime: Runtime, host_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    task = RuntimeTask().send_file("file")
    monkeypatch.chdir(tmp_path / "other")
    task.get_file("file")
    monkeypatch.chdir(tmp_path)

    execute_and_wait(runtime, task)

    assert read_tree(host_dir) == {"file": "x"}
    assert read_tree(tmp_path / "other") == {"file": "x"}, "the current directory when the step was added"


def test_task_steps_share_the_working_directory(
    case: TransportCase, runtime: Runtime, host_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_dir = tmp_path / "local"
    (local_dir / "sub").mkdir(parents=True)
    (local_dir / "name").write_text("content")
    monkeypatch.chdir(local_dir)
    command = case.script(
        "mkdir sub; cat name; cp name sub/renamed", stdout="content", writes={"sub/renamed": "content"}
    )
    task = RuntimeTask().send_file("name").run_command(command)
    task.send_file("name", "sub").get_file("sub/renamed").get_file("sub", "fetched").get_file("sub")
    monkeypatch.chdir(tmp_path)

    execute_and_wait(runtime, task)

    assert task.execution_log == ["", "content", "", "", "", ""]
    sent = {"name": "content", "renamed": "content"}
    assert read_tree(host_dir / "sub") == read_tree(local_dir / "fetched") == read_tree(local_dir / "sub") == sent
    assert (local_dir / "renamed").read_text() == "content"


@pytest.mark.parametrize("remote", [".", "sub/..", "", "{cwd}", "{cwd}/"])
def test_send_file_into_working_directory(runtime: Runtime, host_dir: Path, tmp_path: Path, remote: str) -> None:
    (host_dir / "sub").mkdir()
    (tmp_path / "file").write_text("x")

    send(runtime, tmp_path / "file", remote.format(cwd=runtime.working_dir))

    assert read_tree(host_dir) == {"file": "x", "sub": "/"}


@pytest.mark.parametrize("remote", [".", "{cwd}/", "../{name}"])
def test_get_file_of_working_directory(runtime: Runtime, host_dir: Path, tmp_path: Path, remote: str) -> None:
    (host_dir / "file").write_text("x")
    (tmp_path / "existing").mkdir()

    fetch(runtime, remote.format(cwd=runtime.working_dir, name=host_dir.name), tmp_path / "existing")
    fetch(runtime, remote.format(cwd=runtime.working_dir, name=host_dir.name), tmp_path / "new")

    assert read_tree(tmp_path / "existing") == {host_dir.name: "/", f"{host_dir.name}/file": "x"}
    assert read_tree(tmp_path / "new") == {"file": "x"}


# Targets that exist --------------------------------------------------------------------------------------------------


def test_send_and_get_file_replace_file_or_enter_directory(runtime: Runtime, host_dir: Path, tmp_path: Path) -> None:
    (host_dir / "old").write_text("old")
    (host_dir / "directory").mkdir()
    (tmp_path / "new").write_text("new")
    (tmp_path / "back").mkdir()
    (tmp_path / "replaced").write_text("old")
    task = RuntimeTask().send_file(tmp_path / "new", "old").send_file(tmp_path / "new", "directory")
    task.send_file(tmp_path / "new", "directory/")
    task.get_file("old", tmp_path / "back").get_file("old", tmp_path / "replaced")

    execute_and_wait(runtime, task)

    assert read_tree(host_dir) == {"old": "new", "directory": "/", "directory/new": "new"}
    assert read_tree(tmp_path / "back") == {"old": "new"}
    assert (tmp_path / "replaced").read_text() == "new"


def test_send_file_keeps_old_file_for_its_readers(runtime: Runtime, host_dir: Path, tmp_path: Path) -> None:
    """The new file takes its place by a rename."""
    (tmp_path / "name").write_text("new")
    (host_dir / "name").write_text("old")

    with (host_dir / "name").open() as reader:
        send(runtime, tmp_path / "name")
        assert reader.read() == "old"

    assert (host_dir / "name").read_text() == "new"


@pytest.mark.parametrize("local", ["new", "old", "directory", "link-to-old", "link-to-directory"])
def test_get_file_local_path_names_the_target(runtime: Runtime, host_dir: Path, tmp_path: Path, local: str) -> None:
    (host_dir / "name").write_text("new")
    (tmp_path / "old").write_text("old")
    (tmp_path / "directory").mkdir()
    (tmp_path / "link-to-old").symlink_to("old")
    (tmp_path / "link-to-directory").symlink_to("directory")

    fetch(runtime, "name", tmp_path / local)

    fetched = tmp_path / local / "name" if "directory" in local else tmp_path / local
    assert fetched.read_text() == "new"
    assert (tmp_path / "link-to-old").is_symlink()


def test_send_and_get_tree_merge_into_existing_tree(runtime: Runtime, host_dir: Path, tmp_path: Path) -> None:
    source = tmp_path / "tree"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "new").write_text("new")
    (source / "both").write_text("new")
    (host_dir / "tree" / "sub").mkdir(parents=True)
    (host_dir / "tree" / "sub" / "kept").write_text("kept")
    (host_dir / "tree" / "both").write_text("old")
    expected = {"both": "new", "sub": "/", "sub/kept": "kept", "sub/new": "new"}

    send(runtime, source)
    assert read_tree(host_dir / "tree") == expected
    (tmp_path / "back" / "tree").mkdir(parents=True)
    (tmp_path / "back" / "tree" / "both").write_text("old")
    fetch(runtime, "tree", tmp_path / "back")

    assert read_tree(tmp_path / "back" / "tree") == expected


def test_send_and_get_file_follow_named_links(runtime: Runtime, host_dir: Path, tmp_path: Path) -> None:
    """A link at the target is followed, and a link that is sent or fetched by name stands for its target."""
    (host_dir / "directory").mkdir()
    (host_dir / "file").write_text("old")
    (host_dir / "to directory").symlink_to("directory")
    (host_dir / "to file").symlink_to("file")
    (tmp_path / "new").write_text("new")
    (tmp_path / "link").symlink_to("new")
    (tmp_path / "to tree").symlink_to(make_small_tree(tmp_path / "tree"))

    execute_and_wait(
        runtime,
        RuntimeTask()
        .send_file(tmp_path / "new", "to directory")
        .send_file(tmp_path / "link", "to file")
        .send_file(tmp_path / "to tree")
        .get_file("to file", tmp_path / "fetched"),
    )

    assert read_tree(host_dir / "directory") == {"new": "new"}
    assert (host_dir / "file").read_text() == "new"
    assert (host_dir / "to file").is_symlink()
    assert not (host_dir / "to tree").is_symlink()
    assert read_tree(host_dir / "to tree") == read_tree(tmp_path / "tree")
    assert (tmp_path / "fetched").read_text() == "new"
    assert not (tmp_path / "fetched").is_symlink()


# Refused -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("remote", "reason"),
    [
        ("no/such", "no such directory"),
        ("no/", "no such directory"),
        ("file/inside", "no such directory"),
        ("holder", "is a directory"),
    ],
)
def test_send_file_to_unusable_target_changes_nothing(
    runtime: Runtime, host_dir: Path, tmp_path: Path, remote: str, reason: str
) -> None:
    """In the last case a directory has the name of the file."""
    (host_dir / "file").write_text("old")
    (host_dir / "holder" / "source").mkdir(parents=True)
    before = read_tree(host_dir)
    (tmp_path / "source").write_text("new")

    error = transfer_error(runtime, RuntimeTask().send_file(tmp_path / "source", remote))

    assert (error.action, error.path, error.target) == ("send", str(tmp_path / "source"), remote)
    assert reason in error.reason
    assert read_tree(host_dir) == before


@pytest.mark.parametrize(
    ("remote", "reason"),
    [
        ("no/such", "no such directory"),
        ("file", "not a directory"),
        ("file/inside", "no such directory"),
        ("directory for file", "directory"),
        ("file for directory", "directory"),
    ],
)
def test_send_tree_to_unusable_target_changes_nothing(
    runtime: Runtime, host_dir: Path, tmp_path: Path, remote: str, reason: str
) -> None:
    """The last two are trees in which a directory and a file have the same name."""
    (host_dir / "file").write_text("old")
    (host_dir / "directory for file" / "source" / "deep").mkdir(parents=True)
    (host_dir / "file for directory" / "source").mkdir(parents=True)
    (host_dir / "file for directory" / "source" / "sub").touch()
    before = read_tree(host_dir)
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "deep").write_text("new")

    error = transfer_error(runtime, RuntimeTask().send_file(source, remote))

    assert (error.action, error.path) == ("send", str(source))
    assert reason in error.reason
    assert read_tree(host_dir) == before


@pytest.mark.parametrize(
    ("remote", "reason"),
    [
        ("no such file", "no such file or directory"),
        ("no/such/file", "no such file or directory"),
        ("-x", "no such file or directory"),
        ("a\nb", "no such file or directory"),
        ("dangling", "no such file or directory"),
        ("file/", "no such file or directory"),
        ("file/inside", "no such file or directory"),
        ("pipe", "neither a regular file nor a directory"),
    ],
)
def test_get_file_unusable_source_changes_nothing(
    runtime: Runtime, host_dir: Path, tmp_path: Path, remote: str, reason: str
) -> None:
    (host_dir / "file").write_text("x")
    (host_dir / "dangling").symlink_to("no such")
    os.mkfifo(host_dir / "pipe")
    before = read_tree(tmp_path)

    error = transfer_error(runtime, RuntimeTask().get_file(remote, tmp_path / "back"))

    assert (error.action, error.path, error.reason) == ("fetch", remote, reason)
    assert read_tree(tmp_path) == before


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_get_file_missing_local_parent_is_named(runtime: Runtime, host_dir: Path, tmp_path: Path, kind: str) -> None:
    (host_dir / "directory").mkdir()
    (host_dir / "file").write_text("x")

    error = transfer_error(runtime, RuntimeTask().get_file(kind, tmp_path / "no" / "such"))

    assert (error.action, error.path) == ("fetch", kind)
    assert str(tmp_path / "no") in error.reason
    assert not (tmp_path / "no").exists()


def test_get_file_local_target_of_other_kind_is_kept(runtime: Runtime, host_dir: Path, tmp_path: Path) -> None:
    (host_dir / "directory").mkdir()
    (host_dir / "file").write_text("x")
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "file").mkdir()
    (tmp_path / "old").write_text("old")

    for remote, local in (("directory", tmp_path / "old"), ("file", tmp_path / "file")):
        error = transfer_error(runtime, RuntimeTask().get_file(remote, local))
        assert (error.action, error.path) == ("fetch", remote)
    assert read_tree(tmp_path) == {"file": "/", "file/file": "/", "old": "old"}


def test_send_file_deleted_after_add_fails(runtime: Runtime, host_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "gone").touch()
    task = RuntimeTask().send_file(tmp_path / "gone")
    (tmp_path / "gone").unlink()

    error = transfer_error(runtime, task)

    assert (error.action, error.path, error.reason) == ("send", str(tmp_path / "gone"), "No such file or directory")
    assert read_tree(host_dir) == {}


def test_send_file_of_a_pipe_fails(runtime: Runtime, host_dir: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    error = transfer_error(runtime, RuntimeTask().send_file(tmp_path / "pipe"))

    assert (error.action, error.path) == ("send", str(tmp_path / "pipe"))
    assert read_tree(host_dir) == {}


def test_get_file_failed_skips_the_next_steps(
    case: TransportCase, runtime: Runtime, host_dir: Path, tmp_path: Path
) -> None:
    task = RuntimeTask("fetching").get_file("no such file", tmp_path)
    task.run_command(case.script("touch never", writes={"never": ""}))

    with pytest.raises(TaskExecutionError) as caught:
        execute_and_wait(runtime, task)

    assert (caught.value.host, caught.value.task, caught.value.step_index) == (HOST_ALIAS, "fetching", 0)
    assert [result.ok for result in task.results] == [False]
    assert read_tree(host_dir) == {}


def test_add_step_with_unusable_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        RuntimeTask().send_file(tmp_path / "no such")
    with pytest.raises(ValueError):
        RuntimeTask().get_file("")


def test_send_and_get_in_missing_working_directory_fail(case: TransportCase, tmp_path: Path) -> None:
    runtime = case.runtime(f"~/missing for {case.kind}")  # the real transports share a home
    case.local_path(runtime.working_dir).rmdir()
    (tmp_path / "file").touch()
    (tmp_path / "tree").mkdir()
    tasks = [RuntimeTask().send_file(tmp_path / name) for name in ("file", "tree")]
    tasks.append(RuntimeTask().get_file("file", tmp_path))

    for task in tasks:
        assert runtime.working_dir in transfer_error(runtime, task).reason
