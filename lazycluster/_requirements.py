"""Requirements of a host: GPUs, memory, processors, programs, and commands that print `true`."""

from __future__ import annotations

import math
import numbers
import shlex
from collections.abc import Callable, Iterable
from typing import TypeVar

import attrs

from lazycluster._model.checks import to_list
from lazycluster.hardware import HostInfo
from lazycluster.results import CommandResult

V = TypeVar("V")


def _check_number(_record: object, attribute: attrs.Attribute[V], value: V) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, numbers.Real) or math.isnan(value)):
        raise ValueError(f"{attribute.name} must be a number, got {value!r}")


def _to_tuple(names: str | Iterable[str] | None) -> tuple[str, ...]:
    return tuple(to_list(names))


@attrs.frozen
class Requirements:
    """The requirements of a host; `Runtime.check_filter()` explains them.

    Raises:
        ValueError: If a minimum is not a number.
    """

    gpu_required: bool = False
    min_memory: int | None = attrs.field(default=None, validator=_check_number)
    min_cpu_cores: float | None = attrs.field(default=None, validator=_check_number)
    installed_executables: tuple[str, ...] = attrs.field(default=(), converter=_to_tuple)
    filter_commands: tuple[str, ...] = attrs.field(default=(), converter=_to_tuple)

    def find_missing(self, info: HostInfo, run: Callable[[str], CommandResult]) -> str:
        """Return the first requirement that a host does not meet, in words; `''` if it meets all.

        `run` runs a command on the host, if programs or commands are required.
        """
        if self.gpu_required and not info.gpus:
            return "it has no GPU"
        if self.min_memory is not None and info.memory_in_mb < self.min_memory:
            return f"it has {info.memory_in_mb} MB of memory, and not {self.min_memory}"
        if self.min_cpu_cores is not None and info.cpu_cores < self.min_cpu_cores:
            return f"it has {info.cpu_cores:g} CPU cores, and not {self.min_cpu_cores:g}"
        if self.installed_executables:
            words = " ".join(shlex.quote(name) for name in self.installed_executables)
            result = run(f'for e in {words}; do command -v "$e" >/dev/null || echo "$e"; done')
            if result.stdout or not result.ok:
                return f"not installed: {', '.join(result.stdout.splitlines() or self.installed_executables)}"
        for command in self.filter_commands:
            if run(command).stdout.strip().lower() != "true":
                return f"`{command}` did not print true"
        return ""
