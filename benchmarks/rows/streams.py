"""Row 5: much output, and a large result."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from benchmarks import floors, ours, remote
from benchmarks.contestants import expect
from benchmarks.measuring import Entry, interleave
from benchmarks.processes import read_all
from benchmarks.report import Check, Measurement
from benchmarks.rows.bench import Bench
from benchmarks.sites import master
from benchmarks.targets import Share
from lazycluster import Runtime

_SIZE = 200_000_000
_BLOCK = 1_000_000
_ROUNDS = 7
_QUICK_ROUNDS = 5


def measure(bench: Bench) -> None:
    """Compare with `ssh host cat file` through a master; all keep what they read, as bytes."""
    rounds = _QUICK_ROUNDS if bench.is_quick else _ROUNDS
    file = bench.site.home / "stream"
    with contextlib.ExitStack() as stack:
        stack.callback(file.unlink)
        with file.open("wb") as out:
            for number in range(_SIZE // _BLOCK):
                out.write(number.to_bytes(4, "big") * (_BLOCK // 4))
        link = stack.enter_context(master(bench.site))
        runtimes = {
            name: stack.enter_context(ours.runtime_on(bench.site, **options)) for name, options in ours.OPTIONS.items()
        }
        resident = stack.enter_context(floors.RESIDENT.open(bench.site)).call
        assert resident is not None
        plain = _entry(floors.RAW_SSH.name, lambda: read_all((*link.ssh, "--", bench.site.host, f"cat {file}")))
        output = [plain, *(_entry(name, _output_of(runtime, f"cat {file}")) for name, runtime in runtimes.items())]
        callers = {**{name: runtime.call for name, runtime in runtimes.items()}, floors.RESIDENT.name: resident}
        results = [plain, *(_entry(name, _result_of(call, str(file))) for name, call in callers.items())]
        for label, entries in (("200 MB of output, `run`", output), ("200 MB as a result, `call`", results)):
            found = interleave(entries, rounds, warm_up=1)
            bench.report.measured(
                Measurement(label, found, floors.RAW_SSH.name, volume=_SIZE),
                (Check(Share(0.8), floors.RAW_SSH.name),),
            )


def _entry(name: str, read: Callable[[], bytes]) -> Entry:
    return Entry(name, lambda: expect(_SIZE, len(read())))


def _output_of(runtime: Runtime, command: str) -> Callable[[], bytes]:
    return lambda: runtime.run(command).stdout_bytes


def _result_of(call: Callable[..., object], path: str) -> Callable[[], bytes]:
    def read() -> bytes:
        found = call(remote.read_file, path)
        assert isinstance(found, bytes)
        return found

    return read
