"""The fixture `local_sshd` of the pytest plugin, which starts a real host for the tests of another project."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lazycluster.testing import LocalSshd
from tests.processes import is_alive
from tests.unit.test_fake_host_plugin import run_pytest

pytestmark = pytest.mark.real

_TESTS = """
import os
from lazycluster import Connection, Runtime

def test_commands(local_sshd):
    with Connection(local_sshd.host, **local_sshd.connection_kwargs) as connection:
        assert connection.run("echo real").stdout == "real\\n"
    print("pid", local_sshd.pid)

def test_functions(local_sshd):
    with Runtime(local_sshd.host, **local_sshd.connection_kwargs) as runtime:
        assert runtime.call(os.getpid) != os.getpid()
        assert not runtime.working_dir.startswith("/tmp/lazycluster")
    print("pid", local_sshd.pid)
"""


def test_local_sshd_fixture_is_shared_by_whole_run(sshd: LocalSshd, tmp_path: Path) -> None:
    (tmp_path / "test_host.py").write_text(_TESTS)

    status, printed = run_pytest(tmp_path, "-W", "error", f"--basetemp={tmp_path / 'base'}")

    assert status == 0, printed
    assert "2 passed" in printed
    [pid] = set(re.findall(r"^pid (\d+)$", printed, re.MULTILINE))
    assert not is_alive(int(pid))
    assert [path.name for path in (tmp_path / "base").rglob("*lazycluster*")] == []
