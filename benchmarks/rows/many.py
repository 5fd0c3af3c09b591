"""Row 6: many commands at once, and what they take on this side."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from benchmarks import floors, ours
from benchmarks.contestants import Abilities, expect
from benchmarks.measuring import Entry, interleave
from benchmarks.processes import count_children
from benchmarks.report import Check, Line, Measurement
from benchmarks.rows.bench import Bench
from benchmarks.targets import Times
from lazycluster import Runtime

_COMMANDS = 100
_ROUNDS = 15
_QUICK_ROUNDS = 7
_TIMEOUT = 60.0


def measure(bench: Bench) -> None:
    """Compare 100 commands from as many threads with the same number one after another in a persistent shell."""
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(_threads())
        shell = stack.enter_context(floors.SHELL.open(bench.site))
        entries = [Entry(floors.SHELL.name, lambda: _in_a_row(shell))]
        runtimes = {
            name: stack.enter_context(ours.runtime_on(bench.site, **options)) for name, options in ours.OPTIONS.items()
        }
        entries += [_entry(name, pool, runtime) for name, runtime in runtimes.items()]
        found = interleave(entries, _QUICK_ROUNDS if bench.is_quick else _ROUNDS, warm_up=2)
        bench.report.measured(
            Measurement("100 x `true` at once", found, floors.SHELL.name), (Check(Times(1.5), floors.SHELL.name),)
        )
        _count(bench, pool, runtimes[ours.OURS])


@contextlib.contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Keep as many threads as there are commands, all started: that is nobody's work that is measured."""
    with ThreadPoolExecutor(_COMMANDS) as pool:
        all_there = threading.Barrier(_COMMANDS, timeout=_TIMEOUT)
        list(pool.map(lambda _: all_there.wait(), range(_COMMANDS)))
        yield pool


def _entry(name: str, pool: ThreadPoolExecutor, runtime: Runtime) -> Entry:
    return Entry(name, lambda: _at_once(pool, runtime))


def _at_once(pool: ThreadPoolExecutor, runtime: Runtime) -> None:
    statuses = pool.map(lambda _: runtime.run("true", timeout=_TIMEOUT).exit_code, range(_COMMANDS))
    expect([0] * _COMMANDS, list(statuses))


def _in_a_row(shell: Abilities) -> None:
    assert shell.command is not None
    for _ in range(_COMMANDS):
        shell.command()


def _count(bench: Bench, pool: ThreadPoolExecutor, runtime: Runtime) -> None:
    """Compare the numbers of ssh processes and connections before and meanwhile; untimed, as counting takes time."""

    def now() -> tuple[int, int]:
        return count_children("ssh"), bench.site.sshd.connections()

    before = now()
    # Slower commands than `true`, so that there is something to be seen.
    running = [pool.submit(runtime.run, "sleep 0.2", timeout=_TIMEOUT) for _ in range(_COMMANDS)]
    meanwhile = [now()]
    while not all(each.done() for each in running):
        meanwhile.append(now())
    expect([0] * _COMMANDS, [each.result().exit_code for each in running])
    most = tuple(max(counts) for counts in zip(*meanwhile, strict=True))
    for what, was, most_were in zip(("ssh child processes", "connections"), before, most, strict=True):
        bench.report.judged(
            Line(f"{what} meanwhile", str(most_were), f"{was} before", "", "no more than before", most_were <= was)
        )
