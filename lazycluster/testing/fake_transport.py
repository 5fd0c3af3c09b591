"""The transport of a fake host: the interface of the real ones, without a process."""

from __future__ import annotations

import contextlib
import math
import os
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from lazycluster._functions.python_finder import python_candidates
from lazycluster._functions.serialize import Payload
from lazycluster._model.checks import check_command, check_environment, check_timeout
from lazycluster._model.forwarding import Forwarding
from lazycluster._model.watch import UNWATCHED, Watch
from lazycluster._waiting import Deadline, DeadlinePassedError, queue_get
from lazycluster.exceptions import (
    CommandFailedError,
    CommandStoppedError,
    CommandTimeoutError,
    ConnectionLostError,
    PythonNotFoundError,
    RuntimeClosedError,
    WorkingDirectoryError,
)
from lazycluster.hardware import HostInfo
from lazycluster.results import Collector, CommandResult, Stream
from lazycluster.testing._fake_tunnel import FakeTunnel
from lazycluster.testing._host_state import HostState
from lazycluster.testing._in_process_call import FunctionEnded, FunctionNotStarted, InProcessCall, InProcessEvent
from lazycluster.testing.calls import AskedForPorts, Called, DeletedDir, Fetched, MadeDir, OpenedTunnel, Ran, Sent


