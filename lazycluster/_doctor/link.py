"""Does the supervisor start, and how far away is the host?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import attrs

from lazycluster._doctor.findings import Finding, ok, warning
from lazycluster._ssh.client import Sessions
from lazycluster._transports.resident import Resident
from lazycluster._waiting import DeadlinePassedError
from lazycluster.connection import Connection
from lazycluster.exceptions import SupervisorError

SUPERVISOR, ROUND_TRIP = "supervisor", "round trip"
SLOW = 0.1
"""Seconds of a round trip that are worth a warning."""
_TIMES = 7
_GRACE = 1.0


@attrs.frozen
class Link:
    """The seconds that the supervisor took to start, and those of some round trips through it."""

    started: float
    round_trips: tuple[float, ...]


def look_at_link(connection: Connection, python: str | None) -> Link:
    """Start a supervisor, ask it for a few signs of life, and end it.

    Raises:
        PythonNotFoundError: There is no Python on the host.
        SupervisorError: It did not start.
    """
    resident = Resident(connection, python, _GRACE)
    try:
        begun = time.monotonic()
        supervisor = resident.supervisor()
        started = time.monotonic() - begun
        trips = []
        for _ in range(_TIMES):
            begun = time.monotonic()
            supervisor.ask("ping", timeout=connection.sessions.destination.connect_timeout)
            trips.append(time.monotonic() - begun)
    except DeadlinePassedError:
        raise SupervisorError(connection.host, "it started, and does not answer") from None
    finally:
        resident.clean_up()
    return Link(started, tuple(trips))


def look_at_round_trips(sessions: Sessions) -> tuple[float, ...]:
    """Return the seconds of some round trips without a supervisor: sshd itself answers, and uses no session."""
    master = sessions.master()
    trips = []
    for _ in range(_TIMES):
        begun = time.monotonic()
        if not master.reaches_host(sessions.destination.connect_timeout):
            break
        trips.append(time.monotonic() - begun)
    return tuple(trips)


def judge_supervisor(link: Link) -> Finding:
    """Say that it has started."""
    return ok(SUPERVISOR, f"started in {link.started:.2f} s")


def judge_round_trips(trips: Sequence[float]) -> Finding:
    """Judge how far away the host is."""
    if not trips:
        return warning(ROUND_TRIP, "no answer", "The link is unsteady: try again.")
    middle = statistics.median(trips)
    found = f"{_milliseconds(middle)} ({_milliseconds(min(trips))} to {_milliseconds(max(trips))})"
    if middle < SLOW:
        return ok(ROUND_TRIP, found)
    return warning(
        ROUND_TRIP,
        found,
        "Each command and each function costs one of these: send few large ones rather than many small ones, and files "
        "as a directory.",
    )


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"
