"""Fixtures for tests of real hosts: without an sshd the tests are skipped, and in CI they fail.

A test is marked `real` if it uses one of these fixtures or lies in `tests/real`.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from lazycluster.testing import LocalSshd, SshdNotFoundError, find_sshd

if TYPE_CHECKING:
    from collections.abc import Iterator

_REAL_TESTS_DIRECTORY = Path(__file__).parent / "real"


class MakeSshd(Protocol):
    """Starts an sshd with the keywords of `LocalSshd`; it is stopped after the test."""

    def __call__(self, **keywords: Any) -> LocalSshd: ...


@pytest.hookimpl
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "require_sshd" in getattr(item, "fixturenames", ()) or _REAL_TESTS_DIRECTORY in item.path.parents:
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="session")
def require_sshd() -> None:
    """Skip the test if there is no sshd; in CI fail it."""
    try:
        find_sshd()
    except SshdNotFoundError as error:
        if os.environ.get("CI") == "true" or os.environ.get("LAZYCLUSTER_REQUIRE_SSHD") == "1":
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def sshd(require_sshd: None, run_directory: Path) -> Iterator[LocalSshd]:
    """Return the sshd that the tests share; other tests may leave files in its home."""
    with LocalSshd(environment={"TMPDIR": str(run_directory)}) as server:
        yield server


@pytest.fixture
def make_sshd(require_sshd: None, run_directory: Path) -> Iterator[MakeSshd]:
    """Return a function that starts an sshd for this test alone."""
    with ExitStack() as stack:

        def make(**keywords: Any) -> LocalSshd:
            environment = {"TMPDIR": str(run_directory), **(keywords.pop("environment", None) or {})}
            return stack.enter_context(LocalSshd(environment=environment, **keywords))

        yield make


@pytest.fixture
def short_tmpdir(run_directory: Path) -> Iterator[Path]:
    """Return a TMPDIR for a local process that the test kills.

    Its path is short enough for sockets. It is removed with the directories that the killed process left there.
    """
    with tempfile.TemporaryDirectory(prefix="e", dir=run_directory) as directory:
        yield Path(directory)


@pytest.fixture(scope="module", params=[True, False], ids=["resident", "per command"])
def resident(request: pytest.FixtureRequest) -> bool:
    """Return the value of `resident=`; a test with this fixture runs with both values."""
    return bool(request.param)
