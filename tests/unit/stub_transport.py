"""A stand-in for a way onto a host: commands are answered from a table, files are noted, functions run here."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

import attrs

from lazycluster._functions import bootstrap
from lazycluster._functions.function_call import FunctionCall
from lazycluster._functions.serialize import full_request
from lazycluster._model.command import Command
from lazycluster._model.forwarding import Forwarding
from lazycluster._model.watch import UNWATCHED, Watch
from lazycluster._transports.interface import Stoppable
from lazycluster.exceptions import CommandStoppedError
from lazycluster.hardware import HostInfo
from lazycluster.results import Collector, CommandResult, Stream

SUPERVISOR_TOKEN = "t0k3n"
OutputPiece = tuple[Stream, bytes]


@attrs.frozen
class StubResult:
    """What a command prints, and how it ends."""

    pieces: tuple[OutputPiece, ...] = ()
    exit_code: int = 0
    error: Exception | None = None


def stub_stdout(text: str, exit_code: int = 0) -> StubResult:
    return StubResult(((Stream.STDOUT, text.encode()),), exit_code)


@attrs.frozen
class RecordedCall:
    """What was asked for."""

    action: str
    cwd: str | None
    env: Mapping[str, str] | None = None
    timeout: float | None = None


@attrs.define
class StubTransport:
    """Implements `Transport`. The command `wait` waits until it is cancelled, or until `release_event` is set."""

    host: str = "web1"
    results: dict[str, StubResult] = attrs.field(factory=dict)
    calls: list[RecordedCall] = attrs.field(factory=list)
    release_event: threading.Event = attrs.field(factory=threading.Event)
    waiting_event: threading.Event = attrs.field(factory=threading.Event)
    closed: bool = False

    def connect(self) -> None:
        """Do nothing."""

    def is_alive(self) -> bool:
        """Return whether it is open."""
        return not self.closed

    def run(self, command: Command, watch: Watch = UNWATCHED) -> CommandResult:
        """Answer from the table."""
        self.calls.append(RecordedCall(command.title, command.cwd, command.env, command.timeout))
        reaction = self.results.get(command.title, StubResult())
        collector = watch.collector or Collector()
        for stream, data in reaction.pieces:
            collector.write(stream, data)
            watch.on_output(stream, data)
        if command.title == "wait":
            self._wait(watch)
        if reaction.error is not None:
            raise reaction.error
        return collector.result(command.title, reaction.exit_code, 0.25)

    def _wait(self, watch: Watch) -> None:
        self.waiting_event.set()
        while not self.release_event.wait(0.002):
            if watch.cancel_token is not None and watch.cancel_token.is_cancelled:
                raise CommandStoppedError(self.host, "wait")

    def call(self, call: FunctionCall, outcome: IO[bytes], watch: Watch = UNWATCHED) -> None:
        """Run the function in a Python of its own on this machine."""
        self.calls.append(RecordedCall(call.payload.function, call.cwd, call.env, call.timeout))
        reaction = self.results.get(call.payload.function, StubResult())
        if reaction.error is not None:
            raise reaction.error
        sent = bootstrap.build_call_program(SUPERVISOR_TOKEN)
        with subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", sent.bootstrap],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdin.write(sent.stdin_prefix + full_request(call.payload))
            process.stdin.flush()
            assert bootstrap.parse_python_info(process.stdout.readline(), SUPERVISOR_TOKEN) is not None
            outcome.write(process.stdout.read())
            printed = process.stderr.read()
        (watch.collector or Collector()).write(Stream.STDERR, printed)
        watch.on_output(Stream.STDERR, printed)

    def put(self, local: Path, remote: str | None = None, *, cwd: str | None = None, watch: Watch = UNWATCHED) -> None:
        """Note it."""
        self._record_transfer(f"put {local} {remote}", cwd, watch)

    def get(self, remote: str, local: Path, *, cwd: str | None = None, watch: Watch = UNWATCHED) -> None:
        """Note it."""
        self._record_transfer(f"get {remote} {local}", cwd, watch)

    def _record_transfer(self, action: str, cwd: str | None, watch: Watch) -> None:
        self.calls.append(RecordedCall(action, cwd))
        watch.on_progress(500, 1000)
        error = self.results.get(action, StubResult()).error
        if error is not None:
            raise error
        watch.on_progress(1000, 1000)

    def close(self) -> None:
        """Note it."""
        self.closed = True


@attrs.define
class FakeHostTransport(StubTransport):
    """Implements `RuntimeTransport`, as far as who holds one and gives it back asks for it."""

    temp_dirs: list[str] = attrs.field(factory=list)
    is_reachable: bool = True
    clean_up_count: int = 0
    on_clean_up: Callable[[], object] = lambda: None

    def set_up(self, working_dir: str | None) -> tuple[str, HostInfo]:
        """Find nothing."""
        return working_dir or "/tmp/w", HostInfo("Debian 12", "Linux", "6.1", "x86_64", 1.0, 1 << 30)

    def is_alive(self) -> bool:
        """Tell it."""
        return self.is_reachable and not self.closed

    def create_dir(self, path: str, *, cwd: str) -> None:
        """Note it."""
        self.calls.append(RecordedCall(f"create_dir {path}", cwd))

    def create_tempdir(self) -> str:
        """Note one more."""
        self.temp_dirs.append(f"/tmp/t{len(self.temp_dirs)}")
        return self.temp_dirs[-1]

    def delete_dir(self, path: str, *, cwd: str) -> bool:
        """Note it."""
        self.calls.append(RecordedCall(f"delete_dir {path}", cwd))
        return True

    def free_ports(self, ports: Sequence[int]) -> list[int]:
        """Have none in use."""
        return list(ports)

    def open_tunnel(self, forwarding: Forwarding, owner: object) -> Stoppable:
        """Refuse it."""
        raise NotImplementedError

    def can_reach_host(self, timeout: float) -> bool:
        """Tell it."""
        return self.is_reachable

    def clean_up(self) -> None:
        """Note it, and do what was asked for."""
        self.on_clean_up()
        self.clean_up_count += 1
