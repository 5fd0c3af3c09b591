"""Which Python does the host have for functions, and is it of the version that they need?"""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Sequence

import attrs

from lazycluster._doctor.findings import Finding, failed, ok, warning
from lazycluster._functions.python_finder import python_candidates
from lazycluster._model.command import Command
from lazycluster._ssh.client import SshClient
from lazycluster._ssh.host_scripts import text
from lazycluster._ssh.shell import quote_path

PYTHON_CHECK = "python3"
OLDEST_SUPERVISOR_PYTHON = (3, 6)
"""The oldest Python on which the supervisor runs."""
_PYTHON_SEARCH_TIMEOUT_SECONDS = 20.0
# Directories of installers and version managers, which are not on the PATH of a session without a terminal.
_PYTHON_DIRECTORIES = (
    "/usr/bin",
    "/usr/local/bin",
    "/opt/homebrew/bin",
    "/opt/python*/bin",
    "/opt/*conda*/bin",
    "/opt/conda/bin",
    "~/*conda*/bin",
    "~/*forge*/bin",
    "~/mamba*/bin",
    "~/.local/bin",
    "~/.pyenv/versions/*/bin",
    "~/.asdf/installs/python/*/bin",
    "~/.local/share/uv/python/*/bin",
    "~/.local/share/mise/installs/python/*/bin",
)


@attrs.frozen
class HostPython:
    """A Python on the host. `version` is empty if it did not start, such as a pyenv shim without a version."""

    path: str
    version: str
    implementation: str = "cpython"
    on_path: bool = True

    @property
    def minor_version(self) -> tuple[int, ...]:
        """The major and the minor version."""
        return tuple(int(part) for part in self.version.split(".")[:2] if part.isdecimal())

    def __str__(self) -> str:
        other = "" if self.implementation == "cpython" else f"{self.implementation} "
        return f"{other}{self.version or 'does not start'} ({self.path})"


@attrs.frozen
class LocalPython:
    """The Python that runs this."""

    version: str = attrs.field(factory=platform.python_version)
    implementation: str = sys.implementation.name

    @property
    def minor_version(self) -> str:
        """The major and the minor version, such as `3.12`, which a host's Python must have, too."""
        return ".".join(self.version.split(".")[:2])

    def is_compatible_with(self, python: HostPython) -> bool:
        """Return whether functions from this Python run in one of the host."""
        return (
            python.implementation == self.implementation
            and ".".join(map(str, python.minor_version)) == self.minor_version
        )


def find_pythons(ssh_client: SshClient, python: str | None) -> tuple[HostPython, ...]:
    """Return the Pythons of the host in the order in which they are tried, then those that are not on its PATH."""
    script = finder_text(python, LocalPython().minor_version)
    ended = ssh_client.run(
        Command(script, timeout=_PYTHON_SEARCH_TIMEOUT_SECONDS, title="look for Python", login_shell=False)
    )
    return parse_pythons(ended.stdout)


def finder_text(python: str | None, minor: str) -> str:
    """Return the shell text that prints the Pythons; those off the PATH only if no Python is named."""
    words = [quote_path(name) for name in python_candidates(python)]
    if python is None:
        names = dict.fromkeys([f"python{minor}", "python3"])
        words += ["--", *(_quote_glob(f"{place}/{name}") for place in _PYTHON_DIRECTORIES for name in names)]
    return f"set -- {' '.join(words)}\n{text('doctor_pythons')}"


def _quote_glob(path: str) -> str:
    """Return a path with asterisks as a shell word in which the shell expands only these."""
    home, rest = ('"$HOME"', path[1:]) if path.startswith("~") else ("", path)
    return home + "*".join(shlex.quote(part) for part in rest.split("*"))


def parse_pythons(output: str) -> tuple[HostPython, ...]:
    """Read the output of the script: place, path and version of each Python, each ended by a NUL."""
    fields = output.split("\0")
    found: dict[str, HostPython] = {}
    for place, path, said in zip(fields[0::3], fields[1::3], fields[2::3], strict=False):
        implementation, _, version = said.strip().partition(" ")
        found.setdefault(path, HostPython(path, version, implementation or "cpython", place == "path"))
    return tuple(found.values())


def judge_pythons(pythons: Sequence[HostPython], python: str | None, local_python: LocalPython) -> Finding:
    """Judge the Python that a runtime would take, and name a better one if there is one."""
    default = next((each for each in pythons if each.on_path and each.version), None)
    broken = next((each for each in pythons if each.on_path and not each.version), None)
    compatible = next((each for each in pythons if each.version and local_python.is_compatible_with(each)), None)
    named = "" if compatible is None else f"Runtime(..., python={compatible.path!r})"
    if default is None:
        problem = f"{broken.path} does not start" if broken else f"no {python or 'python3'} on the PATH of a session"
        others = [each for each in pythons if not each.on_path and each.version]
        known = f"; found {', '.join(map(str, others))}" if others else ""
        # conda and pyenv set the PATH in files that only a shell with a terminal reads.
        install = "Install python3 there." if python is None else "Install it there, or name another one."
        advice = f"Name it: {named or f'Runtime(..., python={others[0].path!r})'}." if others else install
        rest = " Commands and files go without: Runtime(..., resident=False)."
        return failed(PYTHON_CHECK, problem + known, f"{advice}{rest}")
    if default.minor_version < OLDEST_SUPERVISOR_PYTHON:
        oldest = ".".join(map(str, OLDEST_SUPERVISOR_PYTHON))
        advice = (
            f"Name a newer one: {named}."
            if named
            else f"Install Python {oldest} or newer, best {local_python.minor_version}."
        )
        return failed(PYTHON_CHECK, f"{default}, and the supervisor needs {oldest}", advice)
    if local_python.is_compatible_with(default):
        return ok(PYTHON_CHECK, str(default))
    alternative = "".join(f"; {compatible} would fit" if compatible else "")
    advice = (
        f"Take the one that fits: {named}."
        if compatible
        else f"Install Python {local_python.minor_version} there, and name it: python=."
    )
    return warning(
        PYTHON_CHECK,
        f"{default} there, {local_python.version} here{alternative}",
        f"Commands and files work; functions travel as bytecode and need the same minor version. {advice}",
    )
