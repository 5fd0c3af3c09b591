"""How a call begins on a host: the program that is sent there, its hello, and whether the two Pythons match."""

from __future__ import annotations

import functools
import importlib.resources
import importlib.util
import inspect
import marshal
import os
import platform
import sys
import zlib

import attrs

from lazycluster._remote import call_program
from lazycluster._remote.ports import is_port_free
from lazycluster.exceptions import PythonVersionMismatchError

_PYTHON_BOOTSTRAP = (
    "import sys;sys.path[:]=[p for p in sys.path if p];import gc,os,zlib;g=gc.isenabled();gc.disable();"
    "sys.path[:]=map(os.path.abspath,sys.path);"
    "r=lambda n,b:any(b.extend(d)or not d or len(b)>=n for d in iter(lambda:os.read(0,n-len(b)),None))and bytes(b);"
    "d=zlib.decompressobj();t=d.decompress(r({0},bytearray()));"
    'exec(t,{{"__name__":"lazycluster_call","read":r,"rest":d.unused_data,"collects":g}})'
)
"""Reads the program from standard input, and not one byte more. Nothing in the current directory is imported before the
function runs. Garbage collection pauses until the program is there, since there is no garbage before. Login shells of
any kind can quote it: it holds no single quote, backslash, `!` or newline.
"""

_SUPERVISOR_MODULES = (
    "protocol",
    "descriptors",
    "process_tree",
    "spawn",
    "temp_dirs",
    "send_queue",
    "child",
    "workers",
    "children",
    "host_probe",
    "supervisor",
)
CALL_MODULES = ("call_outcome", "memory_importer", "call_program")
"""The modules that call a function. They need `descriptors`, which a supervisor has."""
_REMOTE_PACKAGE = "lazycluster._remote"
LOADER_SOURCE = f"""\
import sys
def _load(name, code):
    full = "{_REMOTE_PACKAGE}." + name
    module = type(sys)(full)
    sys.modules[full] = module
    exec(compile(code, "<" + full + ">", "exec") if isinstance(code, str) else code, vars(module))
    globals()[name] = module
"""
"""Makes a module from its code or source, under the name that it has on the local machine.

It is taken out of `sys.modules` before a function runs: the host may have a lazycluster of its own.
"""
SOURCE_REQUEST = "@@ lazycluster asks for the source"
"""The request, with a token, of a host that cannot run the bytecode it was sent."""
_LOAD_FROM_SOURCE = """\
import gc, zlib
exec(zlib.decompress(rest))
if collects:
    gc.enable()
"""
_LOAD_FROM_BYTECODE = """\
import gc, marshal, os, zlib
_made_for = {implementation!r}, {magic!r}
if _made_for == (sys.implementation.name, getattr(sys.modules.get("_frozen_importlib_external"), "MAGIC_NUMBER", None)):
    for _name, _code in marshal.loads(zlib.decompress(rest)):
        _load(_name, _code)
else:
    os.write(1, {asks!r})
    exec(zlib.decompress(read({size}, bytearray())))
if collects:
    gc.enable()
"""


@attrs.frozen
class HostProgram:
    """The program that a host runs: `python3 -c <bootstrap>`, whose standard input begins with `stdin_prefix`.

    `source` is sent if the host asks for it (`SOURCE_REQUEST`).
    """

    bootstrap: str
    stdin_prefix: bytes = attrs.field(repr=lambda text: f"<{len(text)} bytes>")
    source: bytes = attrs.field(default=b"", repr=lambda text: f"<{len(text)} bytes>")


@attrs.frozen
class PythonInfo:
    """The Python that answers on the host; its version is X.Y.Z."""

    version: str
    executable: str
    implementation: str = "cpython"


def build_call_program(token: str, grace: float = 5.0) -> HostProgram:
    """Return the program for one call.

    `token` is letters and digits that mark the hello in the output of start-up files. `grace` is the seconds between
    SIGTERM and SIGKILL for the processes of the function when standard input ends.
    """
    if not (token.isascii() and token.isalnum()):
        raise ValueError(f"token must be letters and digits, got {token!r}")
    start = (
        f"call_program.main({token!r}, watchdog.fork_worker, lambda worker: watchdog.watch_worker(worker, {grace!r}))\n"
    )
    return _build_program(
        f"{LOADER_SOURCE}{_LOAD_FROM_SOURCE}{start}",
        _compressed_sources(("descriptors", "process_tree", "watchdog", *CALL_MODULES)),
    )


