"""The program that runs one function on a host: sent there as text, started by `_functions.bootstrap`.

It imports only the standard library and writes no file. Its syntax is that of Python 3.6, so that an old Python can at
least report its version.

Standard output carries the hello line, then the outcome (see `call_outcome.RECORD_TRAILER`). Standard input carries
the request (see `CALL_REQUEST_HEADER`). Its end afterwards means that the local process is gone or has given up.
"""

import atexit
import contextlib
import importlib
import io
import linecache
import os
import pickle
import struct
import sys
import time
import types
import zlib
from collections.abc import Callable

from lazycluster._remote.call_outcome import (
    DONE_RECORD,
    END_RECORD,
    BufferedWriter,
    DescriptorWriter,
    MemoryWriter,
    exception_summary,
    write_exception,
    write_failure,
    write_record,
    write_value,
)
from lazycluster._remote.descriptors import read_exactly
from lazycluster._remote.memory_importer import fill_modules, make_importable

CALL_START_MARKER = "LAZYCLUSTER-CALL"
"""The first word of the hello; the token, the implementation, the version and the executable follow."""

CALL_REQUEST_HEADER = struct.Struct(">QQQQ")
"""The request's header: the lengths of the cloudpickle sources, the modules, the texts of files that may be shown in
tracebacks, and the pickles that follow it. A part that is not needed is empty.
"""


def main(token: str, fork_worker: "Callable[[], int]", watch_worker: "Callable[[int], str]") -> None:
    """Write the hello, read the request, run it in a child process, and watch over that process.

    `fork_worker` and `watch_worker` are those of `watchdog.py`, which is sent along.
    """
    out = os.dup(1)  # not inheritable (PEP 446): commands that the function starts do not get it
    os.dup2(2, 1)
    version = ".".join(str(number) for number in sys.version_info[:3])
    words = (CALL_START_MARKER, token, sys.implementation.name, version, sys.executable or "python")
    DescriptorWriter(out).write(" ".join(words).encode("unicode_escape") + b"\n")
    try:
        request = [
            read_exactly(0, length) for length in CALL_REQUEST_HEADER.unpack(read_exactly(0, CALL_REQUEST_HEADER.size))
        ]
    except EOFError:
        return
    worker = fork_worker()
    if worker == 0:
        null_device = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null_device, 0)
        os.close(null_device)
        prepare_interpreter()
        load_and_call(DescriptorWriter(out), lambda: load_request(request))
        return
    request.clear()
    end_description = watch_worker(worker)
    with contextlib.suppress(BrokenPipeError):
        write_record(DescriptorWriter(out), END_RECORD, end_description.encode())


def prepare(sources: bytes) -> None:
    """Import cloudpickle from its sources and prepare a supervisor for the calls that it will fork."""
    make_importable(pickle.loads(zlib.decompress(sources)), {})  # noqa: S301 - from the local process, which the host trusts
    importlib.import_module("cloudpickle")
    prepare_interpreter()


def run_call(request_reader: int, outcome_writer: int, done: bytes) -> None:
    """Read a request, call its function, and write the outcome, which ends with `done`, in a worker of a supervisor.

    Before `done` the worker does what Python does at exit: it waits for threads and runs `atexit` functions. The caller
    must then end the process.
    """
    parts = [
        read_exactly(request_reader, length)
        for length in CALL_REQUEST_HEADER.unpack(read_exactly(request_reader, CALL_REQUEST_HEADER.size))
    ]
    os.close(request_reader)
    out = BufferedWriter(outcome_writer)
    me = os.getpid()
    load_and_call(out, lambda: load_request(parts))
    if os.getpid() != me:
        return  # a process that the function forked, and that returned from it, too
    threading = sys.modules.get("threading")
    if threading is not None:
        if threading.active_count() > 1:
            out.flush()
        threading._shutdown()  # noqa: SLF001 - waits for threads, as multiprocessing does
    atexit._run_exitfuncs()  # noqa: SLF001 - as above
    _flush_standard_streams()
    out.write(done)
    out.flush()


