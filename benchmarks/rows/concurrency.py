"""Row 6: many commands at once, and the processes and connections that they take."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from benchmarks import baselines, variants
from benchmarks.contestants import Abilities, expect
from benchmarks.processes import count_children
from benchmarks.report import Check, Judgement, Measurement
from benchmarks.rows.bench import Bench
from benchmarks.targets import MaxRatio
from benchmarks.timing import Entry, interleave
from lazycluster import Runtime

_CONCURRENT_COMMANDS = 100
_CONCURRENCY_ROUNDS = 15
_QUICK_CONCURRENCY_ROUNDS = 7
_COMMAND_TIMEOUT_SECONDS = 60.0


def measure(bench: Bench) -> None:
    """Compare 100 commands from as many threads with the same number one after another in a persistent shell."""
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(_started_threads())
        shell = stack.enter_context(baselines.PERSISTENT_SHELL.open(bench.site))
        entries = [Entry(baselines.PERSISTENT_SHELL.name, lambda: _run_sequentially(shell))]
        runtimes = {
            name: stack.enter_context(variants.new_runtime(bench.site, **options))
            for name, options in variants.VARIANT_OPTIONS.items()
        }
        entries += [_entry(name, pool, runtime) for name, runtime in runtimes.items()]
        found = interleave(entries, _QUICK_CONCURRENCY_ROUNDS if bench.is_quick else _CONCURRENCY_ROUNDS, warm_up=2)
        bench.report.add_measurement(
            Measurement("100 x `true` at once", found, baselines.PERSISTENT_SHELL.name),
            (Check(MaxRatio(1.5), baselines.PERSISTENT_SHELL.name),),
        )
        _count_resources(bench, pool, runtimes[variants.LAZYCLUSTER])


@contextlib.contextmanager
def _started_threads() -> Iterator[ThreadPoolExecutor]:
    """Keep as many threads as there are commands, all started, because their start is not to be measured."""
    with ThreadPoolExecutor(_CONCURRENT_COMMANDS) as pool:
        all_there = threading.Barrier(_CONCURRENT_COMMANDS, timeout=_COMMAND_TIMEOUT_SECONDS)
        list(pool.map(lambda _: all_there.wait(), range(_CONCURRENT_COMMANDS)))
        yield pool


def _entry(name: str, pool: ThreadPoolExecutor, runtime: Runtime) -> Entry:
    return Entry(name, lambda: _run_concurrently(pool, runtime))


def _run_concurrently(pool: ThreadPoolExecutor, runtime: Runtime) -> None:
    statuses = pool.map(
        lambda _: runtime.run("true", timeout=_COMMAND_TIMEOUT_SECONDS).exit_code, range(_CONCURRENT_COMMANDS)
    )
    expect([0] * _CONCURRENT_COMMANDS, list(statuses))


def _run_sequentially(shell: Abilities) -> None:
    assert shell.command is not None
    for _ in range(_CONCURRENT_COMMANDS):
        shell.command()


def _count_resources(bench: Bench, pool: ThreadPoolExecutor, runtime: Runtime) -> None:
    """Compare the numbers of ssh processes and connections before and during commands; counting takes time: untimed."""

    def now() -> tuple[int, int]:
        return count_children("ssh"), bench.site.sshd.connections()

    before = now()
    # Slower commands than `true`, so that there is something to count.
    running = [
        pool.submit(runtime.run, "sleep 0.2", timeout=_COMMAND_TIMEOUT_SECONDS) for _ in range(_CONCURRENT_COMMANDS)
    ]
    during = [now()]
    while not all(each.done() for each in running):
        during.append(now())
    expect([0] * _CONCURRENT_COMMANDS, [each.result().exit_code for each in running])
    most = tuple(max(counts) for counts in zip(*during, strict=True))
    for what, was, most_were in zip(("ssh child processes", "connections"), before, most, strict=True):
        bench.report.add_judgement(
            Judgement(
                f"{what}, during that", str(most_were), f"{was} before", "", "no more than before", most_were <= was
            )
        )
