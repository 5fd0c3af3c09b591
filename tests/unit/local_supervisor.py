"""A supervisor as a local process, and our end of its channel: frames written to it, and taken apart as they come."""

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
from lazycluster._ssh.shell import JOB_VARIABLE
from lazycluster._transports.supervisor_client import Hello
from lazycluster.results import Error, Value
from lazycluster.testing.processes import wait_until

PATIENCE = 20.0


@attrs.define
class RemoteJob:
    """What has come of a job. With `grants`, leave for more output is given as it comes."""

    host: LocalSupervisor = attrs.field(repr=False)
    name: int
    grants: bool = True
    streams: list[tuple[int, bytes]] = attrs.field(factory=list, repr=False)
    window: int = protocol.WINDOW
    pid: int | None = None
    ended: tuple[str, str] | None = None
    size: int = 0
    forsaken: bool = False

    def output(self, kind: int = protocol.OUTPUT) -> bytes:
        """Return what has come of a stream."""
        return b"".join(data for each, data in self.streams if each == kind)

    @property
    def errors(self) -> bytes:
        """Return what has come of standard error."""
        return self.output(protocol.ERRORS)

    def take(self, kind: int, body: bytes) -> None:
        """Take note of a frame."""
        assert not self.forsaken, protocol.NAMES[kind]
        if kind in {protocol.OUTPUT, protocol.ERRORS, protocol.OUTCOME}:
            assert self.ended is None, "output after the end"
            self.streams.append((kind, body))
            self.size += len(body)
            if self.grants:
                self.grant(len(body))
        elif kind == protocol.STARTED:
            self.pid = int(body)
        elif kind == protocol.GRANT_INPUT:
            self.window += int(body)
        elif kind == protocol.ENDED:
            assert self.ended is None, "ended twice"
            how, what = protocol.unpack(body)
            self.ended = how.decode(), what.decode()
        else:
            raise AssertionError(protocol.NAMES[kind])

    def grant(self, size: int) -> None:
        """Give leave for more output."""
        self.host.send(protocol.GRANT, self.name, protocol.number(size))

    def feed(self, data: bytes, *, end: bool = True) -> None:
        """Send to its standard input, as far as there is leave."""
        for at in range(0, len(data), protocol.PIECE):
            piece = data[at : at + protocol.PIECE]
            self.window -= len(piece)
            self.host.pump(lambda: self.window >= 0, "leave for more input")
            self.host.send(protocol.INPUT, self.name, piece)
        if end:
            self.host.send(protocol.INPUT_END, self.name)

    def stop(self) -> None:
        """Have it ended."""
        self.host.send(protocol.STOP, self.name)

    def forsake(self) -> None:
        """Wait for it no longer; nothing may come of it from here on, as far as it was not on its way."""
        self.host.send(protocol.FORSAKE, self.name)
        self.host.settle()
        self.forsaken = True

    def printed(self, text: bytes) -> RemoteJob:
        """Wait until it has printed something."""
        self.host.pump(lambda: text in self.output(), f"{text!r} of {self!r}")
        return self

    def finish(self) -> tuple[str, str]:
        """Wait for its end, and return how it was told: the words of the frame."""
        self.host.pump(lambda: self.ended is not None, f"the end of {self!r}")
        assert self.ended is not None
        return self.ended

    def status(self) -> int:
        """Wait for its end, and return the exit status; negative for a signal."""
        how, what = self.finish()
        assert how in {"exit", "signal"}, self.ended
        code = os.waitstatus_to_exitcode(int(what))
        assert (code < 0) == (how == "signal")
        return code

    def result(self) -> tuple[int, bytes, bytes]:
        """Wait for its end, and return status, output and errors."""
        return self.status(), self.output(), self.errors

    def value(self) -> Any:
        """Wait for its end, and return what a function returned, or raise what it raised."""
        assert self.finish() == ("done", "0"), self.errors
        return self.outcome().unwrap()

    def outcome(self) -> Value[object] | Error:
        """Return the outcome of a function."""
        with tempfile.TemporaryFile() as file:
            file.write(self.output(protocol.OUTCOME))
            return outcome.read_outcome(file, "h", "f")


