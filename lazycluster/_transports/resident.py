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
from lazycluster._remote import call_outcome, protocol
from lazycluster._remote.process_tree import describe_wait_status
from lazycluster._ssh.host_scripts import PROBE_SCRIPT
from lazycluster._transports.child_runner import ChildRunner, stdin_writer
from lazycluster._transports.per_command import SET_UP_TIMEOUT_SECONDS, SshTransport
from lazycluster._transports.supervisor_client import Hello, SupervisorClient, SupervisorSettings
from lazycluster._waiting import DeadlinePassedError
from lazycluster.connection import Connection
from lazycluster.exceptions import (
    CommandFailedError,
    LazyclusterError,
    RemoteFunctionError,
    SupervisorError,
    WorkingDirectoryError,
)
from lazycluster.hardware import HostInfo, parse_probe_output
from lazycluster.results import Collector, CommandResult

if TYPE_CHECKING:
    from lazycluster._functions.serialize import Payload

_log = logging.getLogger(__name__)
_SUPERVISOR_RESPONSE_TIMEOUT_SECONDS = 30.0
_MAX_COMMAND_CHARACTERS = 1 << 20
_MAX_STREAMED_FILE_BYTES = 1 << 24
"""Bytes up to which a file goes through the supervisor's channel: about where scp, which is faster, has caught up."""
_CLOSE_GRACE_MARGIN_SECONDS = 15.0
"""Seconds beyond the grace period for a supervisor to end everything and to go."""


