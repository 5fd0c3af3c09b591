"""A session that notices on the host's side that this process is gone."""

from __future__ import annotations

import contextlib
import logging
import os

from lazycluster._ssh.host_scripts import text
from lazycluster._ssh.mux import ControlSocket, RequestRefusedError
from lazycluster._ssh.shell import BOOTSTRAP, escape

_log = logging.getLogger(__name__)
_PARTING = 5.0
"""Seconds for the host to confirm the end of a keeper."""


class Keeper:
    """Ends a master's connection from the host's side when this process dies, and cleans up there before.

    It is a session without an ssh process here, where the host allows one; elsewhere it does nothing. While it is open
    sshd also keeps Nagle's algorithm off for the whole connection.
    """

    def __init__(self, control: ControlSocket, on_lost: str = ":") -> None:
        """Open the session; `on_lost` is what the host's shell does when this side is gone.

        Raises:
            ControlSocketError: The master is gone.
        """
        self._session: ControlSocket | None = None
        reader, self._writer = os.pipe()
        try:
            os.write(self._writer, escape(lifeline_text(on_lost)) + b"\n")
            self._session = control.open_session(BOOTSTRAP, reader)
        except RequestRefusedError as error:
            _log.debug("no session for a keeper: %s", error)
            self._close_writer()
        except BaseException:
            self._close_writer()
            raise
        finally:
            os.close(reader)

    def close(self) -> None:
        """Let the session end without a consequence. Closing twice is fine."""
        if self._writer >= 0:
            with contextlib.suppress(BrokenPipeError):  # the master is gone, and its session with it
                os.write(self._writer, b"\n")
            self._close_writer()
            if self._session is not None:  # closed before, the host would take it for our end
                self._session.wait_message(_PARTING)
        self._end()

    def lose(self) -> None:
        """Let the host believe that this process is gone."""
        self._close_writer()
        self._end()

    def _end(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _close_writer(self) -> None:
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1


def lifeline_text(on_lost: str = ":") -> str:
    """Return what the session runs; `on_lost` is a command of the host's shell."""
    return f"lc_on_lost() {{\n{on_lost}\n}}\n{text('lifeline')}"
