"""Row 9: the time that an import of the library takes."""

from __future__ import annotations

import sys

from benchmarks import peers, variants
from benchmarks.contestants import NOT_INSTALLED
from benchmarks.processes import run_program
from benchmarks.report import Check, Judgement, Measurement
from benchmarks.rows.bench import Bench
from benchmarks.targets import MaxExtraSeconds
from benchmarks.timing import Entry, interleave

_BARE_PYTHON = "bare Python"
_UNWANTED_MODULES = ("rich", "multiprocessing")
_CONTESTANT_MODULES = {
    variants.LAZYCLUSTER: "lazycluster",
    "execnet": "execnet",
    "mitogen": "mitogen.master",
    "asyncssh": "asyncssh",
    "parallel-ssh": "pssh.clients",
    "fabric": "fabric",
}
_IMPORT_ROUNDS = 40
_QUICK_IMPORT_ROUNDS = 20


def measure(bench: Bench) -> None:
    """Compare interpreters that import with one that does not; and look for modules that must not be imported."""
    installed = [each.name for each in peers.PEER_CONTESTANTS if each.is_installed()]
    entries = [Entry(_BARE_PYTHON, lambda: _run_python("pass"))]
    entries += [_entry(name, _CONTESTANT_MODULES[name]) for name in (variants.LAZYCLUSTER, *installed)]
    found = interleave(entries, _QUICK_IMPORT_ROUNDS if bench.is_quick else _IMPORT_ROUNDS, warm_up=2)
    missing = {each.name: NOT_INSTALLED for each in peers.PEER_CONTESTANTS if each.name not in installed}
    bench.report.add_measurement(
        Measurement("import in a fresh Python", {**found, **missing}, _BARE_PYTHON),
        (Check(MaxExtraSeconds(0.060), _BARE_PYTHON),),
    )
    loaded = _run_python(
        f"import lazycluster, sys; print(*[name for name in {_UNWANTED_MODULES} if name in sys.modules])"
    )
    bench.report.add_judgement(
        Judgement(
            "modules imported along",
            loaded.decode().strip() or "none",
            "unwanted ones",
            "",
            f"neither {' nor '.join(_UNWANTED_MODULES)}",
            not loaded.strip(),
        )
    )


def _entry(name: str, module: str) -> Entry:
    return Entry(name, lambda: _run_python(f"import {module}"))


def _run_python(program: str) -> bytes:
    return run_program((sys.executable, "-c", program))
