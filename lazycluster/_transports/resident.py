"""A host under a runtime that keeps a supervisor there: a command or call costs one round trip and a fork."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import attrs

from lazycluster._files import transfer
from lazycluster._functions import bootstrap
from lazycluster._model.checks import check_command, check_environment, check_timeout
from lazycluster._model.watch import UNWATCHED, Watch
from lazycluster._remote import call_program, protocol
from lazycluster._remote.process_tree import how_ended
from lazycluster._ssh.host_scripts import PROBE
from lazycluster._transports.jobs import Jobs
from lazycluster._transports.per_command import SET_UP_TIMEOUT, ConnectedHost
from lazycluster._transports.supervisor_client import Hello, Job, Settings, Supervisor
from lazycluster._waiting import DeadlinePassedError
from lazycluster.connection import Connection
from lazycluster.exceptions import (
    CommandFailedError,
    LazyclusterError,
    RemoteFunctionError,
    SupervisorError,
    WorkingDirectoryError,
)
from lazycluster.hardware import HostInfo, parse
from lazycluster.results import Collector, CommandResult

if TYPE_CHECKING:
    from lazycluster._functions.serialize import Payload

_log = logging.getLogger(__name__)
_ANSWER_TIMEOUT = 30.0
_LONGEST = 1 << 20
_STREAMED = 1 << 24
"""Bytes up to which a file goes through the supervisor's channel: about where scp, which is faster, has caught up."""
_ENDING = 15.0
"""Seconds beyond the grace period for a supervisor to end everything and to go."""


