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

from lazycluster._remote.child import Job
from lazycluster._remote.process_tree import Ending, Row, adopt_orphans, descendants, marked, process_table
from lazycluster._remote.protocol import (
    ANSWER,
    ASK,
    CALL,
    ERRORS,
    FAREWELL,
    FORSAKE,
    GRANT,
    GREETING,
    INPUT,
    INPUT_END,
    LARGEST,
    OUTCOME,
    OUTPUT,
    PREPARE,
    PROTOCOL,
    PULSE,
    RUN,
    STARTED,
    STOP,
    Decoder,
    FrameError,
    number,
    pack,
    unpack,
)
from lazycluster._remote.send_queue import Outbox
from lazycluster._remote.spawn import Limit, Starter, as_words, base_environment, close_all, login_shell, unblock
from lazycluster._remote.temp_dirs import Directories
from lazycluster._remote.workers import Functions, Workers, setting

MARK = "LAZYCLUSTER-SUPERVISOR"
"""The first word of what the supervisor prints; the token follows, then a newline, then frames."""

INPUT_ENDED, LOGIN_SHELL = 1, 2
"""Flags of RUN and CALL."""

_TICK = 0.02  # seconds between two looks at processes that are to end
_TOLD_AFTER = 0.005  # seconds after which a job is told to have started, if it has not ended by then
_PULSE_EVERY = 60.0  # seconds; unanswered, they let the kernel notice a dead link (tcp(7), tcp_retries2)
_PARTING = 2.0  # seconds to get the last frame out
_READ = 1 << 18
_EXHAUSTED = frozenset((errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM))


