"""The children of a supervisor: how it starts commands and functions, and finds them again; sent to the host.

Standard library only, and the syntax of Python 3.6.
"""

import errno
import os
import selectors
import time
from collections import deque

from lazycluster._remote.child import FINISHED, Child
from lazycluster._remote.descriptors import close_all, set_nonblocking
from lazycluster._remote.protocol import (
    FLAG_INPUT_ENDED,
    FLAG_LOGIN_SHELL,
    FLAG_NO_SHELL,
    OUTCOME,
    STARTED,
    STDERR,
    STDOUT,
    encode_number,
)
from lazycluster._remote.send_queue import SendQueue
from lazycluster._remote.spawn import Spawner, base_environment, find_program, login_shell
from lazycluster._remote.temp_dirs import TempDirs
from lazycluster._remote.workers import LoadedCode, Workers, encode_setup

_REPORT_STARTED_AFTER_SECONDS = 0.005  # seconds after which the start of a child is reported, unless it has ended
_NOT_FOUND_ERRNOS = frozenset((errno.ENOENT, errno.ENOTDIR))
_OUT_OF_RESOURCES_ERRNOS = frozenset((errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM))


class Children:
    """The commands and functions that are under way, by number and by process."""

    def __init__(
        self,
        mark: str,
        selector: "selectors.BaseSelector",
        send_queue: SendQueue,
        spawner: Spawner,
        workers: Workers,
        loaded_code: LoadedCode,
        temp_dirs: TempDirs,
    ) -> None:
        """Begin without a child."""
        self.by_number: dict[int, Child] = {}
        self._by_pid: dict[int, Child] = {}
        self._unreported_starts: deque[tuple[float, Child]] = deque()
        self._mark = mark
        self._selector = selector
        self._send_queue = send_queue
        self._spawner = spawner
        self._workers = workers
        self._loaded_code = loaded_code
        self._temp_dirs = temp_dirs
        self._cwd = temp_dirs.home
        self._environment = base_environment()

    # Starting --------------------------------------------------------------------------------------------------------

    def run_command(self, number: int, fields: "list[bytes]") -> None:
        """Run a command: flags, working directory, grace, text or words, input so far; then the environment."""
        flags, directory, grace, text, data = fields[:5]
        child = self._new_child(number, grace, flags, data)
        if not self._change_directory(child, directory):
            return
        environment = dict(self._environment)
        own = self._child_variables(child, fields[5:])
        environment.update(zip(own[::2], own[1::2]))
        command = os.fsdecode(text)
        if int(flags) & FLAG_NO_SHELL:
            argv = command.split("\0")
            try:
                program = find_program(argv[0], environment)
            except OSError as error:
                self._report_unstarted(child, argv[0], error)
                return
        else:
            program = login_shell() if int(flags) & FLAG_LOGIN_SHELL else "/bin/sh"
            argv = [program, "-c", command]
        self._spawn(child, program, argv, environment)

    def call_function(self, number: int, fields: "list[bytes]") -> None:
        """Call a function: flags, working directory, grace, name, request so far; then the environment."""
        flags, directory, grace, _, data = fields[:5]
        child = self._new_child(number, grace, flags, data)
        if self._loaded_code.run_call is None:
            child.report_end(b"failed", self._loaded_code.load_error)
            return
        if not self._change_directory(child, directory):
            return
        try:
            worker = self._workers.acquire()
        except OSError as error:
            child.report_end(b"failed", f"no process for it: {error.strerror}")
            return
        child.done_record = self._loaded_code.done_record(os.urandom(16))
        child.input.prepend(
            encode_setup(child.done_record, os.fsencode(self._cwd), self._child_variables(child, fields[5:]))
        )
        self._register_child(
            child, worker.pid, worker.request_writer, ((worker.outcome_reader, OUTCOME), (worker.output_reader, STDERR))
        )

    def _new_child(self, number: int, grace: bytes, flags: bytes, data: bytes) -> Child:
        child = Child(number, float(grace), self._selector, self._send_queue, self.discard)
        child.input.write(data)
        if int(flags) & FLAG_INPUT_ENDED:
            child.input.end()
        self.by_number[number] = child
        return child

    def _change_directory(self, child: Child, directory: bytes) -> bool:
        """Enter the working directory of a child; the supervisor itself needs none."""
        self._cwd = self._temp_dirs.absolute_path(os.fsdecode(directory)) if directory else self._temp_dirs.home
        try:
            os.chdir(self._cwd)
        except OSError as error:
            child.report_end(b"cd", error.strerror or "")
            return False
        return True

    def _child_variables(self, child: Child, variables: "list[bytes]") -> "list[bytes]":
        """Return the variables that a child has in addition to the supervisor's: names and values in turn."""
        name, _, token = self._mark.partition("=")
        child_mark = os.fsencode(f"{token}{child.number}.")
        return [b"PWD", os.fsencode(self._cwd), *variables, os.fsencode(name), child_mark]

    def _spawn(self, child: Child, program: str, argv: "list[str]", environment: "dict[bytes, bytes]") -> None:
        child_ends: list[int] = []
        own_ends: list[int] = []
        try:
            if child.input.is_at_end:
                input_reader, input_writer = os.open(os.devnull, os.O_RDONLY), -1
            else:
                input_reader, input_writer = os.pipe()
            child_ends.append(input_reader)
            own_ends.append(input_writer)
            for _ in range(2):
                reading, writing = os.pipe()
                child_ends.append(writing)
                own_ends.append(reading)
            pid = self._spawner.spawn(program, argv, environment, child_ends)
        except OSError as error:
            close_all(own_ends)
            if error.errno in _OUT_OF_RESOURCES_ERRNOS:
                child.report_end(b"failed", f"no process for it: {error.strerror}")
            else:
                self._report_unstarted(child, argv[0], error)
        else:
            set_nonblocking(own_ends)
            self._register_child(child, pid, own_ends[0], ((own_ends[1], STDOUT), (own_ends[2], STDERR)))
        finally:
            close_all(child_ends)

    def _report_unstarted(self, child: Child, name: str, error: OSError) -> None:
        """Report a program that cannot be started as a shell does (POSIX, XCU 2.8.2)."""
        self._send_queue.send(STDERR, child.number, os.fsencode(f"{name}: {error.strerror}\n"))
        child.report_end(b"exit", encode_number((127 if error.errno in _NOT_FOUND_ERRNOS else 126) << 8))

    def _register_child(
        self, child: Child, pid: int, input_writer: int, streams: "tuple[tuple[int, int], ...]"
    ) -> None:
        self._by_pid[pid] = child
        child.process_started(pid, input_writer, streams)
        self._unreported_starts.append((time.monotonic() + _REPORT_STARTED_AFTER_SECONDS, child))

    # Under way -------------------------------------------------------------------------------------------------------

    @property
    def pids(self) -> "set[int]":
        """The processes of the children, also those that have ended and are not collected yet."""
        return set(self._by_pid)

    def process_exited(self, pid: int, wait_status: int) -> None:
        """Record the wait status of a process, which may be the process of a child."""
        child = self._by_pid.pop(pid, None)
        if child is not None:
            child.process_exited(wait_status)

    def discard(self, child: Child) -> None:
        """Remove a child that has ended."""
        self.by_number.pop(child.number, None)
        self._workers.call_ended()

    @property
    def next_report_at(self) -> "float | None":
        """The time at which a start is to be reported."""
        return self._unreported_starts[0][0] if self._unreported_starts else None

    def report_started(self, now: float) -> None:
        """Report the starts that are due."""
        while self._unreported_starts and self._unreported_starts[0][0] <= now:
            child = self._unreported_starts.popleft()[1]
            if child.state != FINISHED:
                self._send_queue.send(STARTED, child.number, encode_number(child.pid))

    def update_reading(self) -> None:
        """Read the output of each child only while it can be sent."""
        for child in self.by_number.values():
            child.update_reading()
