"""The programs that the benchmarks start: none outlives the block that started it.

Deadlines are those of `measuring.deadline`, under which all of this runs.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from typing import IO, TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_LAST_WORDS = 10.0  # seconds that a program has to end by itself once its standard input has


@attrs.frozen
class ProgramFailedError(Exception):
    """A program did not do what it was started for."""

    argv: tuple[str, ...]
    status: int
    said: str

    def __str__(self) -> str:
        return f"{self.argv[0]} ended with exit status {self.status}: {self.said or self.argv}"


@attrs.frozen
class Conversation:
    """A program that is spoken to over its standard input and output."""

    say: IO[bytes]
    hear: IO[bytes]

    def send(self, data: bytes) -> None:
        """Send it all, now."""
        self.say.write(data)
        self.say.flush()

    def receive(self, size: int) -> bytes:
        """Return exactly so many bytes."""
        data = self.hear.read(size)
        if len(data) < size:
            raise EOFError(f"the program ended after {len(data)} of {size} bytes")
        return data


def finish(argv: Sequence[str]) -> bytes:
    """Run a program to its end and return what it printed."""
    ended = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False, start_new_session=True)
    _check(argv, ended.returncode, ended.stderr)
    return ended.stdout


def read_all(argv: Sequence[str]) -> bytes:
    """Run a program and return what it printed, the fastest way to read much of it."""
    with _started(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        data = process.stdout.read()
        _check(argv, process.wait())
    return data


def pipe(source: Sequence[str], sink: Sequence[str]) -> None:
    """Run two programs to their ends, the output of one being the input of the other."""
    with _started(source, stdout=subprocess.PIPE) as writer:
        with _started(sink, stdin=writer.stdout) as reader:
            assert writer.stdout is not None
            writer.stdout.close()  # so that the writer learns of the reader's end
            _check(sink, reader.wait())
        _check(source, writer.wait())


@contextlib.contextmanager
def talking_to(argv: Sequence[str]) -> Iterator[Conversation]:
    """Keep a program for a block; its standard input ends with the block, and soon after so does the program."""
    with _started(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Conversation(process.stdin, process.stdout)
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LAST_WORDS)


@contextlib.contextmanager
def running(argv: Sequence[str], is_ready: Callable[[], bool]) -> Iterator[None]:
    """Keep a program for a block, which begins when it is ready."""
    with _started(argv) as process:
        while not is_ready():
            if process.poll() is not None:
                raise ProgramFailedError(tuple(argv), process.returncode, "before it was ready")
            time.sleep(0.005)
        yield


def count_children(name: str) -> int:
    """Return how many programs of that name run below this process."""
    table = finish(("ps", "-A", "-o", "pid=,ppid=,comm="))
    return count_below(table.decode(errors="replace"), os.getpid(), name)


def count_below(table: str, root: int, name: str) -> int:
    """Return how many lines of `ps -o pid=,ppid=,comm=` name a program below a process; some print its path."""
    rows = [line.split(maxsplit=2) for line in table.splitlines()]
    below = {root}
    while more := {int(row[0]) for row in rows if int(row[1]) in below} - below:
        below |= more
    return sum(int(row[0]) in below and row[2].strip().rpartition("/")[2] == name for row in rows)


@contextlib.contextmanager
def _started(
    argv: Sequence[str], *, stdin: int | IO[bytes] | None = subprocess.DEVNULL, stdout: int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program out of reach of the terminal's Ctrl-C, which is this process's to answer; kill it at the end."""
    process = subprocess.Popen(argv, stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # what was still to be sent
                    stream.close()
        process.wait()


def _check(argv: Sequence[str], status: int, stderr: bytes = b"") -> None:
    if status:
        raise ProgramFailedError(tuple(argv), status, stderr.decode(errors="replace").strip())
