"""The waits and pauses of connections and tunnels, in one record that can be passed in."""

from __future__ import annotations

import attrs


@attrs.frozen
class Timeouts:
    """Seconds of the waits and pauses of connections and tunnels.

    Their owners take a record; users set only `connect_timeout` and the time-outs of commands.
    """

    control_socket: float = 5.0
    """For the ssh of a connection to answer over its control socket; after that it is stuck."""
    master_check_interval: float = 10.0
    """Between two checks of the connection while a session moves no data."""
    master_end: float = 1.0
    """For the ssh of a connection to end: first by itself, then killed."""
    login_throttled: tuple[float, float] = (0.1, 2.0)
    """Between log-ins that sshd throttles (MaxStartups): the shortest and the longest pause."""
    login_cancel: float = 1.0
    """For a log-in under way to end when its client is closed."""
    session_refused: float = 1.0
    """From a refused session to the second try, unless another session ends before."""
    command_cancel: float = 0.9
    """For the host to end a cancelled command, within the second that a caller may be kept waiting."""
    command_stop_margin: float = 2.0
    """Beyond the grace period, for the host to end a stopped command."""
    session_end: float = 0.25
    """For ssh to end after its command. It takes longer only if a background process holds the output."""
    ssh_exit: float = 5.0
    """For ssh to end after its output."""
    supervisor_start: float = 60.0
    """Beyond the time-out of the log-in, for a supervisor to start and to look at the machine."""
    lifeline_close: float = 5.0
    """For the host to confirm the end of a lifeline."""
    tunnel_check_interval: float = 5.0
    """Between two checks of the connection of the tunnels."""
    tunnel_close: float = 2.0
    """For the host to confirm that it has closed the ports of a stopped tunnel."""
    tunnel_retry: tuple[float, float] = (0.5, 15.0)
    """Between tries to open a lost tunnel again: the shortest and the longest pause."""


DEFAULT_TIMEOUTS = Timeouts()
