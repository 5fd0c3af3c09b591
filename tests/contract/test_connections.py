"""A connection: commands and files with a directory of their own, and its end. It never has a supervisor."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazycluster import Connection, ConnectionLostError, RuntimeClosedError, TransferError, WorkingDirectoryError
from tests.contract.conftest import CONNECTION_KINDS, HOST_ALIAS, TransportCase

pytestmark = pytest.mark.parametrize("case", CONNECTION_KINDS, indirect=True)


@pytest.fixture
def connection(case: TransportCase) -> Connection:
    return case.connection()


@pytest.fixture
def local_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "local"
    directory.mkdir()
    return directory


@pytest.fixture
def work_dir(case: TransportCase) -> Iterator[Path]:
    """Return the directory `work` in the home directory of the host; what a test makes beside it is removed."""
    before = set(case.home.iterdir())
    directory = case.home / "work"
    (directory / "sub").mkdir(parents=True)
    (directory / "link").symlink_to("sub")
    yield directory
    for entry in set(case.home.iterdir()) - before:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def entry_names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


# Commands ------------------------------------------------------------------------------------------------------------


def test_connection_run_uses_cwd_env_and_stdin(case: TransportCase, connection: Connection, work_dir: Path) -> None:
    command = case.script('pwd; echo "$X"; cat', stdout=f"{work_dir}\nset\nread")

    assert connection.run(command, cwd=str(work_dir), env={"X": "set"}, stdin=b"read").stdout == (
        f"{work_dir}\nset\nread"
    )


def test_connection_run_starts_in_home(case: TransportCase, connection: Connection) -> None:
    command = case.script("pwd", stdout=f"{case.home}\n")

    assert connection.run(command).stdout == connection.run(command, cwd="~").stdout == f"{case.home}\n"


@pytest.mark.parametrize("cwd", ["no such directory", "/no/such", "~/no such"])
def test_connection_run_missing_cwd_is_named(connection: Connection, cwd: str) -> None:
    with pytest.raises(WorkingDirectoryError) as caught:
        connection.run("true", cwd=cwd)

    assert (caught.value.host, caught.value.path) == (HOST_ALIAS, cwd)


# Files ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "tree"])
def test_put_and_get_report_progress(connection: Connection, work_dir: Path, tmp_path: Path, kind: str) -> None:
    size = 8_000_000
    source = tmp_path / "source"
    if kind == "tree":
        source.mkdir()
    (source / "file" if kind == "tree" else source).write_bytes(os.urandom(size))
    reports: list[tuple[int, int | None]] = []

    def on_progress(done: int, total: int | None) -> None:
        reports.append((done, total))

    for action in ("put", "get"):
        reports.clear()
        if action == "put":
            connection.put(source, "sent", cwd=str(work_dir), on_progress=on_progress)
        else:
            connection.get("sent", tmp_path / "fetched", cwd=str(work_dir), on_progress=on_progress)
        amounts = [amount for amount, _ in reports]
        assert amounts == sorted(amounts)
        assert {total for _, total in reports} == ({size} if kind == "file" else {None})
        assert amounts[-1] == size if kind == "file" else size <= amounts[-1] < size + 30_000


@pytest.mark.parametrize("name", ["with space", "-dash", "a:b", "*", "new\nline", "it's"])
def test_put_and_get_relative_paths_start_in_cwd(
    connection: Connection, local_dir: Path, work_dir: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(local_dir)
    (local_dir / name).write_text("content")

    connection.put(name, name, cwd=str(work_dir))
    (local_dir / name).unlink()
    connection.get(name, cwd=str(work_dir))

    assert (work_dir / name).read_text() == (local_dir / name).read_text() == "content"


def test_put_and_get_without_cwd_start_in_home(
    case: TransportCase, connection: Connection, work_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("content")

    connection.put(tmp_path / "file", "sent")
    connection.get("sent", tmp_path / "fetched")

    assert (case.home / "sent").read_text() == (tmp_path / "fetched").read_text() == "content"


def test_put_and_get_without_a_name_are_refused(connection: Connection, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        connection.get("", tmp_path)
    with pytest.raises(TransferError) as caught:
        connection.put("/")
    assert (caught.value.host, caught.value.action, caught.value.path) == (HOST_ALIAS, "send", "/")


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


@pytest.mark.parametrize(("remote", "expected"), TARGETS)
@pytest.mark.parametrize("kind", ["file", "tree"])
def test_put_remote_path_names_the_target(
    case: TransportCase,
    connection: Connection,
    local_dir: Path,
    work_dir: Path,
    kind: str,
    remote: str | None,
    expected: str,
) -> None:
    source = local_dir / "name"
    if kind == "tree":
        source.mkdir()
    (source / "file" if kind == "tree" else source).write_text("new")

    connection.put(source, remote.format(home=case.home) if remote else remote, cwd="work")

    target = case.home / expected
    assert (target / "file" if kind == "tree" else target).read_text() == "new"
    assert not list(case.home.rglob(".lazycluster*"))


@pytest.mark.parametrize(
    ("remote", "expected"),
    [("name", "name"), ("sub/name", "name"), ("./sub/../name", "name"), ("~/work/name", "name"), ("link/name", "name")],
)
@pytest.mark.parametrize("kind", ["file", "tree"])
def test_get_remote_path_names_the_source(
    connection: Connection, local_dir: Path, work_dir: Path, kind: str, remote: str, expected: str
) -> None:
    for directory in (work_dir, work_dir / "sub"):
        if kind == "tree":
            (directory / "name").mkdir()
        (directory / "name" / "file" if kind == "tree" else directory / "name").write_text(str(directory))

    connection.get(remote, local_dir, cwd="work")

    fetched = local_dir / expected / "file" if kind == "tree" else local_dir / expected
    assert fetched.read_text() == str(work_dir / "sub" if remote.startswith(("sub", "link")) else work_dir)
    assert entry_names(local_dir) == [expected]


@pytest.mark.parametrize(("remote", "name"), [(".", "work"), ("~/work/", "work"), ("link", "link"), ("sub/..", "work")])
def test_get_directory_without_name_keeps_the_hosts_name(
    connection: Connection, local_dir: Path, work_dir: Path, remote: str, name: str
) -> None:
    connection.get(remote, local_dir, cwd="work")

    assert entry_names(local_dir) == [name]


# The end -------------------------------------------------------------------------------------------------------------


def test_connection_is_alive_until_it_is_closed(case: TransportCase, connection: Connection, tmp_path: Path) -> None:
    assert (connection.host, connection.is_alive()) == (HOST_ALIAS, True)

    connection.close()
    connection.close()

    assert not connection.is_alive()
    for use in (
        lambda: connection.run("true"),
        lambda: connection.put(tmp_path),
        lambda: connection.get("~", tmp_path / "fetched"),
    ):
        with pytest.raises(RuntimeClosedError):
            use()


def test_close_connection_ends_command_of_another_thread(case: TransportCase, connection: Connection) -> None:
    """A real host may still report that the command was killed."""
    command = case.script("echo started; sleep 1000", stdout="started\n", delay=1000)
    started = threading.Event()
    endings: list[object] = []

    def run() -> None:
        try:
            endings.append(connection.run(command, on_output=lambda _stream, _data: started.set()).signal)
        except ConnectionLostError as error:
            endings.append((error.host, error.command, error.started))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(30)

    connection.close()

    thread.join(30)
    assert endings == [(HOST_ALIAS, command, True)] or (case.fake is None and endings == [signal.SIGTERM])
