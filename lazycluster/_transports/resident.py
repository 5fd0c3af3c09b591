"""The transport that keeps a supervisor on the host: a command or call costs one round trip and a fork."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import IO, BinaryIO

import attrs

from lazycluster._functions import bootstrap
from lazycluster._functions.function_call import FunctionCall
from lazycluster._model.command import Command
from lazycluster._model.input_source import InputReader
from lazycluster._model.running_command import (
    CommandEndedError,
    collecting,
    timeout_error,
    wait_for_end,
)
from lazycluster._model.watch import UNWATCHED, Watch
from lazycluster._remote import call_outcome, protocol
from lazycluster._remote.process_tree import describe_wait_status
from lazycluster._remote.protocol import FLAG_INPUT_ENDED, FLAG_LOGIN_SHELL, FLAG_NO_SHELL
from lazycluster._ssh.client import SshClient
from lazycluster._ssh.host_scripts import PROBE_SCRIPT
from lazycluster._transports.remote_child import ExitInfo, RemoteChild
from lazycluster._transports.ssh_transport import SshTransport, directory_error, warn_of_left_running
from lazycluster._transports.supervisor_client import SupervisorClient, SupervisorSettings
from lazycluster._transports.supervisor_frames import Hello
from lazycluster._transports.working_dir import is_within
from lazycluster._waiting import CancelledError, Deadline, DeadlinePassedError
from lazycluster.exceptions import (
    CommandStoppedError,
    ConnectionLostError,
    LazyclusterError,
    RemoteFunctionError,
    SupervisorError,
    WorkingDirectoryError,
)
from lazycluster.hardware import HostInfo, parse_probe_output
from lazycluster.results import Collector

_log = logging.getLogger(__name__)
_SUPERVISOR_RESPONSE_TIMEOUT_SECONDS = 30.0
_MAX_STREAMED_FILE_BYTES = 1 << 24
"""The most bytes of a file that goes through the supervisor's channel. From about this size on, scp is faster."""
_CLOSE_GRACE_MARGIN_SECONDS = 15.0
"""Seconds beyond the grace period for a supervisor to end everything and to exit."""


