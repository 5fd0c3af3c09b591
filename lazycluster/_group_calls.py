"""Calls on a group: one command or function on every host, or a function with each of many items."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from typing import BinaryIO, TypeVar, cast

import attrs

from lazycluster import _invoke
from lazycluster._display import count_bar
from lazycluster._gather import CancelGroup, check_on_error, gather, unwrap_all, values_or_errors
from lazycluster._mapping import MapScheduler
from lazycluster._membership import Members
from lazycluster._model.call_options import CallOptions
from lazycluster._model.checks import is_whole_number, split_stdin
from lazycluster._model.command import Command
from lazycluster._model.input_source import FileView, read_pieces
from lazycluster._model.output_callbacks import CallbackThread
from lazycluster._model.run_options import RunOptions, check_callback
from lazycluster._prefixed_output import PrefixedOutput
from lazycluster._runtime_core import core_of
from lazycluster._step_output import choose_call_output
from lazycluster._waiting import CancelToken, interrupt_boundary
from lazycluster.results import CommandResult, Error, OnError, Stream, Value
from lazycluster.runtimes import Runtime
from lazycluster.steps import check_callable, function_name

T = TypeVar("T")
X = TypeVar("X")


@attrs.frozen
class GroupCommand:
    """A command for every host, with the options of `RuntimeGroup.run()`.

    Raises:
        ValueError: If an option is out of range.
    """

    program: str | Sequence[str]
    cwd: str | None
    env: Mapping[str, str] | None
    stdin: str | bytes | BinaryIO
    timeout: float | None
    check: bool
    on_output: Callable[[str, Stream, bytes], object] | None = attrs.field(validator=check_callback)
    on_line: Callable[[str, Stream, str], object] | None = attrs.field(validator=check_callback)
    max_output: int | None
    at_once: int | None

    def __attrs_post_init__(self) -> None:
        # Checks all before any host is contacted.
        if self.at_once is not None and not is_whole_number(self.at_once, 1):
            raise ValueError(f"at_once must be a whole number from 1 on or None, got {self.at_once!r}")
        Command(self.program, cwd=self.cwd, env=self.env, stdin=split_stdin(self.stdin)[0], timeout=self.timeout)
        self.options_for("")

    @property
    def title(self) -> str:
        """The name of the command."""
        return Command(self.program).title

    def options_for(self, host: str) -> RunOptions:
        """Return the options for one host, whose callbacks get the host first."""
        on_output = None if self.on_output is None else functools.partial(self.on_output, host)
        on_line = None if self.on_line is None else functools.partial(self.on_line, host)
        return RunOptions(self.check, on_output, on_line, self.max_output)

    def run(self, members: Members, on_error: OnError) -> Mapping[str, CommandResult | Error]:
        """Run the command on every host; one thread calls the callbacks for all hosts."""
        check_on_error(on_error)
        with (
            CallbackThread() if self.options_for("").has_callbacks else contextlib.nullcontext() as thread,
            _readable_often(self.stdin) as open_stdin,
        ):

            def work(runtime: Runtime, cancel_token: CancelToken) -> CommandResult:
                core = core_of(runtime)
                command = core.command(
                    self.program, cwd=self.cwd, env=self.env, stdin=open_stdin(), timeout=self.timeout
                )
                return core.run(command, self.options_for(runtime.host), cancel_token, thread)

            return run_on_all(members, work, f"`{self.title}`", on_error, at_once=self.at_once)


@contextlib.contextmanager
def _readable_often(stdin: str | bytes | BinaryIO) -> Iterator[Callable[[], str | bytes | BinaryIO]]:
    """Yield a function that returns the standard input for one more host; a temporary file keeps that of a file."""
    _, source = split_stdin(stdin)
    if source is None:
        yield lambda: stdin
        return
    with tempfile.TemporaryFile() as spool:
        for piece in read_pieces(source):
            spool.write(piece)
        spool.flush()
        yield lambda: cast("BinaryIO", FileView(spool.fileno()))


def call_function(
    members: Members,
    function: Callable[..., T],
    on_error: OnError,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    options: CallOptions,
) -> Mapping[str, T | Error]:
    """Call a function on every host; see `RuntimeGroup.with_options()`."""
    payload = _invoke.serialize(function, args, kwargs)
    options = attrs.evolve(options, output=choose_call_output(options.output))
    prefixed = PrefixedOutput(list(members.require())) if options.output == "print" else None

    def work(runtime: Runtime, cancel_token: CancelToken) -> T:
        value = core_of(runtime).call(payload, cancel_token, options=options, prefixed_output=prefixed)
        return cast("T", value)

    return run_on_all(members, work, function_name(function), on_error)


def run_on_all(
    members: Members,
    work: Callable[[Runtime, CancelToken], T],
    action: str,
    on_error: OnError,
    *,
    at_once: int | None = None,
) -> Mapping[str, T | Error]:
    """Do the same work on every host; an interruption (Ctrl-C) ends it on the hosts.

    With `at_once` the hosts are done in batches of that number. If errors are raised, no batch begins after a failure.
    """
    check_on_error(on_error)
    runtimes = members.require()
    cancel_group = CancelGroup()
    hosts = list(runtimes)
    outcomes: dict[str, Value[T] | Error] = {}
    with count_bar(action, len(runtimes), "hosts", shown=members.progress) as advance:
        while hosts and not (on_error == "raise" and any(isinstance(done, Error) for done in outcomes.values())):
            batch, hosts = hosts[:at_once], hosts[len(hosts) if at_once is None else at_once :]
            outcomes |= gather(
                {host: functools.partial(cancel_group.run, functools.partial(work, runtimes[host])) for host in batch},
                on_result=lambda _, outcome: advance(isinstance(outcome, Value)),
                cancel=cancel_group.cancel,
            )
    return unwrap_all(outcomes, action, not_started=hosts) if on_error == "raise" else values_or_errors(outcomes)


def map_items(
    members: Members,
    function: Callable[[X], T],
    iterable: Iterable[X],
    on_error: OnError,
    *,
    ordered: bool,
    retries: int,
) -> Generator[T | Error, None, None]:
    """Call a function with each item, on the next free host; see `RuntimeGroup.map()`."""
    check_callable(function)
    check_on_error(on_error)
    if not is_whole_number(retries, 0):
        raise ValueError(f"retries must be a whole number from 0 on, got {retries!r}")
    runtimes = list(members.require().values())
    scheduler = MapScheduler(runtimes, function, iter(iterable), ordered=ordered, retries=retries)
    total = len(iterable) if isinstance(iterable, Sized) else None
    return _iter_results(members, scheduler, on_error, function_name(function), total)


def _iter_results(
    members: Members, scheduler: MapScheduler[X, T], on_error: OnError, title: str, total: int | None
) -> Generator[T | Error, None, None]:
    with interrupt_boundary, count_bar(title, total, "items", shown=members.progress) as advance, scheduler:
        for outcome in scheduler:
            advance(isinstance(outcome, Value))
            if isinstance(outcome, Value):
                yield outcome.value
            elif on_error == "collect":
                yield outcome
            else:
                outcome.unwrap()
