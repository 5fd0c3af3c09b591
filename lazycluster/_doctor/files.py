"""Do files really arrive, and come back as they were?"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import attrs

from lazycluster._doctor.findings import Finding, failed, ok, warning
from lazycluster._processes import Finished, run_to_end
from lazycluster._ssh.argv import remote_operand, scp_argv
from lazycluster._ssh.client import Sessions
from lazycluster._ssh.diagnosis import scp_reason
from lazycluster._ssh.master import Master
from lazycluster._transports.per_command import PerStep
from lazycluster.connection import Connection
from lazycluster.exceptions import LazyclusterError

FILES = "files"
SFTP, LEGACY, TREE = "scp", "scp -O", "tar"
_SIZE = 1 << 16
_PATIENCE = 20.0
_NO_LEGACY = "option -- O"
"""What a scp from before OpenSSH 8.7 says of -O; its only protocol is that one."""
_MEANING = {
    SFTP: "the sftp subsystem",
    LEGACY: "scp on the host",
    TREE: "tar on the host",
}


@attrs.frozen
class Ways:
    """Why files do not go by each of the ways, '' where they do; and the seconds that all took."""

    failures: Mapping[str, str]
    seconds: float


def look_at_files(connection: Connection) -> Ways:
    """Send a file and fetch it back by each way, and remove it.

    Raises:
        LazyclusterError: There is no directory for it on the host, or the link broke.
    """
    host = PerStep(connection)
    begun = time.monotonic()
    try:
        there = host.create_tempdir()
        with tempfile.TemporaryDirectory(prefix="lazycluster-d-") as directory:
            here = Path(directory)
            (here / "tree").mkdir()
            (here / "tree" / "file").write_bytes(os.urandom(_SIZE))
            failures = {
                SFTP: _by_scp(connection.sessions, here, there, legacy=False),
                LEGACY: _by_scp(connection.sessions, here, there, legacy=True),
                TREE: _by_tar(connection, here, there),
            }
    finally:
        for path in host.directories:
            with contextlib.suppress(LazyclusterError):
                host.delete_dir(path, cwd="/")
    return Ways(failures, time.monotonic() - begun)


def _by_scp(sessions: Sessions, here: Path, there: str, *, legacy: bool) -> str:
    remote, back = remote_operand(sessions.destination, f"{there}/file"), here / "back"
    reason = _scp(sessions, str(here / "tree" / "file"), remote, legacy=legacy)
    return reason or _scp(sessions, remote, str(back), legacy=legacy) or _difference(here / "tree" / "file", back)


def _by_tar(connection: Connection, here: Path, there: str) -> str:
    try:
        connection.put(here / "tree", f"{there}/tree")
        connection.get(f"{there}/tree", here / "tree-back")
    except LazyclusterError as error:
        return str(getattr(error, "reason", error))
    return _difference(here / "tree" / "file", here / "tree-back" / "file")


def _difference(sent: Path, back: Path) -> str:
    try:
        same = sent.read_bytes() == back.read_bytes()
    except OSError as error:
        return f"it did not come back: {error.strerror}"
    back.unlink()
    return "" if same else "it came back changed"


def _scp(sessions: Sessions, source: str, target: str, *, legacy: bool) -> str:
    """Copy a file one way, and return why that failed, or ''."""

    def copy(master: Master) -> Finished:
        argv = scp_argv(
            sessions.destination, master.socket, source, target, legacy=legacy, unsupported=sessions.unsupported
        )
        return run_to_end(argv, seconds=_PATIENCE, errors=True)

    try:
        ended = sessions.run_beside(copy, "scp")
    except LazyclusterError as error:
        return str(getattr(error, "reason", error))
    except OSError as error:
        return f"scp cannot be started here: {error}"
    if ended.status == 0 or (legacy and _NO_LEGACY in ended.text):
        return ""
    if ended.status is None:
        return f"not done within {_PATIENCE:g} s"
    return scp_reason(ended.text) or f"exit status {ended.status}"


def judge_files(ways: Ways, noise: str = "") -> Finding:
    """Judge which ways files can go. `noise` is what start-up files print."""
    wrong = {way: reason for way, reason in ways.failures.items() if reason}
    right = [way for way in ways.failures if way not in wrong]
    if not wrong:
        return ok(FILES, f"{_SIZE >> 10} KiB there and back by {', '.join(right)}, in {ways.seconds:.2f} s")
    found = "; ".join(
        [
            *(f"{way} ({_MEANING[way]}) fails: {reason}" for way, reason in wrong.items()),
            *(f"{way} ({_MEANING[way]}) works" for way in right),
        ]
    )
    advice = [_advice(way, reason, noise) for way, reason in wrong.items()]
    text = " ".join(dict.fromkeys(advice))
    # Single files go by scp in either protocol, directories by tar: one of each has to work.
    works = TREE not in wrong and (SFTP not in wrong or LEGACY not in wrong)
    return warning(FILES, found, text) if works else failed(FILES, found, text)


def _advice(way: str, reason: str, noise: str) -> str:
    if noise and way in {SFTP, LEGACY} and ("too long" in reason or "protocol error" in reason or noise[:8] in reason):
        return "Keep start-up files from printing, as said of the login shell: scp takes their words for its own."
    if way == SFTP:
        return (
            "Have the sftp subsystem served: `Subsystem sftp internal-sftp` in its sshd_config, or install sftp-server "
            "(Debian and Ubuntu: openssh-sftp-server)."
        )
    if way == LEGACY:
        return "Install scp there (Debian and Ubuntu: openssh-client); only hosts without the sftp subsystem need it."
    return "Install tar there; directories go by it."
