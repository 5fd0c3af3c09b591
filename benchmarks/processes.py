"""The programs that the benchmarks start. No program outlives the block that started it.

Time limits are those of `timing.deadline`, under which all of this runs.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import selectors
import subprocess
import time
from typing import IO, TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_EXIT_WAIT_SECONDS = 10.0  # seconds that a program has to end by itself once its standard input has ended


@attrs.frozen
class ProgramFailedError(Exception):
    """A program did not do what it was started for."""

    argv: tuple[str, ...]
    exit_code: int
    output: str

    def __str__(self) -> str:
        return f"{self.argv[0]} ended with exit status {self.exit_code}: {self.output or self.argv}"


@attrs.frozen
class InteractiveProgram:
    """A program to communicate with over its standard input and output."""

    stdin: IO[bytes]
    stdout: IO[bytes]

    def send(self, data: bytes) -> None:
        """Send all of the data now."""
        self.stdin.write(data)
        self.stdin.flush()

    def receive(self, size: int) -> bytes:
        """Return exactly `size` bytes."""
        data = self.stdout.read(size)
        if len(data) < size:
            raise EOFError(f"the program ended after {len(data)} of {size} bytes")
        return data


def run_program(argv: Sequence[str]) -> bytes:
    """Run a program to its end and return its output."""
    ended = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False, start_new_session=True)
    _check_exit_code(argv, ended.returncode, ended.stderr)
    return ended.stdout


def read_output(argv: Sequence[str]) -> bytes:
    """Run a program and return its output, in the fastest way for a large one."""
    with _start_program(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        data = process.stdout.read()
        _check_exit_code(argv, process.wait())
    return data


def pipe(source: Sequence[str], sink: Sequence[str]) -> None:
    """Run two programs to their ends, the output of one being the input of the other."""
    with _start_program(source, stdout=subprocess.PIPE) as writer:
        with _start_program(sink, stdin=writer.stdout) as reader:
            assert writer.stdout is not None
            writer.stdout.close()  # so that the writer notices the end of the reader
            _check_exit_code(sink, reader.wait())
        _check_exit_code(source, writer.wait())


def run_programs(argvs: Sequence[Sequence[str]], limit: int) -> dict[int, str]:
    """Run programs to their ends, at most `limit` at a time; return the output of those that failed, by position."""
    failed: dict[int, str] = {}
    waiting = enumerate(argvs)
    outputs: dict[int, bytes] = {}
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:

        def start(count: int) -> None:
            for place, argv in itertools.islice(waiting, count):
                process = stack.enter_context(_start_program(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
                assert process.stdout is not None
                selector.register(process.stdout, selectors.EVENT_READ, (place, process))

        start(limit)
        while selector.get_map():
            for key, _ in selector.select():
                place, process = key.data
                if data := os.read(key.fd, 1 << 16):
                    outputs[place] = outputs.get(place, b"") + data
                    continue
                selector.unregister(key.fd)
                if status := process.wait():
                    text = outputs.get(place, b"").decode(errors="replace").strip()
                    failed[place] = text or f"exit status {status}"
                start(1)
    return failed


@contextlib.contextmanager
def interactive_program(argv: Sequence[str]) -> Iterator[InteractiveProgram]:
    """Keep a program for a block; its standard input ends with the block, and soon after so does the program."""
    with _start_program(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield InteractiveProgram(process.stdin, process.stdout)
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_EXIT_WAIT_SECONDS)


@contextlib.contextmanager
def running_program(argv: Sequence[str], is_ready: Callable[[], bool]) -> Iterator[None]:
    """Keep a program for a block, which begins when it is ready."""
    with running_programs([(argv, is_ready)], 1):
        yield


@contextlib.contextmanager
def running_programs(programs: Sequence[tuple[Sequence[str], Callable[[], bool]]], limit: int) -> Iterator[None]:
    """Keep programs for a block, which begins when each is ready; at most `limit` are starting at a time."""
    with contextlib.ExitStack() as stack:
        waiting = iter(programs)
        starting: list[tuple[Sequence[str], Callable[[], bool], subprocess.Popen[bytes]]] = []
        while True:
            for argv, is_ready in itertools.islice(waiting, limit - len(starting)):
                starting.append((argv, is_ready, stack.enter_context(_start_program(argv))))
            if not starting:
                break
            for argv, is_ready, process in starting:
                if process.poll() is not None and not is_ready():
                    raise ProgramFailedError(tuple(argv), process.returncode, "before it was ready")
            still = [each for each in starting if not each[1]()]
            if len(still) == len(starting):
                time.sleep(0.005)
            starting = still
        yield


def count_children(name: str) -> int:
    """Return the number of descendants of this process that run a program."""
    table = run_program(("ps", "-A", "-o", "pid=,ppid=,comm="))
    return count_descendants(table.decode(errors="replace"), os.getpid(), name)


def count_descendants(table: str, root: int, name: str) -> int:
    """Return how many lines of `ps -o pid=,ppid=,comm=` name a program under a process; some systems print its path."""
    rows = [line.split(maxsplit=2) for line in table.splitlines()]
    below = {root}
    while more := {int(row[0]) for row in rows if int(row[1]) in below} - below:
        below |= more
    return sum(int(row[0]) in below and row[2].strip().rpartition("/")[2] == name for row in rows)


@contextlib.contextmanager
def _start_program(
    argv: Sequence[str],
    *,
    stdin: int | IO[bytes] | None = subprocess.DEVNULL,
    stdout: int = subprocess.DEVNULL,
    stderr: int = subprocess.DEVNULL,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program out of reach of the terminal's Ctrl-C, which this process handles; kill it at the end."""
    process = subprocess.Popen(argv, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # of data that was still to be sent
                    stream.close()
        process.wait()


def _check_exit_code(argv: Sequence[str], status: int, stderr: bytes = b"") -> None:
    if status:
        raise ProgramFailedError(tuple(argv), status, stderr.decode(errors="replace").strip())
