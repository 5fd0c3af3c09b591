"""Scripts on a host as children of its supervisor, as `SshClient` runs each of them in a session of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import attrs

from lazycluster._model.timeouts import DEFAULT_TIMEOUTS, Timeouts
from lazycluster._model.watch import UNWATCHED, Watch
from lazycluster._remote import protocol
from lazycluster._remote.protocol import FLAG_INPUT_ENDED, FLAG_LOGIN_SHELL
from lazycluster._ssh.session import SessionEndedError
from lazycluster._ssh.shell import Script
from lazycluster._transports.remote_child import ExitInfo, RemoteChild
from lazycluster._transports.supervisor_client import SupervisorClient
from lazycluster._waiting import CancelledError, Deadline, DeadlinePassedError
from lazycluster.exceptions import (
    CommandStoppedError,
    CommandTimeoutError,
    ConnectionLostError,
    SupervisorError,
    WorkingDirectoryError,
)
from lazycluster.results import Collector, CommandResult, Stream


class SupervisorProvider(Protocol):
    """The part of a runtime's transport that a `ChildRunner` uses."""

    @property
    def host(self) -> str:
        """Return the host as it was given."""

    @property
    def grace(self) -> float:
        """Return the seconds between SIGTERM and SIGKILL."""

    def ensure_supervisor(self, cwd: str | None) -> SupervisorClient:
        """Return a running supervisor, for a child in a directory."""

    def child_environment(self, env: Mapping[str, str] | None) -> dict[str, str]:
        """Return the environment of a child."""


@attrs.frozen
class ChildRunner:
    """Runs scripts as children of the supervisor. Any thread may use it."""

    provider: SupervisorProvider
    timeouts: Timeouts = DEFAULT_TIMEOUTS

    @property
    def host(self) -> str:
        """Return the host as it was given."""
        return self.provider.host

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
        """Return a command as a script; see `SshClient.script()`."""
        return Script(
            command,
            output_mark="",
            process_mark="",
            title=command if title is None else title,
            cwd=cwd,
            env=self.provider.child_environment(env),
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
        started_at = time.monotonic()
        name = command if title is None else title
        flags = FLAG_LOGIN_SHELL if login_shell else 0
        child, rest = self.start_child(
            protocol.RUN, name, command, cwd=cwd, env=self.provider.child_environment(env), stdin=stdin, flags=flags
        )
        exit_info = self.communicate(child, stdin_writer(rest), timeout=timeout, watch=watch, collector=collector)
        return collector.result(command, self.exit_code(exit_info, name, cwd), time.monotonic() - started_at)

    def run_script(
        self,
        script: Script,
        work: Callable[[RemoteChild], object],
        *,
        collector: Collector,
        timeout: float | None = None,
        watch: Watch = UNWATCHED,
    ) -> int:
        """Run a script and return its exit status; `work` feeds and reads it; see `SshClient.run_script()`."""
        flags = (FLAG_LOGIN_SHELL if script.login_shell else 0) | (0 if script.raw_stdin else FLAG_INPUT_ENDED)
        child, _ = self.start_child(
            protocol.RUN, script.title, script.command, cwd=script.cwd, env=script.env, stdin=None, flags=flags
        )
        exit_info = self.communicate(child, work, timeout=timeout, watch=watch, collector=collector)
        return self.exit_code(exit_info, script.title, script.cwd)

    def start_child(
        self,
        kind: int,
        title: str,
        text: str,
        *,
        cwd: str | None,
        env: Mapping[str, str],
        stdin: bytes | None,
        flags: int = 0,
        prepare: Callable[[SupervisorClient], object] = lambda _supervisor: None,
    ) -> tuple[RemoteChild, bytes]:
        """Start a child, and return it with the part of `stdin` that is still to be sent.

        With None for `stdin` the caller sends all of it later. `prepare` prepares the supervisor. If the supervisor
        turns out to be gone before the child has started, a second attempt follows.
        """
        first, rest = (
            (b"", b"")
            if stdin is None
            else (stdin[: protocol.STREAM_CHUNK_BYTES], stdin[protocol.STREAM_CHUNK_BYTES :])
        )
        if stdin is not None and not rest:
            flags |= FLAG_INPUT_ENDED
        directory = b"" if cwd is None else os.fsencode(cwd)
        variables = [os.fsencode(word) for pair in env.items() for word in pair]
        fields = (
            protocol.encode_number(flags),
            directory,
            b"%r" % self.provider.grace,
            text.encode("utf-8", "surrogateescape"),
            first,
            *variables,
        )
        for can_retry in (True, False):
            supervisor = self.provider.ensure_supervisor(cwd)
            try:
                prepare(supervisor)
                return supervisor.start_child(kind, title, *fields), rest
            except ConnectionLostError:
                if not can_retry:
                    raise
        raise AssertionError("unreachable")

    def communicate(
        self,
        child: RemoteChild,
        work: Callable[[RemoteChild], object],
        *,
        timeout: float | None,
        watch: Watch,
        collector: Collector,
    ) -> ExitInfo:
        """Follow a child to its end; `work` writes to it, reads from it and waits for its end.

        Raises:
            CommandTimeoutError: `timeout` seconds have passed; the child was ended.
            CommandStoppedError: The cancel token was set.
            ConnectionLostError: The connection broke.
        """

        def on_output(stream: Stream, data: bytes) -> None:
            collector.write(stream, data)
            watch.on_output(stream, data)

        child.on_output = on_output
        child.deadline = Deadline(timeout)
        child.cancel_token = watch.cancel_token
        try:
            try:
                work(child)
            except SessionEndedError:
                child.wait()
        except CancelledError:
            child.cancel(timeout=self.provider.grace + self.timeouts.command_stop_margin)
            raise CommandStoppedError(self.host, child.title) from None
        except DeadlinePassedError:
            child.cancel(timeout=self.timeouts.command_cancel)
            out, err = (collector.getvalue(stream) for stream in Stream)
            raise CommandTimeoutError(self.host, child.title, timeout or 0.0, out, err) from None
        except ConnectionLostError as error:
            raise (attrs.evolve(error, started=True) if child.has_started else error) from error.__cause__
        except BaseException:
            child.cancel(timeout=self.timeouts.command_cancel)
            raise
        assert child.exit_info is not None
        return child.exit_info

    def exit_code(self, exit_info: ExitInfo, title: str, cwd: str | None) -> int:
        """Return the exit status.

        Raises:
            WorkingDirectoryError: The directory cannot be entered.
        """
        if exit_info.kind == "cd":
            raise WorkingDirectoryError(self.host, cwd or "", exit_info.detail)
        if exit_info.kind == "failed":
            raise SupervisorError(self.host, f"`{title}`: {exit_info.detail}")
        return exit_info.exit_code


def stdin_writer(data: bytes) -> Callable[[RemoteChild], object]:
    """Return a callback for `communicate()`: it sends the rest of standard input, if any, and waits for the end."""

    def work(child: RemoteChild) -> None:
        if data:
            child.write(data)
            child.close_stdin()
        child.wait()

    return work
