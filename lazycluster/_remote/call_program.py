"""The program that runs one function on a host: sent there as text, started by `launch.program`.

It imports only the standard library, writes no file, and its syntax is that of Python 3.6, so that an old Python can at
least say which one it is. Standard output carries the greeting line, then the answer (see `RECORD_TRAILER`); standard
input carries the request (see `CALL_REQUEST_HEADER`), and its end afterwards means that the manager is gone or has
given up.
"""

import atexit
import contextlib
import functools
import importlib
import io
import linecache
import os
import pickle
import struct
import sys
import time
import traceback
import types
import zlib
from collections.abc import Callable
from importlib.machinery import ModuleSpec

CALL_START_MARKER = "LAZYCLUSTER-CALL"
"""The first word of the greeting; the token, the implementation, the version and the executable follow."""

CALL_REQUEST_HEADER = struct.Struct(">QQQQ")
"""The request's header: the lengths of the cloudpickle sources, the modules, the texts of files that may be shown in
tracebacks, and the pickles that follow it. What is not needed is empty.
"""

RECORD_TRAILER = struct.Struct(">8scQ")
"""What stands behind every record of the answer: MAGIC, the kind, and the record's length in bytes.

The answer is read from its end: an ENDED record is the last one, written by the process that watches; before it
stands the VALUE or ERROR of the process that called the function, unless that one died too early.
"""

RECORD_MAGIC = b"\x93lzcall\n"
VALUE_RECORD, ERROR_RECORD, END_RECORD = b"V", b"E", b"X"

DONE_RECORD = RECORD_TRAILER.pack(RECORD_MAGIC, END_RECORD, 0)
"""The last record of a function that ended well."""

_OUTCOME_BUFFER_BYTES = 1 << 16
_PLAIN_PICKLE_TYPES = frozenset((bool, bytes, complex, float, int, str, type(None)))

ERROR_TEXT_LENGTHS = struct.Struct(">QQ")
"""An ERROR record begins with the lengths of a reason and a traceback, and these; the exception's pickle may follow."""


def main(token: str, fork_worker: "Callable[[], int]", watch_worker: "Callable[[int], str]") -> None:
    """Greet, read the request, run it in a child process, and watch over that one.

    `fork_worker` and `watch_worker` are those of `watch_worker.py`, which is sent along.
    """
    out = os.dup(1)  # not inheritable (PEP 446): commands that the function starts do not get it
    os.dup2(2, 1)
    version = ".".join(str(number) for number in sys.version_info[:3])
    words = (CALL_START_MARKER, token, sys.implementation.name, version, sys.executable or "python")
    DescriptorWriter(out).write(" ".join(words).encode("unicode_escape") + b"\n")
    try:
        request = [
            _read_exactly(0, length)
            for length in CALL_REQUEST_HEADER.unpack(_read_exactly(0, CALL_REQUEST_HEADER.size))
        ]
    except EOFError:
        return
    worker = fork_worker()
    if worker == 0:
        null_device = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null_device, 0)
        os.close(null_device)
        _prepare_interpreter()
        load_and_call(DescriptorWriter(out), lambda: _load_request(request))
        return
    request.clear()
    end_description = watch_worker(worker)
    with contextlib.suppress(BrokenPipeError):
        _write_record(DescriptorWriter(out), END_RECORD, end_description.encode())


def prepare(sources: bytes) -> None:
    """Import cloudpickle from its sources and prepare a supervisor for the calls that it will fork."""
    _make_importable(pickle.loads(zlib.decompress(sources)), {})  # noqa: S301 - from the manager, whom the host trusts
    importlib.import_module("cloudpickle")
    _prepare_interpreter()
    _trial_pickle()


def warm_up() -> None:
    """Do what `run_call` does, with a function that does nothing, and write nothing."""
    reading, writing = os.pipe()
    try:
        pickles = _trial_pickle() + pickle.dumps(None) + pickle.dumps(((), {})) + pickle.dumps(None)
        request = [b"", b"", pickle.dumps({}), pickles]
        function, args, kwargs = _load_request(request)
        del sys.path[0]
        _flush_standard_streams()
        _write_value(DescriptorWriter(writing), function(*args, **kwargs or {}))
    finally:
        os.close(reading)
        os.close(writing)


@functools.lru_cache(maxsize=1)
def _trial_pickle() -> bytes:
    data: bytes = importlib.import_module("cloudpickle").dumps(lambda: None)
    return data


