"""The sessions of one host: they share a master, wait for a free slot, and are tried again where nothing was lost."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import attrs

from lazycluster._model.checks import check_environment
from lazycluster._model.watch import UNWATCHED, Watch
from lazycluster._processes import Finished
from lazycluster._ssh.argv import session_argv
from lazycluster._ssh.destination import Destination
from lazycluster._ssh.diagnosis import (
    MasterGone,
    cannot_start,
    diagnose,
    master_gone,
    session_refused,
    unsupported_options,
)
from lazycluster._ssh.master import Master
from lazycluster._ssh.session import Session, SessionEndedError
from lazycluster._ssh.session_limit import NoSlotError, SessionSlots
from lazycluster._ssh.shell import Script
from lazycluster._waiting import Cancellation, CancelledError, Deadline, DeadlinePassedError
from lazycluster.exceptions import (
    CommandStoppedError,
    CommandTimeoutError,
    ConnectError,
    ConnectionLostError,
    LazyclusterError,
    LoginShellError,
    RuntimeClosedError,
    SessionRefusedError,
    WorkingDirectoryError,
)
from lazycluster.results import Collector, CommandResult, Stream

T = TypeVar("T")
Work = Callable[[Session], object]
"""What is done with a session between its start and its end; `finish()` is called for it."""

_ALL_TAKEN = "the supervisor has the only session that the host allows"
_CLOSE_PATIENCE = 1.0
_PARTING = 2.0
"""Seconds beyond the grace period that a stop waits for the host to have ended a command."""
_REFUSAL_PATIENCE = 20.0
"""Seconds in which a host that refuses even a single session is asked again: it may still count an ended one."""


@attrs.define
class _Owned:
    """What must not be left behind, apart from its owner so that nothing keeps that one alive."""

    master: Master | None = None

    def release(self) -> None:
        if self.master is not None:
            self.master.let_go()


_all: weakref.WeakSet[Sessions] = weakref.WeakSet()


def _start_afresh() -> None:
    """Let a forked child dial for itself: the masters are its parent's, and locks may be held by threads it lacks."""
    for sessions in list(_all):
        sessions.start_afresh()


os.register_at_fork(after_in_child=_start_afresh)


@atexit.register
def _end_all() -> None:
    """End the masters when the program ends: after the runtimes, whose module registers later, have cleaned up."""
    for sessions in list(_all):
        sessions.let_go()


