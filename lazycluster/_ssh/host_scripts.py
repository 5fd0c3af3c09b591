"""The texts for a host's POSIX shell. They are the `.sh` files of `_remote`, whose headers list their parameters.

`scripts/check-shell` reads them in the composed forms in which they are sent.
"""

from __future__ import annotations

import functools
import importlib.resources
import math
import shlex
import sys

_FOLDER = importlib.resources.files("lazycluster._remote")


@functools.cache
def text(*names: str) -> str:
    """Return the texts with these names, one after the other, without indentation, blank lines and lines of comment.

    dash reads the input of a session one byte per system call. No string in a text may span lines that it needs whole.
    """
    lines = [line.strip() for name in names for line in (_FOLDER / f"{name}.sh").read_text("utf-8").splitlines()]
    return "".join(f"{line}\n" for line in lines if line and not line.startswith("#"))


RESOLVE_FILE_TARGET = text("fail", "split_path", "target", "file_target", "prepare_file")
RECEIVE_FILE = text("fail", "split_path", "target", "file_target", "receive_file")
MOVE_FILE = 'mv -f -- "$1" "$2"\n'
"""$1 temporary name, $2 name."""

REMOVE_PATH = 'rm -rf -- "$1"\n'
"""$1 path."""

CREATE_LINK = text("create_link")
RECEIVE_TREE = text("fail", "split_path", "target", "receive_tree")
FETCH = text("fail", "split_path", "fetch")
READ_FILE = text("fail", "read_file")
WRITE_FILE = text("fail", "split_path", "target", "file_target", "write_file")
PATH_EXISTS = text("path_exists")
LIST_DIRECTORY = text("fail", "list_directory")
GLOB_PATHS = text("fail", "glob_paths")
MAKE_WORKING_DIRECTORY = text("make_working_directory")
STOP_MARKED_PROCESSES = text("terminate_marked", "stop_marked") + 'lc_stop_marked "$@"\n'
"""$1 the variable that marks the processes, $2 `grace_tenths()`; the others are directories to remove."""

NAME_AND_STOP_MARKED_PROCESSES = (
    text("terminate_marked", "name_marked", "stop_marked") + 'lc_mark=$1\nlc_name_marked\nlc_stop_marked "$@"\n'
)
"""The same; before, the command lines of the processes are printed."""


def grace_tenths(grace: float) -> str:
    """Return seconds in tenths, rounded up, as the texts take a grace period: a POSIX shell has only integers."""
    return str(math.ceil(round(grace * 10, 6)))


PROBE_SCRIPT = text("probe")
"""As `sh -c PROBE sh python3.12 python3` it looks for these Pythons, in this order."""


def build_probe_script(python: str | None = None) -> str:
    """Return the probe as a script for `sh`, which looks for one Python by name or path (`~/` is the host's home).

    Without a name it looks for `pythonX.Y` of the version running here, then for `python3`.
    """
    if python is None:
        words = f"python{sys.version_info.major}.{sys.version_info.minor} python3"
    elif python.startswith("~/"):
        words = f'"$HOME"/{shlex.quote(python[2:])}'
    else:
        words = shlex.quote(python)
    return f"set -- {words}\n{PROBE_SCRIPT}"