def done_record(nonce: bytes) -> bytes:
    """Return the last record by which a function's process says that nothing more will come.

    The supervisor then need not wait until the kernel has taken it apart. No value ends like that by chance.
    """
    return nonce + RECORD_TRAILER.pack(RECORD_MAGIC, END_RECORD, len(nonce))


def run_call(request_reader: int, outcome_writer: int, done: bytes) -> None:
    """Read a request, call its function and write what came of it, in a process of a supervisor's own; last, `done`.

    Before that do what a Python does at its end, as far as that is the function's; the process is to end then.
    """
    parts = [
        _read_exactly(request_reader, length)
        for length in CALL_REQUEST_HEADER.unpack(_read_exactly(request_reader, CALL_REQUEST_HEADER.size))
    ]
    os.close(request_reader)
    out = _BufferedWriter(outcome_writer)
    me = os.getpid()
    load_and_call(out, lambda: _load_request(parts))
    if os.getpid() != me:
        return  # a fork of the function's own, which came back from it too
    threading = sys.modules.get("threading")
    if threading is not None:
        if threading.active_count() > 1:
            out.flush()
        threading._shutdown()  # noqa: SLF001 - waits for threads, as multiprocessing does
    atexit._run_exitfuncs()  # noqa: SLF001 - as above
    _flush_standard_streams()
    out.write(done)
    out.flush()


def rebuild_exception(
    kind: "type[BaseException]", args: "tuple[object, ...]", state: "dict[str, object]"
) -> BaseException:
    """Make an exception anew without its own `__init__`, whose parameters are often others than `args`."""
    error = kind.__new__(kind, *args)
    builtin = next(base for base in kind.__mro__ if base.__module__ == "builtins")
    vars(builtin).get("__init__", BaseException.__init__)(error, *args)
    error.__dict__.update(state)
    return error


class DescriptorWriter:
    """A file for the pickler: writes all at once, and counts."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.bytes_written = 0

    def write(self, data: "bytes | memoryview") -> int:
        """Write a piece."""
        view = memoryview(data).cast("B")
        position = 0
        while position < len(view):
            position += os.write(self._descriptor, view[position : position + (1 << 20)])
        self.bytes_written += position
        return position


class MemoryWriter(DescriptorWriter):
    """The same, into memory."""

    def __init__(self) -> None:
        """Begin with nothing."""
        super().__init__(-1)
        self.data = bytearray()

    def write(self, data: "bytes | memoryview") -> int:
        """Keep a piece."""
        self.data += data
        written = len(self.data) - self.bytes_written
        self.bytes_written += written
        return written


class _BufferedWriter(DescriptorWriter):
    """The same, but little at a time is written together: whoever reads then wakes up once."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor)
        self._buffer = bytearray()

    def write(self, data: "bytes | memoryview") -> int:
        view = memoryview(data).cast("B")
        if len(self._buffer) + len(view) > _OUTCOME_BUFFER_BYTES:
            self.flush()
            return super().write(view)
        self._buffer += view
        self.bytes_written += len(view)
        return len(view)

    def flush(self) -> None:
        gathered = bytes(self._buffer)
        self._buffer.clear()
        self.bytes_written -= len(gathered)
        super().write(gathered)


def _write_record(out: DescriptorWriter, kind: bytes, record: bytes) -> None:
    out.write(record + RECORD_TRAILER.pack(RECORD_MAGIC, kind, len(record)))


def _read_exactly(descriptor: int, length: int) -> bytes:
    """Read exactly so many bytes and not one more; raise EOFError where the stream ends before."""
    data = bytearray()
    while len(data) < length:
        piece = os.read(descriptor, min(length - len(data), 1 << 20))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


# The process that calls ----------------------------------------------------------------------------------------------


class MemoryImporter:
    """Finds the modules that were sent: `name -> (file, is a package, source)`.

    The contents of a module without source are in the pickles: it begins empty, and says so where somebody asks it
    for what was not sent.
    """

    def __init__(
        self, modules: "dict[str, tuple[str, bool, str | None]]", left_out: "dict[tuple[str, str], str]"
    ) -> None:
        self._modules = modules
        self.left_out = left_out

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> "ModuleSpec | None":
        """Return the spec of a module that was sent."""
        if name not in self._modules:
            return None
        file, is_package, _ = self._modules[name]
        spec = ModuleSpec(name, self, origin=file, is_package=is_package)  # type: ignore[arg-type] # a Loader by duck
        spec.has_location = True
        return spec

    def create_module(self, _spec: ModuleSpec) -> None:
        """Leave it to the import system."""

    def exec_module(self, module: types.ModuleType) -> None:
        """Run the source, or prepare the module to be filled."""
        name = module.__name__
        file, _, source = self._modules[name]
        if source is not None:
            exec(compile(source, file, "exec"), vars(module))  # noqa: S102 - this is what importing is
            return

        def module_getattr(attribute: str) -> object:
            why = self.left_out.get((name, attribute), "it has none, or the code that was sent does not name it")
            raise AttributeError(f"module {name!r} was sent without {attribute!r}: {why}")

        vars(module)["__getattr__"] = module_getattr

    def get_source(self, name: str) -> "str | None":
        """Return the source, for the lines of a traceback."""
        return self._modules[name][2]


