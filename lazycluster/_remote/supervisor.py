"""The supervisor: the program that a runtime keeps running on its host, over one channel; sent there.

One thread around one selector. It starts commands and functions as its children, many at a time, and speaks the
protocol of `protocol.py` with the runtime. When its standard input ends, the runtime is gone, however that came about:
then it ends all that it started, removes its temporary directories, and goes.

Standard library only, and the syntax of Python 3.6.
"""

import _signal as signal  # `signal` itself makes enumerations of it, which takes 2 ms
import contextlib
import errno
import os
import selectors
import sys
import time
from collections import deque

from lazycluster._remote.child import Child
from lazycluster._remote.process_tree import (
    ProcessEntry,
    TreeTerminator,
    become_subreaper,
    descendants,
    find_marked,
    process_table,
)
from lazycluster._remote.protocol import (
    CALL,
    DETACH,
    GOODBYE,
    HELLO,
    INPUT,
    INPUT_END,
    KEEPALIVE,
    MAX_BODY_BYTES,
    OUTCOME,
    PREPARE,
    PROTOCOL_VERSION,
    REQUEST,
    RESPONSE,
    RUN,
    STARTED,
    STDERR,
    STDOUT,
    STOP,
    WINDOW_UPDATE,
    FrameDecoder,
    FrameError,
    encode_number,
    pack,
    unpack,
)
from lazycluster._remote.send_queue import SendQueue
from lazycluster._remote.spawn import (
    DescriptorLimit,
    Spawner,
    base_environment,
    close_all,
    login_shell,
    set_nonblocking,
    split_simple_command,
)
from lazycluster._remote.temp_dirs import TempDirs
from lazycluster._remote.workers import LoadedCode, Workers, encode_setup

SUPERVISOR_START_MARKER = "LAZYCLUSTER-SUPERVISOR"
"""The first word of what the supervisor prints; the token follows, then a newline, then frames."""

FLAG_INPUT_ENDED, FLAG_LOGIN_SHELL = 1, 2
"""Flags of RUN and CALL."""

_TERMINATION_POLL_SECONDS = 0.02  # seconds between two looks at processes that are to end
_REPORT_STARTED_AFTER_SECONDS = 0.005  # seconds after which a job is told to have started, if it has not ended by then
_KEEPALIVE_INTERVAL_SECONDS = 60.0  # seconds; unanswered, they let the kernel notice a dead link (tcp(7), tcp_retries2)
_GOODBYE_TIMEOUT_SECONDS = 2.0  # seconds to get the last frame out
_FRAME_READ_BYTES = 1 << 18
_OUT_OF_RESOURCES_ERRNOS = frozenset((errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM))


