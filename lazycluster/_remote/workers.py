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

from lazycluster._remote.process_tree import adopt_orphans
from lazycluster._remote.protocol import pack, unpack
from lazycluster._remote.spawn import Limit, close_all, close_all_but, unblock

_SPARE_AFTER = 0.02
"""Seconds into a call after which the worker for the next one is forked, if the call has not ended by then."""
_UNHURRIED = 0.004
"""Seconds after a call for its answer to get on its way undisturbed, where the next is not likely to come sooner."""
_LENGTH = struct.Struct(">I")


class Functions:
    """What calls and the check of ports need; it is sent before the first of them."""

    def __init__(self) -> None:
        """Begin without."""
        self.work: Callable[[int, int, bytes], None] | None = None
        """Reads a request from one descriptor, calls its function, and writes the outcome to the other."""
        self.warm_up: Callable[[], None] | None = None
        """Does what a call does, with nothing: a forked process pays for each page of memory that it touches first."""
        self.done_record: Callable[[bytes], bytes] = bytes
        """How the outcome of a call ends whose process needs no further watching."""
        self.is_free: Callable[[int], bool] | None = None
        self.failure = ""

    def load(self, text: bytes, data: bytes) -> None:
        """Run what was sent; why that fails is told to whoever calls."""
        try:
            namespace: dict[str, object] = {}
            exec(zlib.decompress(text), namespace)  # noqa: S102 - this is how the supervisor came here, too
            namespace["install"](self, data)  # type: ignore[operator]  # see launch.calls_preparation()
        except Exception as error:  # noqa: BLE001 - told to whoever calls
            self.failure = f"{type(error).__name__}: {error}"
        with contextlib.suppress(ImportError, AttributeError):
            import gc  # noqa: PLC0415 - for the forks to come; Python 3.7

            gc.collect()
            gc.freeze()


class Worker:
    """A forked process that waits for a function to call: its number, and our ends of its pipes."""

    def __init__(self, pid: int, feeding: int, outcome: int, printed: int) -> None:
        """Keep them."""
        self.pid = pid
        self.feeding = feeding
        self.outcome = outcome
        self.printed = printed


class Workers:
    """Forks workers: one ahead of each call, while nobody waits for it, for the fork is most of what a call costs."""

    def __init__(self, functions: Functions, limit: Limit) -> None:
        """Begin without one."""
        self._functions = functions
        self._limit = limit
        self._spare: Worker | None = None
        self._is_worker = False
        self._hurry = False
        self._ended = 0.0
        self.due: float | None = None
        """When the next one is to be forked."""
        if hasattr(os, "register_at_fork"):  # Python 3.7
            os.register_at_fork(before=self._before_fork)

    def take(self) -> Worker:
        """Return a worker for a call.

        Raises:
            OSError: There cannot be another process.
        """
        worker, self._spare = self._spare, None
        now = time.monotonic()
        self._hurry = now < self._ended + _UNHURRIED
        self.due = now + _SPARE_AFTER
        return worker or self._fork()

    def call_ended(self) -> None:
        """Have the next worker forked now, if that is still to be done."""
        if self.due is not None:
            self._ended = time.monotonic()
            self.due = 0.0 if self._hurry else self._ended + _UNHURRIED

    def look_after(self, now: float) -> None:
        """Fork the worker for the next call when it is time to."""
        if self.due is not None and now >= self.due:
            self.due = None
            if self._spare is None and self._functions.work is not None:
                with contextlib.suppress(OSError):
                    self._spare = self._fork()

    def drop(self) -> None:
        """End the worker that waits."""
        spare, self._spare = self._spare, None
        self.due = None
        if spare is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(spare.pid, signal.SIGKILL)
            close_all((spare.feeding, spare.outcome, spare.printed))

    def ended(self, pid: int) -> None:
        """Note that a process has ended, which may be the worker that waits."""
        if self._spare is not None and pid == self._spare.pid:
            self.drop()

    def _fork(self) -> Worker:
        ends: list[int] = []
        try:
            for _ in range(3):
                ends += os.pipe()
            pid = os.fork()
        except OSError:
            close_all(ends)
            raise
        request, feeding, outcome, answering, printed, printing = ends
        if pid == 0:
            self._become_worker(request, answering, printing)
        close_all((request, answering, printing))
        unblock((feeding, outcome, printed))
        return Worker(pid, feeding, outcome, printed)

    def _become_worker(self, request: int, answering: int, printing: int) -> None:
        """Wait for a function in this forked process, run it, and end."""
        try:
            self._is_worker = True
            signal.set_wakeup_fd(-1)
            for signal_number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
                signal.signal(signal_number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.setsid()
            nothing = os.open(os.devnull, os.O_RDONLY)
            for descriptor, stream in ((nothing, 0), (printing, 1), (printing, 2)):
                os.dup2(descriptor, stream)
            close_all_but(request, answering)
            self._limit.restore()
            if self._functions.warm_up is not None and not self._hurry:
                self._functions.warm_up()
            length = _read_exactly(request, _LENGTH.size)
            if length and self._functions.work is not None:
                done, directory, *variables = unpack(_read_exactly(request, _LENGTH.unpack(length)[0]))
                os.chdir(directory)
                for name, value in zip(variables[::2], variables[1::2]):
                    os.environb[name] = value
                self._functions.work(request, answering, done)
                os.nice(19)  # it is only taken apart from here on
        except BaseException:  # noqa: BLE001 - nothing may get back into the loop of the supervisor
            import traceback  # noqa: PLC0415 - hardly ever needed

            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    def _before_fork(self) -> None:
        """Have a function that forks adopt its orphans: in these nothing else tells whose they are."""
        if self._is_worker:
            adopt_orphans()


def setting(done: bytes, directory: bytes, variables: "list[bytes]") -> bytes:
    """Return what a worker reads before its request.

    That is how it ends its outcome, where to call the function, and with which variables besides.
    """
    body = pack(done, directory, *variables)
    return _LENGTH.pack(len(body)) + body


def _read_exactly(descriptor: int, length: int) -> bytes:
    """Read so many bytes; nothing where the other end was closed."""
    data = b""
    while len(data) < length:
        piece = os.read(descriptor, length - len(data))
        if not piece:
            return b""
        data += piece
    return data
