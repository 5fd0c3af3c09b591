"""How a call begins on a host: the program that is sent there, its greeting, and whether the two Pythons match."""

from __future__ import annotations

import functools
import importlib.resources
import inspect
import os
import platform
import sys
import zlib

import attrs

from lazycluster.exceptions import PythonVersionMismatchError
from lazycluster.openssh.ports import is_free
from lazycluster.supervisor import call

_BOOTSTRAP = (
    "import sys;sys.path[:]=[p for p in sys.path if p];import os,zlib;"
    "sys.path[:]=map(os.path.abspath,sys.path);b=bytearray();"
    "any(b.extend(d)or not d or len(b)>={0} for d in iter(lambda:os.read(0,{0}-len(b)),None));"
    "d=zlib.decompressobj();t=d.decompress(bytes(b))+zlib.decompress(d.unused_data);"
    'exec(t,{{"__name__":"lazycluster_call"}})'
)
"""Reads the program from standard input, and not one byte more; nothing that the current directory holds is imported
before the function runs. It is to be quoted by a login shell of any kind: no quote, backslash, `!` or newline.
"""

_SUPERVISOR = ("frames", "tree", "spawning", "directories", "outbox", "job", "workers", "program")
_PACKAGE = "lazycluster.supervisor"
LOADER = f"""\
import sys
def _load(name, source):
    full = "{_PACKAGE}." + name
    module = type(sys)(full)
    sys.modules[full] = module
    exec(compile(source, "<" + full + ">", "exec"), vars(module))
    globals()[name] = module
"""
"""Makes a module from its source. It is to be imported under the name that it has on the manager, and is taken out of
`sys.modules` before a function runs: the host may have a lazycluster of its own.
"""


@attrs.frozen
class Program:
    """What a host runs: `python3 -c <bootstrap>`, the first thing on whose standard input is `text`."""

    bootstrap: str
    text: bytes = attrs.field(repr=lambda text: f"<{len(text)} bytes>")


@attrs.frozen
class Greeting:
    """Which Python answers on the host: its version as X.Y.Z."""

    version: str
    executable: str
    implementation: str = "cpython"


def program(token: str, grace: float = 5.0) -> Program:
    """Return the program for one call.

    `token` is letters and digits that mark the greeting among what start-up files print. `grace` is how many seconds
    the processes of the function have between SIGTERM and SIGKILL when standard input ends.
    """
    if not (token.isascii() and token.isalnum()):
        raise ValueError(f"token {token!r} is not letters and digits")
    start = f"call.main({token!r}, watch.fork, lambda worker: watch.watch(worker, {grace!r}))\n"
    return as_program(("tree", "watch", "call"), start)


def as_program(modules: tuple[str, ...], start: str) -> Program:
    """Return the program that makes modules of this package, each importing earlier ones only, and runs `start`."""
    text = _loading(modules) + zlib.compress(start.encode())
    return Program(_BOOTSTRAP.format(len(text)), text)


def supervisor(token: str, mark: str, grace: float, working_dir: str | None, probe: str) -> Program:
    """Return the program of a supervisor; see `program.main()`."""
    directory = None if working_dir is None else os.fsencode(working_dir)
    start = f"sys.exit(program.main({token!r}, {mark!r}, {grace!r}, {directory!r}, {probe!r}))\n"
    return as_program(_SUPERVISOR, start)


@functools.cache
def _loading(modules: tuple[str, ...]) -> bytes:
    """Return what is the same for every host: compressed once, for that takes as long as much else of a log-in."""
    return zlib.compress(f"{LOADER}{modules_text(modules)}".encode())


@functools.cache
def calls_preparation() -> bytes:
    """Return what a supervisor loads before its first call, besides the sources of cloudpickle."""
    install = (
        "def install(functions, data):\n"
        "    late_site.catch_up()\n"
        "    call.install(data)\n"
        "    functions.work = call.work\n"
        "    functions.done_record = call.done_record\n"
        "    functions.warm_up = call.warm_up\n"
    )
    return zlib.compress(f"{LOADER}{modules_text(('late_site', 'call'))}{install}".encode())


@functools.cache
def ports_preparation() -> bytes:
    """Return what a supervisor loads before it is asked for free ports."""
    source = f"import errno, socket\n{inspect.getsource(is_free)}\n"
    return zlib.compress(f"{source}def install(functions, data):\n    functions.is_free = is_free\n".encode())


@functools.cache
def modules_text(modules: tuple[str, ...]) -> str:
    """Return the text that makes modules of this package; `LOADER` has to be there."""
    files = importlib.resources.files(_PACKAGE)
    return "".join(f"_load({name!r}, {(files / f'{name}.py').read_text('utf-8')!r})\n" for name in modules)


def parse_greeting(line: bytes, token: str) -> Greeting | None:
    """Parse a line of the host's standard output; None where it is not the greeting of the program with that token."""
    _, mark, rest = line.partition(f"{call.GREETING} {token} ".encode())
    words = rest.decode("ascii", "replace").rstrip("\r\n").split(" ", 2)
    if not mark or len(words) != 3:
        return None
    implementation, version, executable = words
    return Greeting(version, executable.encode("ascii", "replace").decode("unicode_escape"), implementation)


def check_python(greeting: Greeting, host: str) -> None:
    """Raise PythonVersionMismatchError unless the host's Python understands the manager's bytecode."""
    here = (sys.implementation.name, *platform.python_version_tuple()[:2])
    if here != (greeting.implementation, *greeting.version.split(".")[:2]):
        known = greeting.implementation == sys.implementation.name
        theirs = greeting.version if known else f"{greeting.version} ({greeting.implementation})"
        raise PythonVersionMismatchError(host, ".".join(here[1:]), theirs, greeting.executable)
