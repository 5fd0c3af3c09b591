"""The hardware of a host: the parsers of the probe's output (`_remote/probe.sh`).

This module runs no program. `parse_probe_output` turns the output of the probe into a `HostInfo`, and lists in
`HostInfo.warnings` what is missing.
"""

from __future__ import annotations

import re

import attrs

from lazycluster import gpus as nvidia
from lazycluster.gpus import Gpu, MigDevice

__all__ = ["CgroupLimits", "Gpu", "HostInfo", "MigDevice", "parse_cgroups", "parse_probe_output"]

_SECTION_MARK = "@@ lazycluster"
_MIB = 1024 * 1024


@attrs.frozen
class HostInfo:
    """The hardware and software of a host, as its user may use it.

    `os` is the name and version for people, such as `Debian GNU/Linux 12 (bookworm)`; `kernel`, `kernel_version` and
    `machine` come from `uname -srm`. `cpu_cores` heeds the affinity mask and the CPU quota of the control groups: a
    quota of 150000/100000 is 1.5. `memory` is in bytes: the lower of the built-in memory and the control groups' limit.
    Both are 0 if the host did not show them; then, and if something is broken, `warnings` says so.
    """

    os: str
    kernel: str
    kernel_version: str
    machine: str
    cpu_cores: float
    memory: int
    python_version: str | None = None
    python_executable: str | None = None
    gpus: tuple[Gpu, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def memory_in_mb(self) -> int:
        """The memory in units of 1024 * 1024 bytes, rounded down, as `free -m` counts."""
        return self.memory // _MIB

    @property
    def gpu_count(self) -> int:
        """The number of physical GPUs."""
        return len(self.gpus)


@attrs.frozen
class CgroupLimits:
    """The strictest limits of a control group and its ancestors: cores and bytes, None for no limit."""

    cpus: float | None = None
    memory: int | None = None


@attrs.frozen
class _Section:
    """The output of one part of the probe; no exit status if the output stops in the middle of it."""

    text: str = ""
    exit_code: int | None = None


def parse_probe_output(output: str) -> HostInfo:
    """Read the output of the probe.

    Raises:
        ValueError: If the output has no part of the probe in it.
    """
    sections, complete = _split_sections(output)
    if not sections:
        printed = output.strip()
        raise ValueError(f"this is not the output of the hardware probe: {printed[:200]!r}")
    text = {name: section.text for name, section in sections.items()}
    kernel, kernel_version, machine = parse_uname(text.get("uname", ""))
    sysctl = parse_sysctl(text.get("sysctl", ""))
    limits = parse_cgroups(text.get("cgroups", ""))
    python_version, python_executable = parse_python(text.get("python", ""))
    cores = _lowest_known(parse_processors(text.get("processors", "")) or sysctl.get("hw.ncpu"), limits.cpus)
    memory = _lowest_known(parse_meminfo(text.get("meminfo", "")) or sysctl.get("hw.memsize"), limits.memory)
    gpus, gpu_warnings = _parse_gpu_sections(sections)
    missing = {
        "the probe was cut short": not complete,
        "the number of CPU cores is unknown": cores is None,
        "the amount of memory is unknown": memory is None,
    }
    return HostInfo(
        os=parse_os_release(text.get("os-release", ""))
        or parse_sw_vers(text.get("sw_vers", ""))
        or f"{kernel} {kernel_version}".strip(),
        kernel=kernel,
        kernel_version=kernel_version,
        machine=machine,
        cpu_cores=float(cores or 0),
        memory=int(memory or 0),
        python_version=python_version,
        python_executable=python_executable,
        gpus=gpus,
        warnings=(*(warning for warning, applies in missing.items() if applies), *gpu_warnings),
    )


def _split_sections(output: str) -> tuple[dict[str, _Section], bool]:
    """Cut the output into its sections; return them, and whether the output is complete."""
    sections: dict[str, _Section] = {}
    lines: list[str] = []
    name: str | None = None
    for line in (line.rstrip("\r") for line in output.split("\n")):
        words = line[len(_SECTION_MARK) :].split(" ")[1:] if line.startswith(f"{_SECTION_MARK} ") else []
        match words:
            case ["begin", begun]:
                name, lines = begun, []
                sections[name] = _Section()
            case ["end", ended, code] if ended == name and re.fullmatch("[0-9]+", code):
                sections[ended] = _Section("\n".join(lines).strip("\n"), int(code))
                name = None
            case ["done"]:
                return sections, True
            case _:
                lines.append(line)
    if name is not None:
        sections[name] = _Section("\n".join(lines).strip("\n"))
    return sections, False


def _lowest_known(*limits: float | None) -> float | None:
    """Return the least of the limits that are known."""
    return min((limit for limit in limits if limit is not None), default=None)


# System --------------------------------------------------------------------------------------------------------------


def parse_uname(text: str) -> tuple[str, str, str]:
    """Read `uname -srm`: the kernel's name, its release, the machine; empty strings for missing ones."""
    words = [*text.split(), "", "", ""]
    return words[0], words[1], words[2]


def parse_os_release(text: str) -> str | None:
    """Read the name and version for people from os-release(5), whose values are quoted as in a shell."""
    values = {}
    for line in text.splitlines():
        match = re.fullmatch(r"""\s*([A-Za-z0-9_]+)=(["']?)(.*)\2\s*""", line)
        if match:
            key, quote, value = match.groups()
            values[key] = value if quote == "'" else re.sub(r'\\([\\"\'$`])', r"\1", value)
    name_and_version = f"{values.get('NAME', '')} {values.get('VERSION', '')}".strip()
    return values.get("PRETTY_NAME") or name_and_version or None


def parse_sw_vers(text: str) -> str | None:
    """Read the name and version of macOS from `sw_vers`."""
    values = dict(re.findall(r"^(\w+):\s*(.*?)\s*$", text, re.MULTILINE))
    return f"{values.get('ProductName', '')} {values.get('ProductVersion', '')}".strip() or None


def parse_sysctl(text: str) -> dict[str, int]:
    """Read the numbers among `name: value` lines of `sysctl`."""
    return {name: int(value) for name, value in re.findall(r"^([\w.]+): ([0-9]+)\s*$", text, re.MULTILINE)}


def parse_python(text: str) -> tuple[str | None, str | None]:
    """Read version and path of the first Python that answered."""
    match = re.search(r"^([0-9]+\.[0-9]+\S*) ?(.*?)\s*$", text, re.MULTILINE)
    return (match[1], match[2] or None) if match else (None, None)


# Processors and memory -----------------------------------------------------------------------------------------------


def parse_processors(text: str) -> int | None:
    """Read `nproc`, which may follow a complaint."""
    numbers = re.findall(r"^\s*([0-9]+)\s*$", text, re.MULTILINE)
    return int(numbers[-1]) if numbers else None


def parse_meminfo(text: str) -> int | None:
    """Read the total memory in bytes from /proc/meminfo, whose kB are 1024 bytes (proc_meminfo(5))."""
    match = re.search(r"^MemTotal:\s*([0-9]+)\s*kB", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def parse_cgroups(text: str) -> CgroupLimits:
    """Read the limits from `path=value` lines, each the first line of a file of a control group.

    Version 2 has `cpu.max` ("quota period" or "max period") and `memory.max`. Version 1 has quota and period in files
    of their own, with -1 for no quota; a memory limit next to 2**63 means no limit. The limit of an ancestor binds its
    descendants (Linux documentation: admin-guide/cgroup-v2, cgroup-v1/memory, scheduler/sched-bwc).
    """
    files = {path: value for path, _, value in (line.strip().rpartition("=") for line in text.splitlines())}
    cpus: list[float] = []
    memory: list[int] = []
    for path, value in files.items():
        directory, _, name = path.rpartition("/")
        if name == "cpu.cfs_quota_us":
            cpus += _parse_quota(f"{value} {files.get(f'{directory}/cpu.cfs_period_us')}")
        elif name == "cpu.max":
            cpus += _parse_quota(value)
        elif name in {"memory.max", "memory.limit_in_bytes"} and re.fullmatch("[0-9]+", value) and int(value) < 2**62:
            memory.append(int(value))
    return CgroupLimits(min(cpus, default=None), min(memory, default=None))


def _parse_quota(value: str) -> list[float]:
    """Return the cores in "quota period"; an empty list means no limit."""
    match = re.fullmatch("([1-9][0-9]*) ([1-9][0-9]*)", value)
    return [int(match[1]) / int(match[2])] if match else []


def _parse_gpu_sections(sections: dict[str, _Section]) -> tuple[tuple[Gpu, ...], list[str]]:
    """Combine the output of the two calls of `nvidia-smi`."""
    if "gpus" not in sections:
        return (), []
    section = sections["gpus"]
    gpus, warnings = nvidia.parse_gpus(section.text)
    if section.exit_code in {None, 124}:
        warnings.append("no answer in time")
    elif section.exit_code and not warnings:
        warnings.append(f"exit status {section.exit_code}")
    mig_devices = nvidia.parse_mig_devices(sections.get("mig", _Section()).text)
    return (
        tuple(attrs.evolve(gpu, mig_devices=mig_devices.get(gpu.index, ())) for gpu in gpus),
        [f"nvidia-smi: {warning}" for warning in warnings],
    )
