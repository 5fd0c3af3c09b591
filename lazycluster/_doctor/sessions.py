"""How many sessions does the host allow at once on one connection (MaxSessions in its sshd_config)?"""

from __future__ import annotations

import os

from lazycluster._doctor.findings import Finding, failed, ok, warning
from lazycluster._ssh.client import SshClient
from lazycluster._ssh.mux import ControlSocket, ControlSocketError, RequestRefusedError
from lazycluster._waiting import Deadline
from lazycluster.exceptions import ConnectionLostError

SESSIONS_CHECK = "sessions"
MAX_SESSIONS_COUNTED = 12
"""Sessions at which the counting stops: more than sshd allows by default."""
_SESSIONS_CLOSE_SECONDS = 2.0


def count_sessions(ssh_client: SshClient) -> int:
    """Return how many sessions the host allows at once, up to `MAX_SESSIONS_COUNTED`; they do nothing, and are ended.

    Raises:
        ConnectError: If the log-in failed.
        ConnectionLostError: If the connection broke.
    """
    master = ssh_client.master()
    opened: list[ControlSocket] = []
    reader, writer = os.pipe()
    try:
        while len(opened) < MAX_SESSIONS_COUNTED:
            opened.append(master.control_socket.open_session("exec cat", reader))
    except RequestRefusedError:
        pass
    except ControlSocketError as error:
        raise ConnectionLostError(ssh_client.host, "open sessions", str(error)) from error
    finally:
        os.close(reader)
        os.close(writer)
        deadline = Deadline(_SESSIONS_CLOSE_SECONDS)
        for session in opened:
            session.wait_message(deadline.clamp(_SESSIONS_CLOSE_SECONDS))
            session.close()
    return len(opened)


def judge_sessions(allowed: int) -> Finding:
    """Judge how many sessions there may be."""
    if allowed == 0:
        advice = "Only tunnels work. Raise MaxSessions in its sshd_config; sshd's own default is 10."
        return failed(SESSIONS_CHECK, "the host lets us log in and allows no session (MaxSessions 0)", advice)
    if allowed == 1:
        return warning(
            SESSIONS_CHECK,
            "one at a time on a connection (MaxSessions 1)",
            "Commands and functions all go through the supervisor's one session; large files take a slower way. "
            "Set `max_sessions=1`, or raise MaxSessions in its sshd_config; sshd's own default is 10.",
        )
    return ok(
        SESSIONS_CHECK, f"{allowed} {'or more ' if allowed >= MAX_SESSIONS_COUNTED else ''}at once on a connection"
    )
