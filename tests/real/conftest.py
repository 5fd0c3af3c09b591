"""A real sshd for the tests of this directory, which are skipped where there is none, and fail there in CI."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from lazycluster.testing import LocalSshd, SshdNotFoundError
from lazycluster.testing.local_sshd import find_sshd

if TYPE_CHECKING:
    from collections.abc import Iterator

_REAL_TESTS_DIRECTORY = Path(__file__).parent


class MakeSshd(Protocol):
    """Start one more sshd, with the keywords of `LocalSshd`; it is stopped after the test."""

    def __call__(self, **keywords: Any) -> LocalSshd: ...


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _REAL_TESTS_DIRECTORY in item.path.parents:
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="session", autouse=True)
def require_sshd() -> None:
    """Skip the tests where there is no sshd; in CI fail them."""
    try:
        find_sshd()
    except SshdNotFoundError as error:
        if os.environ.get("CI") == "true" or os.environ.get("LAZYCLUSTER_REQUIRE_SSHD") == "1":
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def sshd(require_sshd: None, run_directory: Path) -> Iterator[LocalSshd]:
    """Return the sshd that the tests share; its home is empty at first, and not to be relied on."""
    with LocalSshd(environment={"TMPDIR": str(run_directory)}) as server:
        yield server


@pytest.fixture
def short_tmpdir(run_directory: Path) -> Iterator[Path]:
    """Return a TMPDIR for a manager that is to be killed.

    Its path is short enough for sockets, and the directories of these, which nobody was left to remove, go with it.
    """
    with tempfile.TemporaryDirectory(prefix="e", dir=run_directory) as directory:
        yield Path(directory)


@pytest.fixture(scope="module", params=[True, False], ids=["resident", "per step"])
def resident(request: pytest.FixtureRequest) -> bool:
    """Return which way a runtime is to go onto its host: a test that asks for it is run for both."""
    return bool(request.param)


@pytest.fixture
def make_sshd(require_sshd: None, run_directory: Path) -> Iterator[MakeSshd]:
    """Return a function that starts an sshd for this test alone."""
    with ExitStack() as stack:

        def make(**keywords: Any) -> LocalSshd:
            environment = {"TMPDIR": str(run_directory), **(keywords.pop("environment", None) or {})}
            return stack.enter_context(LocalSshd(environment=environment, **keywords))

        yield make