class FakeTransport:
    """A `RuntimeTransport` of a fake host; a host may have several."""

    def __init__(
        self,
        machine: HostState,
        host: str,
        *,
        env: Mapping[str, str] | None = None,
        python: str | None = None,
        resident: bool = True,
    ) -> None:
        """Lead to a machine under a name; `env` goes to every command and function."""
        self.machine = machine
        self.closed = False
        self._host = host
        self._env = check_environment(env)
        self._python = python
        self._resident = resident
        self._temp_dirs: list[str] = []
        self._event_queues: set[queue.SimpleQueue[InProcessEvent]] = set()
        self._lock = threading.Lock()
        machine.register(self)

    def __repr__(self) -> str:
        """Return the host."""
        return f"<FakeTransport {self._host}>"

    @property
    def host(self) -> str:
        """Return the host as it was given."""
        return self._host

    @property
    def temp_dirs(self) -> list[str]:
        """Return the temporary directories that are to be removed."""
        return list(self._temp_dirs)

    # How it stands ----------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """See that the host can be reached.

        Raises:
            RuntimeClosedError: The transport was closed.
            LazyclusterError: What the test says: the host is down.
        """
        if self.closed:
            raise RuntimeClosedError(self._host)
        self.machine.check_reachable(self._host)

    def is_alive(self) -> bool:
        """Tell whether a command can be run on the host now."""
        return not self.closed and self.machine.unreachable_error(self._host) is None

    def can_reach_host(self, timeout: float) -> bool:  # noqa: ARG002 - it takes none
        """Tell whether the host can be reached now."""
        return self.is_alive()

    def set_up(self, working_dir: str | None) -> tuple[str, HostInfo]:
        """Make the working directory, and tell what the machine has."""
        self.check()
        if self._resident and self.machine.info.python_version is None:
            raise PythonNotFoundError(self._host, " and ".join(python_candidates(self._python)))
        made = self.create_tempdir() if working_dir is None else self._make_dir(working_dir, None)
        self.machine.working_dir = made
        return made, self.machine.info

    def clean_up(self) -> None:
        """Remove the temporary directories."""
        for path in self._temp_dirs:
            self.machine.files.delete(path)
        self._temp_dirs.clear()

    def close(self) -> None:
        """End the connection and what it runs."""
        self.closed = True
        self.wake()

    def abandon(self) -> None:
        """Close it together with its host, whose files go with it."""
        self._temp_dirs.clear()
        self.close()

    @property
    def calls_under_way(self) -> int:
        """Return the number of functions that run."""
        return len(self._event_queues)

    def wake(self) -> None:
        """Have everything that is under way look again how the host stands."""
        with self._lock:
            for events in self._event_queues:
                events.put(None)

    # Commands ---------------------------------------------------------------------------------------------------------

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
        """Answer a command as the test says; see `FakeHost.on()`."""
        asked = Ran(
            self._host, check_command(command), cwd, self._merge_environment(env), stdin, timeout=check_timeout(timeout)
        )
        self.check()
        self.machine.record(asked)
        directory = self.machine.files.resolve_cwd(self._host, cwd)
        answer = self.machine.find_answer(asked)
        collector = watch.collector or Collector()
        begun = time.monotonic()
        with self._registered_events(watch) as events:
            for stream, data in ((Stream.STDOUT, answer.stdout), (Stream.STDERR, answer.stderr)):
                if data:
                    collector.write(stream, data)
                    watch.on_output(stream, data)
            seconds = min(answer.delay, math.inf if timeout is None else timeout)
            with contextlib.suppress(DeadlinePassedError):
                self._next_event(events, command, Deadline(seconds if seconds < threading.TIMEOUT_MAX else None), watch)
        if timeout is not None and answer.delay > timeout:
            raise self._timeout_error(command, timeout, collector)
        for path, content in answer.writes.items():
            self.machine.files.write(path, str(directory), content)
        if answer.error is not None:
            raise answer.error
        return collector.result(command, answer.exit_code, time.monotonic() - begun)

    def _merge_environment(self, env: Mapping[str, str] | None) -> dict[str, str]:
        return {**self._env, **check_environment(env)}

    @contextlib.contextmanager
    def _registered_events(self, watch: Watch) -> Iterator[queue.SimpleQueue[InProcessEvent]]:
        """Give the events of something that is under way, among them that it is to be stopped."""
        events: queue.SimpleQueue[InProcessEvent] = queue.SimpleQueue()
        with contextlib.ExitStack() as stack:
            with self._lock:
                self._event_queues.add(events)
            stack.callback(self._unregister_events, events)
            if watch.cancel_token is not None:
                stack.enter_context(watch.cancel_token.on_cancel(lambda: events.put(None)))
            yield events

    def _unregister_events(self, events: queue.SimpleQueue[InProcessEvent]) -> None:
        with self._lock:
            self._event_queues.discard(events)

    def _next_event(
        self, events: queue.SimpleQueue[InProcessEvent], title: str, deadline: Deadline, watch: Watch
    ) -> bytes | FunctionEnded | FunctionNotStarted:
        """Return what comes next.

        Raises:
            DeadlinePassedError: Nothing came in time.
            CommandStoppedError: It was to be stopped.
            ConnectionLostError: The host went away, or the connection was closed.
        """
        while True:
            if watch.cancel_token is not None and watch.cancel_token.is_cancelled:
                raise CommandStoppedError(self._host, title)
            failure = self.machine.unreachable_error(self._host)
            if failure is not None:
                raise ConnectionLostError(self._host, title, str(failure), started=True)
            if self.closed:
                raise ConnectionLostError(self._host, title, "the connection was closed", started=True)
            event = queue_get(events, deadline)
            if event is not None:
                return event

    def _timeout_error(self, title: str, timeout: float | None, collector: Collector) -> CommandTimeoutError:
        out, err = (collector.getvalue(stream) for stream in Stream)
        return CommandTimeoutError(self._host, title, timeout or 0.0, out, err)

    # Functions --------------------------------------------------------------------------------------------------------

    def call(
        self,
        payload: Payload,
        outcome: IO[bytes],
        *,
        python: str | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        watch: Watch = UNWATCHED,
    ) -> None:
        """Run a function in this process, and write its outcome to a file."""
        environment = self._merge_environment(env)
        self.check()
        self.machine.record(Called(self._host, payload.function, cwd, environment, timeout, payload=payload))
        self.machine.check_python(self._host, python or self._python)
        directory = self.machine.files.resolve_cwd(self._host, cwd)
        outcome.seek(0)
        outcome.truncate()
        collector = watch.collector or Collector()
        title = f"python: {payload.function}"
        until = Deadline(timeout)
        with self._registered_events(watch) as events:
            variables = {"HOME": str(self.machine.files.home), **environment}
            function = InProcessCall(payload, directory, variables, events)
            try:
                while isinstance(event := self._next_event(events, title, until, watch), bytes):
                    collector.write(Stream.STDERR, event)
                    watch.on_output(Stream.STDERR, event)
            except DeadlinePassedError:
                function.detach()
                raise self._timeout_error(title, timeout, collector) from None
            except BaseException:
                function.detach()
                raise
        if isinstance(event, FunctionNotStarted):
            raise WorkingDirectoryError(
                self._host, cwd or "~", event.error.strerror or str(event.error)
            ) from event.error
        outcome.write(event.outcome)

    # Files and directories --------------------------------------------------------------------------------------------

    def put(
        self,
        local: str | os.PathLike[str],
        remote: str | None = None,
        *,
        cwd: str | None = None,
        watch: Watch = UNWATCHED,
    ) -> None:
        """Send a file or a directory into the directory that plays the host; see `Connection.put()`."""
        self.check()
        self.machine.record(Sent(self._host, Path(local), remote, cwd))
        self.machine.files.put(self._host, Path(local), remote, cwd, watch.on_progress)

    def get(
        self,
        remote: str,
        local: str | os.PathLike[str] | None = None,
        *,
        cwd: str | None = None,
        watch: Watch = UNWATCHED,
    ) -> None:
        """Fetch a file or a directory from the directory that plays the host; see `Connection.get()`."""
        target = Path.cwd() if local is None else Path(local)
        self.check()
        self.machine.record(Fetched(self._host, remote, target, cwd))
        self.machine.files.get(self._host, remote, target, cwd, watch.on_progress)

    def create_dir(self, path: str, *, cwd: str) -> None:
        """Make a directory with its parents."""
        self.check()
        self.machine.record(MadeDir(self._host, path, cwd))
        self._make_dir(path, cwd)

    def _make_dir(self, path: str, cwd: str | None) -> str:
        try:
            return self.machine.files.make_dir(path, cwd)
        except OSError as error:
            said = f"{path}: {error.strerror or error}"
            raise CommandFailedError(self._host, f"mkdir -p {path}", 1, said) from error

    def create_tempdir(self) -> str:
        """Make a temporary directory, and return its path."""
        self.check()
        path = self.machine.files.make_temp_dir()
        self._temp_dirs.append(path)
        return path

    def delete_dir(self, path: str, *, cwd: str) -> bool:
        """Delete a directory with all that is in it; tell whether nothing of it is left."""
        self.check()
        self.machine.record(DeletedDir(self._host, path, cwd))
        deleted = self.machine.files.delete(path, cwd)
        if deleted and path in self._temp_dirs:
            self._temp_dirs.remove(path)
        return deleted

    # Ports ------------------------------------------------------------------------------------------------------------

    def free_ports(self, ports: Sequence[int]) -> list[int]:
        """Return those of the ports that the test did not say are in use, and no tunnel listens on."""
        self.check()
        self.machine.record(AskedForPorts(self._host, tuple(ports)))
        if self.machine.info.python_version is None:
            raise PythonNotFoundError(self._host, self._python or "python3")
        return [port for port in ports if self.machine.is_free(port)]

    def open_tunnel(self, forwarding: Forwarding, owner: object) -> FakeTunnel:
        """Open a tunnel, through which nothing flows; the owner lives as long as it does."""
        self.check()
        self.machine.record(OpenedTunnel(self._host, forwarding))
        return self.machine.open_tunnel(self._host, forwarding, owner)
