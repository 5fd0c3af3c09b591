"""The processes in which a supervisor calls functions, each forked for one call; sent to the host.

Standard library only, and the syntax of Python 3.6.
"""

import _signal as signal  # `signal` itself makes enumerations of it, which takes 2 ms
import contextlib
import os
import struct
import time
import zlib
from collections.abc import Callable

from lazycluster._remote.descriptors import close_all, close_all_but, read_exactly, set_nonblocking
from lazycluster._remote.process_tree import become_subreaper
from lazycluster._remote.protocol import pack, unpack
from lazycluster._remote.spawn import DescriptorLimit

_FORK_SPARE_AFTER_SECONDS = 0.02
"""Seconds into a call after which the spare worker for the next one is forked, if the call still runs."""
_SETUP_LENGTH = struct.Struct(">I")
_AT_ONCE = 0.0
"""A time that has always passed."""


class LoadedCode:
    """The modules that calls and the check of ports need; they are sent before the first use."""

    def __init__(self) -> None:
        """Begin without the modules."""
        self.run_call: Callable[[int, int, bytes], None] | None = None
        """Reads a request from one descriptor, calls its function, and writes the outcome to the other."""
        self.done_record: Callable[[bytes], bytes] = bytes
        """Makes the record that ends an outcome: the process of the call itself reports its end with it."""
        self.is_port_free: Callable[[int], bool] | None = None
        self.load_error = ""

    def load(self, text: bytes, data: bytes) -> None:
        """Run the code that was sent. If that fails, each call reports the reason."""
        try:
            namespace: dict[str, object] = {}
            exec(zlib.decompress(text), namespace)  # noqa: S102 - this is how the supervisor came here, too
            namespace["install"](self, data)  # type: ignore[operator]  # see bootstrap.calls_extension()
        except Exception as error:  # noqa: BLE001 - each call reports it
            self.load_error = f"{type(error).__name__}: {error}"
        with contextlib.suppress(ImportError, AttributeError):
            import gc  # noqa: PLC0415 - for the forks to come; Python 3.7

            gc.collect()
            gc.freeze()


class Worker:
    """A forked process that waits for a function to call: its pid, and the supervisor's ends of its pipes."""

    def __init__(self, pid: int, request_writer: int, outcome_reader: int, output_reader: int) -> None:
        """Take over the process and the ends of its pipes, which are in non-blocking mode."""
        self.pid = pid
        self.request_writer = request_writer
        self.outcome_reader = outcome_reader
        self.output_reader = output_reader


class Workers:
    """Forks workers, and keeps a spare one for the next call, since the fork is most of the time of a call."""

    def __init__(self, loaded_code: LoadedCode, descriptor_limit: DescriptorLimit) -> None:
        """Begin without a worker."""
        self._loaded_code = loaded_code
        self._descriptor_limit = descriptor_limit
        self._spare: Worker | None = None
        self._is_worker = False
        self.next_fork_at: float | None = None
        """The time at which the next spare worker is due; None if no fork is planned."""
        if hasattr(os, "register_at_fork"):  # Python 3.7
            os.register_at_fork(before=self._before_fork)

    @property
    def pids(self) -> "set[int]":
        """The process of the spare worker, if there is one."""
        return set() if self._spare is None else {self._spare.pid}

    def acquire(self) -> Worker:
        """Return the spare worker for a call, or a new one if there is no spare.

        Raises:
            OSError: If no further process can be started.
        """
        worker, self._spare = self._spare, None
        self.next_fork_at = time.monotonic() + _FORK_SPARE_AFTER_SECONDS
        return worker or self._fork()

    def call_ended(self) -> None:
        """Make the planned fork due now: it slows down no call any more."""
        if self.next_fork_at is not None:
            self.next_fork_at = _AT_ONCE

    def fork_if_due(self, now: float) -> None:
        """Fork the spare worker if its time has come."""
        if self.next_fork_at is not None and now >= self.next_fork_at:
            self.next_fork_at = None
            if self._spare is None and self._loaded_code.run_call is not None:
                with contextlib.suppress(OSError):
                    self._spare = self._fork()

    def kill_spare(self) -> None:
        """Kill the spare worker, if there is one, and plan no other."""
        spare, self._spare = self._spare, None
        self.next_fork_at = None
        if spare is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(spare.pid, signal.SIGKILL)
            close_all((spare.request_writer, spare.outcome_reader, spare.output_reader))

    def process_exited(self, pid: int) -> None:
        """Close the pipes of the spare worker if it is the process that has ended."""
        if self._spare is not None and pid == self._spare.pid:
            self.kill_spare()

    def _fork(self) -> Worker:
        ends: list[int] = []
        try:
            for _ in range(3):
                ends += os.pipe()
            pid = os.fork()
        except OSError:
            close_all(ends)
            raise
        request_reader, request_writer, outcome_reader, outcome_writer, output_reader, output_writer = ends
        if pid == 0:
            self._become_worker(request_reader, outcome_writer, output_writer)
        close_all((request_reader, outcome_writer, output_writer))
        set_nonblocking((request_writer, outcome_reader, output_reader))
        return Worker(pid, request_writer, outcome_reader, output_reader)

    def _become_worker(self, request_reader: int, outcome_writer: int, output_writer: int) -> None:
        """Wait for a function in this forked process, run it, and end."""
        try:
            self._is_worker = True
            signal.set_wakeup_fd(-1)
            for signal_number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
                signal.signal(signal_number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.setsid()
            null_device = os.open(os.devnull, os.O_RDONLY)
            for descriptor, stream in ((null_device, 0), (output_writer, 1), (output_writer, 2)):
                os.dup2(descriptor, stream)
            close_all_but(request_reader, outcome_writer)
            self._descriptor_limit.restore()
            setup = _read_setup(request_reader)
            if setup and self._loaded_code.run_call is not None:
                done_record, directory, *variables = setup
                os.chdir(directory)
                for name, value in zip(variables[::2], variables[1::2]):
                    os.environb[name] = value
                self._loaded_code.run_call(request_reader, outcome_writer, done_record)
        except BaseException:  # noqa: BLE001 - no exception may reach the loop of the supervisor
            import traceback  # noqa: PLC0415 - hardly ever needed

            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    def _before_fork(self) -> None:
        """Make a worker the subreaper of the processes that its function forks, so that they belong to its call.

        The supervisor runs this at its own forks, too.
        """
        if self._is_worker:
            become_subreaper()


def encode_setup(done_record: bytes, directory: bytes, variables: "list[bytes]") -> bytes:
    """Return the beginning of a worker's input, before its request.

    It holds the record that ends the outcome, the working directory and further environment variables.
    """
    body = pack(done_record, directory, *variables)
    return _SETUP_LENGTH.pack(len(body)) + body


def _read_setup(descriptor: int) -> "list[bytes]":
    """Return the fields of `encode_setup()`, or an empty list if the supervisor closed the pipe first."""
    try:
        (length,) = _SETUP_LENGTH.unpack(read_exactly(descriptor, _SETUP_LENGTH.size))
        return unpack(read_exactly(descriptor, length))
    except EOFError:
        return []