@attrs.define
class LocalSupervisor:
    """A supervisor that runs here. One thread uses it."""

    process: subprocess.Popen[bytes]
    token: str
    source: bytes = attrs.field(repr=False)
    said: IO[bytes]
    jobs: dict[int, RemoteJob] = attrs.field(factory=dict)
    answers: dict[int, list[bytes]] = attrs.field(factory=dict)
    hello: Hello | None = None
    farewell: list[str] | None = None
    pulses: int = 0
    asked_for_source: bool = False
    at_end: bool = False
    _decoder: protocol.Decoder = attrs.field(factory=protocol.Decoder)
    _line: bytes | None = b""
    _numbers: Iterator[int] = attrs.field(factory=lambda: iter(range(1, 1_000_000)))

    # What is sent ----------------------------------------------------------------------------------------------------

    def send(self, kind: int, job: int = 0, body: bytes = b"") -> None:
        """Send a frame."""
        self.write(protocol.frame(kind, job, body))

    def write(self, data: bytes) -> None:
        """Send bytes; what the supervisor no longer reads is lost."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(data)

    def run(
        self,
        command: str,
        *,
        stdin: bytes | None = b"",
        cwd: str | Path = "",
        env: Mapping[str, str] | None = None,
        grace: float = PATIENCE,
        login_shell: bool = False,
        grants: bool = True,
    ) -> RemoteJob:
        """Start a command; None: its standard input is sent later."""
        flags = (supervisor.LOGIN_SHELL if login_shell else 0) | (supervisor.INPUT_ENDED if stdin is not None else 0)
        return self._begin(protocol.RUN, command, flags, stdin or b"", cwd, env, grace, grants)

    def call(
        self, function: Callable[..., object], *args: object, cwd: str | Path = "", grace: float = PATIENCE, **env: str
    ) -> RemoteJob:
        """Start a function."""
        request = serialize.dump(function, *args).request()
        first, rest = request[: protocol.PIECE], request[protocol.PIECE :]
        job = self._begin(protocol.CALL, "f", 0 if rest else supervisor.INPUT_ENDED, first, cwd, env, grace, True)
        if rest:
            job.feed(rest)
        return job

    def _begin(
        self,
        kind: int,
        text: str,
        flags: int,
        data: bytes,
        cwd: str | Path,
        env: Mapping[str, str] | None,
        grace: float,
        grants: bool,
    ) -> RemoteJob:
        name = next(self._numbers)
        job = self.jobs[name] = RemoteJob(self, name, grants)
        variables = [os.fsencode(word) for pair in (env or {}).items() for word in pair]
        fields = (protocol.number(flags), os.fsencode(cwd), b"%r" % grace, os.fsencode(text), data, *variables)
        self.send(kind, name, protocol.pack(*fields))
        return job

    def prepare_calls(self) -> None:
        """Have it load what functions need."""
        self.send(protocol.PREPARE, 0, protocol.pack(bootstrap.calls_preparation(), serialize.cloudpickle_source()))

    def ask(self, what: str, *arguments: bytes) -> list[bytes]:
        """Ask, and return the answer: `ok` or `failed`, and more."""
        name = next(self._numbers)
        self.send(protocol.ASK, name, protocol.pack(what.encode(), *arguments))
        self.pump(lambda: name in self.answers, f"an answer to {what}")
        return self.answers[name]

    def settle(self) -> None:
        """Wait until all that was sent has been done, as far as that can be done at once."""
        assert self.ask("ping") == [b"ok"]

    # What comes ------------------------------------------------------------------------------------------------------

    def pump(self, until: Callable[[], object], what: str, timeout: float = PATIENCE) -> None:
        """Take in what comes until something holds."""
        deadline = time.monotonic() + timeout
        while not until():
            assert not self.at_end, f"it ended without {what}, and said {self.words()!r}"
            assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
            self._receive(0.1)

    def _receive(self, seconds: float) -> None:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            return
        data = os.read(self.process.stdout.fileno(), 1 << 16)
        self.at_end = not data
        if self._line is not None:
            line, newline, data = (self._line + data).partition(b"\n")
            if newline and not self.asked_for_source and line.decode() == f"{bootstrap.ASKS} {self.token}":
                self.asked_for_source = True
                self.write(self.source)
                line, newline, data = data.partition(b"\n")
            self._line = None if newline else line
            assert not newline or line.decode() == f"{supervisor.MARK} {self.token}"
        for kind, name, body in self._decoder.feed(data):
            self._take(kind, name, body)

    def _take(self, kind: int, name: int, body: bytes) -> None:
        assert self.farewell is None, "more after the farewell"
        if kind == protocol.GREETING:
            assert self.hello is None
            self.hello = Hello.parse(body)
        elif kind == protocol.FAREWELL:
            self.farewell = [os.fsdecode(path) for path in protocol.unpack(body)]
        elif kind == protocol.PULSE:
            self.pulses += 1
        elif kind == protocol.ANSWER:
            self.answers[name] = protocol.unpack(body)
        else:
            self.jobs[name].take(kind, body)

    def greeting(self) -> Hello:
        """Wait for the greeting."""
        self.pump(lambda: self.hello is not None, "a greeting")
        assert self.hello is not None
        return self.hello

    def words(self) -> bytes:
        """Return what it has printed to standard error, which is for what goes wrong."""
        self.said.seek(0)
        return self.said.read()

    # The end ---------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def leave(self) -> list[str]:
        """Wait for its end, and return what it says that it had to leave."""
        self.pump(lambda: self.at_end, "its end")
        assert self.process.wait(PATIENCE) == 0
        assert self.farewell is not None
        return self.farewell

    def filled(self) -> bool:
        """Tell whether its standard output is a pipe that is full because nobody has read it.

        The kernel is asked through another descriptor for the writing end: a pipe is full when it has no page left,
        and its pages are not full themselves when what was written did not end at their edges.
        """
        assert self.process.stdout is not None
        end = os.open(f"/proc/self/fd/{self.process.stdout.fileno()}", os.O_WRONLY | os.O_NONBLOCK)
        try:
            return not select.select([], [end], [], 0)[1]
        finally:
            os.close(end)

    # What there is ---------------------------------------------------------------------------------------------------

    def children(self) -> list[int]:
        """Return its children, zombies too."""
        return [pid for pid, parent in _parents().items() if parent == self.process.pid]

    def processes(self) -> list[int]:
        """Return all that was started by it: what has its mark, and its children, zombies too."""
        return sorted({*self.children(), *marked(f"{JOB_VARIABLE}={self.token}.")})


def _parents() -> dict[int, int]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                found[int(entry.name)] = int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1])
    return found


def marked(mark: str) -> list[int]:
    """Return the processes with a mark in their environment."""
    found = []
    for pid in _parents():
        with contextlib.suppress(OSError):
            if mark.encode() in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(pid)
    return found


def gone(*pids: int) -> bool:
    """Tell whether processes have left the process table, where zombies are."""
    return not set(pids) & set(_parents())


def measured() -> dict[str, str]:
    """Return what a Python needs in its environment to have its lines counted, where those of the tests are."""
    return {"COVERAGE_PROCESS_CONFIG": os.environ.get("LAZYCLUSTER_TEST_COVERAGE", "")}


@contextlib.contextmanager
def local_supervisor(
    python: str | Path | None = None,
    *,
    grace: float = PATIENCE,
    working_dir: str | None = None,
    probe: str = "",
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    tweaks: str = "",
    says: bytes = b"",
    greets: bool = True,
) -> Iterator[LocalSupervisor]:
    """Start a supervisor, and end it; nothing of it may be left then, and it must have printed no more than `says`.

    With a `python` it is sent there as text, as it is to hosts. Otherwise it is imported from its files, so that its
    lines are counted; `tweaks` is run before it starts.
    """
    token = secrets.token_hex(8)
    mark = f"{JOB_VARIABLE}={token}."
    sent = bootstrap.supervisor(token, mark, grace, working_dir, probe)
    environment = {**(os.environ if env is None else env), **(measured() if python is None else {})}
    imported = "import os\ndel os.environ['COVERAGE_PROCESS_CONFIG']\n"
    modules = "child, process_tree, protocol, send_queue, spawn, supervisor, workers"
    imported += f"from lazycluster._remote import {modules}\n"
    imported += f"{tweaks}\n"
    imported += f"supervisor.main({token!r}, {mark!r}, {grace!r}, {working_dir!r}, {probe!r})"
    argv = [sys.executable, "-c", imported] if python is None else [str(python), "-S", "-c", sent.bootstrap]
    pipe = subprocess.PIPE
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=said, cwd=cwd, env=environment, bufsize=0)
        supervisor = LocalSupervisor(process, token, sent.source, said)
        try:
            if python is not None:
                supervisor.write(sent.text)
            if greets:
                supervisor.greeting()
            yield supervisor
            if not supervisor.at_end:
                supervisor.close()
                assert supervisor.leave() == []
            assert says in supervisor.words()
            assert says or supervisor.words() == b""
            assert wait_until(lambda: not supervisor.processes(), PATIENCE), supervisor.processes()
        finally:
            for pid in {process.pid, *supervisor.processes()}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            process.wait(PATIENCE)
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
