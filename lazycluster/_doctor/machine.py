"""Has the host room for temporary files, and does its clock go as ours does?"""

from __future__ import annotations

import re
import time

import attrs

from lazycluster._doctor.findings import Finding, failed, ok, warning
from lazycluster._ssh.client import SshClient
from lazycluster._ssh.host_scripts import text

TEMPORARY_DIRECTORY_CHECK, CLOCK_CHECK = "temporary directory", "clock"
LOW_SPACE_BYTES = 1 << 30
LOW_INODE_COUNT = 1000
LARGE_CLOCK_SKEW_SECONDS = 5.0
"""Seconds between two clocks that are worth a warning."""
_HOST_COMMAND_TIMEOUT_SECONDS = 15.0
# The last three numbers before the mount point, of blocks as of inodes, on Linux as on macOS and the BSDs.
_DF_FREE_COLUMN = re.compile(r"\s[0-9]+\s+([0-9]+)\s+[0-9]+%\s+/")


@attrs.frozen
class TempDirProbe:
    """The temporary directory: `failure` says why nothing can be made in it; free bytes and inodes, None: not known."""

    path: str
    failure: str = ""
    bytes_free: int | None = None
    inodes_free: int | None = None


def probe_temp_dir(sessions: SshClient) -> TempDirProbe:
    """Make a file in the temporary directory of the host, and ask how much more room there is."""
    ended = sessions.run(
        text("doctor_temporary"),
        title="look at the temporary directory",
        timeout=_HOST_COMMAND_TIMEOUT_SECONDS,
        login_shell=False,
    )
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
            "Working directories and files on their way go there: make room in it or make it writable, or set TMPDIR "
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


@attrs.frozen
class ClockProbe:
    """What the host's clock showed, and ours just before and just after; in seconds since 1970."""

    host_time: float
    local_time_before: float
    local_time_after: float

    @property
    def skew(self) -> float:
        """Return how far the host's clock is ahead at least; 0 where what was measured does not tell."""
        # `date` cuts off what is beyond the second, and the host answered at some instant between the two of ours.
        if self.host_time > self.local_time_after:
            return self.host_time - self.local_time_after
        return min(0.0, self.host_time + 1 - self.local_time_before)


def probe_clock(sessions: SshClient) -> ClockProbe | None:
    """Ask the host for the time; None where its date(1) cannot say it."""
    # Clocks are what is compared here, so it takes the ones that may be set.
    before = time.clock_gettime(time.CLOCK_REALTIME)
    ended = sessions.run(
        "date +%s", title="look at the clock", timeout=_HOST_COMMAND_TIMEOUT_SECONDS, login_shell=False
    )
    after = time.clock_gettime(time.CLOCK_REALTIME)
    said = ended.stdout.strip()
    return ClockProbe(float(said), before, after) if said.isdecimal() else None


def judge_clock(probe: ClockProbe | None) -> Finding:
    """Judge whether the clocks go alike."""
    if probe is None:
        return ok(CLOCK_CHECK, "not known: the host's date cannot say it in seconds")
    if abs(probe.skew) < LARGE_CLOCK_SKEW_SECONDS:
        return ok(CLOCK_CHECK, "goes as ours does, to a few seconds")
    direction = "ahead of" if probe.skew > 0 else "behind"
    return warning(
        CLOCK_CHECK,
        f"{abs(probe.skew):.0f} s {direction} ours",
        "Times of files that come and go look wrong, and certificates may: have NTP set both clocks (`timedatectl`).",
    )
