"""The sessions of one host: they share a master, wait while too many run, and are tried again if nothing was lost."""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import logging
import secrets
import threading
import weakref
from collections.abc import Callable, Iterator

import attrs

from lazycluster._model.checks import check_max_sessions
from lazycluster._model.command import Command
from lazycluster._model.running_command import CommandRunner, Conversation, timeout_error
from lazycluster._model.timeouts import DEFAULT_TIMEOUTS, Timeouts
from lazycluster._model.watch import UNWATCHED, Watch
from lazycluster._processes.forks import reset_in_forks
from lazycluster._processes.run import Completed
from lazycluster._ssh.argv import session_argv
from lazycluster._ssh.destination import Destination
from lazycluster._ssh.diagnosis import (
    LostCommandState,
    diagnose_lost_master,
    find_unsupported_options,
    session_refusal_reason,
)
from lazycluster._ssh.master import Master
from lazycluster._ssh.session_attempt import SessionConversation, run_session, session_error, session_exit_code
from lazycluster._ssh.session_limit import NoSessionAvailableError, SessionLimit
from lazycluster._ssh.shell import Script
from lazycluster._ssh.stand_in import EXIT_SSH_ERROR
from lazycluster._waiting import CancelledError, CancelToken, Deadline, DeadlinePassedError
from lazycluster.exceptions import (
    CommandStoppedError,
    ConnectError,
    ConnectionLostError,
    LazyclusterError,
    RuntimeClosedError,
    SessionRefusedError,
)
from lazycluster.options import DEFAULT_GRACE_SECONDS, DEFAULT_MAX_SESSIONS
from lazycluster.results import Collector

_log = logging.getLogger(__name__)
_ONLY_SESSION_IN_USE = "the supervisor has the only session"


@attrs.define
class _MasterHolder:
    """The master of a client, kept apart so that the finalizer does not keep the client itself alive."""

    master: Master | None = None

    def disconnect(self) -> None:
        if self.master is not None:
            self.master.disconnect()


_live_clients: weakref.WeakSet[SshClient] = weakref.WeakSet()


@atexit.register
def _disconnect_all() -> None:
    """End the masters when the program ends: after the runtimes, whose module registers later, have cleaned up."""
    for client in list(_live_clients):
        client.disconnect()


