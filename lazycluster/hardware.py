"""What a host is made of: one shell script that asks, beside the parsers that read its answer.

Nothing here runs anything. `probe` gives the text of a POSIX shell script, `parse` turns what it printed into a
`HostInfo`. The script takes one round trip, writes nothing, always ends with exit status 0 and leaves out what it
cannot find; so does the parser, which says in `HostInfo.warnings` what it missed.
"""

from __future__ import annotations

import re
import shlex
import sys

import attrs

from lazycluster import gpus as nvidia
from lazycluster.gpus import Gpu, MigDevice

__all__ = ["PROBE", "CgroupLimits", "Gpu", "HostInfo", "MigDevice", "parse", "parse_cgroups", "probe"]

_MARK = "@@ lazycluster"
_DRIVER_TIMEOUT = 20
UNAME, PROCESSORS = "LAZYCLUSTER_UNAME", "LAZYCLUSTER_PROCESSORS"
_MIB = 1024 * 1024

PROBE = f"""\
{{
exec </dev/null
section() {{
    echo "{_MARK} begin $1"
    name=$1
    shift
    case $1 in
        echo|os_release|meminfo|cgroups) "$@" ;;
        *) ( "$@" ) 2>&1 ;;
    esac
    code=$?
    echo
    echo "{_MARK} end $name $code"
    return "$code"
}}
processors() {{
    nproc || getconf _NPROCESSORS_ONLN
}}
lines() {{
    [ -r "$1" ] || return
    while read -r line || [ -n "$line" ]; do
        printf %s "$line"
        echo
    done <"$1"
}}
os_release() {{
    lines /etc/os-release || lines /usr/lib/os-release
}}
meminfo() {{
    read -r line </proc/meminfo && echo "$line"
}}
show() {{
    {{ read -r value <"$1"; }} 2>/dev/null && echo "$1=$value"
}}
show_upwards() {{
    root=$1 at=${{2%/}}
    shift 2
    while :; do
        for file; do show "$root$at/$file"; done
        case "$at" in
            */*) at=${{at%/*}} ;;
            *) return ;;
        esac
    done
}}
cgroups() {{
    [ -r /proc/self/cgroup ] || return
    while IFS=: read -r number controllers where; do
        case ",$controllers," in
            ,,) show_upwards /sys/fs/cgroup "$where" cpu.max memory.max ;;
            *,cpu,*) show_upwards /sys/fs/cgroup/cpu "$where" cpu.cfs_quota_us cpu.cfs_period_us ;;
        esac
        case ",$controllers," in
            *,memory,*) show_upwards /sys/fs/cgroup/memory "$where" memory.limit_in_bytes ;;
        esac
    done </proc/self/cgroup
    return 0
}}
python_of() {{
    for candidate; do
        "$candidate" -E -s -S -c "import sys; print(sys.version.split()[0] + chr(32) + sys.executable)" && return
    done
}}
bounded() {{
    if timeout 1 true >/dev/null 2>&1; then
        answer=$( ( {{ timeout {_DRIVER_TIMEOUT} "$@"; echo "@$?"; }} 2>&1 & ) | timeout {_DRIVER_TIMEOUT + 2} cat )
        echo "${{answer%@*}}"
        case "$answer" in
            *@[0-9]*) return "${{answer##*@}}" ;;
            *) return 124 ;;
        esac
    else
        "$@"
    fi
}}
unset OMP_NUM_THREADS OMP_THREAD_LIMIT
LC_ALL=C PATH=${{PATH:-/usr/bin:/bin}}:/usr/sbin:/sbin:/usr/local/nvidia/bin:/usr/lib/wsl/lib
export LC_ALL PATH
echo
section uname ${{{UNAME}:+echo}} ${{{UNAME}:-uname -srm}}
section processors ${{{PROCESSORS}:+echo}} ${{{PROCESSORS}:-processors}}
if [ -r /proc/meminfo ]; then
    section os-release os_release
    section meminfo meminfo
    section cgroups cgroups
else
    section sw_vers sw_vers
    section sysctl sysctl hw.ncpu hw.memsize
fi
[ $# -eq 0 ] || section python python_of "$@"
if command -v nvidia-smi >/dev/null 2>&1; then
    section gpus bounded {nvidia.QUERY} && section mig bounded {nvidia.LIST}
fi
echo "{_MARK} done"
}}
"""
"""The script. Its positional parameters are the Pythons to try, in this order (`sh -c PROBE sh python3.12 python3`).

It holds neither single quotes nor backslashes nor exclamation marks, so that quoting it is easy in any shell. GPUs come
last, and `bounded` gives up even on an `nvidia-smi` that no signal ends, as a broken driver leaves it in an
uninterruptible sleep: the shell waits for `cat` only, and what hangs holds nothing but the pipe to `cat`. To that end
redirections are made in subshells; in its own process a shell keeps the old descriptors, and all its children get them.
What starts no program needs none.

Whoever runs it may know what `uname` and `nproc` would say, and tell it in the environment: programs take their time.
"""