class Supervisor:
    """Serves one runtime."""

    def __init__(self, out: int, mark: str, prefix: str, grace: float, *, adopts: bool) -> None:
        """Prepare to write frames to a descriptor, to mark processes, and to name temporary directories.

        `adopts` tells whether every orphan below this process becomes its child.
        """
        self._adopts = adopts
        self._mark = mark
        self._grace = grace
        self._bell, ring = os.pipe()
        unblock([0, out, self._bell, ring])
        signal.set_wakeup_fd(ring)
        for signal_number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signal_number, lambda _number, _frame: None)
        self._selector = selectors.DefaultSelector()
        self._selector.register(0, selectors.EVENT_READ, self._receive)
        self._selector.register(self._bell, selectors.EVENT_READ, self._rung)
        self._outbox = Outbox(out, self._selector, self._watch_all, self._close)
        self._decoder = Decoder()
        self._limit = Limit()
        self._starter = Starter(self._limit)
        self._functions = Functions()
        self._workers = Workers(self._functions, self._limit)
        self._directories = Directories(prefix)
        self._directory = self._directories.home
        self._environment = base_environment()
        self._jobs: dict[int, Job] = {}
        self._by_pid: dict[int, Job] = {}
        self._untold: deque[tuple[float, Job]] = deque()
        self._working_dir = b""
        self._closing = False
        self._leaving: Ending | None = None
        self._next_look = 0.0

    # The beginning ---------------------------------------------------------------------------------------------------

    def begin(self, token: str, working_dir: "str | None", probe: str) -> None:
        """Say that this is the supervisor, make the working directory, and ask what the machine has.

        `working_dir` is a directory to make where it is missing, `''` a temporary one, None no directory at all.
        """
        self._outbox.put(f"{MARK} {token}\n".encode("ascii"))
        failure = ""
        made = ""
        try:
            if working_dir is not None:
                made = self._directories.make(working_dir) if working_dir else self._directories.make_temporary()
        except OSError as error:
            failure = f"{error.filename or working_dir}: {error.strerror}"
        self._working_dir = os.fsencode(made)
        facts = bytearray()
        job = Job(0, self._grace, self._selector, self._outbox, lambda job: self._greet(job, bytes(facts), failure))
        job.collected = facts
        job.end_input()
        if probe and not failure:
            self._jobs[0] = job
            self._spawn(job, "/bin/sh", ["sh", "-c", probe, "sh"], {**self._environment, **known_to_python()})
        else:
            job.end(b"exit", b"0")
        self._outbox.flush()

    def _greet(self, job: Job, facts: bytes, failure: str) -> None:
        self._forget(job)
        version = ".".join(str(part) for part in sys.version_info[:3])
        about = (sys.implementation.name, version, sys.executable or "python", failure)
        fields = (*(os.fsencode(text) for text in about), number(os.getpid()), self._working_dir, facts[: LARGEST // 2])
        self._outbox.send(GREETING, 0, pack(number(PROTOCOL), *fields))

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
            if self._closing and self._leaving is None:
                self._outbox.send(FAREWELL, 0, pack(*map(os.fsencode, self._directories.remove())))
                self._outbox.drain(_PARTING)
                return
            if now - self._outbox.last_sent >= _PULSE_EVERY and not self._closing:
                self._outbox.send(PULSE)
                self._workers.drop()
            self._outbox.flush()
            if not self._closing:
                self._workers.look_after(now)

    def _patience(self) -> "float | None":
        """Return how long there is nothing to do by itself."""
        now = time.monotonic()
        due = now + _PULSE_EVERY if self._closing else self._outbox.last_sent + _PULSE_EVERY
        if self._untold:
            due = min(due, self._untold[0][0])
        if self._workers.due is not None:
            due = min(due, self._workers.due)
        if self._closing or any(job.ending for job in self._jobs.values()):
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

    def _reap(self) -> bool:
        """Collect what has ended, adopted processes too; tell whether there is no child any more."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            self._workers.ended(pid)
            job = self._by_pid.pop(pid, None)
            if job is not None:
                job.exited(status)

    # What comes in ---------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        try:
            data = os.read(0, _READ)
        except BlockingIOError:
            return
        except OSError:  # a socket may end with ECONNRESET
            data = b""
        if not data:
            self._close()
            return
        try:
            for kind, name, body in self._decoder.feed(data):
                try:
                    self._obey(kind, name, body)
                except Exception as error:
                    job = self._jobs.get(name)
                    if isinstance(error, FrameError) or job is None:
                        raise
                    job.end(b"failed", f"{type(error).__name__}: {error}")
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
            self._functions.load(*unpack(body))
        elif name in self._jobs:
            job = self._jobs[name]
            if kind == GRANT:
                job.grant(int(body))
            elif kind == INPUT:
                job.give(body)
            elif kind == INPUT_END:
                job.end_input()
            elif kind == STOP:
                job.stop(self._mark)
                self._next_look = 0.0
            elif kind == FORSAKE:
                job.forsake()

    def _ask(self, name: int, fields: "list[bytes]") -> None:
        """Answer a question that takes no time: `ok` and the answer, or `failed` and why."""
        try:
            answer = self._answer(fields[0].decode("ascii"), fields[1:])
        except Exception as error:  # noqa: BLE001 - told to whoever asked
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            self._outbox.send(ANSWER, name, pack(b"failed", os.fsencode(str(reason))))
        else:
            self._outbox.send(ANSWER, name, pack(b"ok", *answer))

    def _answer(self, what: str, arguments: "list[bytes]") -> "list[bytes]":
        if what == "tempdir":
            return [os.fsencode(self._directories.make_temporary())]
        if what == "forget":
            self._directories.forget([os.fsdecode(path) for path in arguments])
            return []
        if what == "ports":
            is_free = self._functions.is_free
            if is_free is None:
                raise RuntimeError(self._functions.failure)
            return [port for port in arguments if is_free(int(port))]
        if what != "ping":
            raise ValueError(what)
        return []

    # Jobs ------------------------------------------------------------------------------------------------------------

    def _run(self, name: int, fields: "list[bytes]") -> None:
        """Run a command: flags, working directory, grace, shell text, input so far; then the environment."""
        flags, directory, grace, text, data = fields[:5]
        job = self._new_job(name, grace, flags, data)
        if not self._enter(job, directory):
            return
        environment = dict(self._environment)
        own = self._own_variables(job, fields[5:])
        environment.update(zip(own[::2], own[1::2]))
        command = os.fsdecode(text)
        shell = login_shell() if int(flags) & LOGIN_SHELL else "/bin/sh"
        words = as_words(command, environment)
        if words is not None and self._spawn(job, words[0], words[1:], environment, lenient=True):
            return
        self._spawn(job, shell, [shell, "-c", command], environment)

    def _call(self, name: int, fields: "list[bytes]") -> None:
        """Call a function: flags, working directory, grace, name, request so far; then the environment."""
        flags, directory, grace, _, data = fields[:5]
        job = self._new_job(name, grace, flags, data)
        if self._functions.work is None:
            job.end(b"failed", self._functions.failure)
            return
        if not self._enter(job, directory):
            return
        try:
            worker = self._workers.take()
        except OSError as error:
            job.end(b"failed", f"no process for it: {error.strerror}")
            return
        job.done = self._functions.done_record(os.urandom(16))
        job.give_setting(setting(job.done, os.fsencode(self._directory), self._own_variables(job, fields[5:])))
        self._started(job, worker.pid, worker.feeding, ((worker.outcome, OUTCOME), (worker.printed, ERRORS)))

    def _new_job(self, name: int, grace: bytes, flags: bytes, data: bytes) -> Job:
        job = Job(name, float(grace), self._selector, self._outbox, self._forget)
        job.give(data)
        if int(flags) & INPUT_ENDED:
            job.end_input()
        self._jobs[name] = job
        return job

    def _forget(self, job: Job) -> None:
        self._jobs.pop(job.name, None)
        self._workers.call_ended()

    def _enter(self, job: Job, directory: bytes) -> bool:
        """Enter the working directory of a job; the supervisor itself has no use for one."""
        self._directory = self._directories.full(os.fsdecode(directory)) if directory else self._directories.home
        try:
            os.chdir(self._directory)
        except OSError as error:
            job.end(b"cd", error.strerror or "")
            return False
        return True

    def _own_variables(self, job: Job, variables: "list[bytes]") -> "list[bytes]":
        """Return the variables of a job beyond those of the supervisor: names and values in turn."""
        name, _, token = self._mark.partition("=")
        job_mark = os.fsencode(f"{token}{job.name}.")
        return [b"PWD", os.fsencode(self._directory), *variables, os.fsencode(name), job_mark]

    def _spawn(
        self, job: Job, program: str, argv: "list[str]", environment: "dict[bytes, bytes]", *, lenient: bool = False
    ) -> bool:
        """Start a program as a job. A failure ends the job as it would a shell's; where `lenient`, it returns False."""
        given: list[int] = []
        kept: list[int] = []
        try:
            if job.needs_input:
                source, feeding = os.pipe()
            else:
                source, feeding = os.open(os.devnull, os.O_RDONLY), -1
            given.append(source)
            kept.append(feeding)
            for _ in range(2):
                reading, writing = os.pipe()
                given.append(writing)
                kept.append(reading)
            pid = self._starter.start(program, argv, environment, given)
        except OSError as error:
            close_all(kept)
            if lenient:
                return False
            if error.errno in _EXHAUSTED:
                job.end(b"failed", f"no process for it: {error.strerror}")
            else:
                self._outbox.send(ERRORS, job.name, os.fsencode(f"{program}: {error.strerror}\n"))
                job.end(b"exit", number(126 << 8))
        else:
            unblock(kept)
            self._started(job, pid, kept[0], ((kept[1], OUTPUT), (kept[2], ERRORS)))
        finally:
            close_all(given)
        return True

    def _started(self, job: Job, pid: int, feeding: int, streams: "tuple[tuple[int, int], ...]") -> None:
        self._by_pid[pid] = job
        job.begin(pid, feeding, streams)
        if job.name:
            self._untold.append((time.monotonic() + _TOLD_AFTER, job))

    def _tell_started(self, now: float) -> None:
        while self._untold and self._untold[0][0] <= now:
            job = self._untold.popleft()[1]
            if not job.over:
                self._outbox.send(STARTED, job.name, number(job.pid))

    def _watch_all(self) -> None:
        for job in self._jobs.values():
            job.watch()

    # Ending ----------------------------------------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        """Go on with what is to end."""
        ending = [job for job in self._jobs.values() if job.ending is not None]
        if not ending and self._leaving is None:
            return
        self._next_look = now + _TICK
        childless = self._reap()
        if self._leaving is not None:
            if (childless and self._adopts) or self._leaving.step(process_table()):
                self._leaving = None
            return
        table = process_table()
        for job in ending:
            if job.ending is not None and job.ending.step(table):
                job.stopped()

    def _close(self) -> None:
        """Begin to end everything."""
        if self._closing:
            return
        self._closing = True
        self._selector.unregister(0)
        self._workers.drop()
        for job in self._jobs.values():
            job.leave()
        mark = self._mark.encode()
        me = os.getpid()

        def ours(table: "list[Row]") -> "set[int]":
            orphans = [row for row in table if row.parent == 1]
            return (descendants(table, me) | marked(orphans, mark)) - {me}

        self._leaving = Ending(ours, max([job.grace for job in self._jobs.values()], default=self._grace))
        self._next_look = 0.0


def known_to_python() -> "dict[bytes, bytes]":
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
    adopts = adopt_orphans()
    prefix = os.path.join(os.environ.get("TMPDIR") or "/tmp", f"lazycluster-{token}.")  # noqa: S108 - made 0700
    supervisor = Supervisor(out, mark, prefix, grace, adopts=adopts)
    supervisor.begin(token, None if working_dir is None else os.fsdecode(working_dir), probe)
    supervisor.serve()
    return 0 if adopts else 3
