"""The pytest plugin: the fixtures `fake_host` and `local_sshd`, for every project that has lazycluster installed.

pytest loads this module in every run, so it imports nothing of the library before a test asks for one of them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lazycluster.testing import FakeHost, LocalSshd


@pytest.fixture
def fake_host() -> Iterator[FakeHost]:
    """Play every host: `fake_host.on("nproc", stdout="8")` sets the answer to a command."""
    from lazycluster.testing import FakeHost  # noqa: PLC0415 - see above

    with FakeHost() as host:
        yield host


@pytest.fixture(scope="session")
def local_sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSshd]:
    """Run a private, real sshd on this machine; without sshd the tests are skipped, or fail if CI is set."""
    from lazycluster.testing import LocalSshd, SshdNotFoundError, find_sshd  # noqa: PLC0415 - see above

    try:
        find_sshd()
    except SshdNotFoundError as error:
        if os.environ.get("CI"):
            pytest.fail(f"local_sshd: {error}", pytrace=False)
        pytest.skip(f"local_sshd: {error}")
    with LocalSshd(environment={"TMPDIR": str(tmp_path_factory.mktemp("host"))}) as server:
        yield server