@attrs.frozen
class HostInfo:
    """The hardware and software of a host, as its user may use it.

    `os` is the name and version for people, such as `Debian GNU/Linux 12 (bookworm)`; `kernel`, `kernel_version` and
    `machine` are what `uname -srm` says. `cpu_cores` heeds the affinity mask and the CPU quota of the control groups: a
    quota of 150000/100000 is 1.5. `memory` is in bytes, the stricter of what is built in and the control groups' limit.
    Both are 0 where the host did not tell; then, and where something is broken, `warnings` says so.
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
        """Return the memory in units of 1024 * 1024 bytes, rounded down, as `free -m` counts."""
        return self.memory // _MIB

    @property
    def gpu_count(self) -> int:
        """Return the number of physical GPUs."""
        return len(self.gpus)


@attrs.frozen
class CgroupLimits:
    """The strictest limits of a control group and its ancestors: cores and bytes, None for no limit."""

    cpus: float | None = None
    memory: int | None = None


@attrs.frozen
class _Section:
    """What one part of the probe printed; no exit status where the output stops in the middle of it."""

    text: str = ""
    exit_code: int | None = None


def probe(python: str | None = None) -> str:
    """Return the probe as a script for `sh`, asking for one Python by name or path (`~/` is the host's home).

    Without a name that is `pythonX.Y` of the version running here, then `python3`.
    """
    if python is None:
        words = f"python{sys.version_info.major}.{sys.version_info.minor} python3"
    elif python.startswith("~/"):
        words = f'"$HOME"/{shlex.quote(python[2:])}'
    else:
        words = shlex.quote(python)
    return f"set -- {words}\n{PROBE}"


def parse(output: str) -> HostInfo:
    """Read what the probe printed.

    Raises:
        ValueError: There is nothing of the probe in it.
    """
    sections, complete = _split(output)
    if not sections:
        said = output.strip()
        raise ValueError(f"this is not the output of the hardware probe: {said[:200]!r}")
    text = {name: section.text for name, section in sections.items()}
    kernel, kernel_version, machine = parse_uname(text.get("uname", ""))
    sysctl = parse_sysctl(text.get("sysctl", ""))
    limits = parse_cgroups(text.get("cgroups", ""))
    python_version, python_executable = parse_python(text.get("python", ""))
    cores = _strictest(parse_processors(text.get("processors", "")) or sysctl.get("hw.ncpu"), limits.cpus)
    memory = _strictest(parse_meminfo(text.get("meminfo", "")) or sysctl.get("hw.memsize"), limits.memory)
    gpus, gpu_warnings = _gpus(sections)
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


def _split(output: str) -> tuple[dict[str, _Section], bool]:
    """Cut the output into its sections; tell, too, whether it is complete."""
    sections: dict[str, _Section] = {}
    lines: list[str] = []
    name: str | None = None
    for line in (line.rstrip("\r") for line in output.split("\n")):
        words = line[len(_MARK) :].split(" ")[1:] if line.startswith(f"{_MARK} ") else []
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


def _strictest(*limits: float | None) -> float | None:
    """Return the least of the limits that are known."""
    return min((limit for limit in limits if limit is not None), default=None)


# System --------------------------------------------------------------------------------------------------------------


def parse_uname(text: str) -> tuple[str, str, str]:
    """Read `uname -srm`: the kernel's name, its release, the machine; empty strings where they are missing."""
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

    Version 2 has `cpu.max` ("quota period" or "max period") and `memory.max`; version 1 has quota and period in files
    of their own, -1 for none, and a memory limit next to 2**63 for none (Linux documentation: admin-guide/cgroup-v2,
    cgroup-v1/memory, scheduler/sched-bwc). The limit of an ancestor binds its descendants.
    """
    files = {path: value for path, _, value in (line.strip().rpartition("=") for line in text.splitlines())}
    cpus: list[float] = []
    memory: list[int] = []
    for path, value in files.items():
        directory, _, name = path.rpartition("/")
        if name == "cpu.cfs_quota_us":
            cpus += _quota(f"{value} {files.get(f'{directory}/cpu.cfs_period_us')}")
        elif name == "cpu.max":
            cpus += _quota(value)
        elif name in {"memory.max", "memory.limit_in_bytes"} and re.fullmatch("[0-9]+", value) and int(value) < 2**62:
            memory.append(int(value))
    return CgroupLimits(min(cpus, default=None), min(memory, default=None))


def _quota(value: str) -> list[float]:
    """Return the cores in "quota period", or none."""
    match = re.fullmatch("([1-9][0-9]*) ([1-9][0-9]*)", value)
    return [int(match[1]) / int(match[2])] if match else []


def _gpus(sections: dict[str, _Section]) -> tuple[tuple[Gpu, ...], list[str]]:
    """Join what `nvidia-smi` said to its two questions."""
    if "gpus" not in sections:
        return (), []
    asked = sections["gpus"]
    gpus, warnings = nvidia.parse_gpus(asked.text)
    if asked.exit_code in {None, 124}:
        warnings.append("no answer in time")
    elif asked.exit_code and not warnings:
        warnings.append(f"exit status {asked.exit_code}")
    parts = nvidia.parse_mig_devices(sections.get("mig", _Section()).text)
    return (
        tuple(attrs.evolve(gpu, mig_devices=parts.get(gpu.index, ())) for gpu in gpus),
        [f"nvidia-smi: {warning}" for warning in warnings],
    )