class SshClient(CommandRunner):
    """Owns one master, and runs scripts in sessions through it. Any thread may use it."""

    def __init__(
        self,
        destination: Destination,
        *,
        password: str | None = None,
        grace: float = DEFAULT_GRACE_SECONDS,
        max_sessions: int = DEFAULT_MAX_SESSIONS,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        """Keep the destination; the first use logs in.

        `grace` is the time in seconds between SIGTERM and SIGKILL for a command that is ended.
        """
        self.host = destination.host
        self.destination = destination
        self.timeouts = timeouts
        self._max_sessions = check_max_sessions(max_sessions)
        self.password = password
        self.grace = grace
        self._unsupported_options: frozenset[str] = frozenset()
        self._closed = False
        self._has_connected = False
        self._script_numbers = itertools.count()
        self._supervisor_numbers = itertools.count(1)
        self._initialize()
        _live_clients.add(self)
        reset_in_forks(self)

    def _initialize(self) -> None:
        self.token = secrets.token_hex(8)
        """Marks every process that is started on the host, in its environment; a forked child has another token."""
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self.session_limit = SessionLimit(self._max_sessions)
        self._master_holder = _MasterHolder()
        weakref.finalize(self, self._master_holder.disconnect).atexit = False  # see _disconnect_all()

    def reset_after_fork(self) -> None:
        """Begin without a master: a forked child logs in by itself."""
        self._initialize()

    @property
    def closed(self) -> bool:
        """Whether `close()` was called."""
        return self._closed

    @property
    def is_connected(self) -> bool:
        """Whether there is a master that has not ended."""
        master = self._master_holder.master
        return master is not None and not master.has_exited

    @property
    def unsupported_options(self) -> frozenset[str]:
        """The ssh_config(5) keywords, in lower case, that this client was found not to know."""
        return self._unsupported_options

    def next_supervisor_number(self) -> int:
        """Return a number for a supervisor."""
        return next(self._supervisor_numbers)

    def script(self, command: Command, *, mark_processes: bool = True, inline: bool = False) -> Script:
        """Return a command as a script for one session; see `Script`.

        Without `mark_processes` its processes are not marked as those of this client: it ends these.
        """
        return Script(
            command,
            output_mark=f"lazycluster-{secrets.token_hex(8)}",
            process_mark=f"{self.token if mark_processes else 'clean-up'}.{next(self._script_numbers)}.",
            grace=self.grace,
            inline=inline,
        )

    def communicate(self, command: Command, conversation: Conversation, watch: Watch = UNWATCHED) -> int:
        """Run a command in a session; see `CommandRunner.communicate()`."""
        return self.run_script(self.script(command), conversation, watch)

    def run_script(
        self,
        script: Script,
        conversation: SessionConversation,
        watch: Watch = UNWATCHED,
        *,
        long_lived: bool = False,
    ) -> int:
        """Run a script in a session, hold a conversation with it, and return its exit status.

        A long-lived session lasts as long as its client, as does that of the supervisor.

        Raises:
            CommandTimeoutError: If the time limit passes after the log-in; the command is ended.
            ConnectionLostError: If the connection breaks.
            SessionRefusedError: If the host refuses a session twice.
            WorkingDirectoryError: If the directory cannot be entered.
        """
        title = script.command.title
        collector = watch.collector or Collector()
        master = self.master()
        deadline = Deadline(script.command.timeout)
        refused = reconnected = False
        try:
            while True:
                with self.session_limit.acquire(deadline, watch.cancel_token, long_lived=long_lived):
                    session = run_session(
                        self.host,
                        self._session_argv(master, script),
                        script,
                        conversation,
                        collector=collector,
                        deadline=deadline,
                        watch=watch,
                        check=functools.partial(self.check_master, master, title),
                        timeouts=self.timeouts,
                    )
                    if session.has_started or session.ssh_exit_code not in {EXIT_SSH_ERROR, None}:
                        return session_exit_code(self.host, script, master, session, collector)
                refusal = session_refusal_reason(session.diagnostic)
                if refusal is not None:
                    if refused:
                        raise SessionRefusedError(self.host, title, refusal)
                    refused = True
                    self.session_limit.wait_for_release(deadline.clamp(self.timeouts.session_refused))
                    if deadline.has_passed:
                        raise DeadlinePassedError
                elif not self._record_unsupported_options(session.diagnostic):
                    if reconnected or diagnose_lost_master(session.diagnostic) is not LostCommandState.NOT_STARTED:
                        self._check_open()
                        raise session_error(self.host, script, master, session)
                    reconnected = True
                    self._discard_master(master)
                master = self.master()
        except CancelledError:  # while it waited for a session
            raise CommandStoppedError(self.host, title) from None
        except NoSessionAvailableError:
            raise SessionRefusedError(self.host, title, _ONLY_SESSION_IN_USE) from None
        except DeadlinePassedError:
            raise timeout_error(self.host, title, script.command.timeout, collector) from None

    def run_with_master(
        self, program: Callable[[Master], Completed], title: str, cancel_token: CancelToken | None = None
    ) -> Completed:
        """Run another OpenSSH program through the master in a session; once more if the host refuses that.

        Raises:
            SessionRefusedError: If the host refuses a session twice.
        """
        refused = False
        while True:
            master = self.master()
            with self._acquired_session(title, cancel_token):
                ended = program(master)
            refusal = None if ended.exit_code == 0 else session_refusal_reason(ended.stderr)
            if refusal is None:
                return ended
            if refused:
                raise SessionRefusedError(self.host, title, refusal)
            refused = True
            self.session_limit.wait_for_release(self.timeouts.session_refused)

    @contextlib.contextmanager
    def _acquired_session(self, title: str, cancel_token: CancelToken | None) -> Iterator[None]:
        try:
            with self.session_limit.acquire(Deadline(None), cancel_token):
                yield
        except CancelledError:
            raise CommandStoppedError(self.host, title) from None
        except NoSessionAvailableError:
            raise SessionRefusedError(self.host, title, _ONLY_SESSION_IN_USE) from None

    def check_master(self, master: Master, title: str) -> None:
        """Check that a master still answers, during a wait for one of its sessions.

        Raises:
            ConnectionLostError: If it does not answer. It is then killed, and the next use logs in again.
        """
        if not master.has_exited and not master.check():
            self._discard_master(master)
            raise ConnectionLostError(self.host, title, "the ssh process of the connection does not answer")

    def master(self, *, timeout: float | None = None) -> Master:
        """Return a master that answers. If need be log in, within `timeout` seconds or the usual time-out.

        Raises:
            ConnectError: If the log-in fails; its subclass shows why.
            RuntimeClosedError: If the client was closed.
        """
        with self._lock:
            self._check_open()
            master = self._master_holder.master
            if master is not None and not master.has_exited and master.check() and not self.closed:
                return master
            if master is not None:
                self._discard_master(master)
            self._check_open()
            destination = self.destination
            if timeout is not None:
                destination = attrs.evolve(destination, connect_timeout=min(timeout, destination.connect_timeout))
            try:
                master = Master.connect(
                    destination, password=self.password, cancel_event=self._closing, timeouts=self.timeouts
                )
            except ConnectError:
                self._check_open()
                raise
            if self.closed:  # during the log-in
                master.close()
                raise RuntimeClosedError(self.host)
            self._master_holder.master = master
            self._has_connected = True
            _log.info("%s: logged in", self.host)
            return master

    def can_reach_host(self, timeout: float) -> bool:
        """Return whether a host that was reached before can be reached now, after about `timeout` seconds at most."""
        if not self._has_connected:
            return False
        try:
            return self.master(timeout=timeout).can_reach_host(timeout)
        except LazyclusterError:
            return False

    def disconnect(self) -> None:
        """Let the master end without waiting for it."""
        self._master_holder.disconnect()

    def close(self) -> None:
        """End the master, and with it every session. Closing twice is fine."""
        self._closed = True
        self._closing.set()
        if not self._lock.acquire(timeout=self.timeouts.login_cancel):
            return  # a log-in is still ending; it closes the master that it makes
        try:
            master, self._master_holder.master = self._master_holder.master, None
        finally:
            self._lock.release()
        if master is not None:
            master.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeClosedError(self.host)

    def _discard_master(self, master: Master) -> None:
        with self._lock:
            if self._master_holder.master is master:
                self._master_holder.master = None
        master.close(force=not master.has_exited)

    def _session_argv(self, master: Master, script: Script) -> tuple[str, ...]:
        return session_argv(
            self.destination, master.socket_path, script.command_words, unsupported_options=self._unsupported_options
        )

    def _record_unsupported_options(self, stderr: str) -> bool:
        """Note keywords that this client does not know; return whether there are new ones."""
        unsupported = find_unsupported_options(stderr) - self._unsupported_options
        self._unsupported_options |= unsupported
        return bool(unsupported)