def load_and_call(
    out: DescriptorWriter,
    load: "Callable[[], tuple[Callable[..., object], tuple[object, ...], dict[str, object] | None]]",
) -> None:
    """Load a function with its arguments, call it, and write what came of it.

    Without a mapping of arguments by name it is called with one item after another, of the list that is the second
    argument, until the seconds that are the first have passed; what comes of it is a list of answers.
    """
    try:
        function, args, kwargs = load()
    except BaseException as error:  # noqa: BLE001 - unpickling runs anything; the manager is told all of it
        _write_failure(out, f"it cannot be loaded there: {_exception_summary(error)}", error)
        return
    if kwargs is None:
        _call_and_write_outcome(out, _call_each, (function, *args), {})
    else:
        _call_and_write_outcome(out, function, args, kwargs)


def _call_and_write_outcome(
    out: DescriptorWriter, function: "Callable[..., object]", args: "tuple[object, ...]", kwargs: "dict[str, object]"
) -> None:
    """Call a function and write what came of it; nothing in a fork of the function's own that came back from it too."""
    me = os.getpid()
    failure: BaseException | None = None
    value: object = None
    try:
        value = function(*args, **kwargs)
        _reject_lazy_result(value)
    except BaseException as error:  # noqa: BLE001 - the user's function; the manager is told all of it
        failure = error
    if os.getpid() != me:
        return
    _flush_standard_streams()
    if failure is None:
        _write_value(out, value)
    else:
        _write_exception(out, failure)


def _call_each(function: "Callable[[object], object]", seconds: float, items: "list[object]") -> "list[bytes]":
    """Call a function with one item after another until so many seconds have passed; return what came of each."""
    me = os.getpid()
    until = time.monotonic() + seconds
    answers: list[bytes] = []
    for item in items:
        out = MemoryWriter()
        _call_and_write_outcome(out, function, (item,), {})
        if os.getpid() != me:
            break
        answers.append(bytes(out.data) + DONE_RECORD)
        if time.monotonic() >= until:
            break
    return answers


def _prepare_interpreter() -> None:
    """Take standard streams and a `__main__` that the function may do with as it likes."""
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", 1, "utf-8", "backslashreplace", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, "utf-8", "backslashreplace", closefd=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "lazycluster"]:
        del sys.modules[name]  # this program; what the function may import is the host's own
    namespace = vars(sys.modules["__main__"])
    for name in [name for name in namespace if not name.startswith("__")]:
        del namespace[name]


def _load_request(
    request: "list[bytes]",
) -> "tuple[Callable[..., object], tuple[object, ...], dict[str, object] | None]":
    """Make what was sent importable, and unpickle the function, its arguments, and the contents of the modules.

    The pickles are the function, contents of modules, None, the arguments, contents of modules, None. They are the
    work of one pickler, so that what is shared among them stays shared.
    """
    if request[0]:
        _make_importable(pickle.loads(zlib.decompress(request[0])), {})  # noqa: S301 - from the manager, whom the host trusts
        importlib.import_module("cloudpickle")
    left_out: dict[tuple[str, str], str] = {}
    if request[1]:
        sent, left_out = pickle.loads(zlib.decompress(request[1]))  # noqa: S301 - as above
        _make_importable(sent, left_out)
    for file, text in pickle.loads(request[2]).items():  # noqa: S301 - as above
        # So that tracebacks show the lines, as they would on the manager; unpacked when somebody looks, except for a
        # file such as <stdin>, of which linecache expects nothing.
        if file.startswith("<"):
            lines = zlib.decompress(text).decode("utf-8", "surrogatepass").splitlines(True)
            linecache.cache[file] = (sum(map(len, lines)), None, lines, file)
        else:
            linecache.cache[file] = (lambda text=text: zlib.decompress(text).decode("utf-8", "surrogatepass"),)
    sys.path.insert(0, "")
    unpickler = pickle.Unpickler(io.BytesIO(request[3]))  # noqa: S301 - as above
    del request[:]
    function = unpickler.load()
    _fill_modules(unpickler, left_out)
    args, kwargs = unpickler.load()
    _fill_modules(unpickler, left_out)
    return function, args, kwargs


