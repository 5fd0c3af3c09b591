"""Rows 7 and 8: files, one way and the other."""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from benchmarks import variants
from benchmarks.contestants import expect
from benchmarks.processes import pipe, run_program
from benchmarks.report import Check, Measurement
from benchmarks.rows.bench import Bench
from benchmarks.sites import ControlMaster, Site, open_master
from benchmarks.targets import MaxRatio
from benchmarks.timing import Entry, Outcomes, interleave
from lazycluster import Runtime, RuntimeTask

_MIB = 1 << 20
_SCP_REFERENCE = "scp through a master"
TAR_REFERENCE = "tar through ssh"
_TREE_DIRECTORIES = 50
_FILES_PER_DIRECTORY = 100
_TREE_FILE_BYTES = 2048
_MOVE_TIMEOUT_SECONDS = 300.0
_DISK_COPIES = 4  # of the large file at once, with one to spare
TREE_CHECKS = (Check(MaxRatio(1.5), TAR_REFERENCE),)
"""The target for a tree, wherever it is moved."""


@attrs.frozen
class _Move:
    """A file or tree that a task and the reference move from one side to the other."""

    label: str
    source: Path
    target: Path
    task: RuntimeTask
    reference: Callable[[], object]


def measure_file(bench: Bench) -> None:
    """Compare with scp."""
    size = (64 if bench.is_quick else 1024) * _MIB
    free = min(shutil.disk_usage(path).free for path in (bench.site.directory, bench.site.home))
    if free < _DISK_COPIES * size:
        bench.report.note(
            f"left out: it takes {_DISK_COPIES * size // _MIB} MiB of disk, and {free // _MIB} MiB are free"
        )
        return
    with _local_and_remote_directories(bench.site) as (local, remote), open_master(bench.site) as master:
        _write_random_file(local / "file", size)
        shutil.copyfile(local / "file", remote / "file")
        for move in _make_moves(
            local / "file", remote / "file", *_scp_commands(master, local / "file", remote / "file")
        ):
            found = _measure_move(bench.site, move, _SCP_REFERENCE, rounds=9 if bench.is_quick else 3)
            measurement = Measurement(f"{size // _MIB} MiB, {move.label}", found, _SCP_REFERENCE, volume=size)
            bench.report.add_measurement(measurement, (Check(MaxRatio(1.1), _SCP_REFERENCE),))


def measure_tree(bench: Bench) -> None:
    """Compare with tar."""
    for label, found in tree_outcomes(bench.site, rounds=7 if bench.is_quick else 15):
        bench.report.add_measurement(Measurement(label, found, TAR_REFERENCE), TREE_CHECKS)


def tree_outcomes(site: Site, rounds: int) -> Iterator[tuple[str, Outcomes]]:
    """Measure 5,000 files of 2 KiB either way, and yield each with its label."""
    with _local_and_remote_directories(site) as (local, remote), open_master(site) as master:
        for number in range(_TREE_DIRECTORIES):
            directory = local / "tree" / f"directory-{number}"
            directory.mkdir(parents=True)
            for name in range(_FILES_PER_DIRECTORY):
                _write_random_file(directory / f"file-{name}.txt", _TREE_FILE_BYTES)
        shutil.copytree(local / "tree", remote / "tree")
        for move in _make_moves(
            local / "tree", remote / "tree", *_tar_commands(master, local / "tree", remote / "tree")
        ):
            yield (
                f"{_TREE_DIRECTORIES * _FILES_PER_DIRECTORY} files, {move.label}",
                _measure_move(site, move, TAR_REFERENCE, rounds),
            )


# The moves ------------------------------------------------------------------------------------------------------------


def _make_moves(local: Path, remote: Path, put: Callable[[], object], get: Callable[[], object]) -> tuple[_Move, _Move]:
    sent, fetched = _target(remote), _target(local)
    return (
        _Move("`send_file`", local, sent, RuntimeTask().send_file(local, str(sent)), put),
        _Move("`get_file`", remote, fetched, RuntimeTask().get_file(str(remote), fetched), get),
    )


def _scp_commands(
    master: ControlMaster, local: Path, remote: Path
) -> tuple[Callable[[], object], Callable[[], object]]:
    to, back = f"{master.site.host}:{_target(remote)}", f"{master.site.host}:{remote}"
    return (
        lambda: run_program((*master.scp, "--", str(local), to)),
        lambda: run_program((*master.scp, "--", back, str(_target(local)))),
    )


def _tar_commands(
    master: ControlMaster, local: Path, remote: Path
) -> tuple[Callable[[], object], Callable[[], object]]:
    pack = "tar -C {} -cf - ."
    unpack = "mkdir {0} && tar -C {0} -xf -"
    ssh = (*master.ssh, "--", master.site.host)
    return (
        lambda: pipe(_local(pack.format(local)), (*ssh, unpack.format(_target(remote)))),
        lambda: pipe((*ssh, pack.format(remote)), _local(unpack.format(_target(local)))),
    )


def _target(path: Path) -> Path:
    return path.with_name("moved")


def _local(script: str) -> tuple[str, ...]:
    return ("sh", "-c", script)


# Measuring them -------------------------------------------------------------------------------------------------------


def _measure_move(site: Site, move: _Move, reference: str, rounds: int) -> Outcomes:
    wanted = _inventory(move.source)

    def check_and_remove() -> None:
        try:
            expect(wanted, _inventory(move.target))
        finally:
            _remove(move.target)

    with variants.new_runtime(site) as runtime:
        entries = (
            Entry(variants.LAZYCLUSTER, _task_runner(runtime, move.task), check_and_remove, _MOVE_TIMEOUT_SECONDS),
            Entry(reference, move.reference, check_and_remove, _MOVE_TIMEOUT_SECONDS),
        )
        return interleave(entries, rounds, warm_up=1)


def _task_runner(runtime: Runtime, task: RuntimeTask) -> Callable[[], object]:
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


def _write_random_file(path: Path, size: int) -> None:
    """Write bytes that do not compress."""
    block = random.randbytes(min(size, _MIB))
    with path.open("wb") as file:
        for _ in range(size // len(block)):
            file.write(block)


@contextlib.contextmanager
def _local_and_remote_directories(site: Site) -> Iterator[tuple[Path, Path]]:
    """Yield an empty local directory and an empty one on the host, for a block."""
    local, remote = site.directory / "files", site.home / "files"
    try:
        local.mkdir()
        remote.mkdir()
        yield local, remote
    finally:
        shutil.rmtree(local, ignore_errors=True)
        shutil.rmtree(remote, ignore_errors=True)
