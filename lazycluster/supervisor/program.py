"""The supervisor: the program that a runtime keeps running on its host, over one channel; sent there as text.

One thread around one selector. It starts commands and functions as its children, many at a time, and speaks the
protocol of `frames.py` with the runtime. When its standard input ends, the runtime is gone, however that came about:
then it ends all that it started, removes its temporary directories, and goes.

Standard library only, and the syntax of Python 3.6.
"""

import contextlib
import os
import selectors
import signal
import struct
import sys
import time
import zlib
from collections import deque
from collections.abc import Callable

from lazycluster.supervisor.frames import (
    ANSWER,
    ASK,
    CALL,
    ENDED,
    ERRORS,
    FAREWELL,
    GRANT,
    GRANT_INPUT,
    GRANTED,
    GREETING,
    INPUT,
    INPUT_END,
    LARGEST,
    OUTCOME,
    OUTPUT,
    PIECE,
    PREPARE,
    PROTOCOL,
    PULSE,
    RUN,
    STARTED,
    STOP,
    WINDOW,
    Decoder,
    FrameError,
    frame,
    header,
    number,
    pack,
    unpack,
)
from lazycluster.supervisor.tree import Ending, Row, adopt_orphans, descendants, marked, process_table

MARK = "LAZYCLUSTER-SUPERVISOR"
"""The first word of what the supervisor prints; the token follows, then a newline, then frames."""

_CONGESTED = 1 << 20  # bytes that wait to be sent before the jobs' output is left in their pipes
_TICK = 0.02  # seconds between two looks at processes that are to end
_SPARE_AFTER = (
    0.02  # seconds into a call after which the worker for the next one is forked, if it has not ended by then
)
_TOLD_AFTER = 0.005  # seconds after which a job is told to have started, if it has not ended by then
_PULSE_EVERY = 60.0  # seconds; unanswered, they let the kernel notice a dead link (tcp(7), tcp_retries2)
_PARTING = 2.0  # seconds to get the last frame out
_PIPE = 1 << 16
_LARGE_PIPE = 1 << 20
_SET_PIPE_SIZE = 1031  # fcntl(2), F_SETPIPE_SZ
_handle_signal = getattr(signal.signal, "__wrapped__", signal.signal)  # without enumerations, which take their time
_LENGTH = struct.Struct(">I")
_BOURNE = frozenset(("sh", "bash", "dash", "ash", "ksh", "ksh93", "mksh", "yash"))
INPUT_ENDED, LOGIN_SHELL = 1, 2
"""Flags of RUN and CALL."""


class Functions:
    """What calls need, and is sent before the first of them."""

    def __init__(self) -> None:
        """Begin without."""
        self.work: Callable[[int, int], None] | None = None
        self.is_free: Callable[[int], bool] | None = None
        self.done = b""
        """How the outcome of a call ends that needs no further watching."""
        self.failure = ""


class Job:
    """A command or function under way."""

    def __init__(self, name: int, grace: float) -> None:
        """Begin without a process."""
        self.name = name
        self.grace = grace
        self.pid = 0
        self.status: int | None = None
        self.credit = WINDOW
        self.readers: list[Reader] = []
        self.input: deque[memoryview] = deque()
        self.input_ended = False
        self.input_descriptor = -1
        self.taken = 0
        self.ending: Ending | None = None
        self.over = False


class Reader:
    """One stream that a job writes to."""

    def __init__(self, job: Job, descriptor: int, kind: int) -> None:
        """Take the reading end of a pipe."""
        self.job = job
        self.descriptor = descriptor
        self.kind = kind
        self.watched = False
        self.large = False
        self.left: int | None = None
        """Bytes that the pipe can hold of a process that has ended; what comes later is of another one."""


class Worker:
    """A forked process that waits for a function to call: its number, and our ends of its pipes."""

    def __init__(self, pid: int, feeding: int, outcome: int, printed: int) -> None:
        """Keep them."""
        self.pid = pid
        self.feeding = feeding
        self.outcome = outcome
        self.printed = printed


