"""The transport of a fake host: the interface of the real ones, without a process."""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import attrs

from lazycluster._files.transfer import raising_transfer_errors
from lazycluster._functions.function_call import FunctionCall
from lazycluster._functions.python_finder import python_candidates
from lazycluster._model.command import Command
from lazycluster._model.forwarding import Forwarding, ForwardType
from lazycluster._model.running_command import (
    CommandEndedError,
    Conversation,
    collecting,
    timeout_error,
    wait_for_end,
)
from lazycluster._model.watch import UNWATCHED, Watch
from lazycluster._transports.ssh_transport import directory_error
from lazycluster._transports.working_dir import WorkingDir
from lazycluster._waiting import Deadline, DeadlinePassedError, queue_get
from lazycluster.exceptions import (
    CommandFailedError,
    CommandStoppedError,
    ConnectionLostError,
    PythonNotFoundError,
    RuntimeClosedError,
    WorkingDirectoryError,
)
from lazycluster.hardware import HostInfo
from lazycluster.results import Collector, CommandResult, Stream
from lazycluster.testing._fake_command import FakeCommand, read_stdin
from lazycluster.testing._fake_tunnel import FakeTunnel
from lazycluster.testing._host_state import HostState
from lazycluster.testing._in_process_call import FunctionEnded, FunctionNotStarted, InProcessCall, InProcessEvent
from lazycluster.testing.calls import (
    AskedForPorts,
    Called,
    DeletedDir,
    Fetched,
    Looked,
    MadeDir,
    OpenedTunnel,
    Ran,
    Read,
    Sent,
    Wrote,
)


