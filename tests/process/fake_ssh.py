"""The registrations that the tests with a mocked ssh share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pytest_subprocess.fake_process import FakeProcess
from pytest_subprocess.process_recorder import ProcessRecorder

HOST_FACTS_OUTPUT = b"""
@@ lazycluster begin uname
Linux 6.1.0 x86_64
@@ lazycluster end uname 0
@@ lazycluster begin processors
8
@@ lazycluster end processors 0
@@ lazycluster begin os-release
PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
@@ lazycluster end os-release 0
@@ lazycluster begin meminfo
MemTotal: 16777216 kB
@@ lazycluster end meminfo 0
@@ lazycluster begin python
3.11.7 /usr/bin/python3
@@ lazycluster end python 0
@@ lazycluster done
"""


def register_log_in(fp: FakeProcess, *, occurrences: int = 1) -> ProcessRecorder:
    """Let the log-in succeed."""
    return fp.register(["ssh", "-f", fp.any()], occurrences=occurrences)


def register_command(fp: FakeProcess, label: str, **keywords: Any) -> ProcessRecorder:
    """Register one command of a session by its label."""
    return fp.register(["ssh", "-T", fp.any(), label], **keywords)


def recorded_argvs(recorders: Iterable[ProcessRecorder]) -> list[list[str]]:
    """Return the argument vectors of the calls that were recorded."""
    return [[str(word) for word in call.args] for recorder in recorders for call in recorder.calls]
