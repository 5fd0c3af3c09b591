"""NVIDIA GPUs: the parsers of the output of `nvidia-smi`, as `_remote/probe.sh` calls it."""

from __future__ import annotations

import re

import attrs

_MIB = 1024 * 1024


@attrs.frozen
class MigDevice:
    """A part of a GPU that is used like a GPU of its own (NVIDIA Multi-Instance GPU).

    `profile` is its size, such as `1g.10gb`; `uuid` is what `CUDA_VISIBLE_DEVICES` takes.
    """

    index: int
    profile: str
    uuid: str


@attrs.frozen
class Gpu:
    """One physical NVIDIA GPU.

    `memory` is in bytes, `utilization` in percent (0 to 100). None means that the driver does not report the value:
    no memory if GPU and host share it (Jetson, GB10), no utilization in MIG mode.
    """

    index: int
    name: str
    memory: int | None = None
    driver_version: str | None = None
    uuid: str | None = None
    utilization: int | None = None
    mig_devices: tuple[MigDevice, ...] = ()


def parse_gpus(text: str) -> tuple[list[Gpu], list[str]]:
    """Read `nvidia-smi --query-gpu=... --format=csv`, its columns in any order; return all other lines as warnings.

    A field without a value reads `[N/A]` or `[Not Supported]`; after a failure it is the error in brackets.
    """
    header: list[str] = []
    gpus: list[Gpu] = []
    warnings: list[str] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        cells = [cell.strip() for cell in line.split(",")]
        if not header and "name" in cells:
            header = [cell.partition(" [")[0] for cell in cells]
        elif header and len(cells) == len(header):
            row = dict(zip(header, cells, strict=True))
            gpus.append(_gpu_from_row(row, len(gpus)))
            warnings += _field_warnings(row, gpus[-1].index)
        else:
            warnings.append(line)
    return gpus, warnings


def _gpu_from_row(row: dict[str, str], position: int) -> Gpu:
    index, memory = _number_or_none(row.get("index")), _number_or_none(row.get("memory.total"))
    return Gpu(
        index=position if index is None else index,
        name=row["name"],
        memory=None if memory is None else memory * _MIB,
        driver_version=_text_or_none(row.get("driver_version")),
        uuid=_text_or_none(row.get("uuid")),
        utilization=_number_or_none(row.get("utilization.gpu")),
    )


def _text_or_none(cell: str | None) -> str | None:
    """Return the text of a cell, None for one in brackets."""
    return cell if cell and not cell.startswith("[") else None


def _number_or_none(cell: str | None) -> int | None:
    """Return the number in a cell, with or without a unit."""
    match = re.fullmatch(r"([0-9]+)(?: (?:MiB|%))?", cell or "")
    return int(match[1]) if match else None


def _field_warnings(row: dict[str, str], index: int) -> list[str]:
    """Return a warning for each field that holds an error instead of a value."""
    harmless = {"[N/A]", "[Not Supported]"}
    return [
        f"GPU {index}: {field}: {cell[1:-1]}"
        for field, cell in row.items()
        if re.fullmatch(r"\[.+\]", cell) and cell not in harmless
    ]


def parse_mig_devices(text: str) -> dict[int, tuple[MigDevice, ...]]:
    """Read `nvidia-smi -L`: the MIG devices by the index of their GPU, which `--query-gpu` does not list."""
    devices: dict[int, tuple[MigDevice, ...]] = {}
    gpu = -1
    for line in text.splitlines():
        if physical := re.match(r"GPU ([0-9]+):", line):
            gpu = int(physical[1])
        elif part := re.match(r"\s*MIG (\S+)\s+Device\s+([0-9]+): \(UUID: (MIG-[^)]+)\)", line):
            devices[gpu] = (*devices.get(gpu, ()), MigDevice(int(part[2]), part[1], part[3]))
    return devices