class Sessions:
    """Owns one master, and runs scripts in sessions through it. Any thread may use it."""

    def __init__(
        self, destination: Destination, *, password: str | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        """Remember whom to dial; nothing is dialled yet."""
        self.destination = destination
        self.password = password
        self._env = check_environment(env)
        self._unsupported: frozenset[str] = frozenset()
        self._closed = False
        self._reached = False
        self._jobs = itertools.count()
        self._supervisors = itertools.count(1)
        self.start_afresh()
        _all.add(self)

    def start_afresh(self) -> None:
        """Begin without a master and with nothing under way."""
        self.token = secrets.token_hex(8)
        """Marks every process that is started on the host, in its environment; a forked child's are another's."""
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._slots = SessionSlots()
        self._owned = _Owned()
        weakref.finalize(self, self._owned.release).atexit = False  # see _end_all()

    @property
    def host(self) -> str:
        """Return the host as it was given."""
        return self.destination.host

    @property
    def env(self) -> dict[str, str]:
        """Return the environment variables of every command."""
        return dict(self._env)

    @property
    def closed(self) -> bool:
        """Tell whether `close()` was called."""
        return self._closed

    @property
    def connected(self) -> bool:
        """Tell whether there is a master, and it has not ended."""
        master = self._owned.master
        return master is not None and not master.gone

    @property
    def unsupported(self) -> frozenset[str]:
        """Return the ssh_config(5) keywords, in lower case, that this client was found not to know."""
        return self._unsupported

    def next_supervisor(self) -> int:
        """Return a number for a supervisor."""
        return next(self._supervisors)

    def script(
        self,
        command: str,
        *,
        title: str | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin_size: int = 0,
        raw_stdin: bool = False,
        login_shell: bool = True,
        marked: bool = True,
        own_shell: bool = True,
    ) -> Script:
        """Return a command as a script for one session; its processes are marked as ours unless they end ours."""
        return Script(
            command,
            mark=f"lazycluster-{secrets.token_hex(8)}",
            job=f"{self.token if marked else 'clean-up'}.{next(self._jobs)}.",
            title=command if title is None else title,
            cwd=cwd,
            env={**self._env, **check_environment(env)},
            stdin_size=stdin_size,
            raw_stdin=raw_stdin,
            login_shell=login_shell,
            own_shell=own_shell,
        )

    def run(
        self,
        command: str,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        timeout: float | None = None,
        watch: Watch = UNWATCHED,
        title: str | None = None,
        login_shell: bool = True,
        marked: bool = True,
    ) -> CommandResult:
        """Run a command and return how it ended; see `Connection.run()`."""
        script = self.script(
            command, title=title, cwd=cwd, env=env, stdin_size=len(stdin), login_shell=login_shell, marked=marked
        )
        collector = watch.collector or Collector()
        begun = time.monotonic()
        feed = [stdin] if stdin else []

        def work(session: Session) -> None:
            for data in feed:
                session.feed(data)
            session.finish()

        exit_code = self.perform(script, work, collector=collector, timeout=timeout, watch=watch)
        return collector.result(command, exit_code, time.monotonic() - begun)

    def perform(
        self,
        script: Script,
        work: Work,
        *,
        collector: Collector,
        timeout: float | None = None,
        watch: Watch = UNWATCHED,
        lasting: bool = False,
    ) -> int:
        """Run a script in a session and return its exit status.

        `work` feeds and reads the session and finishes it. It is called again only where the host cannot have begun.
        A lasting session is one whose end nobody waits for.

        Raises:
            CommandTimeoutError: `timeout` seconds have passed since the log-in; the script was ended.
            ConnectionLostError: The link broke.
            SessionRefusedError: The host allows no session.
            WorkingDirectoryError: The directory cannot be entered.
        """

        def on_output(stream: Stream, data: bytes) -> None:
            collector.add(stream, data)
            watch.on_output(stream, data)

        master = self.master()
        deadline = Deadline(timeout)
        patience = Deadline(_REFUSAL_PATIENCE)
        redialled = False
        try:
            while True:
                with self._slots.taken(deadline, watch.cancellation, lasting=lasting):
                    session = self._session(master, script, work, on_output, deadline, watch)
                    if session.started or session.exit_status not in {255, None}:
                        self._slots.accepted()
                        return self._exit_code(session, script, master, collector)
                    refusal = session_refused(session.said)
                    if refusal is not None and not self._slots.refused() and patience.passed:
                        raise SessionRefusedError(self.host, script.title, refusal)
                if refusal is not None:
                    self._slots.wait_for_change(deadline, 0.1)
                    if deadline.passed:
                        raise DeadlinePassedError
                elif not self._learn_options(session.said):
                    if redialled or master_gone(session.said) is not MasterGone.NOT_STARTED:
                        raise self._failure(master, session, script)
                    redialled = True
                    self._drop(master)
                master = self.master()
        except CancelledError:  # while it waited for a slot
            raise CommandStoppedError(self.host, script.title) from None
        except NoSlotError:
            raise SessionRefusedError(self.host, script.title, _ALL_TAKEN) from None
        except DeadlinePassedError:
            raise CommandTimeoutError(
                self.host,
                script.title,
                timeout or 0.0,
                collector.joined(Stream.STDOUT),
                collector.joined(Stream.STDERR),
            ) from None

    def run_beside(
        self, program: Callable[[Master], Finished], what: str, cancellation: Cancellation | None = None
    ) -> Finished:
        """Run another OpenSSH program through the master, holding a session's slot; again where it got no session.

        Raises:
            SessionRefusedError: The host allows no session.
        """
        patience = Deadline(_REFUSAL_PATIENCE)
        while True:
            master = self.master()
            with self._taken_for(what, cancellation):
                ended = program(master)
                refusal = None if ended.status == 0 else session_refused(ended.text)
                if refusal is None:
                    return ended
                if not self._slots.refused() and patience.passed:
                    raise SessionRefusedError(self.host, what, refusal)
            self._slots.wait_for_change(patience, 0.1)

    @contextlib.contextmanager
    def _taken_for(self, what: str, cancellation: Cancellation | None) -> Iterator[None]:
        try:
            with self._slots.taken(Deadline(None), cancellation):
                yield
        except CancelledError:
            raise CommandStoppedError(self.host, what) from None
        except NoSlotError:
            raise SessionRefusedError(self.host, what, _ALL_TAKEN) from None

    def check(self, master: Master, what: str) -> None:
        """See that a master still answers, while something waits for it.

        Raises:
            ConnectionLostError: It does not. It is killed, and the next use dials anew.
        """
        if not master.gone and not master.check():
            self._drop(master)
            raise ConnectionLostError(self.host, what, "the ssh process of the connection does not answer")

    def master(self, *, within: float | None = None) -> Master:
        """Return a master that answers, dialling if there is none, for `within` seconds or as long as is usual.

        Raises:
            ConnectError: The log-in failed; its kinds say why.
            RuntimeClosedError: The connection was closed.
        """
        with self._lock:
            self._check_open()
            master = self._owned.master
            if master is not None and not master.gone and master.check() and not self.closed:
                return master
            if master is not None:
                self._drop(master)
            self._check_open()
            to = self.destination
            if within is not None:
                to = attrs.evolve(to, connect_timeout=min(within, to.connect_timeout))
            try:
                master = Master.dial(to, password=self.password, stopping=self._stopping)
            except ConnectError:
                self._check_open()
                raise
            if self.closed:  # meanwhile
                master.close()
                raise RuntimeClosedError(self.host)
            self._owned.master = master
            self._reached = True
            return master

    def reaches_host(self, seconds: float) -> bool:
        """Tell within about so many seconds whether a host that was reached before can be reached now."""
        if not self._reached:
            return False
        try:
            return self.master(within=seconds).reaches_host(seconds)
        except LazyclusterError:
            return False

    def let_go(self) -> None:
        """Let the master end without waiting for it."""
        self._owned.release()

    def close(self) -> None:
        """End the master, and with it every session. Closing twice is fine."""
        self._closed = True
        self._stopping.set()
        if not self._lock.acquire(timeout=_CLOSE_PATIENCE):
            return  # a log-in is still being ended; it ends what it makes
        try:
            master, self._owned.master = self._owned.master, None
        finally:
            self._lock.release()
        if master is not None:
            master.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeClosedError(self.host)

    def _drop(self, master: Master) -> None:
        with self._lock:
            if self._owned.master is master:
                self._owned.master = None
        master.close(stuck=not master.gone)

    def _session(
        self,
        master: Master,
        script: Script,
        work: Work,
        on_output: Callable[[Stream, bytes], None],
        deadline: Deadline,
        watch: Watch,
    ) -> Session:
        argv = session_argv(self.destination, master.socket, script.words, unsupported=self._unsupported)
        try:
            session = Session(
                argv,
                script,
                on_output=on_output,
                deadline=deadline,
                watch=watch,
                check=lambda: self.check(master, script.title),
            )
        except OSError as error:
            raise cannot_start(self.host, error) from error
        except CancelledError:
            raise CommandStoppedError(self.host, script.title) from None
        try:
            try:
                work(session)
            except SessionEndedError:
                session.finish()
        except CancelledError:
            session.give_up(patience=script.grace + _PARTING)
            raise CommandStoppedError(self.host, script.title) from None
        except BaseException:
            session.give_up()
            raise
        return session

    def _exit_code(self, session: Session, script: Script, master: Master, collector: Collector) -> int:
        if session.status == "cd":
            reason = collector.joined(Stream.STDERR).decode(errors="replace").strip()
            raise WorkingDirectoryError(self.host, script.cwd or "", reason)
        if session.status is not None:
            return int(session.status)
        if session.started and (master.gone or not master.check()):
            raise ConnectionLostError(self.host, script.title, master.reason, started=True)
        if session.exit_status is not None and session.exit_status < 0:
            reason = f"the ssh process of the session was ended by signal {-session.exit_status}"
            raise ConnectionLostError(self.host, script.title, reason, started=session.started or None)
        if not session.started and master.control is not None:
            raise LoginShellError(self.host, script.title, session.exit_status, session.said)
        # The host's shell itself was killed, or a stand-in for ssh ran.
        return 255 if session.exit_status is None else session.exit_status

    def _learn_options(self, said: str) -> bool:
        """Note keywords that this client does not know; tell whether there are new ones."""
        unsupported = unsupported_options(said) - self._unsupported
        self._unsupported |= unsupported
        return bool(unsupported)

    def _failure(self, master: Master, session: Session, script: Script) -> LazyclusterError:
        if self._closed:
            return RuntimeClosedError(self.host)
        if master.control is None:
            return diagnose(self.host, session.said, status=session.exit_status)
        started = False if master_gone(session.said) is MasterGone.NOT_STARTED else None
        reason = master.reason if master.gone else session.said.strip() or "the session broke off"
        return ConnectionLostError(self.host, script.title, reason, started)
