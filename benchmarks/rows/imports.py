"""Row 9: what it takes to import the library."""

from __future__ import annotations

import sys

from benchmarks import ours, peers
from benchmarks.contestants import NOT_INSTALLED
from benchmarks.measuring import Entry, interleave
from benchmarks.processes import finish
from benchmarks.report import Check, Line, Measurement
from benchmarks.rows.bench import Bench
from benchmarks.targets import Plus

_BARE = "bare Python"
_UNWANTED = ("rich", "multiprocessing")
_MODULES = {
    ours.OURS: "lazycluster",
    "execnet": "execnet",
    "mitogen": "mitogen.master",
    "asyncssh": "asyncssh",
    "parallel-ssh": "pssh.clients",
    "fabric": "fabric",
}
_ROUNDS = 40
_QUICK_ROUNDS = 20


def measure(bench: Bench) -> None:
    """Compare interpreters that import with one that does not; and look for what is not to be imported."""
    installed = [each.name for each in peers.CONTESTANTS if each.is_installed()]
    entries = [Entry(_BARE, lambda: _python("pass"))]
    entries += [_entry(name, _MODULES[name]) for name in (ours.OURS, *installed)]
    found = interleave(entries, _QUICK_ROUNDS if bench.is_quick else _ROUNDS, warm_up=2)
    missing = {each.name: NOT_INSTALLED for each in peers.CONTESTANTS if each.name not in installed}
    bench.report.measured(
        Measurement("import in a fresh Python", {**found, **missing}, _BARE), (Check(Plus(0.060), _BARE),)
    )
    loaded = _python(f"import lazycluster, sys; print(*[name for name in {_UNWANTED} if name in sys.modules])")
    bench.report.judged(
        Line(
            "modules imported along",
            loaded.decode().strip() or "none",
            "unwanted ones",
            "",
            f"neither {' nor '.join(_UNWANTED)}",
            not loaded.strip(),
        )
    )


def _entry(name: str, module: str) -> Entry:
    return Entry(name, lambda: _python(f"import {module}"))


def _python(program: str) -> bytes:
    return finish((sys.executable, "-c", program))