def build_supervisor_program(token: str, mark: str, grace: float, working_dir: str | None, probe: str) -> HostProgram:
    """Return the program of a supervisor; see `lazycluster._remote.supervisor.main()`."""
    directory = None if working_dir is None else os.fsencode(working_dir)
    start = f"sys.exit(supervisor.main({token!r}, {mark!r}, {grace!r}, {directory!r}, {probe!r}))\n"
    source = _compressed_sources(_SUPERVISOR_MODULES)
    loading = _LOAD_FROM_BYTECODE.format(
        implementation=sys.implementation.name,
        magic=importlib.util.MAGIC_NUMBER,
        asks=f"{SOURCE_REQUEST} {token}\n".encode(),
        size=len(source),
    )
    return attrs.evolve(
        _build_program(f"{LOADER_SOURCE}{loading}{start}", _compressed_bytecode(_SUPERVISOR_MODULES)), source=source
    )


def _build_program(text: str, rest: bytes) -> HostProgram:
    """Return the program that runs a text, which finds the rest as `rest`."""
    sent = zlib.compress(text.encode()) + rest
    return HostProgram(_PYTHON_BOOTSTRAP.format(len(sent)), sent)


@functools.cache
def _compressed_sources(modules: tuple[str, ...]) -> bytes:
    """Return compressed source that makes modules; cached, because compressing takes a good part of a log-in."""
    return zlib.compress(modules_source(modules).encode())


@functools.cache
def _compressed_bytecode(modules: tuple[str, ...]) -> bytes:
    """Return modules as bytecode without docstrings, compressed once for all hosts.

    Compiling the supervisor takes a host longer than all else of its start.
    """
    sources = {name: _read_module_source(name) for name in modules}
    return zlib.compress(
        marshal.dumps(
            [
                (name, compile(source, f"<{_REMOTE_PACKAGE}.{name}>", "exec", dont_inherit=True, optimize=2))
                for name, source in sources.items()
            ]
        )
    )


@functools.cache
def calls_extension() -> bytes:
    """Return the code that a supervisor loads before its first call, besides the sources of cloudpickle."""
    install = (
        "def install(loaded_code, data):\n"
        "    late_site.run_site_main()\n"
        "    call_program.prepare(data)\n"
        "    loaded_code.run_call = call_program.run_call\n"
        "    loaded_code.done_record = call_outcome.done_record\n"
    )
    return zlib.compress(f"{LOADER_SOURCE}{modules_source(('late_site', *CALL_MODULES))}{install}".encode())


@functools.cache
def ports_extension() -> bytes:
    """Return the code that a supervisor loads before the first request for free ports."""
    source = f"import errno, socket\n{inspect.getsource(is_port_free)}\n"
    return zlib.compress(
        f"{source}def install(loaded_code, data):\n    loaded_code.is_port_free = is_port_free\n".encode()
    )


@functools.cache
def modules_source(modules: tuple[str, ...]) -> str:
    """Return source that makes modules, each of which imports only earlier ones; it needs `LOADER_SOURCE` before it."""
    return "".join(f"_load({name!r}, {_read_module_source(name)!r})\n" for name in modules)


def _read_module_source(module: str) -> str:
    return (importlib.resources.files(_REMOTE_PACKAGE) / f"{module}.py").read_text("utf-8")


def parse_python_info(line: bytes, token: str) -> PythonInfo | None:
    """Parse a line of the host's standard output; None if it is not the hello of the program with that token."""
    _, mark, rest = line.partition(f"{call_program.CALL_START_MARKER} {token} ".encode())
    words = rest.decode("ascii", "replace").rstrip("\r\n").split(" ", 2)
    if not mark or len(words) != 3:
        return None
    implementation, version, executable = words
    return PythonInfo(version, executable.encode("ascii", "replace").decode("unicode_escape"), implementation)


def check_python_version(python: PythonInfo, host: str) -> None:
    """Raise PythonVersionMismatchError unless the host's Python understands the bytecode of the local one."""
    local_version = (sys.implementation.name, *platform.python_version_tuple()[:2])
    if local_version != (python.implementation, *python.version.split(".")[:2]):
        known = python.implementation == sys.implementation.name
        host_version = python.version if known else f"{python.version} ({python.implementation})"
        raise PythonVersionMismatchError(host, ".".join(local_version[1:]), host_version, python.executable)
