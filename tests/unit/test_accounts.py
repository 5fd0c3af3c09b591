"""The state of an account in /etc/shadow, on which the options of a private sshd depend."""

from __future__ import annotations

from pathlib import Path

import pytest

from lazycluster.testing._accounts import is_account_locked


@pytest.mark.parametrize(
    ("shadow", "expected"),
    [("me:!$6$x:1:\n", True), ("me:*:1:\n", False), ("other:!:1:\n", False), (None, False)],
    ids=["locked", "without password", "another account", "no shadow file"],
)
def test_is_account_locked_reads_shadow_file(tmp_path: Path, shadow: str | None, expected: bool) -> None:
    if shadow is not None:
        (tmp_path / "shadow").write_text(shadow)

    assert is_account_locked("me", tmp_path / "shadow") is expected