class Supervisor:
    """Serves one runtime."""

    def __init__(self, out: int, mark: str, prefix: str, grace: float) -> None:
        """Prepare to write frames to a descriptor, to mark processes, and to name temporary directories."""
        self._out = out
        self._mark = mark
        self._prefix = prefix
        self._grace = grace
        self._functions = Functions()
        self._is_worker = False
        self._selector = selectors.DefaultSelector()
        self._decoder = Decoder()
        self._jobs: dict[int, Job] = {}
        self._by_pid: dict[int, Job] = {}
        self._queue: deque[memoryview] = deque()
        self._queued = 0
        self._out_watched = False
        self._congested = False
        self._untold: deque[tuple[float, Job]] = deque()
        self._facts = bytearray()
        self._greet: Callable[[], None] | None = None
        self._working_dir = b""
        self._directories: list[str] = []
        self._numbers = 0
        self._closing = False
        self._leaving: Ending | None = None
        self._next_look = 0.0
        self._last_sent = time.monotonic()
        self._spare: Worker | None = None
        self._spare_due: float | None = None
        self._environment = _environment()
        self._home = self._directory = os.getcwd()
        self._bell, ring = os.pipe()
        for descriptor in (0, out, self._bell, ring):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(ring)
        for signal_number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signal_number, lambda _number, _frame: None)
        self._limits = _raise_limit()
        if hasattr(os, "register_at_fork"):  # Python 3.7
            os.register_at_fork(before=self._before_fork)
        self._selector.register(0, selectors.EVENT_READ, self._receive)
        self._selector.register(self._bell, selectors.EVENT_READ, self._rung)

    # The beginning ---------------------------------------------------------------------------------------------------

    def begin(self, token: str, working_dir: "str | None", probe: str) -> None:
        """Say that this is the supervisor, make the working directory, and ask what the machine has.

        `working_dir` is a directory to make where it is missing, `''` a temporary one, None no directory at all.
        """
        self._send_raw(f"{MARK} {token}\n".encode("ascii"))
        failure = ""
        try:
            self._working_dir = os.fsencode(self._make_working_dir(working_dir))
        except OSError as error:
            failure = f"{error.filename or working_dir}: {error.strerror}"

        def greet() -> None:
            version = ".".join(str(part) for part in sys.version_info[:3])
            facts = bytes(self._facts)[: LARGEST // 2]
            about = (sys.implementation.name, version, sys.executable or "python", failure)
            fields = (*(os.fsencode(text) for text in about), number(os.getpid()), self._working_dir, facts)
            self._send(GREETING, 0, pack(number(PROTOCOL), *fields))

        self._greet = greet
        if not probe or failure:
            self._greeted()
            return
        job = Job(0, self._grace)
        self._jobs[0] = job
        job.input_ended = True
        self._spawn(job, ["/bin/sh", "-c", probe, "sh"], self._environment)

    def _greeted(self) -> None:
        if self._greet is not None:
            greet, self._greet = self._greet, None
            greet()
            self._facts.clear()

    def _make_working_dir(self, path: "str | None") -> str:
        if path is None:
            return ""
        if not path:
            return self._make_temporary()
        full = self._full(path)
        os.makedirs(full, exist_ok=True)
        os.chdir(full)
        os.chdir(self._home)
        return full

    def _make_temporary(self) -> str:
        self._numbers += 1
        path = f"{self._prefix}{self._numbers}"
        os.mkdir(path, 0o700)
        self._directories.append(path)
        return path

    def _full(self, path: str) -> str:
        """Return a path that does not depend on the current directory; `~` and `~user` are this machine's."""
        return os.path.normpath(os.path.join(self._home, os.path.expanduser(path)))

    # The loop --------------------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Do what the runtime asks for, until it is gone and everything has ended."""
        while True:
            for key, _ in self._selector.select(self._patience()):
                key.data()
            now = time.monotonic()
            if self._untold and self._untold[0][0] <= now:
                self._tell_started(now)
            if now >= self._next_look:
                self._look(now)
            if self._closing and self._leaving is None and self._may_leave():
                return
            if now - self._last_sent >= _PULSE_EVERY and not self._closing:
                self._send(PULSE)
                self._drop_spare()
            if self._queue:
                self._flush()
            self._look_after_spare(now)

    def _patience(self) -> "float | None":
        """Return how long there is nothing to do by itself."""
        now = time.monotonic()
        due = self._last_sent + _PULSE_EVERY
        if self._untold:
            due = min(due, self._untold[0][0])
        if self._spare_due is not None:
            due = min(due, self._spare_due)
        if self._leaving is not None or self._closing or any(job.ending for job in self._jobs.values()):
            due = min(due, self._next_look)
        return max(0.0, due - now)

    def _rung(self) -> None:
        """Take note of signals."""
        rung = set()
        with contextlib.suppress(BlockingIOError):
            rung = set(os.read(self._bell, 65536))
        if rung - {signal.SIGCHLD}:
            self._close()
        self._reap()

    def _reap(self) -> None:
        """Collect what has ended, adopted processes too."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self._spare is not None and pid == self._spare.pid:
                self._drop_spare()
            job = self._by_pid.pop(pid, None)
            if job is not None:
                self._exited(job, status)

    def _exited(self, job: Job, status: int) -> None:
        if job.status is None:
            job.status = status
            for reader in job.readers:
                reader.left = _LARGE_PIPE if reader.large else _PIPE
            self._settle(job)

    # What comes in ---------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        try:
            data = os.read(0, 1 << 18)
        except BlockingIOError:
            return
        except OSError:  # a socket may end with ECONNRESET
            data = b""
        if not data:
            self._close()
            return
        try:
            for kind, name, body in self._decoder.feed(data):
                self._obey(kind, name, body)
        except FrameError as error:
            os.write(2, f"lazycluster: {error}\n".encode())
            self._close()

    def _obey(self, kind: int, name: int, body: bytes) -> None:
        if kind == RUN:
            self._run(name, unpack(body))
        elif kind == CALL:
            self._call(name, unpack(body))
        elif kind == ASK:
            self._ask(name, unpack(body))
        elif kind == PREPARE:
            self._prepare(unpack(body))
        elif name in self._jobs:
            job = self._jobs[name]
            if kind == GRANT:
                job.credit += int(body)
                self._watch_readers(job)
                if job.status is not None:
                    self._settle(job)
            elif kind == INPUT:
                job.input.append(memoryview(body))
                self._feed(job)
            elif kind == INPUT_END:
                job.input_ended = True
                self._feed(job)
            elif kind == STOP:
                self._stop(job)

    def _ask(self, name: int, fields: "list[bytes]") -> None:
        """Answer a question that takes no time: `ok` and the answer, or `failed` and why."""
        what = fields[0]
        try:
            answer = self._answer(what.decode("ascii"), fields[1:])
        except Exception as error:  # noqa: BLE001 - told to whoever asked
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            self._send(ANSWER, name, pack(b"failed", os.fsencode(str(reason))))
        else:
            self._send(ANSWER, name, pack(b"ok", *answer))

    def _answer(self, what: str, arguments: "list[bytes]") -> "list[bytes]":
        if what == "ping":
            return []
        if what == "tempdir":
            return [os.fsencode(self._make_temporary())]
        if what == "forget":
            gone = {os.fsdecode(path) for path in arguments}
            self._directories = [path for path in self._directories if path not in gone]
            return []
        if what == "ports":
            is_free = self._functions.is_free
            if is_free is None:
                raise RuntimeError(self._functions.failure)
            return [port for port in arguments if is_free(int(port))]
        raise ValueError(what)

    def _prepare(self, fields: "list[bytes]") -> None:
        """Load what calls and the check of ports need: modules of this package, then cloudpickle."""
        try:
            namespace: dict[str, object] = {}
            exec(zlib.decompress(fields[0]), namespace)  # noqa: S102 - this is how the program came here, too
            namespace["install"](self._functions, fields[1])  # type: ignore[operator]  # see launch.preparation()
        except Exception as error:  # noqa: BLE001 - told to whoever calls
            self._functions.failure = f"{type(error).__name__}: {error}"
        with contextlib.suppress(ImportError, AttributeError):
            import gc  # noqa: PLC0415 - for the forks to come

            gc.collect()
            gc.freeze()

    # Jobs ------------------------------------------------------------------------------------------------------------

    def _run(self, name: int, fields: "list[bytes]") -> None:
        """Run a command: flags, working directory, grace, shell text, input so far; then the environment."""
        flags, directory, grace, text, data = fields[:5]
        job = self._new_job(name, grace, flags, data)
        if not self._enter(job, directory):
            return
        environment = self._environment_of(job, fields[5:])
        shell = _login_shell() if int(flags) & LOGIN_SHELL else "/bin/sh"
        self._spawn(job, [shell, "-c", os.fsdecode(text)], environment)

    def _call(self, name: int, fields: "list[bytes]") -> None:
        """Call a function: flags, working directory, grace, name, request so far; then the environment."""
        flags, directory, grace, _, data = fields[:5]
        job = self._new_job(name, grace, flags, data)
        if self._functions.work is None:
            self._end(job, b"failed", self._functions.failure)
            return
        if not self._enter(job, directory):
            return
        worker, self._spare = self._spare, None
        if worker is None:
            try:
                worker = self._fork_worker(self._functions.work)
            except OSError as error:
                self._end(job, b"failed", f"no process for it: {error.strerror}")
                return
        self._spare_due = time.monotonic() + _SPARE_AFTER
        setting = pack(os.fsencode(self._directory), *self._own_variables(job, fields[5:]))
        job.taken = -len(setting)
        job.input.appendleft(memoryview(_LENGTH.pack(len(setting)) + setting))
        self._started(job, worker.pid, worker.feeding, ((worker.outcome, OUTCOME), (worker.printed, ERRORS)))

    def _fork_worker(self, work: "Callable[[int, int], None]") -> Worker:
        """Fork a process that waits for a function to call."""
        ends: list[int] = []
        try:
            for _ in range(3):
                ends += os.pipe()
            pid = os.fork()
        except OSError:
            for descriptor in ends:
                os.close(descriptor)
            raise
        request, feeding, outcome, answering, printed, printing = ends
        if pid == 0:
            self._become_worker(work, request, answering, printing)
        for descriptor in (request, answering, printing):
            os.close(descriptor)
        return Worker(pid, feeding, outcome, printed)

    def _become_worker(self, work: "Callable[[int, int], None]", request: int, answering: int, printing: int) -> None:
        """Wait for a function in this forked process, run it, and end."""
        try:
            self._is_worker = True
            signal.set_wakeup_fd(-1)
            for signal_number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
                _handle_signal(signal_number, signal.SIG_DFL)
            _handle_signal(signal.SIGINT, signal.default_int_handler)
            os.setsid()
            nothing = os.open(os.devnull, os.O_RDONLY)
            for descriptor, stream in ((nothing, 0), (printing, 1), (printing, 2)):
                os.dup2(descriptor, stream)
            _close_all_but(request, answering)
            _set_limit(self._limits)
            length = _read_exactly(request, _LENGTH.size)
            if length:
                directory, *variables = unpack(_read_exactly(request, _LENGTH.unpack(length)[0]))
                os.chdir(directory)
                for name, value in zip(variables[::2], variables[1::2]):
                    os.environb[name] = value
                work(request, answering)
        except BaseException:  # noqa: BLE001 - nothing may get back into the loop of the supervisor
            import traceback  # noqa: PLC0415 - hardly ever needed

            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    def _before_fork(self) -> None:
        """Have a function that forks adopt its orphans: in these nothing else tells whose they are."""
        if self._is_worker:
            adopt_orphans()

    def _look_after_spare(self, now: float) -> None:
        """Fork a worker for the next call while nobody waits for it: the fork is most of what a call costs."""
        if self._spare_due is None or now < self._spare_due or self._closing:
            return
        self._spare_due = None
        if self._spare is None and self._functions.work is not None:
            with contextlib.suppress(OSError):
                self._spare = self._fork_worker(self._functions.work)

    def _drop_spare(self) -> None:
        spare, self._spare = self._spare, None
        self._spare_due = None
        if spare is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(spare.pid, signal.SIGKILL)
            for descriptor in (spare.feeding, spare.outcome, spare.printed):
                os.close(descriptor)

    def _new_job(self, name: int, grace: bytes, flags: bytes, data: bytes) -> Job:
        job = Job(name, float(grace))
        job.input_ended = bool(int(flags) & INPUT_ENDED)
        if data:
            job.input.append(memoryview(data))
        self._jobs[name] = job
        return job

    def _enter(self, job: Job, directory: bytes) -> bool:
        """Enter the working directory of a job; the supervisor itself has no use for one."""
        self._directory = self._full(os.fsdecode(directory)) if directory else self._home
        try:
            os.chdir(self._directory)
        except OSError as error:
            self._end(job, b"cd", error.strerror or "")
            return False
        return True

    def _environment_of(self, job: Job, variables: "list[bytes]") -> "dict[bytes, bytes]":
        own = self._own_variables(job, variables)
        environment = dict(self._environment)
        environment.update(zip(own[::2], own[1::2]))
        return environment

    def _own_variables(self, job: Job, variables: "list[bytes]") -> "list[bytes]":
        """Return the variables of a job beyond those of the supervisor: names and values in turn."""
        name, _, token = self._mark.partition("=")
        job_mark = os.fsencode(f"{token}{job.name}.")
        return [b"PWD", os.fsencode(self._directory), *variables, os.fsencode(name), job_mark]

    def _spawn(self, job: Job, argv: "list[str]", environment: "dict[bytes, bytes]") -> None:
        given: list[int] = []
        kept: list[int] = []
        try:
            if job.input or not job.input_ended:
                source, feeding = os.pipe()
                given.append(source)
                kept.append(feeding)
            else:
                given.append(os.open(os.devnull, os.O_RDONLY))
                kept.append(-1)
            for _ in range(2):
                reading, writing = os.pipe()
                given.append(writing)
                kept.append(reading)
            _set_limit(self._limits)
            try:
                pid = _start(argv, environment, given)
            finally:
                _set_limit(self._limits, raised=True)
        except OSError as error:
            for descriptor in kept:
                if descriptor >= 0:
                    os.close(descriptor)
            self._send(ERRORS, job.name, f"{argv[0]}: {error.strerror}\n".encode())
            self._end(job, b"exit", number(126))
        else:
            self._started(job, pid, kept[0], ((kept[1], OUTPUT), (kept[2], ERRORS)))
        finally:
            for descriptor in given:
                os.close(descriptor)

    def _started(self, job: Job, pid: int, feeding: int, streams: "tuple[tuple[int, int], ...]") -> None:
        job.pid = pid
        self._by_pid[pid] = job
        for descriptor, kind in streams:
            os.set_blocking(descriptor, False)
            job.readers.append(Reader(job, descriptor, kind))
        self._watch_readers(job)
        if feeding >= 0:
            os.set_blocking(feeding, False)
            job.input_descriptor = feeding
            self._feed(job)
        if job.name:
            self._untold.append((time.monotonic() + _TOLD_AFTER, job))

    def _tell_started(self, now: float) -> None:
        while self._untold and self._untold[0][0] <= now:
            job = self._untold.popleft()[1]
            if job.name in self._jobs:
                self._send(STARTED, job.name, number(job.pid))

    # Input of jobs ---------------------------------------------------------------------------------------------------

    def _feed(self, job: Job) -> None:
        """Write what the job has not read yet, as far as it takes it."""
        if job.input_descriptor < 0:
            if job.pid:  # it reads no more: what still comes for it goes nowhere
                job.taken += sum(map(len, job.input))
                job.input.clear()
                self._grant_input(job)
            return
        try:
            while job.input:
                written = os.write(job.input_descriptor, job.input[0])
                job.taken += written
                if written == len(job.input[0]):
                    job.input.popleft()
                else:
                    job.input[0] = job.input[0][written:]
        except BlockingIOError:
            pass
        except OSError:
            job.taken += sum(map(len, job.input))
            job.input.clear()
            self._close_input(job)
        self._grant_input(job)
        if job.input_descriptor < 0:
            return
        if job.input:
            if job.input_descriptor not in self._selector.get_map():
                self._selector.register(job.input_descriptor, selectors.EVENT_WRITE, lambda: self._feed(job))
        elif job.input_ended:
            self._close_input(job)
        elif job.input_descriptor in self._selector.get_map():
            self._selector.unregister(job.input_descriptor)

    def _grant_input(self, job: Job) -> None:
        if job.taken >= GRANTED and not job.input_ended:
            self._send(GRANT_INPUT, job.name, number(job.taken))
            job.taken = 0

    def _close_input(self, job: Job) -> None:
        if job.input_descriptor in self._selector.get_map():
            self._selector.unregister(job.input_descriptor)
        os.close(job.input_descriptor)
        job.input_descriptor = -1

    # Output of jobs --------------------------------------------------------------------------------------------------

    def _watch_readers(self, job: Job) -> None:
        """Look out for output where there is leave to send it."""
        wanted = job.over or (job.credit > 0 and not self._congested)
        for reader in job.readers:
            if wanted and not reader.watched:
                self._selector.register(
                    reader.descriptor, selectors.EVENT_READ, lambda reader=reader: self._read(reader)
                )
            elif not wanted and reader.watched:
                self._selector.unregister(reader.descriptor)
            reader.watched = wanted

    def _read(self, reader: Reader) -> bool:
        """Send on what a stream holds; tell whether there may be more of it now."""
        job = reader.job
        if reader.descriptor < 0:  # closed since the selector saw it
            return False
        try:
            data = os.read(reader.descriptor, min(4 * PIECE if reader.large else PIECE, max(job.credit, 1)))
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._drop(reader)
            if job.status is not None and not job.readers:
                self._settle(job)
            return False
        if len(data) == PIECE and not reader.large:
            reader.large = True
            _enlarge(reader.descriptor)
        if job.over or self._closing:
            return True  # of a process that was left in the background: nobody listens
        if reader.left is not None:
            reader.left -= len(data)
        if job.name == 0:
            self._facts += data
            return True
        job.credit -= len(data)
        self._send_raw(header(reader.kind, job.name, len(data)))
        self._send_raw(data)
        if reader.kind == OUTCOME and data.endswith(self._functions.done):
            self._exited(job, 0)
            return False
        if job.credit <= 0:
            self._watch_readers(job)
        return True

    def _drop(self, reader: Reader) -> None:
        if reader.watched:
            self._selector.unregister(reader.descriptor)
        os.close(reader.descriptor)
        reader.descriptor = -1
        reader.job.readers.remove(reader)

    def _settle(self, job: Job) -> None:
        """End a job whose process has ended, once its output is on its way and what it started is gone if it must."""
        if job.ending is not None or job.over:
            return
        readers = list(job.readers)
        while readers and job.credit > 0:
            if not (readers[0].left and readers[0].left > 0 and self._read(readers[0])):
                readers.pop(0)
        if readers or self._is_over(job):
            return  # the rest is sent with the next grant; or the last of the streams has ended it
        assert job.status is not None
        if os.WIFSIGNALED(job.status):
            self._end(job, b"signal", number(job.status))
        else:
            self._end(job, b"exit", number(job.status))

    @staticmethod
    def _is_over(job: Job) -> bool:
        return job.over

    def _end(self, job: Job, how: bytes, what: "bytes | str") -> None:
        """Tell the end of a job: `exit` or `signal` and what waitpid(2) said, `cd` or `failed` and why."""
        job.over = True
        if job.name == 0:
            del self._jobs[0]
            self._greeted()
            return
        if how == b"exit" and job.pid == 0:
            what = number(int(what) << 8)
        if self._spare_due is not None:
            self._spare_due = 0.0
        self._send(ENDED, job.name, pack(how, what if isinstance(what, bytes) else os.fsencode(what)))
        del self._jobs[job.name]
        if job.input_descriptor >= 0:
            self._close_input(job)
        self._watch_readers(job)  # a process left in the background may print on

    # Ending ----------------------------------------------------------------------------------------------------------

    def _stop(self, job: Job) -> None:
        """Begin to end a job with all that it started; asked a second time, at once."""
        if job.ending is not None:
            job.ending.hurry()
        elif job.pid:
            job.ending = Ending(lambda table: self._members(job, table), job.grace, job.pid)
            self._next_look = 0.0

    def _members(self, job: Job, table: "list[Row]") -> "set[int]":
        """Return the processes of a job: below its own, of its session, and orphans with its mark."""
        found = descendants(table, job.pid, job.pid) | ({job.pid} if job.status is None else set())
        orphans = [row for row in table if row.parent in {1, os.getpid()} and row.pid not in found]
        for pid in marked(orphans, f"{self._mark}{job.name}.".encode()):
            found |= {pid} | descendants(table, pid)
        return found

    def _close(self) -> None:
        """Begin to end everything."""
        if self._closing:
            return
        self._closing = True
        self._drop_spare()
        self._selector.unregister(0)
        self._congested = False
        for job in list(self._jobs.values()):
            job.credit = WINDOW
            self._watch_readers(job)
            if job.input_descriptor >= 0:
                self._close_input(job)
        mark = self._mark.encode()
        me = os.getpid()

        def ours(table: "list[Row]") -> "set[int]":
            orphans = [row for row in table if row.parent == 1]
            return (descendants(table, me) | marked(orphans, mark)) - {me}

        grace = max([job.grace for job in self._jobs.values()], default=self._grace)
        self._leaving = Ending(ours, grace)
        self._next_look = 0.0

    def _look(self, now: float) -> None:
        """Go on with what is to end."""
        ending = [job for job in self._jobs.values() if job.ending is not None]
        if not ending and self._leaving is None:
            return
        self._next_look = now + _TICK
        self._reap()
        table = process_table()
        if self._leaving is not None:
            if self._leaving.step(table):
                self._leaving = None
            return
        for job in ending:
            if job.ending is not None and job.ending.step(table):
                job.ending = None
                if job.status is not None:
                    self._settle(job)
                elif job.pid:  # what cannot be killed is left behind
                    self._end(job, b"failed", "it could not be killed")

    def _may_leave(self) -> bool:
        """Remove the directories, and say goodbye."""
        os.chdir("/")
        left = []
        for path in self._directories:
            try:
                remove_tree(path)
            except OSError as error:
                left.append(f"{path}: {error.strerror}")
        self._directories = []
        self._send(FAREWELL, 0, pack(*map(os.fsencode, left)))
        until = time.monotonic() + _PARTING
        while self._queue and time.monotonic() < until:
            self._flush()
            if self._queue:
                self._selector.select(0.05)
        return True

    # What goes out ---------------------------------------------------------------------------------------------------

    def _send(self, kind: int, name: int = 0, body: bytes = b"") -> None:
        self._send_raw(frame(kind, name, body))

    def _send_raw(self, data: bytes) -> None:
        self._queue.append(memoryview(data))
        self._queued += len(data)
        if self._queued > _CONGESTED and not self._congested:
            self._congest(True)

    def _congest(self, congested: bool) -> None:
        self._congested = congested
        for job in self._jobs.values():
            self._watch_readers(job)

    def _flush(self) -> None:
        """Write what waits, as far as the channel takes it."""
        try:
            while self._queue:
                pieces = [self._queue[index] for index in range(min(len(self._queue), 64))]
                written = os.writev(self._out, pieces)
                self._queued -= written
                while written:
                    if written < len(self._queue[0]):
                        self._queue[0] = self._queue[0][written:]
                        break
                    written -= len(self._queue.popleft())
        except BlockingIOError:
            pass
        except OSError:  # nobody reads any more
            self._queue.clear()
            self._queued = 0
            self._close()
        self._last_sent = time.monotonic()
        if self._congested and self._queued <= _CONGESTED // 2 and not self._closing:
            self._congest(False)
        if bool(self._queue) != self._out_watched:
            self._out_watched = not self._out_watched
            if self._out_watched:
                self._selector.register(self._out, selectors.EVENT_WRITE, self._flush)
            else:
                self._selector.unregister(self._out)


# The surroundings ----------------------------------------------------------------------------------------------------


def _environment() -> "dict[bytes, bytes]":
    """Return the environment that commands begin with."""
    environment = {os.fsencode(name): os.fsencode(value) for name, value in os.environ.items()}
    level = environment.get(b"SHLVL", b"")
    # bash reads ~/.bashrc again below ssh unless it sees that it is not the first shell there.
    environment[b"SHLVL"] = level if level.isdigit() and int(level) > 0 else b"1"
    return environment


def _login_shell() -> str:
    """Return the account's own shell where it reads what a POSIX shell reads, else /bin/sh."""
    shell = os.environ.get("SHELL", "")
    return shell if shell.rpartition("/")[2] in _BOURNE and os.access(shell, os.X_OK) else "/bin/sh"


def _start(argv: "list[str]", environment: "dict[bytes, bytes]", descriptors: "list[int]") -> int:
    """Start a program in a session of its own with three standard streams, and return its process id."""
    reset = [signal.SIGPIPE, signal.SIGXFSZ]  # Python ignores them; handlers go with the exec
    try:
        actions = [(os.POSIX_SPAWN_DUP2, descriptor, stream) for stream, descriptor in enumerate(descriptors)]
        return os.posix_spawn(argv[0], argv, environment, file_actions=actions, setsid=True, setsigdef=reset)
    except (AttributeError, NotImplementedError, TypeError):  # before Python 3.8, or a system without
        pass
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            for signal_number in reset:
                signal.signal(signal_number, signal.SIG_DFL)
            for stream, descriptor in enumerate(descriptors):
                os.dup2(descriptor, stream)
            os.execve(argv[0], argv, environment)
        except OSError as error:
            os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        finally:
            os._exit(126)
    return pid


def _raise_limit() -> "tuple[int, int] | None":
    """Allow this process as many descriptors as it may have, and return the limit for others (RLIMIT_NOFILE)."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource  # noqa: PLC0415 - not everywhere

        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        _set_limit(limits, raised=True)
        return limits
    return None


def _set_limit(limits: "tuple[int, int] | None", *, raised: bool = False) -> None:
    if limits is not None and limits[0] != limits[1]:
        import resource  # noqa: PLC0415 - as above

        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]) if raised else limits)


def _enlarge(descriptor: int) -> None:
    """Let a pipe with much to carry hold more (Linux)."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl  # noqa: PLC0415 - not everywhere

        fcntl.fcntl(descriptor, _SET_PIPE_SIZE, _LARGE_PIPE)


def _read_exactly(descriptor: int, length: int) -> bytes:
    """Read so many bytes; nothing where the other end was closed."""
    data = b""
    while len(data) < length:
        piece = os.read(descriptor, length - len(data))
        if not piece:
            return b""
        data += piece
    return data


def _close_all_but(*kept: int) -> None:
    """Close every descriptor above the standard streams but those."""
    try:
        names = os.listdir("/proc/self/fd" if sys.platform.startswith("linux") else "/dev/fd")
    except OSError:
        names = [str(descriptor) for descriptor in range(1024)]
    for descriptor in map(int, names):
        if descriptor > 2 and descriptor not in kept:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def remove_tree(path: str) -> None:
    """Remove a directory with all that is in it, read-only directories too; links are not followed."""
    try:
        os.chmod(path, 0o700)
        with os.scandir(path) as entries:
            found = list(entries)
    except FileNotFoundError:
        return
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            remove_tree(entry.path)
        else:
            os.unlink(entry.path)
    os.rmdir(path)


def main(token: str, mark: str, grace: float, working_dir: "str | None", probe: str) -> None:
    """Serve a runtime over standard input and output, until standard input ends."""
    out = os.dup(1)
    os.dup2(2, 1)
    adopt_orphans()
    prefix = os.path.join(os.environ.get("TMPDIR") or "/tmp", f"lazycluster-{token}.")  # noqa: S108 - made 0700
    supervisor = Supervisor(out, mark, prefix, grace)
    supervisor.begin(token, working_dir, probe)
    supervisor.serve()
