"""A supervisor as a local process, and the local end of its channel: frames are written and taken apart."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import attrs

from lazycluster._functions import bootstrap, outcome, serialize
from lazycluster._remote import protocol, supervisor
from lazycluster._ssh.shell import PROCESS_MARK_VARIABLE
from lazycluster._transports.supervisor_frames import Goodbye, Hello
from lazycluster.results import Error, Value
from tests.processes import find_marked_pids
from tests.waiting import wait_until

TIMEOUT_SECONDS = 20.0


@attrs.define
class ObservedChild:
    """The output and the end of a child. With `updates_window`, the child may send as much as it has to."""

    host: LocalSupervisor = attrs.field(repr=False)
    number: int
    updates_window: bool = True
    received: list[tuple[int, bytes]] = attrs.field(factory=list, repr=False)
    input_window: int = protocol.WINDOW_BYTES
    pid: int | None = None
    end: tuple[str, str] | None = None
    received_bytes: int = 0
    is_detached: bool = False

    def output(self, kind: int = protocol.STDOUT) -> bytes:
        return b"".join(data for each, data in self.received if each == kind)

    @property
    def stderr(self) -> bytes:
        return self.output(protocol.STDERR)

    def handle_frame(self, kind: int, body: bytes) -> None:
        assert not self.is_detached, protocol.FRAME_NAMES[kind]
        if kind in {protocol.STDOUT, protocol.STDERR, protocol.OUTCOME}:
            assert self.end is None, "output after the end"
            self.received.append((kind, body))
            self.received_bytes += len(body)
            if self.updates_window:
                self.send_window_update(len(body))
        elif kind == protocol.STARTED:
            self.pid = int(body)
        elif kind == protocol.INPUT_WINDOW_UPDATE:
            self.input_window += int(body)
        elif kind == protocol.ENDED:
            assert self.end is None, "ended twice"
            kind_of_end, detail = protocol.unpack(body)
            self.end = kind_of_end.decode(), detail.decode()
        else:
            raise AssertionError(protocol.FRAME_NAMES[kind])

    def send_window_update(self, size: int) -> None:
        """Let the child send this number of bytes more."""
        self.host.send(protocol.WINDOW_UPDATE, self.number, protocol.encode_number(size))

    def write(self, data: bytes, *, close: bool = True) -> None:
        """Send to its standard input, as far as the window allows."""
        for at in range(0, len(data), protocol.STREAM_CHUNK_BYTES):
            piece = data[at : at + protocol.STREAM_CHUNK_BYTES]
            self.input_window -= len(piece)
            self.host.receive_until(lambda: self.input_window >= 0, "a larger input window")
            self.host.send(protocol.INPUT, self.number, piece)
        if close:
            self.host.send(protocol.INPUT_END, self.number)

    def stop(self) -> None:
        self.host.send(protocol.STOP, self.number)

    def detach(self) -> None:
        """Detach it. No frame of it may come afterwards; frames under way are read first."""
        self.host.send(protocol.DETACH, self.number)
        self.host.sync()
        self.is_detached = True

    def wait_output(self, text: bytes) -> ObservedChild:
        """Wait until it has printed a text."""
        self.host.receive_until(lambda: text in self.output(), f"{text!r} of {self!r}")
        return self

    def wait(self) -> tuple[str, str]:
        """Wait for its end, and return the fields of the ENDED frame."""
        self.host.receive_until(lambda: self.end is not None, f"the end of {self!r}")
        assert self.end is not None
        return self.end

    def wait_exit_code(self) -> int:
        """Wait for its end, and return the exit status; negative for a signal."""
        kind, detail = self.wait()
        assert kind in {"exit", "signal"}, self.end
        code = os.waitstatus_to_exitcode(int(detail))
        assert (code < 0) == (kind == "signal")
        return code

    def result(self) -> tuple[int, bytes, bytes]:
        """Wait for its end, and return status, output and errors."""
        return self.wait_exit_code(), self.output(), self.stderr

    def value(self) -> Any:
        """Wait for its end, and return what a function returned, or raise what it raised."""
        assert self.wait() == ("done", "0"), self.stderr
        return self.outcome().unwrap()

    def outcome(self) -> Value[object] | Error:
        """Return the outcome of a function."""
        with tempfile.TemporaryFile() as file:
            file.write(self.output(protocol.OUTCOME))
            return outcome.read_outcome(file, "h", "f")


@attrs.define
class LocalSupervisor:
    """A supervisor that runs as a local process. One thread uses it."""

    process: subprocess.Popen[bytes]
    token: str
    source: bytes = attrs.field(repr=False)
    stderr_file: IO[bytes]
    observed_children: dict[int, ObservedChild] = attrs.field(factory=dict)
    responses: dict[int, list[bytes]] = attrs.field(factory=dict)
    hello: Hello | None = None
    goodbye: Goodbye | None = None
    keepalives: int = 0
    asked_for_source: bool = False
    at_eof: bool = False
    _decoder: protocol.FrameDecoder = attrs.field(factory=protocol.FrameDecoder)
    _first_line: bytes | None = b""
    _numbers: Iterator[int] = attrs.field(factory=lambda: iter(range(1, 1_000_000)))

    # Frames to the supervisor -----------------------------------------------------------------------------------------

    def send(self, kind: int, number: int = 0, body: bytes = b"") -> None:
        self.write(protocol.encode_frame(kind, number, body))

    def write(self, data: bytes) -> None:
        """Send bytes. They are lost if the supervisor reads no more."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(data)

    def run(
        self,
        command: str | list[str],
        *,
        stdin: bytes | None = b"",
        cwd: str | Path = "",
        env: Mapping[str, str] | None = None,
        grace: float = TIMEOUT_SECONDS,
        login_shell: bool = False,
        updates_window: bool = True,
    ) -> ObservedChild:
        """Start text in a shell, or words without one. With `stdin=None`, standard input is sent later."""
        flags = (protocol.FLAG_LOGIN_SHELL if login_shell else 0) | (
            protocol.FLAG_INPUT_ENDED if stdin is not None else 0
        )
        if not isinstance(command, str):
            flags |= protocol.FLAG_NO_SHELL
            command = "\0".join(command)
        return self._start_child(protocol.RUN, command, flags, stdin or b"", cwd, env, grace, updates_window)

    def call(
        self,
        function: Callable[..., object],
        *args: object,
        cwd: str | Path = "",
        grace: float = TIMEOUT_SECONDS,
        **env: str,
    ) -> ObservedChild:
        """Start a function."""
        request = serialize.serialize_call(function, *args).encode_request()
        first, rest = request[: protocol.STREAM_CHUNK_BYTES], request[protocol.STREAM_CHUNK_BYTES :]
        child = self._start_child(
            protocol.CALL, "f", 0 if rest else protocol.FLAG_INPUT_ENDED, first, cwd, env, grace, True
        )
        if rest:
            child.write(rest)
        return child

    def _start_child(
        self,
        kind: int,
        text: str,
        flags: int,
        data: bytes,
        cwd: str | Path,
        env: Mapping[str, str] | None,
        grace: float,
        updates_window: bool,
    ) -> ObservedChild:
        number = next(self._numbers)
        child = self.observed_children[number] = ObservedChild(self, number, updates_window)
        variables = [os.fsencode(word) for pair in (env or {}).items() for word in pair]
        fields = (protocol.encode_number(flags), os.fsencode(cwd), b"%r" % grace, os.fsencode(text), data, *variables)
        self.send(kind, number, protocol.pack(*fields))
        return child

    def prepare_calls(self) -> None:
        """Have it load the modules that functions need."""
        self.send(protocol.PREPARE, 0, protocol.pack(bootstrap.calls_extension(), serialize.cloudpickle_source()))

    def request(self, query: str, *arguments: bytes) -> list[bytes]:
        """Send a request, and return the response: `ok` or `failed`, and more fields."""
        number = next(self._numbers)
        self.send(protocol.REQUEST, number, protocol.pack(query.encode(), *arguments))
        self.receive_until(lambda: number in self.responses, f"a response to {query}")
        return self.responses[number]

    def sync(self) -> None:
        """Wait until the supervisor has read and handled all frames that were sent."""
        assert self.request("ping") == [b"ok"]

    # Frames of the supervisor -----------------------------------------------------------------------------------------

    def receive_until(self, condition: Callable[[], object], expected: str, timeout: float = TIMEOUT_SECONDS) -> None:
        """Receive frames until a condition holds; `expected` says it in words."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert not self.at_eof, f"the supervisor ended without {expected}, and printed {self.read_stderr()!r}"
            assert time.monotonic() < deadline, f"not within {timeout:g} s: {expected}"
            self._receive_once(0.1)

    def _receive_once(self, seconds: float) -> None:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            return
        data = os.read(self.process.stdout.fileno(), 1 << 16)
        self.at_eof = not data
        if self._first_line is not None:
            line, newline, data = (self._first_line + data).partition(b"\n")
            if newline and not self.asked_for_source and line.decode() == f"{bootstrap.SOURCE_REQUEST} {self.token}":
                self.asked_for_source = True
                self.write(self.source)
                line, newline, data = data.partition(b"\n")
            self._first_line = None if newline else line
            assert not newline or line.decode() == f"{supervisor.SUPERVISOR_START_MARKER} {self.token}"
        for kind, name, body in self._decoder.feed(data):
            self._handle_frame(kind, name, body)

    def _handle_frame(self, kind: int, number: int, body: bytes) -> None:
        assert self.goodbye is None, "a frame after GOODBYE"
        if kind == protocol.HELLO:
            assert self.hello is None
            self.hello = Hello.parse(body)
        elif kind == protocol.GOODBYE:
            self.goodbye = Goodbye.parse(body)
        elif kind == protocol.KEEPALIVE:
            self.keepalives += 1
        elif kind == protocol.RESPONSE:
            self.responses[number] = protocol.unpack(body)
        else:
            self.observed_children[number].handle_frame(kind, body)

    def wait_hello(self) -> Hello:
        self.receive_until(lambda: self.hello is not None, "a HELLO")
        assert self.hello is not None
        return self.hello

    def read_stderr(self) -> bytes:
        """Return its standard error, which is for errors of the supervisor itself."""
        self.stderr_file.seek(0)
        return self.stderr_file.read()

    # The end ----------------------------------------------------------------------------------------------------------

    def close_stdin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def wait_goodbye(self) -> list[str]:
        """Wait for its end, and return the paths that it could not remove."""
        self.receive_until(lambda: self.at_eof, "its end")
        assert self.process.wait(TIMEOUT_SECONDS) == 0
        assert self.goodbye is not None
        return list(self.goodbye.unremoved_paths)

    def is_stdout_full(self) -> bool:
        """Return whether its standard output is a full pipe.

        The kernel answers through another descriptor of the writing end. A pipe is full when it has no page left. The
        number of its bytes does not show that: its pages may be partly filled.
        """
        assert self.process.stdout is not None
        end = os.open(f"/proc/self/fd/{self.process.stdout.fileno()}", os.O_WRONLY | os.O_NONBLOCK)
        try:
            return not select.select([], [end], [], 0)[1]
        finally:
            os.close(end)

    # Its processes ----------------------------------------------------------------------------------------------------

    def child_pids(self) -> list[int]:
        """Return its children, zombies included."""
        return [pid for pid, parent in _parent_by_pid().items() if parent == self.process.pid]

    def living_pids(self) -> list[int]:
        """Return the processes that it started: those with its mark, and its children, zombies included."""
        return sorted({*self.child_pids(), *find_marked_pids(f"{PROCESS_MARK_VARIABLE}={self.token}.")})


def _parent_by_pid() -> dict[int, int]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                found[int(entry.name)] = int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1])
    return found


def is_reaped(*pids: int) -> bool:
    """Return whether processes have left the process table. A zombie is still in it."""
    return not set(pids) & set(_parent_by_pid())


def coverage_environment() -> dict[str, str]:
    """Return the variables with which a Python measures coverage if the tests do."""
    return {"COVERAGE_PROCESS_CONFIG": os.environ.get("LAZYCLUSTER_TEST_COVERAGE", "")}


@contextlib.contextmanager
def local_supervisor(
    python: str | Path | None = None,
    *,
    grace: float = TIMEOUT_SECONDS,
    working_dir: str | None = None,
    probe: str = "",
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    setup_code: str = "",
    limits: Mapping[str, float] | None = None,
    expected_stderr: bytes = b"",
    wait_for_hello: bool = True,
) -> Iterator[LocalSupervisor]:
    """Start a supervisor, and end it; nothing may be left then, and it must have printed `expected_stderr` only.

    With a `python` it is sent to that as text, as it is to hosts. Otherwise it is imported from its files, so that
    coverage counts its lines; `setup_code` runs before it starts, and `limits` are more keywords of its `main()`.
    """
    token = secrets.token_hex(8)
    mark = f"{PROCESS_MARK_VARIABLE}={token}."
    sent = bootstrap.build_supervisor_program(token, mark, grace, working_dir, probe)
    environment = {**(os.environ if env is None else env), **(coverage_environment() if python is None else {})}
    imported = "import os\ndel os.environ['COVERAGE_PROCESS_CONFIG']\n"
    modules = "child, children, descriptors, process_tree, protocol, send_queue, spawn, supervisor, workers"
    imported += f"from lazycluster._remote import {modules}\n"
    imported += f"{setup_code}\n"
    imported += f"supervisor.main({token!r}, {mark!r}, {grace!r}, {working_dir!r}, {probe!r}, **{dict(limits or ())!r})"
    argv = [sys.executable, "-c", imported] if python is None else [str(python), "-S", "-c", sent.bootstrap]
    pipe = subprocess.PIPE
    with tempfile.TemporaryFile() as stderr_file:
        process = subprocess.Popen(
            argv, stdin=pipe, stdout=pipe, stderr=stderr_file, cwd=cwd, env=environment, bufsize=0
        )
        supervisor = LocalSupervisor(process, token, sent.source, stderr_file)
        try:
            if python is not None:
                supervisor.write(sent.stdin_prefix)
            if wait_for_hello:
                supervisor.wait_hello()
            yield supervisor
            if not supervisor.at_eof:
                supervisor.close_stdin()
                assert supervisor.wait_goodbye() == []
            assert expected_stderr in supervisor.read_stderr()
            assert expected_stderr or supervisor.read_stderr() == b""
            assert wait_until(lambda: not supervisor.living_pids(), TIMEOUT_SECONDS), supervisor.living_pids()
        finally:
            for pid in {process.pid, *supervisor.living_pids()}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            process.wait(TIMEOUT_SECONDS)
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
