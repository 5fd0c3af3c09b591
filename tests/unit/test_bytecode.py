"""Bytecode without columns: it does what it did, and its errors tell the same lines."""

from __future__ import annotations

import importlib.util
import marshal
import pkgutil
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

import lazycluster._remote
from lazycluster._functions.bytecode import compile_modules, strip_columns

MODULES = [module.name for module in pkgutil.iter_modules(lazycluster._remote.__path__)]


def all_codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from all_codes(const)


@pytest.mark.parametrize("module", [*(f"lazycluster._remote.{name}" for name in MODULES), "argparse", "typing"])
def test_every_instruction_keeps_its_line(module: str) -> None:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    code = compile(Path(spec.origin).read_text("utf-8"), module, "exec")
    for before, after in zip(all_codes(code), all_codes(strip_columns(code)), strict=True):
        assert list(after.co_lines()) == list(before.co_lines())
        assert (after.co_code, after.co_name, after.co_firstlineno) == (
            before.co_code,
            before.co_name,
            before.co_firstlineno,
        )


FAR = f"""\
def far(x):
    '''Nobody sends this.'''
    assert x is None
    try:
        return 1 / (
{chr(10) * 500}
            x)
    finally:
        x = 1; del x

def back():
    return [far(0)
            for _ in "a"]
"""


def test_a_traceback_tells_the_lines() -> None:
    names: dict[str, Any] = {}
    [(name, code)] = marshal.loads(compile_modules({"m": FAR}))
    exec(code, names)
    assert name == "m"
    assert names["far"].__doc__ is None
    with pytest.raises(ZeroDivisionError) as caught:
        names["back"]()
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(caught.value.__traceback__)[1:]]
    lines = FAR.splitlines()
    assert frames[0] == ("<m>", lines.index("    return [far(0)") + 1)
    assert frames[-1] == ("<m>", lines.index("        return 1 / (") + 1)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there are no columns")
def test_it_is_much_smaller() -> None:
    code = compile(FAR, "<m>", "exec")
    assert len(marshal.dumps(strip_columns(code))) < 0.95 * len(marshal.dumps(code))
