"""The supervisor: the program that a runtime keeps running on its host, over one channel; sent there.

It is one thread around one selector. It starts commands and functions as its children, many at a time, and speaks the
protocol of `protocol.py` with the runtime. The end of its standard input means that the runtime is gone, for whatever
reason. The supervisor then ends all that it started, removes its temporary directories, and exits.

Standard library only, and the syntax of Python 3.6.
"""

import _signal as signal  # `signal` itself makes enumerations of it, which takes 2 ms
import contextlib
import os
import selectors
import sys
import time

from lazycluster._remote.children import Children
from lazycluster._remote.descriptors import set_nonblocking
from lazycluster._remote.host_probe import HostProbe
from lazycluster._remote.process_tree import (
    TERMINATION_POLL_SECONDS,
    ProcessEntry,
    TreeTerminator,
    become_subreaper,
    catch_signals,
    command_lines,
    descendants,
    find_marked,
    process_table,
    reap_children,
)
from lazycluster._remote.protocol import (
    CALL,
    DETACH,
    GOODBYE,
    HELLO,
    INPUT,
    INPUT_END,
    KEEPALIVE,
    PREPARE,
    PROTOCOL_VERSION,
    REQUEST,
    RESPONSE,
    RUN,
    STOP,
    WINDOW_UPDATE,
    FrameDecoder,
    FrameError,
    encode_number,
    pack,
    unpack,
)
from lazycluster._remote.send_queue import SendQueue
from lazycluster._remote.spawn import DescriptorLimit, Spawner
from lazycluster._remote.temp_dirs import TempDirs
from lazycluster._remote.workers import LoadedCode, Workers

SUPERVISOR_START_MARKER = "LAZYCLUSTER-SUPERVISOR"
"""The first word that the supervisor prints; the token follows, then a newline, then frames."""

KEEPALIVE_INTERVAL_SECONDS = 60.0
"""Seconds without a frame after which one is sent. If it stays unacknowledged, the kernel notices a dead connection
(tcp(7), tcp_retries2).
"""
GOODBYE_TIMEOUT_SECONDS = 2.0
"""Seconds to get the last frame out."""
_FRAME_READ_BYTES = 1 << 18


