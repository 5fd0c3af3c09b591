"""The memory that a contestant takes on this side, as a program of its own: `python -m benchmarks.memory`.

It reads the name of a contestant and the hosts, as a pickle, and prints one line of JSON. It measures the memory that
its Python has gained since before it connected, and that of all its descendants. The sshds and their descendants do not
count. Memory is the proportional set size (proc(5), smaps_rollup): a page that several processes share counts once, a
part for each.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import pickle
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs

from benchmarks.contestants import Abilities, Contestant
from benchmarks.hosts import Hosts, open_masters
from benchmarks.many_hosts import WARM_CONTESTANTS
from benchmarks.processes import interactive_program, run_programs
from benchmarks.timing import failure_from
from lazycluster.testing._process_guard import descendant_pids

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_WARM_UP_COMMANDS = 3


@attrs.frozen
class Footprint:
    """The memory that the Python process has gained, that of its descendants, both in bytes, and their number.

    If it was not measured, `failed` says why.
    """

    python: int = 0
    programs: int = 0
    count: int = 0
    failed: str = ""


@contextlib.contextmanager
def _masters_and_clients(hosts: Hosts) -> Iterator[Abilities]:
    """Keep one ssh master and one ssh client through it for each host: the reference."""
    with open_masters(hosts) as through, contextlib.ExitStack() as stack:
        for name in hosts.names:
            client = stack.enter_context(interactive_program((*through.ssh, "--", name, "echo ready && exec cat")))
            client.stdout.readline()
        yield Abilities(lambda: None)


MEMORY_REFERENCE = Contestant("ssh master and client", _masters_and_clients)


def measure_in_subprocess(contestant: str, hosts: Hosts) -> Footprint:
    """Measure a contestant in a process of its own."""
    with interactive_program((sys.executable, "-m", "benchmarks.memory")) as program:
        program.send(pickle.dumps((contestant, hosts)))
        return Footprint(**json.loads(program.stdout.readline() or '{"failed": "it ended without a word"}'))


def _measure_footprint(contestant: Contestant[Hosts], hosts: Hosts) -> Footprint:
    if contestant.package is not None:
        importlib.import_module(contestant.package)
    # The first start of a program leaves memory behind, and later ones leave no more.
    run_programs([("true",)], 1)
    before = _pss_bytes(os.getpid())
    with contestant.open(hosts) as abilities:
        assert abilities.command is not None
        for _ in range(_WARM_UP_COMMANDS):
            abilities.command()
        gc.collect()
        programs = [size for size in map(_pss_bytes, descendant_pids(os.getpid())) if size]
        return Footprint(_pss_bytes(os.getpid()) - before, sum(programs), len(programs))


def _pss_bytes(pid: int) -> int:
    """Return the proportional set size of a process in bytes; 0 if it has ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        if not Path("/proc/self/smaps_rollup").exists():
            raise
        return 0
    return 1024 * int(text.partition("\nPss:")[2].split()[0])


def _main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if sys.platform == "linux":
        # So that an ssh that goes to the background stays a descendant of this process.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    name, hosts = pickle.load(sys.stdin.buffer)
    contestants = {each.name: each for each in (*WARM_CONTESTANTS, MEMORY_REFERENCE)}
    try:
        found = _measure_footprint(contestants[name], hosts)
    except Exception as error:  # noqa: BLE001 - every error is reported
        found = Footprint(failed=failure_from(error).reason)
    print(json.dumps(attrs.asdict(found)), flush=True)


if __name__ == "__main__":
    _main()
