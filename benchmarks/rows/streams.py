"""Row 5: much output, and a large result."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from benchmarks import baselines, remote, variants
from benchmarks.contestants import expect
from benchmarks.processes import read_output
from benchmarks.report import Check, Measurement
from benchmarks.rows.bench import Bench
from benchmarks.sites import open_master
from benchmarks.targets import MinRateShare
from benchmarks.timing import Entry, interleave
from lazycluster import Runtime

_STREAM_BYTES = 200_000_000
_BLOCK_BYTES = 1_000_000
_STREAM_ROUNDS = 7
_QUICK_STREAM_ROUNDS = 5


def measure(bench: Bench) -> None:
    """Compare with `ssh host cat file` through a master; all keep the bytes that they read."""
    rounds = _QUICK_STREAM_ROUNDS if bench.is_quick else _STREAM_ROUNDS
    file = bench.site.home / "stream"
    with contextlib.ExitStack() as stack:
        stack.callback(file.unlink)
        with file.open("wb") as out:
            for number in range(_STREAM_BYTES // _BLOCK_BYTES):
                out.write(number.to_bytes(4, "big") * (_BLOCK_BYTES // 4))
        master = stack.enter_context(open_master(bench.site))
        runtimes = {
            name: stack.enter_context(variants.new_runtime(bench.site, **options))
            for name, options in variants.VARIANT_OPTIONS.items()
        }
        resident = stack.enter_context(baselines.RESIDENT_PYTHON.open(bench.site)).call
        assert resident is not None
        plain = _entry(
            baselines.SSH_THROUGH_MASTER.name, lambda: read_output((*master.ssh, "--", bench.site.host, f"cat {file}"))
        )
        output = [plain, *(_entry(name, _output_of(runtime, f"cat {file}")) for name, runtime in runtimes.items())]
        callers = {
            **{name: runtime.call for name, runtime in runtimes.items()},
            baselines.RESIDENT_PYTHON.name: resident,
        }
        results = [plain, *(_entry(name, _result_of(call, str(file))) for name, call in callers.items())]
        for label, entries in (("200 MB of output, `run`", output), ("200 MB as a result, `call`", results)):
            found = interleave(entries, rounds, warm_up=1)
            bench.report.add_measurement(
                Measurement(label, found, baselines.SSH_THROUGH_MASTER.name, volume=_STREAM_BYTES),
                (Check(MinRateShare(0.8), baselines.SSH_THROUGH_MASTER.name),),
            )


def _entry(name: str, read: Callable[[], bytes]) -> Entry:
    return Entry(name, lambda: expect(_STREAM_BYTES, len(read())))


def _output_of(runtime: Runtime, command: str) -> Callable[[], bytes]:
    return lambda: runtime.run(command).stdout_bytes


def _result_of(call: Callable[..., object], path: str) -> Callable[[], bytes]:
    def read() -> bytes:
        found = call(remote.read_file, path)
        assert isinstance(found, bytes)
        return found

    return read
