"""The state of a user's account, on which the options of sshd depend."""

from __future__ import annotations

from pathlib import Path


def is_account_locked(user: str, shadow_file: Path = Path("/etc/shadow")) -> bool:
    """Return whether an account is locked (shadow(5)): then sshd lets the user in through PAM only."""
    try:
        rows = shadow_file.read_text().splitlines()
    except OSError:  # only root can read it, and only the sshd of root does
        return False
    return any(row.startswith(f"{user}:!") for row in rows)
