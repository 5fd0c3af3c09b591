"""The lifeline: a session by which the host notices that the local process is gone."""

from __future__ import annotations

import contextlib
import logging
import os

from lazycluster._model.timeouts import DEFAULT_TIMEOUTS, Timeouts
from lazycluster._ssh.host_scripts import text
from lazycluster._ssh.mux import ControlSocket, RequestRefusedError
from lazycluster._ssh.shell import SHELL_BOOTSTRAP, escape_for_printf

_log = logging.getLogger(__name__)


class Lifeline:
    """Ends a master's connection from the host's side when this process dies, after a clean-up there.

    It is a session without a local ssh process. If the host allows no session for it, it does nothing. While it is open
    sshd also keeps Nagle's algorithm off for the whole connection.
    """

    def __init__(self, control: ControlSocket, on_lost: str = ":", *, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> None:
        """Open the session; `on_lost` is the command that the host's shell runs when this process is gone.

        Raises:
            ControlSocketError: If the master is gone.
        """
        self._timeouts = timeouts
        self._session: ControlSocket | None = None
        reader, self._write_fd = os.pipe()
        try:
            os.write(self._write_fd, escape_for_printf(lifeline_text(on_lost)) + b"\n")
            self._session = control.open_session(SHELL_BOOTSTRAP, reader)
        except RequestRefusedError as error:
            _log.debug("no session for a lifeline: %s", error)
            self._close_pipe()
        except BaseException:
            self._close_pipe()
            raise
        finally:
            os.close(reader)

    def close(self) -> None:
        """Let the session end without a consequence. Closing twice is fine."""
        if self._write_fd >= 0:
            with contextlib.suppress(BrokenPipeError):  # the master is gone, and its session with it
                os.write(self._write_fd, b"\n")
            self._close_pipe()
            if self._session is not None:  # closed earlier, the host would take it for the end of this process
                self._session.wait_message(self._timeouts.lifeline_close)
        self._close_session()

    def drop(self) -> None:
        """Let the host believe that this process is gone."""
        self._close_pipe()
        self._close_session()

    def _close_session(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _close_pipe(self) -> None:
        if self._write_fd >= 0:
            os.close(self._write_fd)
            self._write_fd = -1


def lifeline_text(on_lost: str) -> str:
    """Return the script of the session; `on_lost` is a command for the host's shell."""
    return f"lc_on_lost() {{\n{on_lost}\n}}\n{text('lifeline')}"
