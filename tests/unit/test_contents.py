"""The scripts for the content of files and for names in directories, in each shell of this machine."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazycluster._files import contents
from lazycluster._model.running_command import CommandRunner, Conversation, RunningCommand, collecting
from lazycluster._model.watch import UNWATCHED, Watch
from lazycluster.exceptions import HostFileNotFoundError, TransferError
from lazycluster.results import Collector, Stream
from tests.file_trees import FILE_NAME_IDS, FILE_NAMES

if TYPE_CHECKING:
    from collections.abc import Callable

    from lazycluster._model.command import Command

SHELLS = [found for name in ("dash", "bash", "ksh", "mksh") if (found := shutil.which(name))]


class LocalShellCommand(RunningCommand):
    """A script in a local shell, which runs when its input is complete or its output is asked for."""

    def __init__(self, argv: list[str], directory: Path, on_output: Callable[[Stream, bytes], object]) -> None:
        super().__init__(on_output)
        self._argv, self._directory, self._stdin = argv, directory, b""
        self._exit_code: int | None = None

    @property
    def exit_code(self) -> int | None:
        return self._exit_code

    def wait_until(self, predicate: Callable[[], bool]) -> None:
        self.wait()

    def write(self, data: bytes) -> None:
        self._stdin += data

    def close_stdin(self) -> None:
        pass

    def wait(self) -> None:
        if self._exit_code is None:
            ended = subprocess.run(
                self._argv, cwd=self._directory, input=self._stdin, capture_output=True, check=False, timeout=30
            )
            self._exit_code = ended.returncode
            self._deliver(Stream.STDOUT, ended.stdout)
            self._deliver(Stream.STDERR, ended.stderr)


class LocalShell(CommandRunner):
    """Runs scripts in a local shell, and counts them."""

    host = "web1"

    def __init__(self, shell: str, directory: Path) -> None:
        self.count = 0
        self._shell, self._directory = shell, directory

    def communicate(self, command: Command, conversation: Conversation, watch: Watch = UNWATCHED) -> int:
        self.count += 1
        on_output = collecting(watch.collector or Collector(), watch)
        running = LocalShellCommand([self._shell, "-c", command.shell_text], self._directory, on_output)
        conversation(running)
        assert running.exit_code is not None
        return running.exit_code


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> LocalShell:
    return LocalShell(request.param, tmp_path)


@pytest.mark.parametrize("name", FILE_NAMES, ids=FILE_NAME_IDS)
def test_contents_of_any_name_take_one_script_each(shell: LocalShell, tmp_path: Path, name: str) -> None:
    path = f"./{name}" if name.startswith("~") else name
    escaped = "".join(f"[{char}]" if char in "*?[" else char for char in path)

    contents.write_file(shell, path, b"content\0\xff", cwd=None)
    assert contents.read_file(shell, path, 100, cwd=None) == b"content\0\xff"
    assert contents.path_exists(shell, path, cwd=None)
    assert contents.list_dir(shell, ".", cwd=None) == [name]
    assert contents.glob(shell, escaped, cwd=None) == [path]

    assert shell.count == 5
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_contents_of_missing_paths_are_errors(shell: LocalShell) -> None:
    with pytest.raises(HostFileNotFoundError):
        contents.read_file(shell, "no such", 100, cwd=None)
    with pytest.raises(HostFileNotFoundError):
        contents.list_dir(shell, "-no such", cwd=None)
    with pytest.raises(TransferError) as caught:
        contents.write_file(shell, "no/such", b"", cwd=None)
    assert caught.value.reason == "no such directory: no"
    assert not contents.path_exists(shell, "no such", cwd=None)
    assert contents.glob(shell, "no such*", cwd=None) == []


@pytest.mark.parametrize("mode", [0o000, 0o004, 0o640, 0o755], ids=oct)
def test_write_file_mode_of_old_and_of_umask(shell: LocalShell, tmp_path: Path, mode: int) -> None:
    (tmp_path / "old").touch(mode)
    (tmp_path / "old").chmod(mode)
    (tmp_path / "other").touch()

    contents.write_file(shell, "old", b"new", cwd=None)
    contents.write_file(shell, "new", b"new", cwd=None)

    assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == mode
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_glob_dots_match_only_written_dots(shell: LocalShell, tmp_path: Path) -> None:
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x").touch()
    (tmp_path / "x").touch()

    assert contents.glob(shell, ".*", cwd=None) == [".hidden"]
    assert contents.glob(shell, ".*/x", cwd=None) == [".hidden/x"]
    assert contents.glob(shell, "./.hidden/../x*", cwd=None) == ["./.hidden/../x"]


def test_glob_home_is_put_before_the_paths(shell: LocalShell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The home directory is no pattern, though its path looks like one."""
    (tmp_path / "[h]ome *").mkdir()
    (tmp_path / "[h]ome *" / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "[h]ome *"))

    assert contents.glob(shell, "~/f*", cwd=None) == [f"{tmp_path}/[h]ome */file"]
