"""The seam for a mocked `subprocess`, on the side of ssh: a mocked ssh is no master and prints no marks."""

from __future__ import annotations

from typing import NoReturn

from lazycluster._ssh.mux import ControlSocket, ControlSocketError

EXIT_SSH_ERROR = 255
"""The exit status of ssh(1) after an error of its own."""


class StandInControlSocket(ControlSocket):
    """Takes the place of the control socket if ssh logged in and left none: it passes for a healthy master.

    A test that mocks `subprocess` leaves no socket. A connection that breaks at once leaves none either; the first
    session then fails. A lifeline, and so a tunnel, needs a real control socket.
    """

    def __init__(self) -> None:
        """Connect to nothing."""

    def check(self) -> int:
        """Return 0 in place of a process id."""
        return 0

    def probe(self, host: str, port: int, *, timeout: float | None = None) -> None:
        """Do nothing."""

    def open_session(self, command: str, stdin: int) -> NoReturn:  # noqa: ARG002 - overrides one that is so typed
        """Open no session.

        Raises:
            ControlSocketError: Always.
        """
        raise ControlSocketError("ssh logged in and left no control socket")

    def terminate(self) -> None:
        """Do nothing."""

    def poll_closed(self) -> bool:
        """Return False: nothing shows that the master has ended."""
        return False

    def close(self) -> None:
        """Do nothing."""


def add_marks(output_mark: str, data: bytes, exit_code: int) -> bytes:
    """Return the output of a mocked ssh between the marks that the host's shell prints; see `shell.OutputDecoder`.

    After exit status 255 or a signal it is the output of ssh itself, which has no marks.
    """
    if exit_code == EXIT_SSH_ERROR or exit_code < 0:
        return data
    return f"{output_mark}<".encode() + data + f"{output_mark}={exit_code};".encode()
