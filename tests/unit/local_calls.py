"""Calls without a host: the program that a host gets runs as a local process, over the same two streams."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

import attrs

from lazycluster._functions import bootstrap, outcome, serialize

if TYPE_CHECKING:
    from collections.abc import Callable

    from lazycluster.results import Error, Value

P = ParamSpec("P")
SUPERVISOR_TOKEN = "t0k3n"


@attrs.frozen
class LocalCallResult:
    """The outcome of a call, and the output of its function."""

    outcome: Value[object] | Error
    stderr: str


@attrs.define
class LocalCall:
    """A call under way."""

    process: subprocess.Popen[bytes]
    function: str

    def next_line(self) -> str:
        """Return the next line that the function prints."""
        assert self.process.stderr is not None
        return self.process.stderr.readline().decode().rstrip("\n")

    def close_stdin(self) -> None:
        """End standard input, as the end of the local process does."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def wait_result(self) -> LocalCallResult:
        """Read both streams to their ends."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        assert self.process.stdin is not None
        with tempfile.TemporaryFile() as outcome_file, tempfile.TemporaryFile() as printed:
            outcome_file.write(self.process.stdout.read())
            printed.write(self.process.stderr.read())
            self.process.wait(10)
            for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
                stream.close()
            printed.seek(0)
            return LocalCallResult(outcome.read_outcome(outcome_file, "h", self.function), printed.read().decode())


@attrs.frozen
class LocalHost:
    """Runs calls with `python`, in the directory `cwd`."""

    cwd: Path | None = None
    env: dict[str, str] | None = None
    python: tuple[str, ...] = (sys.executable, "-I", "-S")
    grace: float = 5.0

    def start(self, function: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> LocalCall:
        """Start a call."""
        sent = serialize.serialize_call(function, *args, **kwargs)
        program = bootstrap.build_call_program(SUPERVISOR_TOKEN, self.grace)
        process = subprocess.Popen(
            [*self.python, "-c", program.bootstrap],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.cwd,
            env=self.env,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(program.stdin_prefix)
        process.stdin.flush()
        python_info = bootstrap.parse_python_info(process.stdout.readline(), SUPERVISOR_TOKEN)
        assert python_info is not None, process.stderr and process.stderr.read()
        bootstrap.check_python_version(python_info, "h")
        process.stdin.write(serialize.full_request(sent))
        process.stdin.flush()
        return LocalCall(process, sent.function)

    def call(self, function: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> LocalCallResult:
        return self.start(function, *args, **kwargs).wait_result()

    def value(self, function: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> object:
        """Return the value of the function, or raise its exception."""
        return self.call(function, *args, **kwargs).outcome.unwrap()