def _make_importable(
    modules: "dict[str, tuple[str, bool, str | None]]", left_out: "dict[tuple[str, str], str]"
) -> None:
    """Have modules found that were sent."""
    sys.meta_path.insert(0, MemoryImporter(modules, left_out))


def _fill_modules(unpickler: pickle.Unpickler, left_out: "dict[tuple[str, str], str]") -> None:
    """Set the attributes of the modules that were sent, and import those that stand in them and were not."""
    for module, name, value, imported in iter(unpickler.load, None):
        try:
            content = importlib.import_module(imported) if imported else value
        except ImportError as error:
            left_out[module, name] = _exception_summary(error)
        else:
            setattr(importlib.import_module(module), name, content)


def _reject_lazy_result(value: object) -> None:
    kinds = (types.GeneratorType, types.AsyncGeneratorType, types.CoroutineType)
    if isinstance(value, kinds):
        if isinstance(value, types.CoroutineType):
            value.close()  # or Python would warn that nobody waited for it
        advice = (
            "use asyncio.run(...) there" if isinstance(value, types.CoroutineType) else "return a list of its items"
        )
        raise TypeError(f"the function returned a {type(value).__name__}, which cannot leave the host; {advice}")


def _write_value(out: DescriptorWriter, value: object) -> None:
    try:
        if (
            type(value) in _PLAIN_PICKLE_TYPES
        ):  # most results; cloudpickle would do the same, and takes its time to begin
            pickle.Pickler(out, pickle.HIGHEST_PROTOCOL).dump(value)
        else:
            importlib.import_module("cloudpickle").Pickler(out).dump(value)
    except Exception as error:  # noqa: BLE001 - pickling runs anything; the manager is told all of it
        _write_failure(out, f"its result cannot be sent back: {_exception_summary(error)}", error)
    else:
        out.write(RECORD_TRAILER.pack(RECORD_MAGIC, VALUE_RECORD, out.bytes_written))


def _write_exception(out: DescriptorWriter, error: BaseException) -> None:
    """Write an exception: pickled, where that is possible, behind its text."""
    own = error.__traceback__ and error.__traceback__.tb_next  # without the frame of _tell
    text = "".join(traceback.format_exception(type(error), error, own or error.__traceback__))
    _write_record(out, ERROR_RECORD, _encode_error_texts(_exception_summary(error), text) + pickle_exception(error))


def _write_failure(out: DescriptorWriter, reason: str, error: BaseException) -> None:
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    _write_record(out, ERROR_RECORD, _encode_error_texts(reason, text))


def _encode_error_texts(reason: str, text: str) -> bytes:
    parts = [part.encode("utf-8", "backslashreplace") for part in (reason, text)]
    return ERROR_TEXT_LENGTHS.pack(*map(len, parts)) + b"".join(parts)


def _exception_summary(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(type(error), error)).strip()


def pickle_exception(error: BaseException) -> bytes:
    """Return the pickle of an exception, or of (class, args, state) for `rebuild_exception`; `b""` if neither works.

    An exception whose class does not say how it is to be pickled is unpickled by calling the class with `args`. That
    fails, or changes the message, where `__init__` takes other parameters; so it is only the second choice.
    """
    kind = type(error)
    hooks = ("__reduce__", "__reduce_ex__", "__setstate__", "__getstate__", "__getnewargs__", "__getnewargs_ex__")
    own_way = any(getattr(kind, hook, None) is not getattr(BaseException, hook, None) for hook in hooks)
    for form in [error] if own_way else [(kind, error.args, error.__dict__), error]:
        try:
            data = importlib.import_module("cloudpickle").dumps(form)
            unpickle_exception(io.BytesIO(data))
        except Exception:  # noqa: BLE001, S112 - any code of the user's; the text goes to the manager in any case
            continue
        return bytes(data)
    return b""


def unpickle_exception(file: "io.BufferedIOBase") -> BaseException:
    """Read what `pickle_exception` made."""
    form = pickle.load(file)  # noqa: S301 - from a host whose functions are called: trusted
    return rebuild_exception(*form) if isinstance(form, tuple) else form


def _flush_standard_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # replaced or closed by the function
            stream.flush()
