"""An ssh configuration on disk is replaced whole or not at all, and restored if the caller fails."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from lazycluster._ssh.config_file import (
    ConfigFileError,
    back_up,
    locked_directory,
    os_errors_explained,
    read_config_text,
    replace_config,
)

BACKUP = re.compile(r"\.config\.lazycluster-backup-\w+")
BYTES = b"# \xe4\xff caf\xc3\xa9\r\nHost a\r\n\tPort 1"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    directory = tmp_path / ".ssh"
    directory.mkdir()
    path = directory / "config"
    path.write_bytes(BYTES)
    return path


def put_more(path: Path, undo: ExitStack | None = None) -> None:
    before = read_config_text(path)
    replace_config(path, before, f"# more\n{before or ''}", undo or ExitStack())


def others(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir() if file != path)


def test_replace_config_keeps_all_other_bytes(config: Path) -> None:
    put_more(config)

    assert config.read_bytes() == b"# more\n" + BYTES
    assert others(config) == []


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o640])
def test_replace_config_keeps_mode_and_owner(config: Path, mode: int) -> None:
    config.chmod(mode)
    owner = (1234, 5678) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(config, *owner)
    backup = back_up(config, "text", ExitStack())
    put_more(config)

    for path in (config, backup):
        status = path.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (mode, *owner)


def test_replace_config_makes_new_file_for_user_alone(tmp_path: Path) -> None:
    path = tmp_path / ".ssh" / "config"
    umask = os.umask(0)
    try:
        with locked_directory(path):
            put_more(path)
    finally:
        os.umask(umask)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert others(path) == []


def test_replace_config_keeps_symbolic_links(config: Path, tmp_path: Path) -> None:
    (tmp_path / "dotfiles").mkdir()
    target = config.rename(tmp_path / "dotfiles" / "ssh")
    (tmp_path / "between").symlink_to("dotfiles/ssh")
    config.symlink_to("../between")
    backup = back_up(config, "text", ExitStack())
    put_more(config)

    assert config.is_symlink()
    assert (tmp_path / "between").is_symlink()
    assert target.read_bytes() == config.read_bytes() == b"# more\n" + BYTES
    assert backup.parent == target.parent


def test_replace_config_of_dangling_link_makes_target(tmp_path: Path) -> None:
    (tmp_path / "config").symlink_to("target")
    put_more(tmp_path / "config")

    assert (tmp_path / "target").read_text() == "# more\n"


def test_replace_config_is_undone_unless_kept(config: Path) -> None:
    new = config.with_name("new")
    config.chmod(0o640)
    with ExitStack() as undo:
        back_up(config, "text", undo)
        put_more(config, undo)
        put_more(new, undo)
        assert len(others(config)) == 2

    assert config.read_bytes() == BYTES
    assert stat.S_IMODE(config.stat().st_mode) == 0o640
    assert others(config) == []


def test_replace_config_undo_keeps_later_changes(config: Path) -> None:
    with ExitStack() as undo:
        put_more(config, undo)
        config.write_text("changed by another program")

    assert config.read_text() == "changed by another program"


def test_replace_config_failed_write_changes_nothing(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError) as caught, ExitStack() as undo:
        put_more(config, undo)

    assert caught.value.errno == errno.ENOSPC
    assert config.read_bytes() == BYTES
    assert others(config) == []


def test_back_up_gives_each_version_its_own_name(config: Path) -> None:
    backups = [back_up(config, f"{number}", ExitStack()) for number in range(4)]

    assert [backup.read_text() for backup in backups] == ["0", "1", "2", "3"]
    assert [name for name in others(config) if not BACKUP.fullmatch(name)] == []


def test_locked_directory_makes_threads_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "config"
    barrier = threading.Barrier(8)

    def work() -> None:
        barrier.wait()
        with locked_directory(path):
            put_more(path)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert path.read_text() == "# more\n" * 8


def test_locked_directory_that_stays_locked_is_an_error(config: Path) -> None:
    with locked_directory(config), pytest.raises(ConfigFileError) as caught, locked_directory(config, timeout=0.2):
        pass

    assert (caught.value.path, caught.value.reason) == (config, "another process has had the lock for 0.2 s")


def refuse(*_: object, **__: object) -> None:
    raise PermissionError(1, "Operation not permitted")


def test_locked_directory_without_locks_goes_on(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse)

    with locked_directory(config):
        put_more(config)
    assert config.read_bytes() == b"# more\n" + BYTES


def test_locked_directory_makes_one_directory_only(tmp_path: Path) -> None:
    config = tmp_path / "a" / "b" / "config"
    with pytest.raises(ConfigFileError) as caught, os_errors_explained(config), locked_directory(config):
        pass
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert not (tmp_path / "a").exists()


def test_replace_config_refuses_to_lose_the_owner(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fchown", refuse)
    real = os.fstat

    def other_owner(descriptor: int) -> os.stat_result:
        values = list(real(descriptor))
        values[4] += 1
        return os.stat_result(values)

    monkeypatch.setattr(os, "fstat", other_owner)
    with pytest.raises(PermissionError):
        put_more(config)
    monkeypatch.undo()
    assert config.read_bytes() == BYTES
    assert others(config) == []


def make_directory(path: Path) -> None:
    path.mkdir()


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("make", [make_directory, make_fifo])
def test_read_config_text_refuses_other_than_files(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "config")

    with pytest.raises(ConfigFileError) as caught:
        read_config_text(tmp_path / "config")
    assert caught.value.reason == "it is not a regular file"


def test_replace_config_refuses_read_only_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write to anything

    with pytest.raises(ConfigFileError) as caught, os_errors_explained(config, "Do it."):
        put_more(config)
    assert str(caught.value) == f"{config} was not changed: it is read-only. Do it."
    assert config.read_bytes() == BYTES
