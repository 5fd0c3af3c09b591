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
from lazycluster._processes.run import Completed, run_and_capture
from lazycluster._ssh.argv import remote_operand, scp_argv
from lazycluster._ssh.client import SshClient
from lazycluster._ssh.diagnosis import scp_failure_reason
from lazycluster._ssh.master import Master
from lazycluster._transports.per_command import PerCommandTransport
from lazycluster.exceptions import LazyclusterError

FILES_CHECK = "files"
SCP_ROUTE, SCP_LEGACY_ROUTE, TAR_ROUTE = "scp", "scp -O", "tar"
_PROBE_FILE_BYTES = 1 << 16
_SCP_TIMEOUT_SECONDS = 20.0
_UNKNOWN_LEGACY_OPTION = "option -- O"
"""The reply of a scp from before OpenSSH 8.7 to -O; its only protocol is that one."""
_ROUTE_DESCRIPTIONS = {
    SCP_ROUTE: "the sftp subsystem",
    SCP_LEGACY_ROUTE: "scp on the host",
    TAR_ROUTE: "tar on the host",
}


@attrs.frozen
class TransferProbe:
    """The reason why each route fails, '' if it works; and the seconds that all of them took."""

    failures: Mapping[str, str]
    seconds: float


def probe_files(ssh_client: SshClient) -> TransferProbe:
    """Send a file and fetch it back by each route, and remove it.

    Raises:
        LazyclusterError: If there is no directory for it on the host, or the connection broke.
    """
    transport = PerCommandTransport(ssh_client)
    start = time.monotonic()
    try:
        remote_dir = transport.create_tempdir()
        with tempfile.TemporaryDirectory(prefix="lazycluster-d-") as directory:
            local_dir = Path(directory)
            (local_dir / "tree").mkdir()
            (local_dir / "tree" / "file").write_bytes(os.urandom(_PROBE_FILE_BYTES))
            failures = {
                SCP_ROUTE: _round_trip_by_scp(ssh_client, local_dir, remote_dir, legacy=False),
                SCP_LEGACY_ROUTE: _round_trip_by_scp(ssh_client, local_dir, remote_dir, legacy=True),
                TAR_ROUTE: _round_trip_by_tar(transport, local_dir, remote_dir),
            }
    finally:
        for path in transport.temp_dirs:
            with contextlib.suppress(LazyclusterError):
                transport.delete_dir(path, cwd="/")
    return TransferProbe(failures, time.monotonic() - start)


def _round_trip_by_scp(ssh_client: SshClient, local_dir: Path, remote_dir: str, *, legacy: bool) -> str:
    remote, back = remote_operand(ssh_client.destination, f"{remote_dir}/file"), local_dir / "back"
    reason = _copy_by_scp(ssh_client, str(local_dir / "tree" / "file"), remote, legacy=legacy)
    return (
        reason
        or _copy_by_scp(ssh_client, remote, str(back), legacy=legacy)
        or _describe_difference(local_dir / "tree" / "file", back)
    )


def _round_trip_by_tar(transport: PerCommandTransport, local_dir: Path, remote_dir: str) -> str:
    try:
        transport.put(local_dir / "tree", f"{remote_dir}/tree")
        transport.get(f"{remote_dir}/tree", local_dir / "tree-back")
    except LazyclusterError as error:
        return str(getattr(error, "reason", error))
    return _describe_difference(local_dir / "tree" / "file", local_dir / "tree-back" / "file")


def _describe_difference(sent: Path, back: Path) -> str:
    try:
        same = sent.read_bytes() == back.read_bytes()
    except OSError as error:
        return f"it did not come back: {error.strerror}"
    back.unlink()
    return "" if same else "it came back changed"


def _copy_by_scp(ssh_client: SshClient, source: str, target: str, *, legacy: bool) -> str:
    """Copy a file one way, and return why that failed, or ''."""

    def copy(master: Master) -> Completed:
        argv = scp_argv(
            ssh_client.destination,
            master.socket_path,
            source,
            target,
            legacy=legacy,
            unsupported_options=ssh_client.unsupported_options,
        )
        return run_and_capture(argv, timeout=_SCP_TIMEOUT_SECONDS)

    try:
        ended = ssh_client.run_with_master(copy, "scp")
    except LazyclusterError as error:
        return str(getattr(error, "reason", error))
    except OSError as error:
        return f"scp cannot be started here: {error}"
    if ended.exit_code == 0 or (legacy and _UNKNOWN_LEGACY_OPTION in ended.stderr):
        return ""
    if ended.exit_code is None:
        return f"not done within {_SCP_TIMEOUT_SECONDS:g} s"
    return scp_failure_reason(ended.stderr) or f"exit status {ended.exit_code}"


def judge_files(probe: TransferProbe, noise: str) -> Finding:
    """Judge the routes by which files can go. `noise` is the output of start-up files."""
    wrong = {route: reason for route, reason in probe.failures.items() if reason}
    right = [route for route in probe.failures if route not in wrong]
    if not wrong:
        return ok(
            FILES_CHECK, f"{_PROBE_FILE_BYTES >> 10} KiB there and back by {', '.join(right)}, in {probe.seconds:.2f} s"
        )
    found = "; ".join(
        [
            *(f"{route} ({_ROUTE_DESCRIPTIONS[route]}) fails: {reason}" for route, reason in wrong.items()),
            *(f"{route} ({_ROUTE_DESCRIPTIONS[route]}) works" for route in right),
        ]
    )
    advice = [_files_advice(route, reason, noise) for route, reason in wrong.items()]
    text = " ".join(dict.fromkeys(advice))
    # Single files go by scp in either protocol, directories by tar: one of each has to work.
    works = TAR_ROUTE not in wrong and (SCP_ROUTE not in wrong or SCP_LEGACY_ROUTE not in wrong)
    return warning(FILES_CHECK, found, text) if works else failed(FILES_CHECK, found, text)


def _files_advice(route: str, reason: str, noise: str) -> str:
    if (
        noise
        and route in {SCP_ROUTE, SCP_LEGACY_ROUTE}
        and ("too long" in reason or "protocol error" in reason or noise[:8] in reason)
    ):
        return "Keep start-up files from printing, as said of the login shell: scp takes their words for its own."
    if route == SCP_ROUTE:
        return (
            "Have the sftp subsystem served: `Subsystem sftp internal-sftp` in its sshd_config, or install sftp-server "
            "(Debian and Ubuntu: openssh-sftp-server)."
        )
    if route == SCP_LEGACY_ROUTE:
        return "Install scp there (Debian and Ubuntu: openssh-client); only hosts without the sftp subsystem need it."
    return "Install tar there; directories go by it."
