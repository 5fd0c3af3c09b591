"""The hosts that the files of an ssh configuration name, on a real disk."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from types import SimpleNamespace

import pytest

from lazycluster._ssh.config_hosts import configured_hosts, default_config, home, lines_naming_host


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the home directory that the password database has for this user; $HOME is another directory."""
    directory = tmp_path / "home"
    (directory / ".ssh").mkdir(parents=True)
    monkeypatch.setattr(pwd, "getpwuid", lambda _uid: SimpleNamespace(pw_dir=str(directory)))
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    return directory


def test_default_config_is_in_home_of_password_database(account: Path) -> None:
    assert home() == account
    assert default_config() == account / ".ssh/config"
    assert configured_hosts() == (), "the file does not exist"
    default_config().write_text("Host one two\n  Port 22\nHost *.example !three ?x four\n")
    assert configured_hosts() == ("one", "two", "four")


def test_home_of_unknown_user_is_from_environment(
    account: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert home() == tmp_path / "elsewhere"


def test_configured_hosts_follow_includes_in_order(account: Path, tmp_path: Path) -> None:
    more = account / ".ssh/config.d"
    more.mkdir()
    for name in ("b", "a", "c.off"):
        (more / name).write_text(f"Host {name} both\n")
    (tmp_path / "absolute").write_text("Host absolute\n")
    (account / "of home").write_text('Host "of home"\n')
    default_config().write_text(
        "Host first\n"
        "Match all\n"
        f"Include config.d/? none {tmp_path}/absolute\n"
        'Include "~/of home"\n'
        "Host last first both\n"
    )
    assert configured_hosts() == ("first", "a", "both", "b", "absolute", "of home", "last")
    assert [str(line) for line in lines_naming_host("both", default_config())] == [
        f"{more}/a, line 1",
        f"{more}/b, line 1",
        f"{default_config()}, line 5",
    ]
    assert lines_naming_host("c.off", default_config()) == ()


def test_configured_hosts_of_another_file(account: Path, tmp_path: Path) -> None:
    default_config().write_text("Host mine\n")
    (account / ".ssh/more").write_text("Host more\n")
    other = tmp_path / "config"
    other.write_text("Include more\nHost other\n")
    assert configured_hosts(other) == ("more", "other"), "a relative path starts in ~/.ssh, as for `ssh -F`"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_configured_hosts_skip_unreadable_files(account: Path) -> None:
    (account / ".ssh/secret").write_text("Host secret\n")
    (account / ".ssh/secret").chmod(0)
    default_config().write_text("Include secret\nHost mine\n")
    assert configured_hosts() == ("mine",)


def test_configured_hosts_skip_pipes_and_directories(account: Path) -> None:
    (account / ".ssh/directory").mkdir()
    os.mkfifo(account / ".ssh/pipe")
    (account / ".ssh/dangling").symlink_to("nowhere")
    (account / ".ssh/binary").write_bytes(bytes(range(256)) + b"\nHost binary\n")
    default_config().write_text("Include directory pipe dangling /dev/zero binary\nHost mine\n")
    assert configured_hosts() == ("binary", "mine")


def test_configured_hosts_file_that_includes_itself(account: Path) -> None:
    default_config().write_text("Host mine\nInclude config\nMatch all\nInclude config\nHost last\n")
    assert configured_hosts() == ("mine", "last")
