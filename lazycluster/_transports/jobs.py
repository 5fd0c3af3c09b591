"""Scripts on a host as jobs of its supervisor: what `Sessions` does with one ssh process for each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import attrs

from lazycluster._model.watch import UNWATCHED, Watch
from lazycluster._remote import protocol
from lazycluster._remote.supervisor import INPUT_ENDED, LOGIN_SHELL
from lazycluster._ssh.session import SessionEndedError
from lazycluster._ssh.shell import Script
from lazycluster._transports.supervisor_client import Ended, Job, Supervisor
from lazycluster._waiting import CancelledError, Deadline, DeadlinePassedError
from lazycluster.exceptions import (
    CommandStoppedError,
    CommandTimeoutError,
    ConnectionLostError,
    SupervisorError,
    WorkingDirectoryError,
)
from lazycluster.results import Collector, CommandResult, Stream

PARTING = 0.9
"""Seconds for the host to end a job that is given up, within the second that a caller may be kept waiting."""
_STOPPING = 2.0
"""Seconds beyond the grace period that a stop waits for the host to have ended a job."""


class Supervised(Protocol):
    """What jobs need of their runtime's way onto the host."""

    @property
    def host(self) -> str:
        """Return the host as it was given."""

    @property
    def grace(self) -> float:
        """Return the seconds between SIGTERM and SIGKILL."""

    def supervisor(self, cwd: str | None) -> Supervisor:
        """Return a supervisor that lives, for a job in a directory."""

    def environment(self, env: Mapping[str, str] | None) -> dict[str, str]:
        """Return the environment of a job."""


@attrs.frozen
class Jobs:
    """Runs scripts as jobs. Any thread may use it."""

    on: Supervised

    @property
    def host(self) -> str:
        """Return the host as it was given."""
        return self.on.host

    def script(
        self,
        command: str,
        *,
        title: str | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        raw_stdin: bool = False,
        login_shell: bool = True,
    ) -> Script:
        """Return a command as a script; see `Sessions.script()`."""
        return Script(
            command,
            mark="",
            job="",
            title=command if title is None else title,
            cwd=cwd,
            env=self.on.environment(env),
            raw_stdin=raw_stdin,
            login_shell=login_shell,
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
    ) -> CommandResult:
        """Run a command and return how it ended; see `Connection.run()`."""
        collector = watch.collector or Collector()
        begun = time.monotonic()
        name = command if title is None else title
        flags = LOGIN_SHELL if login_shell else 0
        job, rest = self.start(
            protocol.RUN, name, command, cwd=cwd, env=self.on.environment(env), data=stdin, flags=flags
        )
        ended = self.carry(job, _feeding(rest), timeout=timeout, watch=watch, collector=collector)
        return collector.result(command, self.exit_code(ended, name, cwd), time.monotonic() - begun)

    def perform(
        self,
        script: Script,
        work: Callable[[Job], object],
        *,
        collector: Collector,
        timeout: float | None = None,
        watch: Watch = UNWATCHED,
    ) -> int:
        """Run a script and return its exit status; `work` feeds and reads it; see `Sessions.perform()`."""
        flags = (LOGIN_SHELL if script.login_shell else 0) | (0 if script.raw_stdin else INPUT_ENDED)
        job, _ = self.start(
            protocol.RUN, script.title, script.command, cwd=script.cwd, env=script.env, data=None, flags=flags
        )
        ended = self.carry(job, work, timeout=timeout, watch=watch, collector=collector)
        return self.exit_code(ended, script.title, script.cwd)

    def start(
        self,
        kind: int,
        title: str,
        text: str,
        *,
        cwd: str | None,
        env: Mapping[str, str],
        data: bytes | None,
        flags: int = 0,
        before: Callable[[Supervisor], object] = lambda _supervisor: None,
    ) -> tuple[Job, bytes]:
        """Start a job, and return it with what is still to be fed to it of `data`; None: it is fed later.

        `before` prepares the supervisor that is used. It is tried again where the supervisor turns out to be gone, and
        nothing was started.
        """
        first, rest = (b"", b"") if data is None else (data[: protocol.PIECE], data[protocol.PIECE :])
        if data is not None and not rest:
            flags |= INPUT_ENDED
        directory = b"" if cwd is None else os.fsencode(cwd)
        variables = [os.fsencode(word) for pair in env.items() for word in pair]
        fields = (
            protocol.number(flags),
            directory,
            b"%r" % self.on.grace,
            text.encode("utf-8", "surrogateescape"),
            first,
            *variables,
        )
        for again in (True, False):
            supervisor = self.on.supervisor(cwd)
            try:
                before(supervisor)
                return supervisor.start(kind, title, *fields), rest
            except ConnectionLostError:
                if not again:
                    raise
        raise AssertionError("unreachable")

    def carry(
        self, job: Job, work: Callable[[Job], object], *, timeout: float | None, watch: Watch, collector: Collector
    ) -> Ended:
        """Follow a job to its end; `work` feeds and reads it, and finishes it.

        Raises:
            CommandTimeoutError: `timeout` seconds have passed; it was ended.
            CommandStoppedError: It was to be stopped.
            ConnectionLostError: The link broke.
        """

        def on_output(stream: Stream, data: bytes) -> None:
            collector.add(stream, data)
            watch.on_output(stream, data)

        job.on_output = on_output
        job.deadline = Deadline(timeout)
        job.cancellation = watch.cancellation
        try:
            try:
                work(job)
            except SessionEndedError:
                job.finish()
        except CancelledError:
            job.give_up(patience=self.on.grace + _STOPPING)
            raise CommandStoppedError(self.host, job.title) from None
        except DeadlinePassedError:
            job.give_up(patience=PARTING)
            out, err = (collector.joined(stream) for stream in Stream)
            raise CommandTimeoutError(self.host, job.title, timeout or 0.0, out, err) from None
        except ConnectionLostError as error:
            raise (attrs.evolve(error, started=True) if job.started else error) from error.__cause__
        except BaseException:
            job.give_up(patience=PARTING)
            raise
        assert job.ended is not None
        return job.ended

    def exit_code(self, ended: Ended, title: str, cwd: str | None) -> int:
        """Return the exit status.

        Raises:
            WorkingDirectoryError: The directory cannot be entered.
        """
        if ended.how == "cd":
            raise WorkingDirectoryError(self.host, cwd or "", ended.what)
        if ended.how == "failed":
            raise SupervisorError(self.host, f"`{title}`: {ended.what}")
        return ended.exit_code


def _feeding(data: bytes) -> Callable[[Job], object]:
    def work(job: Job) -> None:
        if data:
            job.feed(data)
            job.close_stdin()
        job.finish()

    return work