class ResidentTransport(SshTransport):
    """Runs everything through a supervisor on the host; a lost one is started again."""

    def __init__(self, ssh_client: SshClient, python: str | None = None) -> None:
        """Use an ssh client; nothing starts yet."""
        super().__init__(ssh_client, python, max_streamed_bytes=_MAX_STREAMED_FILE_BYTES)
        self._lost_temp_dirs: dict[str, str] = {}

    def _initialize(self) -> None:
        super()._initialize()
        self._lock = threading.RLock()
        self._supervisor: SupervisorClient | None = None

    # The supervisor --------------------------------------------------------------------------------------------------

    def set_up(self, working_dir: str | None) -> tuple[str, HostInfo]:
        """Start the supervisor, which makes the working directory and probes the machine."""
        settings = SupervisorSettings(self._python, self.ssh_client.grace, working_dir or "", PROBE_SCRIPT)
        with self._lock:
            hello = self._start_supervisor(settings)
        if hello.working_dir_error:
            raise directory_error(self.host, working_dir, hello.working_dir_error)
        self._set_working_dir(hello.working_dir, is_temporary=working_dir is None)
        facts = attrs.evolve(
            parse_probe_output(hello.probe_output),
            python_version=hello.python.version,
            python_executable=hello.python.executable,
        )
        return hello.working_dir, facts

    def ensure_supervisor(self, cwd: str | None = None) -> SupervisorClient:
        """Return a running supervisor, for a child in a directory; a lost one is replaced.

        Raises:
            WorkingDirectoryError: If the directory was temporary, and was lost with its supervisor.
        """
        current = self._supervisor
        if current is None or not self._is_usable(current):
            current = self._restart_supervisor()
        if cwd is not None:
            for path, reason in list(self._lost_temp_dirs.items()):
                if is_within(cwd, path):
                    why = f"it was temporary, and went when the connection broke: {reason}"
                    raise WorkingDirectoryError(self.host, cwd, why)
        return current

    def _restart_supervisor(self) -> SupervisorClient:
        with self._lock:
            if self._supervisor is not None:
                if self._is_usable(self._supervisor):
                    return self._supervisor
                for path in self._temp_dirs:
                    self._lost_temp_dirs[path] = self._supervisor.exit_reason
                self._temp_dirs.clear()
            self._start_supervisor(SupervisorSettings(self._python, self.ssh_client.grace))
            assert self._supervisor is not None
            return self._supervisor

    def _is_dir_gone(self, path: str) -> bool:
        return path in self._lost_temp_dirs or super()._is_dir_gone(path)

    def _is_usable(self, supervisor: SupervisorClient) -> bool:
        return supervisor.is_running and self.ssh_client.is_connected

    def _start_supervisor(self, settings: SupervisorSettings) -> Hello:
        """Start a supervisor; other threads see it once its hello has come."""
        started = SupervisorClient(self.ssh_client, settings)
        try:
            timeout = self.ssh_client.destination.connect_timeout + self.ssh_client.timeouts.supervisor_start
            hello = started.wait_until_ready(timeout)
        except SupervisorError:
            if started.has_shell_started:
                # A Python that hangs during its start does not see the end of its input.
                self.stop_marked_processes()
            raise
        self._supervisor = started
        return hello

    def _request(self, method: str, *arguments: bytes) -> list[bytes]:
        try:
            return self.ensure_supervisor().request(method, *arguments, timeout=_SUPERVISOR_RESPONSE_TIMEOUT_SECONDS)
        except DeadlinePassedError:
            raise SupervisorError(
                self.host, f"no answer to {method!r} within {_SUPERVISOR_RESPONSE_TIMEOUT_SECONDS:g} s"
            ) from None
        except OSError as error:
            raise SupervisorError(self.host, f"{method!r} failed: {error}") from error

    # Work ------------------------------------------------------------------------------------------------------------

    def _carry_out(self, command: Command, watch: Watch) -> int:
        source = command.source
        if source is None:
            return super()._carry_out(command, watch)
        return self.communicate(command, lambda child: _send_input(child, source), watch)

    def communicate(
        self, command: Command, conversation: Callable[[RemoteChild], object], watch: Watch = UNWATCHED
    ) -> int:
        """Run a command as a child of the supervisor; see `CommandRunner.communicate()`."""
        with self._replacing_lost_dir():
            return self._communicate(command, conversation, watch)

    def _communicate(self, command: Command, conversation: Callable[[RemoteChild], object], watch: Watch) -> int:
        flags = FLAG_LOGIN_SHELL if command.login_shell else 0
        text = command.program
        if not isinstance(text, str):
            flags, text = FLAG_NO_SHELL, "\0".join(text)
        child, unsent = self._start_child(
            protocol.RUN, command.title, text, command.cwd, command.env, stdin=command.stdin, flags=flags
        )
        collector = watch.collector or Collector()
        exit_info = self._follow(child, unsent, conversation, command.timeout, watch, collector)
        return self._exit_code(exit_info, command.title, command.cwd)

    def call(self, call: FunctionCall, outcome: IO[bytes], watch: Watch = UNWATCHED) -> None:
        """Call a function in a forked child of the supervisor."""
        with self._replacing_lost_dir():
            self._call(call, outcome, watch)

    def _call(self, call: FunctionCall, outcome: IO[bytes], watch: Watch) -> None:
        outcome.seek(0)
        outcome.truncate()
        function = call.payload.function
        child, unsent = self._start_child(
            protocol.CALL,
            call.title,
            function,
            call.cwd,
            call.env,
            stdin=call.payload.encode_request(),
            prepare=self._load_calls_extension,
        )
        child.on_outcome = outcome.write
        collector = watch.collector or Collector()
        exit_info = self._follow(child, unsent, wait_for_end, call.timeout, watch, collector)
        if exit_info.kind == "failed":
            raise RemoteFunctionError(self.host, function, exit_info.detail)
        self._exit_code(exit_info, call.title, call.cwd)
        if exit_info.kind != "done":  # its process has died, it seems
            words = describe_wait_status(int(exit_info.detail)).encode()
            outcome.write(
                words + call_outcome.RECORD_TRAILER.pack(call_outcome.RECORD_MAGIC, call_outcome.END_RECORD, len(words))
            )

    def _load_calls_extension(self, supervisor: SupervisorClient) -> None:
        from lazycluster._functions.serialize import cloudpickle_source  # noqa: PLC0415 - only calls need cloudpickle

        bootstrap.check_python_version(
            supervisor.wait_until_ready(self.ssh_client.timeouts.supervisor_start).python, self.host
        )
        supervisor.ensure_loaded("calls", bootstrap.calls_extension, cloudpickle_source)

    def _start_child(
        self,
        kind: int,
        title: str,
        text: str,
        cwd: str | None,
        env: Mapping[str, str],
        *,
        stdin: bytes | None,
        flags: int = 0,
        prepare: Callable[[SupervisorClient], object] = lambda _supervisor: None,
    ) -> tuple[RemoteChild, bytes]:
        """Start a child, and return it with the part of `stdin` that is still to be sent.

        `prepare` prepares the supervisor. If the supervisor turns out to be gone before the child has started, a second
        attempt follows.
        """
        first, unsent = (stdin or b"")[: protocol.STREAM_CHUNK_BYTES], (stdin or b"")[protocol.STREAM_CHUNK_BYTES :]
        if stdin is not None and not unsent:
            flags |= FLAG_INPUT_ENDED
        fields = (
            protocol.encode_number(flags),
            b"" if cwd is None else os.fsencode(cwd),
            b"%r" % self.ssh_client.grace,
            text.encode("utf-8", "surrogateescape"),
            first,
            *(os.fsencode(word) for pair in env.items() for word in pair),
        )
        for can_retry in (True, False):
            supervisor = self.ensure_supervisor(cwd)
            try:
                prepare(supervisor)
                return supervisor.start_child(kind, title, *fields), unsent
            except ConnectionLostError:
                if not can_retry:
                    raise
        raise AssertionError("unreachable")

    def _follow(
        self,
        child: RemoteChild,
        unsent: bytes,
        conversation: Callable[[RemoteChild], object],
        timeout: float | None,
        watch: Watch,
        collector: Collector,
    ) -> ExitInfo:
        """Send the rest of the standard input of a child, hold the conversation, and return how the child ended.

        Raises:
            CommandTimeoutError: If the time limit passed; the child was ended.
            CommandStoppedError: If the cancel token was cancelled; the child was ended.
            ConnectionLostError: If the connection broke.
        """
        child.follow(collecting(collector, watch), Deadline(timeout), watch)
        try:
            try:
                if unsent:
                    child.write(unsent)
                    child.close_stdin()
                conversation(child)
            except CommandEndedError:
                child.wait()
        except CancelledError:
            child.cancel(timeout=self.ssh_client.grace + self.ssh_client.timeouts.command_stop_margin)
            raise CommandStoppedError(self.host, child.title) from None
        except DeadlinePassedError:
            child.cancel(timeout=self.ssh_client.timeouts.command_cancel)
            raise timeout_error(self.host, child.title, timeout, collector) from None
        except ConnectionLostError as error:
            raise (attrs.evolve(error, started=True) if child.has_started else error) from error.__cause__
        except BaseException:
            child.cancel(timeout=self.ssh_client.timeouts.command_cancel)
            raise
        assert child.exit_info is not None
        return child.exit_info

    def _exit_code(self, exit_info: ExitInfo, title: str, cwd: str | None) -> int:
        if exit_info.kind == "cd":
            raise WorkingDirectoryError(self.host, cwd or "", exit_info.detail)
        if exit_info.kind == "failed":
            raise SupervisorError(self.host, f"`{title}`: {exit_info.detail}")
        return exit_info.exit_code

    def is_alive(self) -> bool:
        """Return whether a command can be run on the host now."""
        if self.ssh_client.closed:
            return False
        try:
            self.ensure_supervisor().request("ping", timeout=self.ssh_client.destination.connect_timeout)
        except (LazyclusterError, DeadlinePassedError):
            return False
        return True

    def create_tempdir(self) -> str:
        """Make a temporary directory, and return its path."""
        path = os.fsdecode(self._request("tempdir")[0])
        self._temp_dirs.append(path)
        return path

    def discard_temp_dir(self, path: str) -> None:
        """Record that a temporary directory is gone."""
        super().discard_temp_dir(path)
        self._request("discard", os.fsencode(path))

    def free_ports(self, ports: Sequence[int]) -> list[int]:
        """Return the given ports on which a server could listen."""
        self.ensure_supervisor().ensure_loaded("ports", bootstrap.ports_extension)
        return [int(port) for port in self._request("ports", *map(protocol.encode_number, ports))]

    def clean_up(self) -> None:
        """Have the supervisor end everything and exit; if it is gone already, end the processes with our mark."""
        current = self._supervisor
        if current is None:
            return
        try:
            goodbye = current.close(self.ssh_client.grace + _CLOSE_GRACE_MARGIN_SECONDS)
        except SupervisorError as error:
            _log.debug("%s", error)
            self.stop_marked_processes()
        else:
            warn_of_left_running(self.host, goodbye.left_running)
            if goodbye.unremoved_paths:
                _log.warning("%s: the clean-up left something: %s", self.host, ", ".join(goodbye.unremoved_paths))
            if self._lost_temp_dirs:  # a supervisor that was killed may have left them, and processes, too
                self.stop_marked_processes(self._lost_temp_dirs)


def _send_input(child: RemoteChild, source: BinaryIO) -> None:
    """Send a file as the standard input of a child while it runs; if the child ends first, the rest is not read."""
    with InputReader(source, child.wake) as reader:
        while child.pump(lambda: reader.has_piece):
            piece = reader.take()
            if not piece:
                child.close_stdin()
                break
            child.write(piece)
    child.wait()
