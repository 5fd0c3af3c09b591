"""The outcome of a function, in the records that its process on the host writes; sent to the host.

Standard library only, and the syntax of Python 3.6.
"""

import importlib
import io
import os
import pickle
import struct
import traceback

RECORD_TRAILER = struct.Struct(">8scQ")
"""The end of every record of the outcome: RECORD_MAGIC, the kind, and the record's length in bytes.

The outcome is read from its end. The last record is an END_RECORD, which the watching process writes. Before it comes
the VALUE_RECORD or ERROR_RECORD of the process that called the function, unless that one died too early.
"""

RECORD_MAGIC = b"\x93lzcall\n"
VALUE_RECORD, ERROR_RECORD, END_RECORD = b"V", b"E", b"X"

DONE_RECORD = RECORD_TRAILER.pack(RECORD_MAGIC, END_RECORD, 0)
"""The last record of a function that ended well."""

ERROR_TEXT_LENGTHS = struct.Struct(">QQ")
"""The head of an ERROR_RECORD: the lengths of a reason and a traceback.

These two texts follow, and then the pickle of the exception, if it can be pickled.
"""

_OUTCOME_BUFFER_BYTES = 1 << 16
_PLAIN_PICKLE_TYPES = frozenset((bool, bytes, complex, float, int, str, type(None)))


def done_record(nonce: bytes) -> bytes:
    """Return the last record, by which a function's process announces that its outcome is complete.

    So the supervisor need not wait until the kernel has torn the process down. No value ends like that by chance.
    """
    return nonce + RECORD_TRAILER.pack(RECORD_MAGIC, END_RECORD, len(nonce))


class DescriptorWriter:
    """A file for the pickler: writes every piece at once, and counts the bytes."""

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
    """A file for the pickler that keeps the bytes in memory."""

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


class BufferedWriter(DescriptorWriter):
    """A file for the pickler that writes small pieces together, so that the reader wakes up once."""

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


def write_record(out: DescriptorWriter, kind: bytes, record: bytes) -> None:
    out.write(record + RECORD_TRAILER.pack(RECORD_MAGIC, kind, len(record)))


def write_value(out: DescriptorWriter, value: object) -> None:
    try:
        # Most results are plain. cloudpickle writes the same for them, but is slow to start.
        if type(value) in _PLAIN_PICKLE_TYPES:
            pickle.Pickler(out, pickle.HIGHEST_PROTOCOL).dump(value)
        else:
            importlib.import_module("cloudpickle").Pickler(out).dump(value)
    except Exception as error:  # noqa: BLE001 - pickling runs any code; the outcome reports its error
        write_failure(out, f"its result cannot be sent back: {exception_summary(error)}", error)
    else:
        out.write(RECORD_TRAILER.pack(RECORD_MAGIC, VALUE_RECORD, out.bytes_written))


def write_exception(out: DescriptorWriter, error: BaseException) -> None:
    """Write an exception: its text, then its pickle if it can be pickled."""
    own = error.__traceback__ and error.__traceback__.tb_next  # without the frame that called the function
    text = "".join(traceback.format_exception(type(error), error, own or error.__traceback__))
    write_record(out, ERROR_RECORD, encode_error_texts(exception_summary(error), text) + pickle_exception(error))


def write_failure(out: DescriptorWriter, reason: str, error: BaseException) -> None:
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    write_record(out, ERROR_RECORD, encode_error_texts(reason, text))


def encode_error_texts(reason: str, text: str) -> bytes:
    parts = [part.encode("utf-8", "backslashreplace") for part in (reason, text)]
    return ERROR_TEXT_LENGTHS.pack(*map(len, parts)) + b"".join(parts)


def exception_summary(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(type(error), error)).strip()


def pickle_exception(error: BaseException) -> bytes:
    """Return the pickle of an exception, or of (class, args, state) for `rebuild_exception`; `b""` if neither works.

    Unless its class defines how to pickle it, an exception is unpickled by calling the class with `args`. That fails,
    or changes the message, if `__init__` takes other parameters. So it is only the second choice.
    """
    kind = type(error)
    hooks = ("__reduce__", "__reduce_ex__", "__setstate__", "__getstate__", "__getnewargs__", "__getnewargs_ex__")
    pickles_itself = any(getattr(kind, hook, None) is not getattr(BaseException, hook, None) for hook in hooks)
    for form in [error] if pickles_itself else [(kind, error.args, error.__dict__), error]:
        try:
            data = importlib.import_module("cloudpickle").dumps(form)
            unpickle_exception(io.BytesIO(data))
        except Exception:  # noqa: BLE001, S112 - it runs code of the user; the text is sent in any case
            continue
        return bytes(data)
    return b""


def unpickle_exception(file: "io.BufferedIOBase") -> BaseException:
    """Read an exception from the pickle that `pickle_exception` returned."""
    form = pickle.load(file)  # noqa: S301 - from a host whose functions are called: trusted
    return rebuild_exception(*form) if isinstance(form, tuple) else form


def rebuild_exception(
    kind: "type[BaseException]", args: "tuple[object, ...]", state: "dict[str, object]"
) -> BaseException:
    """Make an exception without calling its own `__init__`, whose parameters often differ from `args`."""
    error = kind.__new__(kind, *args)
    builtin = next(base for base in kind.__mro__ if base.__module__ == "builtins")
    vars(builtin).get("__init__", BaseException.__init__)(error, *args)
    error.__dict__.update(state)
    return error
