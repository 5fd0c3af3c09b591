"""A password is typed at a prompt and appears nowhere else. A program in place of ssh records its input."""

from __future__ import annotations

import logging
import os
import traceback
from pathlib import Path

import pytest

from lazycluster import AuthenticationError, ConnectError, Connection

SECRET = "hunter2-correct-horse"
SSH = """#!/bin/sh
directory={directory}
{{ printf '%s\\n' "$@"; env; cat /proc/$$/cmdline 2>/dev/null; echo; }} >>"$directory/calls"
case $1 in
    -G) echo "hostname web1" ;;
    -f)
        exec 3<>/dev/tty
        stty -echo <&3
        printf "me@%s's password: " "$(cat "$directory/asking-host" 2>/dev/null || echo web1)" >&3
        read -r answer <&3
        printf '%s\\n' "$answer" >>"$directory/answers"
        [ ! -e "$directory/refuse" ] || {{ echo "me@web1: Permission denied (password)." >&2; exit 255; }} ;;
esac
"""


@pytest.fixture
def ssh_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put programs in place of ssh and scp; return the directory with their records."""
    (tmp_path / "bin").mkdir()
    for name in ("ssh", "scp"):
        program = tmp_path / "bin" / name
        program.write_text(SSH.format(directory=tmp_path))
        program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path


def test_password_is_only_typed_at_prompt(ssh_directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with Connection("web1", password=SECRET) as connection:
        assert connection.run("true").exit_code == 0
        assert SECRET not in repr(connection)
    assert (ssh_directory / "answers").read_text() == SECRET + "\n"
    calls = (ssh_directory / "calls").read_text()
    assert "ControlMaster=yes" in calls
    assert SECRET not in calls
    assert caplog.messages
    assert SECRET not in caplog.text


def test_password_refused_is_not_in_error(ssh_directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    (ssh_directory / "refuse").touch()
    with Connection("web1", password=SECRET) as connection, pytest.raises(ConnectError) as caught:
        connection.run("true")
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert SECRET not in caplog.text
    assert (ssh_directory / "answers").read_text() == SECRET + "\n"  # asked once


def test_password_prompt_of_other_host_is_not_answered(ssh_directory: Path) -> None:
    (ssh_directory / "asking-host").write_text("bastion")
    with Connection("web1", password=SECRET) as connection, pytest.raises(AuthenticationError) as caught:
        connection.run("true")
    assert (caught.value.host, caught.value.hop) == ("web1", "bastion")
    assert not (ssh_directory / "answers").exists()
