"""Requirements of a host: GPUs, memory, processors, programs, and commands that print `true`."""

from __future__ import annotations

import math
import numbers
import shlex
from collections.abc import Callable

from lazycluster._model.checks import to_list
from lazycluster.hardware import HostInfo
from lazycluster.results import CommandResult


def find_missing_requirement(
    info: HostInfo,
    run: Callable[[str], CommandResult],
    gpu_required: bool,
    min_memory: int | None,
    min_cpu_cores: float | None,
    installed_executables: str | list[str] | None,
    filter_commands: str | list[str] | None,
) -> str:
    """Return the first requirement that a host does not meet, in words; `''` if it meets all.

    `run` runs a command on the host, if programs or commands are required. `Runtime.check_filter()` explains the rest.

    Raises:
        ValueError: A minimum is not a number.
    """
    check_minimums(min_memory, min_cpu_cores)
    if gpu_required and not info.gpus:
        return "it has no GPU"
    if min_memory is not None and info.memory_in_mb < min_memory:
        return f"it has {info.memory_in_mb} MB of memory, and not {min_memory}"
    if min_cpu_cores is not None and info.cpu_cores < min_cpu_cores:
        return f"it has {info.cpu_cores:g} CPU cores, and not {min_cpu_cores:g}"
    executables = to_list(installed_executables)
    if executables:
        words = " ".join(shlex.quote(name) for name in executables)
        result = run(f'for e in {words}; do command -v "$e" >/dev/null || echo "$e"; done')
        if result.stdout or not result.ok:
            return f"not installed: {', '.join(result.stdout.splitlines() or executables)}"
    for command in to_list(filter_commands):
        if run(command).stdout.strip().lower() != "true":
            return f"`{command}` did not print true"
    return ""


def check_minimums(min_memory: object, min_cpu_cores: object) -> None:
    """Check the required memory and processors.

    Raises:
        ValueError: One of them is not a number.
    """
    for name, value in (("min_memory", min_memory), ("min_cpu_cores", min_cpu_cores)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, numbers.Real) or math.isnan(value)):
            raise ValueError(f"{name} is a number, not {value!r}")
