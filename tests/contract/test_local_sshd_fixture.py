"""The fixture `local_sshd` of the pytest plugin, which gives a test of another project a real host."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from lazycluster.testing import LocalSshd
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


def test_it_is_one_real_sshd_for_the_whole_run(sshd: LocalSshd, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(_TESTS)

    status, printed = run_pytest(tmp_path, "-W", "error", f"--basetemp={tmp_path / 'base'}")

    assert status == 0, printed
    assert "2 passed" in printed
    [pid] = set(re.findall(r"^pid (\d+)$", printed, re.MULTILINE))
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
    assert [path.name for path in (tmp_path / "base").rglob("*lazycluster*")] == []