def load_and_call(
    out: DescriptorWriter,
    load: "Callable[[], tuple[Callable[..., object], tuple[object, ...], dict[str, object] | None]]",
) -> None:
    """Load a function with its arguments, call it, and write the outcome.

    With None for `kwargs`, `args` are a number of seconds and a list of items. The function is called with one item
    after another until the seconds have passed, and the value is the list of the outcomes.
    """
    try:
        function, args, kwargs = load()
    except BaseException as error:  # noqa: BLE001 - unpickling runs any code; its error is reported
        write_failure(out, f"it cannot be loaded there: {exception_summary(error)}", error)
        return
    if kwargs is None:
        _call_and_write_outcome(out, _call_each, (function, *args), {})
    else:
        _call_and_write_outcome(out, function, args, kwargs)


def _call_and_write_outcome(
    out: DescriptorWriter, function: "Callable[..., object]", args: "tuple[object, ...]", kwargs: "dict[str, object]"
) -> None:
    """Call a function and write the outcome, except in a fork that the function made and that returned from it, too."""
    me = os.getpid()
    failure: BaseException | None = None
    value: object = None
    try:
        value = function(*args, **kwargs)
        _reject_lazy_result(value)
    except BaseException as error:  # noqa: BLE001 - the user's function; its error is reported
        failure = error
    if os.getpid() != me:
        return
    _flush_standard_streams()
    if failure is None:
        write_value(out, value)
    else:
        write_exception(out, failure)


def _call_each(function: "Callable[[object], object]", seconds: float, items: "list[object]") -> "list[bytes]":
    """Call a function with one item after another for a number of seconds; return the outcome of each."""
    me = os.getpid()
    until = time.monotonic() + seconds
    outcomes: list[bytes] = []
    for item in items:
        out = MemoryWriter()
        _call_and_write_outcome(out, function, (item,), {})
        if os.getpid() != me:
            break
        outcomes.append(bytes(out.data) + DONE_RECORD)
        if time.monotonic() >= until:
            break
    return outcomes


def prepare_interpreter() -> None:
    """Make new standard streams and an empty `__main__`: the function may change them."""
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", 1, "utf-8", "backslashreplace", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, "utf-8", "backslashreplace", closefd=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "lazycluster"]:
        del sys.modules[name]  # modules of this program; the function may import a lazycluster of the host's own
    namespace = vars(sys.modules["__main__"])
    for name in [name for name in namespace if not name.startswith("__")]:
        del namespace[name]


def load_request(
    request: "list[bytes]",
) -> "tuple[Callable[..., object], tuple[object, ...], dict[str, object] | None]":
    """Make the sent modules importable, and unpickle the function, its arguments, and the contents of the modules.

    The pickles are the function, contents of modules, None, the arguments, contents of modules, None. One pickler wrote
    them all, so objects that they share stay shared.
    """
    if request[0]:
        make_importable(pickle.loads(zlib.decompress(request[0])), {})  # noqa: S301 - from the local process, which the host trusts
        importlib.import_module("cloudpickle")
    left_out: dict[tuple[str, str], str] = {}
    if request[1]:
        sent, left_out = pickle.loads(zlib.decompress(request[1]))  # noqa: S301 - as above
        make_importable(sent, left_out)
    for file, text in pickle.loads(request[2]).items():  # noqa: S301 - as above
        # With these, tracebacks show the lines that they would show on the local machine. The text is unpacked when it
        # is needed, except for a file such as <stdin>, for which linecache calls no loader.
        if file.startswith("<"):
            lines = zlib.decompress(text).decode("utf-8", "surrogatepass").splitlines(True)
            linecache.cache[file] = (sum(map(len, lines)), None, lines, file)
        else:
            linecache.cache[file] = (lambda text=text: zlib.decompress(text).decode("utf-8", "surrogatepass"),)
    sys.path.insert(0, "")
    unpickler = pickle.Unpickler(io.BytesIO(request[3]))  # noqa: S301 - as above
    del request[:]
    function = unpickler.load()
    fill_modules(unpickler, left_out)
    args, kwargs = unpickler.load()
    fill_modules(unpickler, left_out)
    return function, args, kwargs


def _reject_lazy_result(value: object) -> None:
    kinds = (types.GeneratorType, types.AsyncGeneratorType, types.CoroutineType)
    if isinstance(value, kinds):
        if isinstance(value, types.CoroutineType):
            value.close()  # or Python would warn that it was never awaited
        advice = (
            "use asyncio.run(...) there" if isinstance(value, types.CoroutineType) else "return a list of its items"
        )
        raise TypeError(f"the function returned a {type(value).__name__}, which cannot leave the host; {advice}")


def _flush_standard_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # replaced or closed by the function
            stream.flush()