class Supervisor:
    """Serves one runtime."""

    def __init__(
        self, output_descriptor: int, mark: str, temp_dir_prefix: str, grace: float, *, is_subreaper: bool
    ) -> None:
        """Prepare to write frames to a descriptor, to mark processes, and to name temporary directories.

        `is_subreaper` tells whether every orphan below this process becomes its child.
        """
        self._is_subreaper = is_subreaper
        self._mark = mark
        self._grace = grace
        self._wakeup_reader, wakeup_writer = os.pipe()
        set_nonblocking([0, output_descriptor, self._wakeup_reader, wakeup_writer])
        signal.set_wakeup_fd(wakeup_writer)
        for signal_number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signal_number, lambda _number, _frame: None)
        self._selector = selectors.DefaultSelector()
        self._selector.register(0, selectors.EVENT_READ, self._receive)
        self._selector.register(self._wakeup_reader, selectors.EVENT_READ, self._handle_signals)
        self._send_queue = SendQueue(output_descriptor, self._selector, self._update_reading, self._close)
        self._decoder = FrameDecoder()
        self._descriptor_limit = DescriptorLimit()
        self._spawner = Spawner(self._descriptor_limit)
        self._loaded_code = LoadedCode()
        self._workers = Workers(self._loaded_code, self._descriptor_limit)
        self._temp_dirs = TempDirs(temp_dir_prefix)
        self._cwd = self._temp_dirs.home
        self._environment = base_environment()
        self._children: dict[int, Child] = {}
        self._children_by_pid: dict[int, Child] = {}
        self._unreported_starts: deque[tuple[float, Child]] = deque()
        self._working_dir = b""
        self._is_closing = False
        self._terminator: TreeTerminator | None = None
        self._next_termination_poll = 0.0

    # The beginning ---------------------------------------------------------------------------------------------------

    def start(self, token: str, working_dir: "str | None", probe: str) -> None:
        """Say that this is the supervisor, make the working directory, and ask what the machine has.

        `working_dir` is a directory to make where it is missing, `''` a temporary one, None no directory at all.
        """
        self._send_queue.write(f"{SUPERVISOR_START_MARKER} {token}\n".encode("ascii"))
        failure = ""
        made = ""
        try:
            if working_dir is not None:
                made = self._temp_dirs.make_working_dir(working_dir) if working_dir else self._temp_dirs.make_temp_dir()
        except OSError as error:
            failure = f"{error.filename or working_dir}: {error.strerror}"
        self._working_dir = os.fsencode(made)
        facts = bytearray()
        child = Child(
            0, self._grace, self._selector, self._send_queue, lambda job: self._send_hello(job, bytes(facts), failure)
        )
        child.captured_output = facts
        child.end_input()
        if probe and not failure:
            self._children[0] = child
            self._spawn(child, "/bin/sh", ["sh", "-c", probe, "sh"], {**self._environment, **probe_environment()})
        else:
            child.report_end(b"exit", b"0")
        self._send_queue.flush()

    def _send_hello(self, child: Child, facts: bytes, failure: str) -> None:
        self._discard_child(child)
        version = ".".join(str(part) for part in sys.version_info[:3])
        about = (sys.implementation.name, version, sys.executable or "python", failure)
        fields = (
            *(os.fsencode(text) for text in about),
            encode_number(os.getpid()),
            self._working_dir,
            facts[: MAX_BODY_BYTES // 2],
        )
        self._send_queue.send(HELLO, 0, pack(encode_number(PROTOCOL_VERSION), *fields))

    # The loop --------------------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Do what the runtime asks for, until it is gone and everything has ended."""
        while True:
            for key, _ in self._selector.select(self._select_timeout()):
                key.data()
            now = time.monotonic()
            if self._unreported_starts and self._unreported_starts[0][0] <= now:
                self._report_started(now)
            if now >= self._next_termination_poll:
                self._advance_termination(now)
            if self._is_closing and self._terminator is None:
                self._send_queue.send(GOODBYE, 0, pack(*map(os.fsencode, self._temp_dirs.remove_all())))
                self._send_queue.drain(_GOODBYE_TIMEOUT_SECONDS)
                return
            if now - self._send_queue.last_sent >= _KEEPALIVE_INTERVAL_SECONDS and not self._is_closing:
                self._send_queue.send(KEEPALIVE)
                self._workers.kill_spare()
            self._send_queue.flush()
            if not self._is_closing:
                self._workers.fork_if_due(now)

    def _select_timeout(self) -> "float | None":
        """Return how long there is nothing to do by itself."""
        now = time.monotonic()
        due = (
            now + _KEEPALIVE_INTERVAL_SECONDS
            if self._is_closing
            else self._send_queue.last_sent + _KEEPALIVE_INTERVAL_SECONDS
        )
        if self._unreported_starts:
            due = min(due, self._unreported_starts[0][0])
        if self._workers.next_fork_at is not None:
            due = min(due, self._workers.next_fork_at)
        if self._is_closing or any(child.terminator for child in self._children.values()):
            due = min(due, self._next_termination_poll)
        return max(0.0, due - now)

    def _handle_signals(self) -> None:
        """Take note of signals."""
        signal_numbers = set()
        with contextlib.suppress(BlockingIOError):
            signal_numbers = set(os.read(self._wakeup_reader, 65536))
        if signal_numbers - {signal.SIGCHLD}:
            self._close()
        self._reap()

    def _reap(self) -> bool:
        """Collect what has ended, adopted processes too; tell whether there is no child any more."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            self._workers.process_exited(pid)
            child = self._children_by_pid.pop(pid, None)
            if child is not None:
                child.process_exited(status)

    # What comes in ---------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        try:
            data = os.read(0, _FRAME_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:  # a socket may end with ECONNRESET
            data = b""
        if not data:
            self._close()
            return
        try:
            for kind, number, body in self._decoder.feed(data):
                try:
                    self._handle_frame(kind, number, body)
                except Exception as error:
                    child = self._children.get(number)
                    if isinstance(error, FrameError) or child is None:
                        raise
                    child.report_end(b"failed", f"{type(error).__name__}: {error}")
        except FrameError as error:
            os.write(2, f"lazycluster: {error}\n".encode())
            self._close()

    def _handle_frame(self, kind: int, number: int, body: bytes) -> None:
        if kind == RUN:
            self._run_command(number, unpack(body))
        elif kind == CALL:
            self._call_function(number, unpack(body))
        elif kind == REQUEST:
            self._handle_request(number, unpack(body))
        elif kind == PREPARE:
            self._loaded_code.load(*unpack(body))
        elif number in self._children:
            child = self._children[number]
            if kind == WINDOW_UPDATE:
                child.increase_window(int(body))
            elif kind == INPUT:
                child.write_input(body)
            elif kind == INPUT_END:
                child.end_input()
            elif kind == STOP:
                child.stop(self._mark)
                self._next_termination_poll = 0.0
            elif kind == DETACH:
                child.detach()

    def _handle_request(self, number: int, fields: "list[bytes]") -> None:
        """Answer a question that takes no time: `ok` and the answer, or `failed` and why."""
        try:
            response = self._perform_request(fields[0].decode("ascii"), fields[1:])
        except Exception as error:  # noqa: BLE001 - told to whoever asked
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            self._send_queue.send(RESPONSE, number, pack(b"failed", os.fsencode(str(reason))))
        else:
            self._send_queue.send(RESPONSE, number, pack(b"ok", *response))

    def _perform_request(self, method: str, arguments: "list[bytes]") -> "list[bytes]":
        if method == "tempdir":
            return [os.fsencode(self._temp_dirs.make_temp_dir())]
        if method == "forget":
            self._temp_dirs.discard([os.fsdecode(path) for path in arguments])
            return []
        if method == "ports":
            is_free = self._loaded_code.is_port_free
            if is_free is None:
                raise RuntimeError(self._loaded_code.load_error)
            return [port for port in arguments if is_free(int(port))]
        if method != "ping":
            raise ValueError(method)
        return []

    # Jobs ------------------------------------------------------------------------------------------------------------

    def _run_command(self, number: int, fields: "list[bytes]") -> None:
        """Run a command: flags, working directory, grace, shell text, input so far; then the environment."""
        flags, directory, grace, text, data = fields[:5]
        child = self._new_child(number, grace, flags, data)
        if not self._change_directory(child, directory):
            return
        environment = dict(self._environment)
        own = self._child_variables(child, fields[5:])
        environment.update(zip(own[::2], own[1::2]))
        command = os.fsdecode(text)
        shell = login_shell() if int(flags) & FLAG_LOGIN_SHELL else "/bin/sh"
        words = split_simple_command(command, environment)
        if words is not None and self._spawn(child, words[0], words[1:], environment, lenient=True):
            return
        self._spawn(child, shell, [shell, "-c", command], environment)

    def _call_function(self, number: int, fields: "list[bytes]") -> None:
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
        child.prepend_input(
            encode_setup(child.done_record, os.fsencode(self._cwd), self._child_variables(child, fields[5:]))
        )
        self._register_child(
            child, worker.pid, worker.request_writer, ((worker.outcome_reader, OUTCOME), (worker.output_reader, STDERR))
        )

    def _new_child(self, number: int, grace: bytes, flags: bytes, data: bytes) -> Child:
        child = Child(number, float(grace), self._selector, self._send_queue, self._discard_child)
        child.write_input(data)
        if int(flags) & FLAG_INPUT_ENDED:
            child.end_input()
        self._children[number] = child
        return child

    def _discard_child(self, child: Child) -> None:
        self._children.pop(child.number, None)
        self._workers.call_ended()

    def _change_directory(self, child: Child, directory: bytes) -> bool:
        """Enter the working directory of a job; the supervisor itself has no use for one."""
        self._cwd = self._temp_dirs.absolute_path(os.fsdecode(directory)) if directory else self._temp_dirs.home
        try:
            os.chdir(self._cwd)
        except OSError as error:
            child.report_end(b"cd", error.strerror or "")
            return False
        return True

    def _child_variables(self, child: Child, variables: "list[bytes]") -> "list[bytes]":
        """Return the variables of a job beyond those of the supervisor: names and values in turn."""
        name, _, token = self._mark.partition("=")
        child_mark = os.fsencode(f"{token}{child.number}.")
        return [b"PWD", os.fsencode(self._cwd), *variables, os.fsencode(name), child_mark]

    def _spawn(
        self, child: Child, program: str, argv: "list[str]", environment: "dict[bytes, bytes]", *, lenient: bool = False
    ) -> bool:
        """Start a program as a job. A failure ends the job as it would a shell's; where `lenient`, it returns False."""
        child_ends: list[int] = []
        own_ends: list[int] = []
        try:
            if child.needs_input:
                input_reader, input_writer = os.pipe()
            else:
                input_reader, input_writer = os.open(os.devnull, os.O_RDONLY), -1
            child_ends.append(input_reader)
            own_ends.append(input_writer)
            for _ in range(2):
                reading, writing = os.pipe()
                child_ends.append(writing)
                own_ends.append(reading)
            pid = self._spawner.spawn(program, argv, environment, child_ends)
        except OSError as error:
            close_all(own_ends)
            if lenient:
                return False
            if error.errno in _OUT_OF_RESOURCES_ERRNOS:
                child.report_end(b"failed", f"no process for it: {error.strerror}")
            else:
                self._send_queue.send(STDERR, child.number, os.fsencode(f"{program}: {error.strerror}\n"))
                child.report_end(b"exit", encode_number(126 << 8))
        else:
            set_nonblocking(own_ends)
            self._register_child(child, pid, own_ends[0], ((own_ends[1], STDOUT), (own_ends[2], STDERR)))
        finally:
            close_all(child_ends)
        return True

    def _register_child(
        self, child: Child, pid: int, input_writer: int, streams: "tuple[tuple[int, int], ...]"
    ) -> None:
        self._children_by_pid[pid] = child
        child.process_started(pid, input_writer, streams)
        if child.number:
            self._unreported_starts.append((time.monotonic() + _REPORT_STARTED_AFTER_SECONDS, child))

    def _report_started(self, now: float) -> None:
        while self._unreported_starts and self._unreported_starts[0][0] <= now:
            child = self._unreported_starts.popleft()[1]
            if not child.finished:
                self._send_queue.send(STARTED, child.number, encode_number(child.pid))

    def _update_reading(self) -> None:
        for child in self._children.values():
            child.update_reading()

    # Ending ----------------------------------------------------------------------------------------------------------

    def _advance_termination(self, now: float) -> None:
        """Go on with what is to end."""
        terminating = [job for job in self._children.values() if job.terminator is not None]
        if not terminating and self._terminator is None:
            return
        self._next_termination_poll = now + _TERMINATION_POLL_SECONDS
        childless = self._reap()
        if self._terminator is not None:
            if (childless and self._is_subreaper) or self._terminator.step(process_table()):
                self._terminator = None
            return
        table = process_table()
        for child in terminating:
            if child.terminator is not None and child.terminator.step(table):
                child.tree_terminated()

    def _close(self) -> None:
        """Begin to end everything."""
        if self._is_closing:
            return
        self._is_closing = True
        self._selector.unregister(0)
        self._workers.kill_spare()
        for child in self._children.values():
            child.finish()
        mark = self._mark.encode()
        me = os.getpid()

        def find_own_processes(table: "list[ProcessEntry]") -> "set[int]":
            orphans = [row for row in table if row.parent == 1]
            return (descendants(table, me) | find_marked(orphans, mark)) - {me}

        self._terminator = TreeTerminator(
            find_own_processes, max([job.grace for job in self._children.values()], default=self._grace)
        )
        self._next_termination_poll = 0.0


def probe_environment() -> "dict[bytes, bytes]":
    """Return what Python knows of the machine and the probe needs to start no program for (see probe.sh)."""
    system = os.uname()
    known = {b"LAZYCLUSTER_UNAME": os.fsencode(f"{system.sysname} {system.release} {system.machine}")}
    with contextlib.suppress(AttributeError, OSError):  # not everywhere, and not allowed everywhere
        known[b"LAZYCLUSTER_PROCESSORS"] = b"%d" % len(os.sched_getaffinity(0))
    return known


def main(token: str, mark: str, grace: float, working_dir: "bytes | None", probe: str) -> int:
    """Serve a runtime over standard input and output, until standard input ends; return the exit status.

    That is not 0 where processes may be left that cannot be seen from here: the shell that started this looks again.
    """
    os.environ.pop("PYTHONCOERCECLOCALE", None)  # set for this program, which else would set LC_CTYPE for commands
    out = os.dup(1)
    os.dup2(2, 1)
    is_subreaper = become_subreaper()
    temp_dir_prefix = os.path.join(os.environ.get("TMPDIR") or "/tmp", f"lazycluster-{token}.")  # noqa: S108 - made 0700
    supervisor = Supervisor(out, mark, temp_dir_prefix, grace, is_subreaper=is_subreaper)
    supervisor.start(token, None if working_dir is None else os.fsdecode(working_dir), probe)
    supervisor.serve()
    return 0 if is_subreaper else 3
