"""Does the supervisor start, and how far away is the host?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import attrs

from lazycluster._doctor.findings import Finding, ok, warning
from lazycluster._ssh.client import SshClient
from lazycluster._transports.resident import ResidentTransport
from lazycluster._waiting import DeadlinePassedError
from lazycluster.exceptions import SupervisorError

SUPERVISOR_CHECK, ROUND_TRIP_CHECK = "supervisor", "round trip"
SLOW_ROUND_TRIP_SECONDS = 0.1
"""Seconds of a round trip that are worth a warning."""
_ROUND_TRIP_COUNT = 7


@attrs.frozen
class SupervisorProbe:
    """The seconds that the supervisor took to start, and those of some round trips through it."""

    start_seconds: float
    round_trip_seconds: tuple[float, ...]


def probe_supervisor(ssh_client: SshClient, python: str | None) -> SupervisorProbe:
    """Start a supervisor, ask it for a few signs of life, and end it.

    Raises:
        PythonNotFoundError: If there is no Python on the host.
        SupervisorError: If it did not start.
    """
    resident = ResidentTransport(ssh_client, python)
    try:
        start = time.monotonic()
        supervisor = resident.ensure_supervisor()
        start_seconds = time.monotonic() - start
        trips = []
        for _ in range(_ROUND_TRIP_COUNT):
            start = time.monotonic()
            supervisor.request("ping", timeout=ssh_client.destination.connect_timeout)
            trips.append(time.monotonic() - start)
    except DeadlinePassedError:
        raise SupervisorError(ssh_client.host, "it started, and does not answer") from None
    finally:
        resident.clean_up()
    return SupervisorProbe(start_seconds, tuple(trips))


def measure_round_trips(ssh_client: SshClient) -> tuple[float, ...]:
    """Return the seconds of some round trips without a supervisor: sshd itself answers, and uses no session."""
    master = ssh_client.master()
    trips = []
    for _ in range(_ROUND_TRIP_COUNT):
        start = time.monotonic()
        if not master.can_reach_host(ssh_client.destination.connect_timeout):
            break
        trips.append(time.monotonic() - start)
    return tuple(trips)


def judge_supervisor(probe: SupervisorProbe) -> Finding:
    """Return the finding of a supervisor that has started."""
    return ok(SUPERVISOR_CHECK, f"started in {probe.start_seconds:.2f} s")


def judge_round_trips(trips: Sequence[float]) -> Finding:
    """Judge how far away the host is."""
    if not trips:
        return warning(ROUND_TRIP_CHECK, "no answer", "The connection is unsteady: try again.")
    median = statistics.median(trips)
    found = f"{_format_milliseconds(median)} ({_format_milliseconds(min(trips))} to {_format_milliseconds(max(trips))})"
    if median < SLOW_ROUND_TRIP_SECONDS:
        return ok(ROUND_TRIP_CHECK, found)
    return warning(
        ROUND_TRIP_CHECK,
        found,
        "Each command and each function costs one of these: send few large ones rather than many small ones, and files "
        "as a directory.",
    )


def _format_milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"