class Resident(ConnectedHost):
    """Runs everything through a supervisor on the host, which is started again where it was lost."""

    def __init__(self, connection: Connection, python: str | None = None, grace: float = 5.0) -> None:
        """Use a connection; nothing is started yet. `grace` is how many seconds lie between SIGTERM and SIGKILL."""
        super().__init__(connection, python)
        self.grace = grace
        self.jobs = Jobs(self)
        self._route = transfer.Route(self.jobs, connection.sessions, streamed=_STREAMED)
        self._gone: dict[str, str] = {}
        self.start_afresh()

    def start_afresh(self) -> None:
        """Begin without a supervisor."""
        super().start_afresh()
        self._lock = threading.RLock()
        self._current: Supervisor | None = None

    def environment(self, env: Mapping[str, str] | None) -> dict[str, str]:
        """Return the environment of a job."""
        return {**self.connection.sessions.env, **check_environment(env)}

    # The supervisor --------------------------------------------------------------------------------------------------

    def set_up(self, working_dir: str | None) -> tuple[str, HostInfo]:
        """Start the supervisor, which makes the working directory and probes the machine."""
        if working_dir is not None:
            _check_path(working_dir)
        settings = Settings(self._python, self.grace, working_dir or "", PROBE)
        with self._lock:
            hello = self._start(settings)
        if hello.failure:
            raise CommandFailedError(self.host, f"mkdir -p {working_dir or ''}".strip(), 1, hello.failure)
        if working_dir is None:
            self._directories.append(hello.working_dir)
        facts = attrs.evolve(
            parse(hello.facts), python_version=hello.python.version, python_executable=hello.python.executable
        )
        return hello.working_dir, facts

    def supervisor(self, cwd: str | None = None) -> Supervisor:
        """Return a supervisor that lives, for a job in a directory; one that was lost is replaced.

        Raises:
            WorkingDirectoryError: The directory was temporary, and went with a supervisor that was lost.
        """
        current = self._current
        if current is None or not self._is_well(current):
            current = self._start_again()
        if cwd is not None:
            _check_path(cwd)
            for path, reason in list(self._gone.items()):
                if f"{cwd}/".startswith(f"{path}/"):
                    why = f"it was temporary, and went when the connection broke: {reason}"
                    raise WorkingDirectoryError(self.host, cwd, why, advice="Make a new Runtime.")
        return current

    def _start_again(self) -> Supervisor:
        with self._lock:
            if self._current is not None:
                if self._is_well(self._current):
                    return self._current
                for path in self._directories:
                    self._gone[path] = self._current.reason
                self._directories.clear()
            self._start(Settings(self._python, self.grace))
            assert self._current is not None
            return self._current

    def _is_well(self, supervisor: Supervisor) -> bool:
        """Tell whether a supervisor can be used; that its link is gone may be seen before it is."""
        return supervisor.alive and self.connection.sessions.connected

    def _start(self, settings: Settings) -> Hello:
        """Start a supervisor, which others see once it has greeted."""
        started = Supervisor(self.connection.sessions, settings)
        try:
            hello = started.wait(self.connection.sessions.destination.connect_timeout + SET_UP_TIMEOUT)
        except SupervisorError:
            if started.has_shell:
                self.end_marked()  # a Python that hangs before it has begun does not see that nobody waits any more
            raise
        self._current = started
        return hello

    def _ask(self, what: str, *arguments: bytes) -> list[bytes]:
        try:
            return self.supervisor().ask(what, *arguments, timeout=_ANSWER_TIMEOUT)
        except DeadlinePassedError:
            raise SupervisorError(self.host, f"no answer to {what!r} within {_ANSWER_TIMEOUT:g} s") from None
        except OSError as error:
            raise CommandFailedError(self.host, what, 1, str(error)) from error

    # What it does ----------------------------------------------------------------------------------------------------

    def run(
        self,
        command: str,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        timeout: float | None = None,
        watch: Watch = UNWATCHED,
    ) -> CommandResult:
        """Run a command; see `Connection.run()`."""
        check_command(command)
        check_timeout(timeout)
        if len(command) > _LONGEST:
            raise ValueError(
                f"a command of {len(command)} characters is longer than any system takes; send it as a file"
            )
        return self.jobs.run(command, cwd=cwd, env=env, stdin=stdin, timeout=timeout, watch=watch)

    def call(
        self,
        payload: Payload,
        outcome: IO[bytes],
        *,
        python: str | None = None,  # noqa: ARG002 - the supervisor's own
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        watch: Watch = UNWATCHED,
    ) -> None:
        """Run a function in a forked child of the supervisor, and write its outcome to a file."""
        outcome.seek(0)
        outcome.truncate()
        title = f"python: {payload.function}"
        job, rest = self.jobs.start(
            protocol.CALL,
            title,
            payload.function,
            cwd=cwd,
            env=self.environment(env),
            data=payload.request(),
            before=self._prepare_calls,
        )
        job.on_outcome = outcome.write

        def work(job: Job) -> None:
            if rest:
                job.feed(rest)
                job.close_stdin()
            job.finish()

        ended = self.jobs.carry(job, work, timeout=timeout, watch=watch, collector=watch.collector or Collector())
        if ended.how == "failed":
            raise RemoteFunctionError(self.host, payload.function, ended.what)
        self.jobs.exit_code(ended, title, cwd)
        if ended.how != "done":  # its process died, or so it seems
            words = how_ended(int(ended.what)).encode()
            outcome.write(words + call_program.TRAILER.pack(call_program.MAGIC, call_program.ENDED, len(words)))

    def _prepare_calls(self, supervisor: Supervisor) -> None:
        from lazycluster._functions.serialize import cloudpickle_source  # noqa: PLC0415 - for whoever calls functions

        bootstrap.check_python(supervisor.wait(SET_UP_TIMEOUT).python, self.host)
        supervisor.prepare("calls", bootstrap.calls_preparation, cloudpickle_source)

    def put(self, local: Path, remote: str | None = None, *, cwd: str | None = None, watch: Watch = UNWATCHED) -> None:
        """Send a file or a directory; see `Connection.put()`."""
        transfer.put(self._route, local, remote, cwd=cwd, watch=watch)

    def get(self, remote: str, local: Path, *, cwd: str | None = None, watch: Watch = UNWATCHED) -> None:
        """Fetch a file or a directory; see `Connection.get()`."""
        transfer.get(self._route, remote, local, cwd=cwd, watch=watch)

    def shell(self, script: str, title: str, *, cwd: str | None = None, stdin: bytes = b"") -> CommandResult:
        """Run text of the library's own in the host's /bin/sh."""
        return self.jobs.run(script, title=title, cwd=cwd, stdin=stdin, timeout=SET_UP_TIMEOUT, login_shell=False)

    def is_alive(self) -> bool:
        """Tell whether a command can be run on the host now."""
        if self.connection.sessions.closed:
            return False
        try:
            self.supervisor().ask("ping", timeout=self.connection.sessions.destination.connect_timeout)
        except (LazyclusterError, DeadlinePassedError):
            return False
        return True

    def create_tempdir(self) -> str:
        """Make a temporary directory, and return its path."""
        path = os.fsdecode(self._ask("tempdir")[0])
        self._directories.append(path)
        return path

    def forget_directory(self, path: str) -> None:
        """Note that a temporary directory is gone."""
        super().forget_directory(path)
        self._ask("forget", os.fsencode(path))

    def free_ports(self, ports: Sequence[int]) -> list[int]:
        """Return those of the ports that a server could listen on."""
        self.supervisor().prepare("ports", bootstrap.ports_preparation)
        return [int(port) for port in self._ask("ports", *map(protocol.number, ports))]

    def clean_up(self) -> None:
        """Have the supervisor end everything and go; where it is gone already, end what is marked as ours."""
        current = self._current
        if current is None:
            return
        try:
            left = current.close(self.grace + _ENDING)
        except SupervisorError as error:
            _log.debug("%s", error)
            self.end_marked()
        else:
            if left:
                _log.warning("%s: the clean-up left something: %s", self.host, ", ".join(left))

    def close(self) -> None:
        """End the connection and what it runs."""
        self.connection.close()


def _check_path(path: str) -> None:
    if not path or "\0" in path:
        raise ValueError(f"a path must not be empty and cannot hold NUL: {path!r}")