class Supervisor:
    """Serves one runtime."""

    def __init__(
        self,
        output_descriptor: int,
        mark: str,
        temp_dir_prefix: str,
        grace: float,
        *,
        is_subreaper: bool,
        keepalive_interval: float,
        goodbye_timeout: float,
    ) -> None:
        """Prepare to write frames to a descriptor, to mark processes, and to name temporary directories.

        With `is_subreaper`, every orphaned descendant of this process becomes its child.
        """
        self._is_subreaper = is_subreaper
        self._mark = mark
        self._grace = grace
        self._keepalive_interval = keepalive_interval
        self._goodbye_timeout = goodbye_timeout
        self._signal_reader = catch_signals()
        set_nonblocking([0, output_descriptor])
        self._selector = selectors.DefaultSelector()
        self._selector.register(0, selectors.EVENT_READ, self._receive)
        self._selector.register(self._signal_reader, selectors.EVENT_READ, self._handle_signals)
        self._send_queue = SendQueue(
            output_descriptor,
            self._selector,
            lambda: self._children.update_reading(),  # noqa: PLW0108 - they are made later
            self._close,
        )
        self._decoder = FrameDecoder()
        descriptor_limit = DescriptorLimit()
        self._spawner = Spawner(descriptor_limit)
        self._loaded_code = LoadedCode()
        self._workers = Workers(self._loaded_code, descriptor_limit)
        self._temp_dirs = TempDirs(temp_dir_prefix)
        self._children = Children(
            mark, self._selector, self._send_queue, self._spawner, self._workers, self._loaded_code, self._temp_dirs
        )
        self._working_dir = b""
        self._probe: HostProbe | None = None
        self._is_closing = False
        self._terminator: TreeTerminator | None = None
        self._next_termination_poll = 0.0
        self._left_running: list[bytes] = []

    # The beginning ---------------------------------------------------------------------------------------------------

    def start(self, token: str, working_dir: "str | None", probe: str) -> None:
        """Write the start marker, make the working directory, and start the probe of the machine.

        `working_dir` is a directory to make if it is missing; `''` means a temporary one, None no directory at all.
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
        if probe and not failure:
            self._probe = HostProbe(self._selector, self._send_hello)
            self._probe.start(probe, self._spawner)
        else:
            self._send_hello(b"", failure)
        self._send_queue.flush()

    def _send_hello(self, facts: bytes, failure: str = "") -> None:
        version = ".".join(str(part) for part in sys.version_info[:3])
        about = (sys.implementation.name, version, sys.executable or "python", failure)
        fields = (*(os.fsencode(text) for text in about), encode_number(os.getpid()), self._working_dir, facts)
        self._send_queue.send(HELLO, 0, pack(encode_number(PROTOCOL_VERSION), *fields))

    # The loop --------------------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Do what the runtime asks for, until it is gone and everything has ended."""
        while True:
            for key, _ in self._selector.select(self._select_timeout()):
                key.data()
            now = time.monotonic()
            self._children.report_started(now)
            if now >= self._next_termination_poll:
                self._advance_termination(now)
            if self._is_closing and self._terminator is None:
                unremoved = pack(*map(os.fsencode, self._temp_dirs.remove_all()))
                self._send_queue.send(GOODBYE, 0, pack(unremoved, pack(*self._left_running)))
                self._send_queue.drain(self._goodbye_timeout)
                return
            if now - self._send_queue.last_sent >= self._keepalive_interval and not self._is_closing:
                self._send_queue.send(KEEPALIVE)
                self._workers.kill_spare()
            self._send_queue.flush()
            if not self._is_closing:
                self._workers.fork_if_due(now)

    def _select_timeout(self) -> "float | None":
        """Return the seconds until the next thing is due."""
        now = time.monotonic()
        due = (now if self._is_closing else self._send_queue.last_sent) + self._keepalive_interval
        if self._children.next_report_at is not None:
            due = min(due, self._children.next_report_at)
        if self._workers.next_fork_at is not None:
            due = min(due, self._workers.next_fork_at)
        if self._is_closing or any(child.terminator for child in self._children.by_number.values()):
            due = min(due, self._next_termination_poll)
        return max(0.0, due - now)

    def _handle_signals(self) -> None:
        signal_numbers = set()
        with contextlib.suppress(BlockingIOError):
            signal_numbers = set(os.read(self._signal_reader, 65536))
        if signal_numbers - {signal.SIGCHLD}:
            self._close()
        self._reap()

    def _reap(self) -> bool:
        """Collect the children that have ended, adopted ones too; return whether no child is left."""
        ended, is_childless = reap_children()
        for pid, wait_status in ended:
            if self._probe is not None:
                self._probe.process_exited(pid)
            self._workers.process_exited(pid)
            self._children.process_exited(pid, wait_status)
        return is_childless

    # Input -----------------------------------------------------------------------------------------------------------

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
                    child = self._children.by_number.get(number)
                    if isinstance(error, FrameError) or child is None:
                        raise
                    child.report_end(b"failed", f"{type(error).__name__}: {error}")
        except FrameError as error:
            os.write(2, f"lazycluster: {error}\n".encode())
            self._close()

    def _handle_frame(self, kind: int, number: int, body: bytes) -> None:
        if kind == RUN:
            self._children.run_command(number, unpack(body))
        elif kind == CALL:
            self._children.call_function(number, unpack(body))
        elif kind == REQUEST:
            self._handle_request(number, unpack(body))
        elif kind == PREPARE:
            self._loaded_code.load(*unpack(body))
        elif number in self._children.by_number:
            child = self._children.by_number[number]
            if kind == WINDOW_UPDATE:
                child.increase_window(int(body))
            elif kind == INPUT:
                child.input.write(body)
            elif kind == INPUT_END:
                child.input.end()
            elif kind == STOP:
                child.stop(self._mark)
                self._next_termination_poll = 0.0
            elif kind == DETACH:
                child.detach()

    def _handle_request(self, number: int, fields: "list[bytes]") -> None:
        """Answer a request that takes no time: `ok` with the answer, or `failed` with the reason."""
        try:
            response = self._perform_request(fields[0].decode("ascii"), fields[1:])
        except Exception as error:  # noqa: BLE001 - it is the response
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            self._send_queue.send(RESPONSE, number, pack(b"failed", os.fsencode(str(reason))))
        else:
            self._send_queue.send(RESPONSE, number, pack(b"ok", *response))

    def _perform_request(self, method: str, arguments: "list[bytes]") -> "list[bytes]":
        if method == "tempdir":
            return [os.fsencode(self._temp_dirs.make_temp_dir())]
        if method == "discard":
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

    # Ending ----------------------------------------------------------------------------------------------------------

    def _advance_termination(self, now: float) -> None:
        """Take the next step of each end that is under way."""
        terminating = [child for child in self._children.by_number.values() if child.terminator is not None]
        if not terminating and self._terminator is None:
            return
        self._next_termination_poll = now + TERMINATION_POLL_SECONDS
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
        mark = self._mark.encode()
        me = os.getpid()

        def find_own_processes(table: "list[ProcessEntry]") -> "set[int]":
            orphans = [row for row in table if row.parent == 1]
            return (descendants(table, me) | find_marked(orphans, mark)) - {me}

        table = process_table()
        own_pids = (self._children.pids | self._workers.pids | {self._probe.pid if self._probe else 0}) - {0}
        under_way = own_pids.union(*(descendants(table, pid, pid) for pid in own_pids))
        self._left_running = command_lines(table, find_own_processes(table) - under_way)
        self._probe = None
        self._selector.unregister(0)
        self._workers.kill_spare()
        for child in self._children.by_number.values():
            child.finish()
        self._terminator = TreeTerminator(
            find_own_processes, max([child.grace for child in self._children.by_number.values()], default=self._grace)
        )
        self._next_termination_poll = 0.0


def main(
    token: str,
    mark: str,
    grace: float,
    working_dir: "bytes | None",
    probe: str,
    *,
    keepalive_interval: float = KEEPALIVE_INTERVAL_SECONDS,
    goodbye_timeout: float = GOODBYE_TIMEOUT_SECONDS,
) -> int:
    """Serve a runtime over standard input and output, until standard input ends; return the exit status.

    It is not 0 if processes may be left that cannot be found from here; the shell that started this looks again.
    """
    os.environ.pop("PYTHONCOERCECLOCALE", None)  # set for this program, which would otherwise set LC_CTYPE for commands
    out = os.dup(1)
    os.dup2(2, 1)
    is_subreaper = become_subreaper()
    temp_dir_prefix = os.path.join(os.environ.get("TMPDIR") or "/tmp", f"lazycluster-{token}.")  # noqa: S108 - made 0700
    supervisor = Supervisor(
        out,
        mark,
        temp_dir_prefix,
        grace,
        is_subreaper=is_subreaper,
        keepalive_interval=keepalive_interval,
        goodbye_timeout=goodbye_timeout,
    )
    supervisor.start(token, None if working_dir is None else os.fsdecode(working_dir), probe)
    supervisor.serve()
    return 0 if is_subreaper else 3
