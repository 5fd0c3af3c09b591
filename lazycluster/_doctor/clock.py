"""Does the host's clock show the same time as the local clock?"""

from __future__ import annotations

import time

import attrs

from lazycluster._doctor.findings import Finding, ok, warning
from lazycluster._model.command import Command
from lazycluster._ssh.client import SshClient

CLOCK_CHECK = "clock"
LARGE_CLOCK_SKEW_SECONDS = 5.0
"""Seconds between two clocks that are worth a warning."""
_PROBE_TIMEOUT_SECONDS = 15.0


@attrs.frozen
class ClockProbe:
    """The time of the host, and the local time just before and just after; in seconds since 1970."""

    host_time: float
    local_time_before: float
    local_time_after: float

    @property
    def skew(self) -> float:
        """The seconds by which the host's clock is ahead, at the least; 0 if the two may be equal."""
        # `date` cuts off fractions of a second, and the host answered between the two local times.
        if self.host_time > self.local_time_after:
            return self.host_time - self.local_time_after
        return min(0.0, self.host_time + 1 - self.local_time_before)


def probe_clock(ssh_client: SshClient) -> ClockProbe | None:
    """Ask the host for the time; return None if its date(1) cannot print seconds."""
    # The check compares the clocks themselves, so it reads the ones that can be set.
    before = time.clock_gettime(time.CLOCK_REALTIME)
    ended = ssh_client.run(
        Command("date +%s", timeout=_PROBE_TIMEOUT_SECONDS, title="look at the clock", login_shell=False)
    )
    after = time.clock_gettime(time.CLOCK_REALTIME)
    seconds = ended.stdout.strip()
    return ClockProbe(float(seconds), before, after) if seconds.isdecimal() else None


def judge_clock(probe: ClockProbe | None) -> Finding:
    """Judge whether the clocks show the same time."""
    if probe is None:
        return ok(CLOCK_CHECK, "not known: the host's date cannot print it in seconds")
    if abs(probe.skew) < LARGE_CLOCK_SKEW_SECONDS:
        return ok(CLOCK_CHECK, "agrees with ours, to a few seconds")
    direction = "ahead of" if probe.skew > 0 else "behind"
    return warning(
        CLOCK_CHECK,
        f"{abs(probe.skew):.0f} s {direction} ours",
        "Times of files that come and go look wrong, and certificates may: have NTP set both clocks (`timedatectl`).",
    )
