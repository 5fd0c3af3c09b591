"""The Pythons of this machine, for tests that need others than their own."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path


def find_pyenv_pythons() -> dict[str, Path]:
    """Return the Pythons of pyenv by their versions, or only the running Python if pyenv has no Python."""
    versions = Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser() / "versions"
    found = {path.parts[-3]: path for path in sorted(versions.glob("3.*/bin/python"))}
    return found or {platform.python_version(): Path(sys.executable)}


def find_other_minor_python() -> Path | None:
    """Return a Python of another minor version than the running one, or None."""
    for version, path in find_pyenv_pythons().items():
        if version.split(".")[1] != str(sys.version_info.minor):
            return path.with_name("python3")
    for minor in {*range(6, 20)} - {sys.version_info.minor}:
        program = shutil.which(f"python3.{minor}")
        if program is not None and (found := _resolve_python(program, f"3.{minor}")) is not None:
            return found
    return None


def _resolve_python(program: str, version: str) -> Path | None:
    """Return the Python that a program starts, or None if it has another version or does not run.

    A shim of pyenv may do either.
    """
    text = "import sys; print('%d.%d' % sys.version_info[:2], sys.executable)"
    ran = subprocess.run((program, "-c", text), capture_output=True, text=True, timeout=30, check=False)
    found, _, path = ran.stdout.strip().partition(" ")
    return Path(path) if ran.returncode == 0 and found == version else None
