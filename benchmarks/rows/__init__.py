"""The rows: the measurements, and the target of each."""

from __future__ import annotations

from benchmarks.rows import calls, commands, concurrency, files, imports, latency, login, scale, streams
from benchmarks.rows.bench import Bench, BenchmarkRow

ROWS = (
    BenchmarkRow(1, "A command on a warm runtime", commands.measure),
    BenchmarkRow(2, "A function on a warm runtime", calls.measure_small),
    BenchmarkRow(3, "A function that returns 1 MB", calls.measure_large),
    BenchmarkRow(4, "From nothing", login.measure),
    BenchmarkRow(5, "200 MB of output, and of a result", streams.measure),
    BenchmarkRow(6, "100 commands at once on one runtime", concurrency.measure),
    BenchmarkRow(7, "One large file", files.measure_file),
    BenchmarkRow(8, "A tree of small files", files.measure_tree),
    BenchmarkRow(9, "import lazycluster", imports.measure),
    BenchmarkRow(10, "Rows 1, 2 and 8 at 20 ms round-trip time", latency.measure),
    BenchmarkRow(11, "A command on many hosts", scale.measure_warm),
    BenchmarkRow(12, "A command on many hosts, from nothing", scale.measure_cold),
    BenchmarkRow(13, "Memory for many hosts", scale.measure_memory),
    BenchmarkRow(14, "Items spread over hosts", scale.measure_map),
)

__all__ = ["ROWS", "Bench", "BenchmarkRow"]
