"""The content of files as values, and the names in directories: `Runtime.read_bytes()` and its relatives."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from lazycluster import HostFileNotFoundError, Runtime, RuntimeGroup, TransferError
from lazycluster.testing import Looked, Read, Wrote
from tests.contract.conftest import HOST_ALIAS, TransportCase
from tests.file_trees import FILE_NAME_IDS, FILE_NAMES, MTIME_SECONDS


def host_path(name: str) -> str:
    """Return a path on the host of a name, which may begin with a tilde."""
    return f"./{name}" if name.startswith("~") else name


# Content -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILE_NAMES, ids=FILE_NAME_IDS)
def test_read_and_write_file_of_any_name(runtime: Runtime, host_dir: Path, name: str) -> None:
    for decoy in ("a", "b", "withspace"):
        (host_dir / decoy).write_text("decoy")
    path = host_path(name)

    assert not runtime.exists(path)
    runtime.write_bytes(path, b"content\0\xff")

    assert (host_dir / name).read_bytes() == b"content\0\xff" == runtime.read_bytes(path)
    assert runtime.exists(path)
    assert runtime.listdir() == sorted(["a", "b", "withspace", name])


@pytest.mark.parametrize("data", [b"", b"x\n", os.urandom(6_000_000)], ids=["empty", "line", "large"])
def test_read_and_write_bytes_arrive_whole(runtime: Runtime, host_dir: Path, data: bytes) -> None:
    runtime.write_bytes("file", data)

    assert (host_dir / "file").read_bytes() == data
    assert runtime.read_bytes("file") == data


def test_read_and_write_text_use_the_encoding(runtime: Runtime, host_dir: Path) -> None:
    runtime.write_text("utf-8", "ü\r\n")
    runtime.write_text("latin-1", "ü", encoding="latin-1")

    assert (host_dir / "utf-8").read_bytes() == "ü\r\n".encode()
    assert (host_dir / "latin-1").read_bytes() == b"\xfc"
    assert runtime.read_text("utf-8") == "ü\r\n"
    assert runtime.read_text("latin-1", encoding="latin-1") == "ü"
    assert runtime.read_text("latin-1", errors="replace") == "\ufffd"
    with pytest.raises(UnicodeDecodeError):
        runtime.read_text("latin-1")


def test_file_contents_paths_relative_absolute_and_home(case: TransportCase, runtime: Runtime, host_dir: Path) -> None:
    (host_dir / "sub").mkdir()
    home_name = f"contents of {case.kind}"  # the real transports share a home
    for path, local in {
        "sub/relative": host_dir / "sub" / "relative",
        f"{runtime.working_dir}/absolute": host_dir / "absolute",
        f"~/{home_name}": case.home / home_name,
    }.items():
        runtime.write_text(path, path)
        assert local.read_text() == path == runtime.read_text(path)
        assert runtime.exists(path)
    assert home_name in runtime.listdir("~")
    assert runtime.glob(f"~/{home_name}*") == [f"{case.home}/{home_name}"]


def test_write_file_is_renamed_over_the_old(runtime: Runtime, host_dir: Path) -> None:
    """The readers of the old file keep it; the mode is that of the old file, and links stay."""
    (host_dir / "old").write_text("old")
    (host_dir / "old").chmod(0o640)
    (host_dir / "link").symlink_to("old")

    with (host_dir / "old").open() as reader:
        runtime.write_text("link", "new")
        assert reader.read() == "old"

    assert (host_dir / "old").read_text() == "new"
    assert stat.S_IMODE((host_dir / "old").stat().st_mode) == 0o640
    assert (host_dir / "link").is_symlink()
    assert sorted(entry.name for entry in host_dir.iterdir()) == ["link", "old"]


@pytest.mark.parametrize("mode", [0o000, 0o004, 0o044, 0o600, 0o755], ids=oct)
def test_write_file_keeps_the_mode_of_the_old(runtime: Runtime, host_dir: Path, mode: int) -> None:
    (host_dir / "file").touch(mode)
    (host_dir / "file").chmod(mode)

    runtime.write_text("file", "new")

    assert stat.S_IMODE((host_dir / "file").stat().st_mode) == mode


def test_write_file_new_has_the_mode_of_the_umask(runtime: Runtime, host_dir: Path) -> None:
    """The hosts of these tests have the umask of this process."""
    (host_dir / "here").touch()

    runtime.write_text("there", "new")

    assert (host_dir / "there").stat().st_mode == (host_dir / "here").stat().st_mode


@pytest.mark.parametrize("size", [0, 10, 3_000_000])
def test_read_file_over_max_size_is_refused(runtime: Runtime, host_dir: Path, size: int) -> None:
    (host_dir / "file").write_bytes(bytes(size + 1))

    with pytest.raises(TransferError) as caught:
        runtime.read_bytes("file", max_size=size)
    assert (caught.value.host, caught.value.path) == (HOST_ALIAS, "file")
    assert str(size) in caught.value.reason
    assert len(runtime.read_bytes("file", max_size=size + 1)) == size + 1


def test_read_file_without_a_size_is_read(case: TransportCase, runtime: Runtime) -> None:
    """The kernel makes the content when it is read."""
    if case.fake is None and Path("/proc/meminfo").exists():
        assert "MemTotal" in runtime.read_text("/proc/meminfo")


# Refused -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["no such", "no/such", "dangling", "file/", "file/inside", "-x", "a\nb"])
def test_read_missing_file_is_file_not_found_error(runtime: Runtime, host_dir: Path, path: str) -> None:
    (host_dir / "file").touch()
    (host_dir / "dangling").symlink_to("no such")

    for read in (runtime.read_bytes, runtime.listdir, runtime.get):
        with pytest.raises(FileNotFoundError) as caught:
            read(path)
        error: BaseException = caught.value  # for mypy, these classes cannot be one
        assert isinstance(error, HostFileNotFoundError)
        assert (error.host, error.path, error.reason) == (HOST_ALIAS, path, "no such file or directory")
    assert not runtime.exists(path)


@pytest.mark.parametrize(("path", "reason"), [("directory", "is a directory"), ("pipe", "not a regular file")])
def test_read_of_no_file_is_refused(runtime: Runtime, host_dir: Path, path: str, reason: str) -> None:
    (host_dir / "directory").mkdir()
    os.mkfifo(host_dir / "pipe")

    with pytest.raises(TransferError) as caught:
        runtime.read_bytes(path)

    assert (caught.value.action, caught.value.reason) == ("read", reason)
    assert runtime.exists(path)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("directory", "is a directory"),
        ("directory/", "is a directory"),
        ("no/such", "no such directory"),
        ("new/", "no such directory"),
        ("file/inside", "no such directory"),
        ("pipe", "is no regular file"),
    ],
)
def test_write_to_unusable_path_changes_nothing(runtime: Runtime, host_dir: Path, path: str, reason: str) -> None:
    (host_dir / "directory").mkdir()
    (host_dir / "file").write_text("old")
    os.mkfifo(host_dir / "pipe")

    with pytest.raises(TransferError) as caught:
        runtime.write_text(path, "new")

    assert (caught.value.host, caught.value.action, caught.value.path) == (HOST_ALIAS, "write", path)
    assert reason in caught.value.reason
    assert sorted(entry.name for entry in host_dir.iterdir()) == ["directory", "file", "pipe"]
    assert not list((host_dir / "directory").iterdir())
    assert (host_dir / "file").read_text() == "old"


def test_listdir_of_a_file_is_refused(runtime: Runtime, host_dir: Path) -> None:
    (host_dir / "file").touch()

    with pytest.raises(TransferError) as caught:
        runtime.listdir("file")

    assert (caught.value.action, caught.value.reason) == ("list", "not a directory")


def test_file_contents_bad_arguments_reach_no_host(case: TransportCase) -> None:
    runtime = case.runtime()
    before = None if case.fake is None else list(case.fake.calls)
    for path in ("", "a\0b", None, b"bytes"):
        for use in (runtime.read_bytes, runtime.exists, runtime.listdir, runtime.glob):
            with pytest.raises(ValueError, match="must be"):
                use(path)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="must be"):
            runtime.write_bytes(path, b"")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_size"):
        runtime.read_bytes("file", max_size=-1)
    with pytest.raises(ValueError, match="data"):
        runtime.write_bytes("file", "text")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="text"):
        runtime.write_text("file", b"data")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\*\*"):
        runtime.glob("**/*.csv")
    assert before == (None if case.fake is None else case.fake.calls)


# Names ---------------------------------------------------------------------------------------------------------------


def test_listdir_has_hidden_names_and_links(runtime: Runtime, host_dir: Path) -> None:
    assert runtime.listdir() == []
    (host_dir / "sub").mkdir()
    names = ["*", ".*", ".hidden", "..two", "dangling", "file", "sub"]
    for name in ("*", ".*", ".hidden", "..two", "file"):
        (host_dir / name).touch()
    (host_dir / "dangling").symlink_to("no such")

    assert runtime.listdir() == runtime.listdir(".") == runtime.listdir("sub/..") == sorted(names)
    assert runtime.listdir("sub") == []


def test_listdir_of_many_names_is_complete(runtime: Runtime, host_dir: Path) -> None:
    names = [f"{number:04}{'x' * 200}" for number in range(1500)]
    for name in names:
        (host_dir / name).touch()

    assert runtime.listdir() == names


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.csv", ["a b.csv", "a.csv", "new\nline.csv"]),
        ("?.csv", ["a.csv"]),
        ("a.csv", ["a.csv"]),
        ("no*", []),
        ("no such", []),
        ("[ab]*", ["a b.csv", "a.csv", "back\\slash"]),
        ("[!ab]*", ["-dash", "dangling", "new\nline.csv", "sub", "\udcff"]),
        ("-*", ["-dash"]),
        ("back\\*", ["back\\slash"]),
        (".*", [".hidden"]),
        (".*/in", []),
        ("*/", ["sub/"]),
        ("*/*", ["sub/in", "sub/it's"]),
        ("./s*/i?", ["./sub/in"]),
        ("../*/sub/in", ["../{name}/sub/in"]),
        ("{cwd}/a*", ["{cwd}/a b.csv", "{cwd}/a.csv"]),
        ("$(id) `id` ; echo x*", []),
        ("{{a,b}}.csv", []),
        ("dangl*", ["dangling"]),
        ("\udcff", ["\udcff"]),
    ],
)
def test_glob_finds_paths(runtime: Runtime, host_dir: Path, pattern: str, expected: list[str]) -> None:
    (host_dir / "sub").mkdir()
    for name in (
        "a.csv",
        "a b.csv",
        "new\nline.csv",
        ".hidden",
        "-dash",
        "back\\slash",
        "\udcff",
        "sub/in",
        "sub/it's",
    ):
        (host_dir / name).touch()
    (host_dir / "dangling").symlink_to("no such")
    words = {"cwd": runtime.working_dir, "name": host_dir.name}

    assert runtime.glob(pattern.format(**words)) == [path.format(**words) for path in expected]


def test_glob_paths_can_be_read(runtime: Runtime, host_dir: Path) -> None:
    for name in ("a", "-b", "\udcfe"):
        (host_dir / name).write_text("content")

    assert [runtime.read_text(path) for path in runtime.glob("*")] == ["content"] * 3


# Whole transfers -----------------------------------------------------------------------------------------------------


def test_put_and_get_are_relative_to_working_dir(runtime: Runtime, host_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("content")
    os.utime(tmp_path / "tree" / "file", (MTIME_SECONDS, MTIME_SECONDS))
    progress: list[tuple[int, int | None]] = []

    runtime.put(tmp_path / "tree", on_progress=lambda *now: progress.append(now))
    runtime.put(tmp_path / "tree" / "file", "renamed")
    runtime.get("tree", tmp_path / "back", on_progress=lambda *now: progress.append(now))

    assert (host_dir / "tree" / "file").stat().st_mtime == MTIME_SECONDS
    assert (host_dir / "renamed").read_text() == "content"
    assert (tmp_path / "back" / "file").read_text() == "content"
    assert progress


def test_get_without_target_keeps_the_name(
    runtime: Runtime, host_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (host_dir / "file").write_text("content")
    monkeypatch.chdir(tmp_path)

    runtime.get("file")

    assert (tmp_path / "file").read_text() == "content"


def test_put_failure_is_transfer_error(runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(TransferError) as caught:
        runtime.put(tmp_path / "no such")

    assert (caught.value.host, caught.value.action) == (HOST_ALIAS, "send")


def test_file_contents_are_in_calls_of_fake_host(case: TransportCase, runtime: Runtime) -> None:
    if case.fake is None:
        return
    runtime.write_text("file", "x")
    runtime.read_text("file")
    runtime.glob("f*")

    cwd = runtime.working_dir
    expected = [Wrote(HOST_ALIAS, "file", b"x", cwd), Read(HOST_ALIAS, "file", cwd), Looked(HOST_ALIAS, "f*", cwd)]
    assert case.fake.calls == expected


def test_group_put_and_get_move_files(case: TransportCase, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    with RuntimeGroup(runtimes=[case.runtime()]) as group:
        group.put(tmp_path / "file", "sent")
        group.get("sent", tmp_path / "{host}" / "back")
        collected = group.get("no such", tmp_path / "{host}", on_error="collect")

    assert (tmp_path / HOST_ALIAS / "back").read_text() == "content"
    outcome = collected[HOST_ALIAS]
    assert outcome is not None
    assert isinstance(outcome.error, HostFileNotFoundError)


def test_write_large_data_to_unusable_path_fails(runtime: Runtime, host_dir: Path) -> None:
    """The script ends before it has read its input, which is larger than every window."""
    (host_dir / "directory").mkdir()

    for path in ("directory", "no/such"):
        with pytest.raises(TransferError) as caught:
            runtime.write_bytes(path, bytes(9_000_000))
        assert "directory" in caught.value.reason
    assert runtime.listdir() == ["directory"]