class ResidentTransport(SshTransport):
    """Runs everything through a supervisor on the host, which is started again where it was lost."""

    def __init__(self, connection: Connection, python: str | None = None, grace: float = 5.0) -> None:
        """Use a connection; nothing is started yet. `grace` is how many seconds lie between SIGTERM and SIGKILL."""
        super().__init__(connection, python)
        self.grace = grace
        self.child_runner = ChildRunner(self, connection.ssh_client.timeouts)
        self._transfer_backend = transfer.TransferBackend(
            self.child_runner, connection.ssh_client, max_streamed_bytes=_MAX_STREAMED_FILE_BYTES
        )
        self._lost_temp_dirs: dict[str, str] = {}
        self.reset()

    def reset(self) -> None:
        """Begin without a supervisor."""
        super().reset()
        self._lock = threading.RLock()
        self._supervisor: SupervisorClient | None = None

    def child_environment(self, env: Mapping[str, str] | None) -> dict[str, str]:
        """Return the environment of a child."""
        return {**self.connection.ssh_client.env, **check_environment(env)}

    # The supervisor --------------------------------------------------------------------------------------------------

    def set_up(self, working_dir: str | None) -> tuple[str, HostInfo]:
        """Start the supervisor, which makes the working directory and probes the machine."""
        if working_dir is not None:
            _check_path(working_dir)
        settings = SupervisorSettings(self._python, self.grace, working_dir or "", PROBE_SCRIPT)
        with self._lock:
            hello = self._start_supervisor(settings)
        if hello.working_dir_error:
            raise CommandFailedError(self.host, f"mkdir -p {working_dir or ''}".strip(), 1, hello.working_dir_error)
        if working_dir is None:
            self._temp_dirs.append(hello.working_dir)
        facts = attrs.evolve(
            parse_probe_output(hello.probe_output),
            python_version=hello.python.version,
            python_executable=hello.python.executable,
        )
        return hello.working_dir, facts

    def ensure_supervisor(self, cwd: str | None = None) -> SupervisorClient:
        """Return a supervisor that lives, for a child in a directory; one that was lost is replaced.

        Raises:
            WorkingDirectoryError: The directory was temporary, and went with a supervisor that was lost.
        """
        current = self._supervisor
        if current is None or not self._is_usable(current):
            current = self._restart_supervisor()
        if cwd is not None:
            _check_path(cwd)
            for path, reason in list(self._lost_temp_dirs.items()):
                if f"{cwd}/".startswith(f"{path}/"):
                    why = f"it was temporary, and went when the connection broke: {reason}"
                    raise WorkingDirectoryError(self.host, cwd, why, advice="Make a new Runtime.")
        return current

    def _restart_supervisor(self) -> SupervisorClient:
        with self._lock:
            if self._supervisor is not None:
                if self._is_usable(self._supervisor):
                    return self._supervisor
                for path in self._temp_dirs:
                    self._lost_temp_dirs[path] = self._supervisor.exit_reason
                self._temp_dirs.clear()
            self._start_supervisor(SupervisorSettings(self._python, self.grace))
            assert self._supervisor is not None
            return self._supervisor

    def _is_usable(self, supervisor: SupervisorClient) -> bool:
        """Tell whether a supervisor can be used; that its link is gone may be seen before it is."""
        return supervisor.is_running and self.connection.ssh_client.is_connected

    def _start_supervisor(self, settings: SupervisorSettings) -> Hello:
        """Start a supervisor, which others see once it has greeted."""
        started = SupervisorClient(self.connection.ssh_client, settings)
        try:
            hello = started.wait_until_ready(
                self.connection.ssh_client.destination.connect_timeout + SET_UP_TIMEOUT_SECONDS
            )
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
            raise CommandFailedError(self.host, method, 1, str(error)) from error

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
        if len(command) > _MAX_COMMAND_CHARACTERS:
            raise ValueError(
                f"a command of {len(command)} characters is longer than any system takes; send it as a file"
            )
        return self.child_runner.run(command, cwd=cwd, env=env, stdin=stdin, timeout=timeout, watch=watch)

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
        child, unsent_stdin = self.child_runner.start_child(
            protocol.CALL,
            title,
            payload.function,
            cwd=cwd,
            env=self.child_environment(env),
            stdin=payload.encode_request(),
            prepare=self._load_calls_extension,
        )
        child.on_outcome = outcome.write
        exit_info = self.child_runner.communicate(
            child,
            stdin_writer(unsent_stdin),
            timeout=timeout,
            watch=watch,
            collector=watch.collector or Collector(),
        )
        if exit_info.kind == "failed":
            raise RemoteFunctionError(self.host, payload.function, exit_info.detail)
        self.child_runner.exit_code(exit_info, title, cwd)
        if exit_info.kind != "done":  # its process died, or so it seems
            words = describe_wait_status(int(exit_info.detail)).encode()
            outcome.write(
                words + call_outcome.RECORD_TRAILER.pack(call_outcome.RECORD_MAGIC, call_outcome.END_RECORD, len(words))
            )

    def _load_calls_extension(self, supervisor: SupervisorClient) -> None:
        from lazycluster._functions.serialize import cloudpickle_source  # noqa: PLC0415 - for whoever calls functions

        bootstrap.check_python_version(supervisor.wait_until_ready(SET_UP_TIMEOUT_SECONDS).python, self.host)
        supervisor.ensure_loaded("calls", bootstrap.calls_extension, cloudpickle_source)

    def put(self, local: Path, remote: str | None = None, *, cwd: str | None = None, watch: Watch = UNWATCHED) -> None:
        """Send a file or a directory; see `Connection.put()`."""
        transfer.put(self._transfer_backend, local, remote, cwd=cwd, watch=watch)

    def get(self, remote: str, local: Path, *, cwd: str | None = None, watch: Watch = UNWATCHED) -> None:
        """Fetch a file or a directory; see `Connection.get()`."""
        transfer.get(self._transfer_backend, remote, local, cwd=cwd, watch=watch)

    def run_sh(self, script: str, title: str, *, cwd: str | None = None, stdin: bytes = b"") -> CommandResult:
        """Run text of the library's own in the host's /bin/sh."""
        return self.child_runner.run(
            script, title=title, cwd=cwd, stdin=stdin, timeout=SET_UP_TIMEOUT_SECONDS, login_shell=False
        )

    def is_alive(self) -> bool:
        """Tell whether a command can be run on the host now."""
        if self.connection.ssh_client.closed:
            return False
        try:
            self.ensure_supervisor().request("ping", timeout=self.connection.ssh_client.destination.connect_timeout)
        except (LazyclusterError, DeadlinePassedError):
            return False
        return True

    def create_tempdir(self) -> str:
        """Make a temporary directory, and return its path."""
        path = os.fsdecode(self._request("tempdir")[0])
        self._temp_dirs.append(path)
        return path

    def discard_temp_dir(self, path: str) -> None:
        """Note that a temporary directory is gone."""
        super().discard_temp_dir(path)
        self._request("discard", os.fsencode(path))

    def free_ports(self, ports: Sequence[int]) -> list[int]:
        """Return those of the ports that a server could listen on."""
        self.ensure_supervisor().ensure_loaded("ports", bootstrap.ports_extension)
        return [int(port) for port in self._request("ports", *map(protocol.encode_number, ports))]

    def clean_up(self) -> None:
        """Have the supervisor end everything and go; where it is gone already, end what is marked as ours."""
        current = self._supervisor
        if current is None:
            return
        try:
            leftovers = current.close(self.grace + _CLOSE_GRACE_MARGIN_SECONDS)
        except SupervisorError as error:
            _log.debug("%s", error)
            self.stop_marked_processes()
        else:
            if leftovers:
                _log.warning("%s: the clean-up left something: %s", self.host, ", ".join(leftovers))


def _check_path(path: str) -> None:
    if not path or "\0" in path:
        raise ValueError(f"a path must not be empty and cannot hold NUL: {path!r}")
