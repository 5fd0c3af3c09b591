"""Has the host room for temporary files, and does its clock go as ours does?"""

from __future__ import annotations

import re
import time

import attrs

from lazycluster._doctor.findings import Finding, failed, ok, warning
from lazycluster._ssh.client import Sessions
from lazycluster._ssh.host_scripts import text

TEMPORARY, CLOCK = "temporary directory", "clock"
LITTLE_SPACE = 1 << 30
FEW_FILES = 1000
LARGE_SKEW = 5.0
"""Seconds between two clocks that are worth a warning."""
_PATIENCE = 15.0
# The last three numbers before the mount point, of blocks as of inodes, on Linux as on macOS and the BSDs.
_FREE = re.compile(r"\s[0-9]+\s+([0-9]+)\s+[0-9]+%\s+/")


@attrs.frozen
class Room:
    """The temporary directory: `refusal` says why nothing can be made in it; free bytes and inodes, None: not known."""

    path: str
    refusal: str = ""
    bytes_free: int | None = None
    inodes_free: int | None = None


def look_at_room(sessions: Sessions) -> Room:
    """Make a file in the temporary directory of the host, and ask how much more room there is."""
    ended = sessions.run(
        text("doctor_temporary"), title="look at the temporary directory", timeout=_PATIENCE, login_shell=False
    )
    return parse_room(ended.stdout)


def parse_room(output: str) -> Room:
    """Read the four fields that the script prints, each ended by a NUL."""
    path, refusal, blocks, inodes = [*output.split("\0"), "", "", "", ""][:4]
    kibibytes = _free(blocks)
    return Room(path, refusal.strip(), None if kibibytes is None else kibibytes * 1024, _free(inodes))


def _free(line: str) -> int | None:
    match = _FREE.search(line)
    return None if match is None else int(match[1])


def judge_room(room: Room) -> Finding:
    """Judge the room for temporary files."""
    if room.refusal:
        return failed(
            TEMPORARY,
            f"{room.path or 'not known'}: {room.refusal.splitlines()[-1]}",
            "Working directories and files on their way go there: make room in it or make it writable, or set TMPDIR "
            "to another directory where sshd's sessions see it (~/.bashrc, /etc/environment, ~/.ssh/environment).",
        )
    space = "unknown room" if room.bytes_free is None else f"{room.bytes_free / 2**30:.1f} GiB free"
    files = "" if room.inodes_free is None else f", {room.inodes_free:,} inodes free"
    found = f"{room.path}: {space}{files}"
    if room.bytes_free is not None and room.bytes_free < LITTLE_SPACE:
        return warning(TEMPORARY, found, "Little room for working directories: clean up there, or set TMPDIR.")
    if room.inodes_free is not None and room.inodes_free < FEW_FILES:
        return warning(TEMPORARY, found, "Hardly any more files can be made: clean up there, or set TMPDIR.")
    return ok(TEMPORARY, found)


@attrs.frozen
class Clocks:
    """What the host's clock showed, and ours just before and just after; in seconds since 1970."""

    there: float
    before: float
    after: float

    @property
    def skew(self) -> float:
        """Return how far the host's clock is ahead at least; 0 where what was measured does not tell."""
        # `date` cuts off what is beyond the second, and the host answered at some instant between the two of ours.
        if self.there > self.after:
            return self.there - self.after
        return min(0.0, self.there + 1 - self.before)


def look_at_clock(sessions: Sessions) -> Clocks | None:
    """Ask the host for the time; None where its date(1) cannot say it."""
    # Clocks are what is compared here, so it takes the ones that may be set.
    before = time.clock_gettime(time.CLOCK_REALTIME)
    ended = sessions.run("date +%s", title="look at the clock", timeout=_PATIENCE, login_shell=False)
    after = time.clock_gettime(time.CLOCK_REALTIME)
    said = ended.stdout.strip()
    return Clocks(float(said), before, after) if said.isdecimal() else None


def judge_clock(clocks: Clocks | None) -> Finding:
    """Judge whether the clocks go alike."""
    if clocks is None:
        return ok(CLOCK, "not known: the host's date cannot say it in seconds")
    if abs(clocks.skew) < LARGE_SKEW:
        return ok(CLOCK, "goes as ours does, to a few seconds")
    direction = "ahead of" if clocks.skew > 0 else "behind"
    return warning(
        CLOCK,
        f"{abs(clocks.skew):.0f} s {direction} ours",
        "Times of files that come and go look wrong, and certificates may: have NTP set both clocks (`timedatectl`).",
    )
