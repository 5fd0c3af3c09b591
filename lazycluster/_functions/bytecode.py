"""Modules as the bytecode of this Python, for hosts that have the same one.

To compile the supervisor takes a host longer than all else of its start.
"""

from __future__ import annotations

import marshal
from collections.abc import Iterator, Mapping
from types import CodeType

_LOCATION_NO_COLUMNS = 13  # InternalDocs/code_objects.md of CPython, "Location entries"
_LOCATION_NONE = 15
_MAX_CODE_UNITS_PER_ENTRY = 8
_CODE_UNIT_BYTES = 2


def compile_modules(sources: Mapping[str, str]) -> bytes:
    """Return `(name, code)` for each module, marshalled, without docstrings and columns, which double its size."""
    codes = (
        (name, compile(source, f"<{name}>", "exec", dont_inherit=True, optimize=2)) for name, source in sources.items()
    )
    return marshal.dumps([(name, strip_columns(code)) for name, code in codes])


def strip_columns(code: CodeType) -> CodeType:
    """Return code that knows its lines, and no longer the columns that Python has kept since 3.11 (PEP 657)."""
    if not hasattr(code, "co_positions"):
        return code
    consts = tuple(strip_columns(const) if isinstance(const, CodeType) else const for const in code.co_consts)
    return code.replace(co_consts=consts, co_linetable=b"".join(_line_entries(code)))


def _line_entries(code: CodeType) -> Iterator[bytes]:
    last = code.co_firstlineno
    for begin, end, line in code.co_lines():
        for at in range(begin, end, _MAX_CODE_UNITS_PER_ENTRY * _CODE_UNIT_BYTES):
            length = min(_MAX_CODE_UNITS_PER_ENTRY, (end - at) // _CODE_UNIT_BYTES)
            kind = _LOCATION_NONE if line is None else _LOCATION_NO_COLUMNS
            yield bytes([0x80 | kind << 3 | length - 1])
            if line is not None:
                yield _encode_svarint(line - last)
                last = line


def _encode_svarint(number: int) -> bytes:
    """Return a number as an svarint: the sign in the lowest bit, then 6 bits a byte, the lowest first."""
    rest = -number << 1 | 1 if number < 0 else number << 1
    data = bytearray()
    while rest >= 64:
        data.append(rest & 63 | 64)
        rest >>= 6
    data.append(rest)
    return bytes(data)
