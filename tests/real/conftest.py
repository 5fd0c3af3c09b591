"""Every test of this directory needs an sshd, also one that starts it by other means than the fixtures."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def sshd_is_required(require_sshd: None) -> None:
    """Skip the tests if there is no sshd; in CI fail them."""
