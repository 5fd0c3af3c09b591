"""The machine of the measurements, on one line, and its settings for them."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

_MIN_FREE_BYTES = 8 << 30


def describe_machine(distributions: Sequence[str]) -> str:
    """Return processor, kernel, and the versions of OpenSSH, Python, lazycluster and other distributions."""
    pdsh = _first_line("pdsh", "-V")
    parts = (
        f"{os.cpu_count()} cores, {_processor()}",
        f"{platform.system()} {platform.release()}",
        _first_line("ssh", "-V").partition(",")[0],
        f"Python {platform.python_version()}",
        *(f"{name} {_version(name)}" for name in ("lazycluster", *distributions)),
        f"pdsh {pdsh.removeprefix('pdsh-').split()[0] if pdsh else 'not installed'}",
    )
    return ", ".join(parts)


def _first_line(*argv: str) -> str:
    """Return the first line that a program prints, '' if there is no such program."""
    try:
        ended = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=10)
    except FileNotFoundError:
        return ""
    return (ended.stdout or ended.stderr).partition("\n")[0].strip()


def default_key_exchange() -> dict[str, str]:
    """Return the sshd option for the key exchange that users have; that of a test's sshd is faster."""
    argv = ["ssh", "-G", "-F", "/dev/null", "any-host"]
    lines = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    [algorithms] = [line.partition(" ")[2] for line in lines if line.startswith("kexalgorithms ")]
    return {"KexAlgorithms": algorithms}


def fastest_directory() -> Path:
    """Return the fastest directory for files: in memory if there is room, so that the file system is not measured."""
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > _MIN_FREE_BYTES:
        return memory
    return Path(tempfile.gettempdir())


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        text = ""
    return model_name(text) or platform.processor() or platform.machine()


def model_name(cpuinfo: str) -> str:
    """Return the model that /proc/cpuinfo names; some architectures name none."""
    pairs = (line.partition(":") for line in cpuinfo.splitlines())
    return next((value.strip() for key, _, value in pairs if key.strip() == "model name"), "")


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"