class FakeTransport:
    """A `RuntimeTransport` of a fake host; a host may have several."""

    def __init__(self, machine: HostState, host: str, *, python: str | None = None, resident: bool = True) -> None:
        """Reach a machine under the name of a host."""
        self.host = host
        self.machine = machine
        self.closed = False
        self._python = python
        self._resident = resident
        self._temp_dirs: list[str] = []
        self._working_dir = WorkingDir()
        self._event_queues: set[queue.SimpleQueue[InProcessEvent]] = set()
        self._lock = threading.Lock()
        machine.register(self)

    @property
    def temp_dirs(self) -> list[str]:
        """The temporary directories that are to be removed."""
        return list(self._temp_dirs)

    @property
    def working_dir(self) -> str:
        """The working directory of the runtime."""
        return self._working_dir.path

    # State ------------------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Log in, which succeeds if the host can be reached."""
        self.check()

    def check(self) -> None:
        """Check that the host can be reached.

        Raises:
            RuntimeClosedError: If the transport was closed.
            LazyclusterError: If the host is down; the test may choose the error.
        """
        if self.closed:
            raise RuntimeClosedError(self.host)
        self.machine.check_reachable(self.host)

    def is_alive(self) -> bool:
        """Return whether a command can be run on the host now."""
        return not self.closed and self.machine.unreachable_error(self.host) is None

    def can_reach_host(self, timeout: float) -> bool:  # noqa: ARG002 - it takes no time
        """Return whether the host can be reached now."""
        return self.is_alive()

    def set_up(self, working_dir: str | None) -> tuple[str, HostInfo]:
        """Make the working directory; return it with the hardware of the host."""
        self.check()
        if self._resident and self.machine.info.python_version is None:
            raise PythonNotFoundError(self.host, " and ".join(python_candidates(self._python)))
        try:
            made = self.create_tempdir() if working_dir is None else self.machine.files.make_dir(working_dir, None)
        except OSError as error:
            raise directory_error(self.host, working_dir, error.strerror or str(error)) from error
        self._working_dir.set(made, is_temporary=working_dir is None)
        self.machine.working_dir = made
        return made, self.machine.info

    def _replacing_lost_dir(self) -> contextlib.AbstractContextManager[None]:
        """Replace a temporary working directory that is gone, if the block cannot enter it."""
        return self._working_dir.replaced_if_gone(
            lambda path: not self.machine.files.local_path(path).exists(), self._new_working_dir
        )

    def _new_working_dir(self) -> str:
        self.machine.working_dir = self.create_tempdir()
        return self.machine.working_dir

    def clean_up(self) -> None:
        """Remove the temporary directories."""
        for path in self._temp_dirs:
            self.machine.files.delete(path)
        self._temp_dirs.clear()

    def close(self) -> None:
        """End the connection and everything that runs over it."""
        self.closed = True
        self.wake()

    def abandon(self) -> None:
        """Close the transport together with its host, whose files are removed."""
        self._temp_dirs.clear()
        self.close()

    @property
    def calls_under_way(self) -> int:
        """The number of functions that run."""
        return len(self._event_queues)

    def wake(self) -> None:
        """Have every command and function under way check the state of the host again."""
        with self._lock:
            for events in self._event_queues:
                events.put(None)

    # Commands ---------------------------------------------------------------------------------------------------------

    def run(self, command: Command, watch: Watch = UNWATCHED) -> CommandResult:
        """Answer a command as the test says; see `FakeHost.on()`."""
        collector = watch.collector or Collector()
        begun = time.monotonic()
        exit_code = self.communicate(command, wait_for_end, attrs.evolve(watch, collector=collector))
        return collector.result(command.title, exit_code, time.monotonic() - begun, host=self.host)

    def communicate(self, command: Command, conversation: Conversation, watch: Watch = UNWATCHED) -> int:
        """Answer a command as the test says, and hold a conversation with it."""
        with self._replacing_lost_dir():
            return self._communicate(command, conversation, watch)

    def _communicate(self, command: Command, conversation: Conversation, watch: Watch) -> int:
        self.check()
        stdin = read_stdin(self.host, command, watch)
        asked = Ran(self.host, command.title, command.cwd, command.env, stdin, timeout=command.timeout)
        self.machine.record(asked)
        directory = self.machine.files.resolve_cwd(self.host, command.cwd)
        answer = self.machine.find_answer(asked)
        collector = watch.collector or Collector()
        timeout = math.inf if command.timeout is None else command.timeout
        seconds = min(answer.delay, timeout)
        with self._registered_events(watch) as events:
            running = FakeCommand(
                answer,
                command.stdin is not None or command.source is not None,
                collecting(collector, watch),
                watch,
                Deadline(seconds if seconds < threading.TIMEOUT_MAX else None),
                lambda deadline: self._wait_for_event(events, command.title, deadline, watch),
            )
            try:
                with contextlib.suppress(CommandEndedError):
                    conversation(running)
                running.wait()
            finally:
                if running.input:
                    self.machine.replace(asked, attrs.evolve(asked, stdin=bytes(running.input)))
        if answer.delay > timeout:
            raise timeout_error(self.host, command.title, timeout, collector)
        for path, content in answer.writes.items():
            self.machine.files.write(path, str(directory), content)
        if answer.error is not None:
            raise answer.error
        return answer.exit_code

    def _wait_for_event(
        self, events: queue.SimpleQueue[InProcessEvent], title: str, deadline: Deadline, watch: Watch
    ) -> bool:
        """Wait until a command has a reason to check its conditions again; return False if the deadline passed."""
        self._check_under_way(title, watch)
        try:
            queue_get(events, deadline)
        except DeadlinePassedError:
            return False
        return True

    @contextlib.contextmanager
    def _registered_events(self, watch: Watch) -> Iterator[queue.SimpleQueue[InProcessEvent]]:
        """Yield a queue for the events of a command or function; a None in it means that it may have to stop."""
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
        """Return the next event that is not None.

        Raises:
            DeadlinePassedError: If no event came in time.
            CommandStoppedError: If the cancel token was cancelled.
            ConnectionLostError: If the host went down, or the connection was closed.
        """
        while True:
            self._check_under_way(title, watch)
            event = queue_get(events, deadline)
            if event is not None:
                return event

    def _check_under_way(self, title: str, watch: Watch) -> None:
        if watch.cancel_token is not None and watch.cancel_token.is_cancelled:
            raise CommandStoppedError(self.host, title)
        failure = self.machine.unreachable_error(self.host)
        if failure is not None:
            raise ConnectionLostError(self.host, title, str(failure), started=True)
        if self.closed:
            raise ConnectionLostError(self.host, title, "the connection was closed", started=True)

    # Functions --------------------------------------------------------------------------------------------------------

    def call(self, call: FunctionCall, outcome: IO[bytes], watch: Watch = UNWATCHED) -> None:
        """Call a function in this process, and write its outcome to a file."""
        with self._replacing_lost_dir():
            self._call(call, outcome, watch)

    def _call(self, call: FunctionCall, outcome: IO[bytes], watch: Watch) -> None:
        payload = call.payload
        self.check()
        self.machine.record(
            Called(self.host, payload.function, call.cwd, dict(call.env), call.timeout, payload=payload)
        )
        self.machine.check_python(self.host, self._python)
        directory = self.machine.files.resolve_cwd(self.host, call.cwd)
        outcome.seek(0)
        outcome.truncate()
        collector = watch.collector or Collector()
        on_output = collecting(collector, watch)
        deadline = Deadline(call.timeout)
        with self._registered_events(watch) as events:
            variables = {"HOME": str(self.machine.files.home), **call.env}
            function = InProcessCall(payload, directory, variables, events)
            try:
                while isinstance(event := self._next_event(events, call.title, deadline, watch), bytes):
                    on_output(Stream.STDERR, event)
            except DeadlinePassedError:
                function.detach()
                raise timeout_error(self.host, call.title, call.timeout, collector) from None
            except BaseException:
                function.detach()
                raise
        if isinstance(event, FunctionNotStarted):
            raise WorkingDirectoryError(
                self.host, call.cwd or "~", event.error.strerror or str(event.error)
            ) from event.error
        outcome.write(event.outcome)

    # Files and directories --------------------------------------------------------------------------------------------

    def _enter_dir(self, action: str, path: str, cwd: str | None) -> None:
        """Check that a transfer can begin in a directory."""
        with raising_transfer_errors(self.host, action, path), self._replacing_lost_dir():
            self.machine.files.resolve_cwd(self.host, cwd)

    def put(self, local: Path, remote: str | None = None, *, cwd: str | None = None, watch: Watch = UNWATCHED) -> None:
        """Send a file or a directory into the directory that plays the host; see `Connection.put()`."""
        self.check()
        self.machine.record(Sent(self.host, local, remote, cwd))
        self._enter_dir("send", str(local), cwd)
        self.machine.files.put(self.host, local, remote, cwd, watch.on_progress)

    def get(self, remote: str, local: Path, *, cwd: str | None = None, watch: Watch = UNWATCHED) -> None:
        """Fetch a file or a directory from the directory that plays the host; see `Connection.get()`."""
        self.check()
        self.machine.record(Fetched(self.host, remote, local, cwd))
        self._enter_dir("fetch", remote, cwd)
        self.machine.files.get(self.host, remote, local, cwd, watch.on_progress)

    def read_file(self, path: str, max_size: int, *, cwd: str) -> bytes:
        """Return the content of a file of at most `max_size` bytes."""
        self.check()
        self.machine.record(Read(self.host, path, cwd))
        self._enter_dir("read", path, cwd)
        return self.machine.files.read_file(self.host, path, max_size, cwd)

    def write_file(self, path: str, data: bytes, *, cwd: str) -> None:
        """Replace or make a file."""
        self.check()
        self.machine.record(Wrote(self.host, path, data, cwd))
        self._enter_dir("write", path, cwd)
        self.machine.files.write_file(self.host, path, data, cwd)

    def path_exists(self, path: str, *, cwd: str) -> bool:
        """Return whether a path leads to something."""
        self.check()
        self.machine.record(Looked(self.host, path, cwd))
        self._enter_dir("find", path, cwd)
        return self.machine.files.path_exists(self.host, path, cwd)

    def list_dir(self, path: str, *, cwd: str) -> list[str]:
        """Return the names in a directory, sorted."""
        self.check()
        self.machine.record(Looked(self.host, path, cwd))
        self._enter_dir("list", path, cwd)
        return self.machine.files.list_dir(self.host, path, cwd)

    def glob(self, pattern: str, *, cwd: str) -> list[str]:
        """Return the paths that match a pattern, sorted."""
        self.check()
        self.machine.record(Looked(self.host, pattern, cwd))
        self._enter_dir("list", pattern, cwd)
        return self.machine.files.glob(self.host, pattern, cwd)

    def create_dir(self, path: str, *, cwd: str) -> None:
        """Make a directory with its parents."""
        self.check()
        self.machine.record(MadeDir(self.host, path, cwd))
        try:
            self.machine.files.make_dir(path, cwd)
        except OSError as error:
            raise CommandFailedError(
                self.host, f"create_dir {path}", 1, f"{path}: {error.strerror or error}"
            ) from error

    def create_tempdir(self) -> str:
        """Make a temporary directory, and return its path."""
        self.check()
        path = self.machine.files.make_temp_dir()
        self._temp_dirs.append(path)
        return path

    def delete_dir(self, path: str, *, cwd: str) -> bool:
        """Delete a directory with its contents; return whether nothing of it is left."""
        self.check()
        self.machine.record(DeletedDir(self.host, path, cwd))
        deleted = self.machine.files.delete(path, cwd)
        if deleted and path in self._temp_dirs:
            self._temp_dirs.remove(path)
        return deleted

    # Ports ------------------------------------------------------------------------------------------------------------

    def free_ports(self, ports: Sequence[int]) -> list[int]:
        """Return the given ports that are not in `ports_in_use`, and on which no tunnel listens."""
        self.check()
        self.machine.record(AskedForPorts(self.host, tuple(ports)))
        if self.machine.info.python_version is None:
            raise PythonNotFoundError(self.host, self._python or "python3")
        return [port for port in ports if self.machine.is_free(port)]

    def open_tunnel(self, forwarding: Forwarding, owner: object) -> FakeTunnel:
        """Open a tunnel, through which nothing flows; the owner lives as long as the tunnel."""
        self.check()
        to_host = forwarding.type is ForwardType.REMOTE
        self.machine.record(OpenedTunnel(self.host, forwarding.listen_port, forwarding.connect_port, to_host))
        return self.machine.open_tunnel(self.host, forwarding, owner)
