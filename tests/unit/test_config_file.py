"""A configuration on disk is replaced whole or not at all, and what it was stays."""

from __future__ import annotations

import fcntl
import os
import re
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lazycluster._ssh import config_file
from lazycluster._ssh.config_edit import ConfigEditError, add_host
from lazycluster._ssh.config_file import ConfigChange, ConfigFileError, check_settings_apply, edit_config_file

BACKUP = re.compile(r"\.config\.lazycluster-backup-\d{8}-\d{6}(-\d+)?")
BYTES = b"# \xe4\xff caf\xc3\xa9\r\nHost a\r\n\tPort 1"


def no_check(candidate: Path, text: str) -> None:
    """Accept everything."""


def more(text: str) -> str:
    return text + "# more\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    directory = tmp_path / ".ssh"
    directory.mkdir()
    path = directory / "config"
    path.write_bytes(BYTES)
    return path


def others(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir() if file != path)


def test_the_bytes_that_are_not_changed_stay_and_a_copy_is_kept(config: Path) -> None:
    done = edit_config_file(config, more, no_check)

    assert config.read_bytes() == BYTES + b"# more\n"
    assert done.backup is not None
    assert done.backup.read_bytes() == BYTES
    assert [BACKUP.fullmatch(name) is not None for name in others(config)] == [True]


def test_every_version_is_kept(config: Path) -> None:
    backups = [edit_config_file(config, more, no_check).backup for _ in range(4)]

    assert [backup.read_bytes() for backup in backups if backup] == [BYTES + b"# more\n" * n for n in range(4)]


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o640])
def test_mode_and_owner_are_kept(config: Path, mode: int) -> None:
    config.chmod(mode)
    owner = (1234, 5678) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(config, *owner)
    done = edit_config_file(config, more, no_check)

    for path in (config, done.backup):
        assert path is not None
        status = path.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (mode, *owner)


def test_a_file_that_is_not_there_is_made_for_the_user_alone(tmp_path: Path) -> None:
    path = tmp_path / ".ssh" / "config"
    umask = os.umask(0)
    try:
        done = edit_config_file(path, more, no_check)
    finally:
        os.umask(umask)

    assert done == ConfigChange(written=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert others(path) == []


def test_links_stay_links(config: Path, tmp_path: Path) -> None:
    (tmp_path / "dotfiles").mkdir()
    target = config.rename(tmp_path / "dotfiles" / "ssh")
    (tmp_path / "between").symlink_to("dotfiles/ssh")
    config.symlink_to("../between")
    done = edit_config_file(config, more, no_check)

    assert config.is_symlink()
    assert (tmp_path / "between").is_symlink()
    assert target.read_bytes() == config.read_bytes() == BYTES + b"# more\n"
    assert done.backup is not None
    assert done.backup.parent == target.parent


def test_a_link_to_nothing_gets_its_target(tmp_path: Path) -> None:
    (tmp_path / "config").symlink_to("target")
    edit_config_file(tmp_path / "config", more, no_check)

    assert (tmp_path / "target").read_text() == "# more\n"


def test_nothing_is_written_where_nothing_changes(config: Path) -> None:
    before = config.stat()

    assert edit_config_file(config, lambda text: text, no_check) == ConfigChange(written=False)
    assert config.stat().st_ino == before.st_ino
    assert others(config) == []


def test_the_check_sees_the_new_text_before_it_is_in_place(config: Path) -> None:
    def check(candidate: Path, text: str) -> None:
        assert candidate.parent == config.parent
        assert candidate.name.startswith(".")
        assert candidate.read_bytes() == BYTES + b"# more\n" == text.encode("utf-8", "surrogateescape")
        assert stat.S_IMODE(candidate.stat().st_mode) == stat.S_IMODE(config.stat().st_mode)
        assert config.read_bytes() == BYTES

    edit_config_file(config, more, check)


@pytest.mark.parametrize("error", [ConfigFileError(Path("x"), "no"), KeyboardInterrupt()])
def test_what_is_refused_leaves_everything_as_it_was(config: Path, error: BaseException) -> None:
    def check(candidate: Path, text: str) -> None:
        raise error

    with pytest.raises(type(error)):
        edit_config_file(config, more, check)
    assert config.read_bytes() == BYTES
    assert others(config) == []


def test_an_edit_that_cannot_be_made_is_an_error_that_names_the_file(config: Path) -> None:
    def edit(text: str) -> str:
        raise ConfigEditError("it cannot be")

    with pytest.raises(ConfigFileError, match=rf"{config} was not changed: it cannot be\."):
        edit_config_file(config, edit, no_check)


def test_what_somebody_else_wrote_meanwhile_is_not_lost(config: Path) -> None:
    def check(candidate: Path, text: str) -> None:
        config.write_text("theirs")

    with pytest.raises(ConfigFileError, match="somebody else changed it meanwhile"):
        edit_config_file(config, more, check)
    assert config.read_text() == "theirs"
    assert others(config) == []


def test_those_who_change_it_at_once_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "config"
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        barrier.wait()
        edit_config_file(path, lambda text: add_host(text, f"h{number}", ()), no_check)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert sorted(re.findall(r"Host (\w+)", path.read_text())) == [f"h{number}" for number in range(8)]


def test_a_turn_that_never_comes_is_an_error(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_file, "_LOCK_TIMEOUT_SECONDS", 0.2)

    def edit(text: str) -> str:
        edit_config_file(config, more, no_check)
        raise AssertionError("it should have waited for the other")

    with pytest.raises(ConfigFileError, match=r"somebody else has been changing it for 0\.2 s"):
        edit_config_file(config, edit, no_check)


def fails(*_: object, **__: object) -> None:
    raise PermissionError(1, "Operation not permitted")


def test_file_systems_without_links_and_locks(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", fails)
    monkeypatch.setattr(fcntl, "flock", fails)
    os.utime(config, (1_000_000_000, 1_000_000_000))
    done = edit_config_file(config, more, no_check)

    assert done.backup is not None
    assert done.backup.read_bytes() == BYTES
    assert done.backup.stat().st_mtime == 1_000_000_000
    assert config.read_bytes() == BYTES + b"# more\n"


def test_an_owner_that_cannot_be_kept_is_an_error(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fchown", fails)
    real = os.fstat

    def other_owner(descriptor: int) -> os.stat_result:
        values = list(real(descriptor))
        values[4] += 1
        return os.stat_result(values)

    monkeypatch.setattr(os, "fstat", other_owner)
    with pytest.raises(ConfigFileError, match="Operation not permitted"):
        edit_config_file(config, more, no_check)
    monkeypatch.undo()
    assert config.read_bytes() == BYTES
    assert others(config) == []


def make_directory(path: Path) -> None:
    path.mkdir()


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("make", [make_directory, make_fifo])
def test_what_is_no_file_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "config")

    with pytest.raises(ConfigFileError, match="it is no file"):
        edit_config_file(tmp_path / "config", more, no_check)


def test_a_read_only_file_is_refused(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write to anything

    with pytest.raises(ConfigFileError, match="it is read-only"):
        edit_config_file(config, more, no_check)


def test_only_one_directory_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigFileError, match="No such file or directory: "):
        edit_config_file(tmp_path / "a" / "b" / "config", more, no_check)
    assert not (tmp_path / "a").exists()


def test_without_ssh_nothing_is_changed(config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(ConfigFileError, match="ssh, which is to look at it first, cannot be started"):
        edit_config_file(config, more, lambda candidate, text: check_settings_apply(config, candidate, text, "web", ()))
    assert config.read_bytes() == BYTES
