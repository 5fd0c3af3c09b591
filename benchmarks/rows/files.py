"""Rows 7 and 8: files, one way and the other."""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from benchmarks import ours
from benchmarks.contestants import expect
from benchmarks.measuring import Entry, Outcomes, interleave
from benchmarks.processes import finish, pipe
from benchmarks.report import Check, Measurement
from benchmarks.rows.bench import Bench
from benchmarks.sites import Master, Site, master
from benchmarks.targets import Times
from lazycluster import Runtime, RuntimeTask

_MIB = 1 << 20
_SCP = "scp through a master"
TAR = "tar through ssh"
_DIRECTORIES = 50
_FILES_EACH = 100
_FILE_SIZE = 2048
_TIMEOUT = 300.0
_COPIES = 4  # of the large file at once, with one to spare
TREE_CHECKS = (Check(Times(1.5), TAR),)
"""The target for a tree, wherever it is moved."""


@attrs.frozen
class _Move:
    """What is moved from one side to the other, by a task and by the reference."""

    label: str
    source: Path
    target: Path
    task: RuntimeTask
    reference: Callable[[], object]


def measure_file(bench: Bench) -> None:
    """Compare with scp."""
    size = (64 if bench.is_quick else 1024) * _MIB
    free = min(shutil.disk_usage(path).free for path in (bench.site.directory, bench.site.home))
    if free < _COPIES * size:
        bench.report.note(f"left out: it takes {_COPIES * size // _MIB} MiB of disk, and {free // _MIB} MiB are free")
        return
    with _both_sides(bench.site) as (here, there), master(bench.site) as link:
        _write(here / "file", size)
        shutil.copyfile(here / "file", there / "file")
        for move in _moves(here / "file", there / "file", *_scp(link, here / "file", there / "file")):
            found = _outcomes(bench.site, move, _SCP, rounds=9 if bench.is_quick else 3)
            measurement = Measurement(f"{size // _MIB} MiB, {move.label}", found, _SCP, volume=size)
            bench.report.measured(measurement, (Check(Times(1.1), _SCP),))


def measure_tree(bench: Bench) -> None:
    """Compare with tar."""
    for label, found in tree_outcomes(bench.site, rounds=7 if bench.is_quick else 15):
        bench.report.measured(Measurement(label, found, TAR), TREE_CHECKS)


def tree_outcomes(site: Site, rounds: int) -> Iterator[tuple[str, Outcomes]]:
    """Measure 5,000 files of 2 KiB either way, and yield each with its label."""
    with _both_sides(site) as (here, there), master(site) as link:
        for number in range(_DIRECTORIES):
            directory = here / "tree" / f"directory-{number}"
            directory.mkdir(parents=True)
            for name in range(_FILES_EACH):
                _write(directory / f"file-{name}.txt", _FILE_SIZE)
        shutil.copytree(here / "tree", there / "tree")
        for move in _moves(here / "tree", there / "tree", *_tar(link, here / "tree", there / "tree")):
            yield f"{_DIRECTORIES * _FILES_EACH} files, {move.label}", _outcomes(site, move, TAR, rounds)


# The moves ------------------------------------------------------------------------------------------------------------


def _moves(here: Path, there: Path, put: Callable[[], object], get: Callable[[], object]) -> tuple[_Move, _Move]:
    sent, fetched = _target(there), _target(here)
    return (
        _Move("`send_file`", here, sent, RuntimeTask().send_file(here, str(sent)), put),
        _Move("`get_file`", there, fetched, RuntimeTask().get_file(str(there), fetched), get),
    )


def _scp(link: Master, here: Path, there: Path) -> tuple[Callable[[], object], Callable[[], object]]:
    to, back = f"{link.site.host}:{_target(there)}", f"{link.site.host}:{there}"
    return (
        lambda: finish((*link.scp, "--", str(here), to)),
        lambda: finish((*link.scp, "--", back, str(_target(here)))),
    )


def _tar(link: Master, here: Path, there: Path) -> tuple[Callable[[], object], Callable[[], object]]:
    pack = "tar -C {} -cf - ."
    unpack = "mkdir {0} && tar -C {0} -xf -"
    ssh = (*link.ssh, "--", link.site.host)
    return (
        lambda: pipe(_local(pack.format(here)), (*ssh, unpack.format(_target(there)))),
        lambda: pipe((*ssh, pack.format(there)), _local(unpack.format(_target(here)))),
    )


def _target(path: Path) -> Path:
    return path.with_name("moved")


def _local(script: str) -> tuple[str, ...]:
    return ("sh", "-c", script)


# Measuring them -------------------------------------------------------------------------------------------------------


def _outcomes(site: Site, move: _Move, reference: str, rounds: int) -> Outcomes:
    wanted = _inventory(move.source)

    def check_and_remove() -> None:
        try:
            expect(wanted, _inventory(move.target))
        finally:
            _remove(move.target)

    with ours.runtime_on(site) as runtime:
        entries = (
            Entry(ours.OURS, _execution(runtime, move.task), check_and_remove, _TIMEOUT),
            Entry(reference, move.reference, check_and_remove, _TIMEOUT),
        )
        return interleave(entries, rounds, warm_up=1)


def _execution(runtime: Runtime, task: RuntimeTask) -> Callable[[], object]:
    return lambda: runtime.execute_task(task, execute_async=False)


def _inventory(path: Path) -> tuple[int, int]:
    """Return how many files there are, and how many bytes."""
    sizes = [each.stat().st_size for each in (path, *path.rglob("*")) if each.is_file()]
    return len(sizes), sum(sizes)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write(path: Path, size: int) -> None:
    """Write what does not compress."""
    block = random.randbytes(min(size, _MIB))
    with path.open("wb") as file:
        for _ in range(size // len(block)):
            file.write(block)


@contextlib.contextmanager
def _both_sides(site: Site) -> Iterator[tuple[Path, Path]]:
    """Give an empty directory on this side, and one on the other, for a block."""
    here, there = site.directory / "files", site.home / "files"
    try:
        here.mkdir()
        there.mkdir()
        yield here, there
    finally:
        shutil.rmtree(here, ignore_errors=True)
        shutil.rmtree(there, ignore_errors=True)
