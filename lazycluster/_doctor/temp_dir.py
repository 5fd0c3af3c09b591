"""Is there room for temporary files on the host?"""

from __future__ import annotations

import re

import attrs

from lazycluster._doctor.findings import Finding, failed, ok, warning
from lazycluster._model.command import Command
from lazycluster._ssh.client import SshClient
from lazycluster._ssh.host_scripts import text

TEMPORARY_DIRECTORY_CHECK = "temporary directory"
LOW_SPACE_BYTES = 1 << 30
LOW_INODE_COUNT = 1000
_PROBE_TIMEOUT_SECONDS = 15.0
# The last three numbers before the mount point, for blocks and for inodes, on Linux, macOS and the BSDs.
_DF_FREE_COLUMN = re.compile(r"\s[0-9]+\s+([0-9]+)\s+[0-9]+%\s+/")


@attrs.frozen
class TempDirProbe:
    """The host's temporary directory. `failure` says why no file can be made in it; a number is None if unknown."""

    path: str
    failure: str = ""
    bytes_free: int | None = None
    inodes_free: int | None = None


def probe_temp_dir(ssh_client: SshClient) -> TempDirProbe:
    """Make a file in the temporary directory of the host, and measure the free room."""
    script, title = text("doctor_temp_dir"), "look at the temporary directory"
    ended = ssh_client.run(Command(script, timeout=_PROBE_TIMEOUT_SECONDS, title=title, login_shell=False))
    return parse_temp_dir(ended.stdout)


def parse_temp_dir(output: str) -> TempDirProbe:
    """Read the four fields that the script prints, each ended by a NUL."""
    path, failure, blocks, inodes = [*output.split("\0"), "", "", "", ""][:4]
    kibibytes = _parse_df_free(blocks)
    return TempDirProbe(path, failure.strip(), None if kibibytes is None else kibibytes * 1024, _parse_df_free(inodes))


def _parse_df_free(line: str) -> int | None:
    match = _DF_FREE_COLUMN.search(line)
    return None if match is None else int(match[1])


def judge_temp_dir(probe: TempDirProbe) -> Finding:
    """Judge the room for temporary files."""
    if probe.failure:
        return failed(
            TEMPORARY_DIRECTORY_CHECK,
            f"{probe.path or 'not known'}: {probe.failure.splitlines()[-1]}",
            "Working directories and files on their way go there. Make room in it or make it writable, or set TMPDIR "
            "to another directory where sshd's sessions see it (~/.bashrc, /etc/environment, ~/.ssh/environment).",
        )
    space = "unknown room" if probe.bytes_free is None else f"{probe.bytes_free / 2**30:.1f} GiB free"
    files = "" if probe.inodes_free is None else f", {probe.inodes_free:,} inodes free"
    found = f"{probe.path}: {space}{files}"
    if probe.bytes_free is not None and probe.bytes_free < LOW_SPACE_BYTES:
        return warning(
            TEMPORARY_DIRECTORY_CHECK, found, "Little room for working directories: clean up there, or set TMPDIR."
        )
    if probe.inodes_free is not None and probe.inodes_free < LOW_INODE_COUNT:
        return warning(
            TEMPORARY_DIRECTORY_CHECK, found, "Hardly any more files can be made: clean up there, or set TMPDIR."
        )
    return ok(TEMPORARY_DIRECTORY_CHECK, found)
