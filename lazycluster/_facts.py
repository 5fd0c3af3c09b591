"""The facts about a runtime under the names of the reference, most of them as text."""

from __future__ import annotations

import collections
from abc import ABC, abstractmethod

from lazycluster._display import print_table
from lazycluster.hardware import Gpu, HostInfo


class Facts(ABC):
    """The facts about a host, besides the typed record `host_info`."""

    @property
    @abstractmethod
    def host(self) -> str:
        """The host as it was given."""

    @property
    @abstractmethod
    def working_dir(self) -> str:
        """The path of the working directory on the host."""

    @property
    @abstractmethod
    def host_info(self) -> HostInfo:
        """The hardware and software of the machine, as found when the runtime was made."""

    @property
    def class_name(self) -> str:
        """The name of the class."""
        return type(self).__name__

    @property
    def os(self) -> str:
        """The name and version of the operating system."""
        return self.host_info.os

    @property
    def python_version(self) -> str:
        """The version of the Python that functions run in, `''` if there is no Python."""
        return self.host_info.python_version or ""

    @property
    def cpu_cores(self) -> str:
        """The number of processors that may be used, a cgroup's quota included, such as `8` or `1.5`."""
        return f"{self.host_info.cpu_cores:g}"

    @property
    def memory(self) -> str:
        """The memory in bytes, a cgroup's limit included."""
        return str(self.host_info.memory)

    @property
    def memory_in_mb(self) -> str:
        """The memory in units of 1024 * 1024 bytes."""
        return str(self.host_info.memory_in_mb)

    @property
    def gpus(self) -> list[Gpu]:
        """A record for each GPU."""
        return list(self.host_info.gpus)

    @property
    def gpu_count(self) -> int:
        """The number of GPUs."""
        return self.host_info.gpu_count

    @property
    def info(self) -> dict[str, object]:
        """The facts about the runtime by name."""
        return {
            "host": self.host,
            "os": self.os,
            "python_version": self.python_version,
            "cpu_cores": self.cpu_cores,
            "memory": self.memory,
            "memory_in_mb": self.memory_in_mb,
            "gpu_count": self.gpu_count,
            "gpus": self.gpus,
            "working_dir": self.working_dir,
        }

    def print_info(self) -> None:
        """Print the facts about the host as a table."""
        print_table(f"Runtime {self.host}", ("", "value"), info_rows(self))


def info_rows(facts: Facts) -> list[tuple[str, str]]:
    """Return the facts about a runtime as rows of a table."""
    info = facts.host_info
    return [
        ("Host", facts.host),
        ("OS", info.os),
        ("Python", facts.python_version or "none"),
        ("CPU cores", facts.cpu_cores),
        ("Memory", f"{info.memory / 2**30:.1f} GiB"),
        ("GPUs", str(info.gpu_count)),
        *((f"GPU {gpu.index}", _describe_gpu(gpu)) for gpu in info.gpus),
        ("Working directory", facts.working_dir),
    ]


HOST_TABLE_COLUMNS = ("host", "OS", "Python", "CPU cores", "memory", "GPUs")


def host_table_row(facts: Facts) -> tuple[str, ...]:
    """Return the facts about a runtime as one row of a table of many."""
    info = facts.host_info
    gpus = collections.Counter(gpu.name for gpu in info.gpus)
    return (
        facts.host,
        info.os,
        facts.python_version or "none",
        facts.cpu_cores,
        f"{info.memory / 2**30:.1f} GiB",
        ", ".join(f"{count} x {name}" for name, count in gpus.items()) or "0",
    )


def _describe_gpu(gpu: Gpu) -> str:
    memory = "" if gpu.memory is None else f", {gpu.memory / 2**30:.0f} GiB"
    return f"{gpu.name}{memory}" + "".join(f", MIG {device.profile}" for device in gpu.mig_devices)
