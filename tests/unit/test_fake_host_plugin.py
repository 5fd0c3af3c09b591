"""The pytest plugin, as the tests of another project see it."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lazycluster.testing

_NO_SSHD = "import shutil\nshutil.which = lambda *args, **keywords: None\n"
"""A conftest.py that hides every program."""
_USES_SSHD = "def test_it(local_sshd):\n    assert local_sshd.port\n"


def run_pytest(directory: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """Run pytest on a directory in a process of its own, and return its exit status and what it printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COV_CORE") and name != "CI"}
    argv = (sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", f"--rootdir={directory}", *arguments)
    ran = subprocess.run(argv, capture_output=True, text=True, cwd=directory, env={**kept, **environment})
    return ran.returncode, ran.stdout + ran.stderr


def test_plugin_is_an_entry_point_of_pytest() -> None:
    [entry] = [
        each for each in importlib.metadata.entry_points(group="pytest11") if each.value.startswith("lazycluster")
    ]
    assert (entry.name, entry.value) == ("lazycluster", "lazycluster.testing.plugin")


def test_plugin_fixtures_are_described(tmp_path: Path) -> None:
    status, printed = run_pytest(tmp_path, "--fixtures")

    assert status in {0, 5}, printed
    assert "fake_host -- " in printed
    assert "Play every host" in printed
    assert "local_sshd [session scope] -- " in printed


def test_plugin_imports_nothing_of_the_library(tmp_path: Path) -> None:
    """Each import would slow down every pytest run of each user of the library."""
    (tmp_path / "test_it.py").write_text(
        "import sys\n"
        "def test_it():\n"
        "    loaded = {name for name in sys.modules if name.startswith('lazycluster')}\n"
        "    assert loaded == {'lazycluster', 'lazycluster.testing', 'lazycluster.testing.plugin'}\n"
        "    assert not {'attrs', 'attr', 'cloudpickle', 'pexpect', 'rich'} & set(sys.modules)\n"
    )
    status, printed = run_pytest(
        tmp_path, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", PYTEST_PLUGINS="lazycluster.testing.plugin"
    )

    assert status == 0, printed


def test_fake_host_fixture_is_new_for_each_test(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "from lazycluster import Runtime\n"
        "@pytest.mark.parametrize('answer', ['1', '2'])\n"
        "def test_it(fake_host, answer):\n"
        "    assert fake_host.calls == []\n"
        "    fake_host.on('nproc', stdout=answer)\n"
        "    assert Runtime('host-1').run('nproc').stdout == answer\n"
    )
    status, printed = run_pytest(tmp_path, "-W", "error")

    assert status == 0, printed
    assert "2 passed" in printed


def test_local_sshd_fixture_without_sshd_skips(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(_NO_SSHD)
    (tmp_path / "test_it.py").write_text(_USES_SSHD)

    status, printed = run_pytest(tmp_path)

    assert status == 0, printed
    assert "local_sshd: sshd not found" in printed
    assert "1 skipped" in printed


def test_local_sshd_fixture_without_sshd_fails_in_ci(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(_NO_SSHD)
    (tmp_path / "test_it.py").write_text(_USES_SSHD)

    status, printed = run_pytest(tmp_path, CI="true")

    assert status == 1, printed
    assert "local_sshd: sshd not found" in printed
    assert "1 error" in printed


@pytest.mark.parametrize("name", lazycluster.testing.__all__)
def test_testing_package_has_every_public_name(name: str) -> None:
    assert name in dir(lazycluster.testing)
    assert getattr(lazycluster.testing, name) is not None


def test_testing_package_unknown_name_is_attribute_error() -> None:
    with pytest.raises(AttributeError, match="NoSuchName"):
        _ = lazycluster.testing.NoSuchName
