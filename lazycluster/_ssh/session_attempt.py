"""One attempt to run a script in a session: its start, its conversation, and its exit status or error."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from lazycluster._model.running_command import CommandEndedError, collecting
from lazycluster._model.timeouts import Timeouts
from lazycluster._model.watch import Watch
from lazycluster._ssh.diagnosis import LostCommandState, diagnose, diagnose_lost_master, start_failure
from lazycluster._ssh.master import Master
from lazycluster._ssh.session import Session
from lazycluster._ssh.shell import Script
from lazycluster._ssh.stand_in import EXIT_SSH_ERROR
from lazycluster._waiting import CancelledError, Deadline
from lazycluster.exceptions import (
    CommandStoppedError,
    ConnectionLostError,
    LazyclusterError,
    LoginShellError,
    WorkingDirectoryError,
)
from lazycluster.results import Collector, Stream

SessionConversation: TypeAlias = Callable[[Session], object]
"""A `Conversation` that may use the methods that only a session has."""
_DIRECTORY_ERROR = "cd"
"""The word that the host's shell reports, in place of an exit status, if it cannot enter the directory."""


def run_session(
    host: str,
    argv: tuple[str, ...],
    script: Script,
    conversation: SessionConversation,
    *,
    collector: Collector,
    deadline: Deadline,
    watch: Watch,
    check: Callable[[], None],
    timeouts: Timeouts,
) -> Session:
    """Run the ssh process of a session by its `argv`, hold the conversation, and return the session, which has ended.

    `check` is called when no data has moved for a while.

    Raises:
        CommandStoppedError: If the cancel token is cancelled; the command is ended on the host.
        DeadlinePassedError: If the deadline passes; the script is ended.
        SshNotFoundError: If ssh cannot be started.
    """
    try:
        session = Session(
            argv,
            script,
            on_output=collecting(collector, watch),
            accepts_output=watch.accepts_output,
            deadline=deadline,
            cancel_token=watch.cancel_token,
            check=check,
            timeouts=timeouts,
        )
    except OSError as error:
        raise start_failure(host, error) from error
    except CancelledError:
        raise CommandStoppedError(host, script.command.title) from None
    try:
        try:
            conversation(session)
        except CommandEndedError:
            session.wait()
    except CancelledError:
        session.cancel(grace=script.grace, at_once=watch.cancel_token is not None and watch.cancel_token.at_once)
        raise CommandStoppedError(host, script.command.title) from None
    except BaseException:
        session.cancel()
        raise
    return session


def session_exit_code(host: str, script: Script, master: Master, session: Session, collector: Collector) -> int:
    """Return the exit status of a script that may have begun.

    Raises:
        ConnectionLostError: If the connection breaks, or a signal ended the ssh process.
        LoginShellError: If the login shell does not start the script.
        WorkingDirectoryError: If the directory cannot be entered.
    """
    if session.reported_status == _DIRECTORY_ERROR:
        reason = collector.getvalue(Stream.STDERR).decode(errors="replace").strip()
        raise WorkingDirectoryError(host, script.command.cwd or "", reason)
    if session.reported_status is not None:
        return int(session.reported_status)
    if session.has_started and (master.has_exited or not master.check()):
        raise ConnectionLostError(host, script.command.title, master.exit_reason, started=True)
    if session.ssh_exit_code is not None and session.ssh_exit_code < 0:
        reason = f"the ssh process of the session was ended by signal {-session.ssh_exit_code}"
        started = True if session.has_started else None  # a session may end before it shows that its command began
        raise ConnectionLostError(host, script.command.title, reason, started)
    if not session.has_started and (session.diagnostic or not master.is_stand_in):
        raise LoginShellError(host, script.command.title, session.ssh_exit_code, session.diagnostic)
    # The host's shell itself was killed, or a silent program took the place of ssh.
    return EXIT_SSH_ERROR if session.ssh_exit_code is None else session.ssh_exit_code


def session_error(host: str, script: Script, master: Master, session: Session) -> LazyclusterError:
    """Return the error of a session that ssh could not open or keep."""
    if master.is_stand_in:
        return diagnose(host, session.diagnostic, exit_code=session.ssh_exit_code)
    started = False if diagnose_lost_master(session.diagnostic) is LostCommandState.NOT_STARTED else None
    reason = master.exit_reason if master.has_exited else session.diagnostic.strip() or "the session broke off"
    return ConnectionLostError(host, script.command.title, reason, started)
