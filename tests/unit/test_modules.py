"""The modules that are sent with a function, and the imports and names in its code."""

from __future__ import annotations

import importlib
import importlib.util
import json
import pickle
import re
import sys
import sysconfig
import zipfile
import zlib
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING

import attrs
import pytest

import lazycluster
from lazycluster._functions import modules, serialize
from lazycluster._remote import call_program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def make_module(name: str, **facts: object) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(facts)
    return module


@pytest.mark.parametrize(
    ("candidate", "expected"),
    [
        (json, False),
        (re, False),
        (sys, False),
        (attrs, False),
        (pytest, False),
        (lazycluster, False),
        (modules, False),
        (sys.modules["__main__"], True),
        (sys.modules[__name__], True),
        (make_module("__mp_main__", __file__="/project/script.py"), False),
        (make_module("own", __file__="/project/own.py"), True),
        (make_module("own", __file__="/project/own.pyc"), True),
        (make_module("own", __file__="/project/own.so"), False),
        (make_module("own", __file__="/project/.venv/lib/python3.11/site-packages/own.py"), False),
        (make_module("own", __file__="/usr/lib/python3/dist-packages/own.py"), False),
        (make_module("own", __file__=sysconfig.get_path("stdlib") + "/own.py"), False),
        (make_module("dynamic"), False),
        (make_module("space", __path__=["/project/space"]), True),
        (make_module("space", __path__=["/project/space", sysconfig.get_path("purelib") + "/space"]), False),
        (make_module("space", __path__=[]), False),
        (make_module("space", __path__=None), False),
        (make_module("odd", __name__=None), False),
    ],
    ids=[
        "json",
        "re",
        "sys",
        "attrs",
        "pytest",
        "lazycluster",
        "lazycluster module",
        "__main__",
        "this module",
        "__mp_main__",
        "own py",
        "own pyc",
        "own extension",
        "site-packages",
        "dist-packages",
        "standard library directory",
        "no file",
        "namespace package",
        "namespace package partly installed",
        "empty path",
        "path None",
        "no name",
    ],
)
def test_is_user_module(candidate: ModuleType, expected: bool) -> None:
    assert modules.is_user_module(candidate) is expected


def test_is_user_module_does_not_load_lazy_module(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("raise SystemError('loaded')")
    spec = importlib.util.spec_from_file_location("slow", tmp_path / "slow.py")
    assert spec is not None
    assert spec.loader is not None
    spec.loader = importlib.util.LazyLoader(spec.loader)
    lazy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lazy)
    assert modules.is_user_module(lazy)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1", []),
        ("import a", [("a", ())]),
        ("import a.b as c", [("a.b", ())]),
        ("from a import b, c", [("a", ("b", "c"))]),
        ("from a import *", [("a", ("*",))]),
        ("from . import b", [("pkg.sub", ("b",))]),
        ("from ..other import b", [("pkg.other", ("b",))]),
        ("from .... import b", []),
        ("def f():\n    class C:\n        import a", [("a", ())]),
        ("\n".join(f"n{n} = {n}.5" for n in range(300)) + "\nfrom a import b", [("a", ("b",))]),
    ],
    ids=[
        "none",
        "import",
        "import as",
        "from",
        "from star",
        "relative",
        "relative to parent",
        "relative beyond top",
        "nested",
        "many constants",
    ],
)
def test_find_imports_of_code(source: str, expected: list[tuple[str, tuple[str, ...]]]) -> None:
    code = compile(source, "f", "exec")
    assert list(modules.find_imports(code, "pkg.sub")) == expected


def test_find_imports_relative_without_package() -> None:
    assert list(modules.find_imports(compile("from . import b", "f", "exec"), "")) == []


def test_referenced_names_of_nested_code() -> None:
    code = compile("def f(x):\n    def g(): return x.one\n    return two(g)", "f", "exec")
    assert modules.referenced_names(code) >= {"one", "two"}
    assert isinstance(code, CodeType)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    files = {
        "user_one.py": USER,
        "helper_one.py": HELPER,
        "late_one.py": "from helper_one import *\nfrom pkg_one.deep import leaf\nimport json, broken_one, compiled_one",
        "broken_one.py": "def",
        "plain_one.py": "x = 'é'",
        "pkg_one/__init__.py": "",
        "pkg_one/deep/__init__.py": "",
        "pkg_one/deep/leaf.py": "leaf = 1",
        "space_one/part.py": "",
        "compiled_one.so": "",
        "site-packages/installed_one.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    with zipfile.ZipFile(tmp_path / "bundle.zip", "w") as bundle:
        bundle.writestr("zipped_one.py", "z = 1")
    for entry in ("bundle.zip", "site-packages", "."):
        monkeypatch.syspath_prepend(tmp_path / entry)
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        del sys.modules[name]


USER = """
import json, pkg_one.deep, helper_one as h
def use(): return h.used() + h.Used.x + json.loads("1") + pkg_one.deep.leaf
def import_late(): import late_one
def get_by_name(name): return getattr(h, name)
def nothing(): pass
"""
HELPER = """
import json, threading
x, lock = 1, threading.Lock()
class Used:
    x = 1
def used(): return x
def unused(): return lock
def __getattr__(name): raise AttributeError(name)
"""


def sent_modules(function: Callable[..., object]) -> tuple[dict[str, bool], dict[tuple[str, str], str], bytes]:
    """Return the modules that are sent with a function (True: as source), their omitted attributes, and the pickles."""
    data = serialize.full_request(serialize.serialize_call(function))
    _, modules, texts, pickles = call_program.CALL_REQUEST_HEADER.unpack_from(data)
    modules_at = len(data) - modules - texts - pickles
    packed = data[modules_at : modules_at + modules]
    sent, omitted = pickle.loads(zlib.decompress(packed)) if packed else ({}, {})
    return {name: source is not None for name, (_, _, source) in sent.items()}, omitted, data[-pickles:]


@pytest.mark.usefixtures("project")
def test_serialize_call_sends_modules_of_function() -> None:
    user = importlib.import_module("user_one")
    assert sent_modules(user.nothing)[0] == {"user_one": False}
    shells = {"user_one": False, "helper_one": False}
    sent, omitted, pickles = sent_modules(user.use)
    assert sent == {**shells, "pkg_one": False, "pkg_one.deep": False}
    assert omitted == {}
    assert b"Used" in pickles
    assert b"unused" not in pickles
    sent, omitted, _ = sent_modules(user.get_by_name)
    assert sent == shells
    assert list(omitted) == [("helper_one", "lock"), ("helper_one", "unused")]
    assert "cannot pickle" in omitted["helper_one", "lock"]


@pytest.mark.usefixtures("project")
def test_serialize_call_sends_modules_imported_inside() -> None:
    user = importlib.import_module("user_one")
    sent, omitted, pickles = sent_modules(user.import_late)
    sources = {"late_one": True, "pkg_one.deep.leaf": True, "broken_one": True}
    assert sent == {"user_one": False, "helper_one": False, "pkg_one": False, "pkg_one.deep": False, **sources}
    assert ("helper_one", "lock") in omitted
    assert b"json" in pickles


def test_find_source_of_modules_and_packages(project: Path) -> None:
    assert modules.find_source("plain_one") == modules.ModuleSource(str(project / "plain_one.py"), False, "x = 'é'")
    found = modules.find_source("pkg_one.deep.leaf")
    assert found is not None
    assert found.text == "leaf = 1"
    package = modules.find_source("pkg_one.deep")
    assert package is not None
    assert package.is_package
    zipped = modules.find_source("zipped_one")
    assert zipped is not None
    assert zipped.text == "z = 1"
    assert modules.find_source("space_one") == modules.ModuleSource("", True, "")
    assert modules.find_source("space_one.part") is not None
    assert not {"plain_one", "pkg_one", "zipped_one"} & set(sys.modules)


@pytest.mark.parametrize(
    "name",
    ["installed_one", "compiled_one", "no_such", "no_such.at_all", "plain_one.inside", "json.tool", "lazycluster.x"],
)
@pytest.mark.usefixtures("project")
def test_find_source_of_other_modules_is_none(name: str) -> None:
    assert modules.find_source(name) is None


def test_find_source_without_loader_reads_file(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Finder:
        @staticmethod
        def find_spec(name: str, path: object) -> object:
            spec = importlib.util.spec_from_file_location(name, project / "plain_one.py")
            assert spec is not None
            spec.loader = None
            return spec

    monkeypatch.setattr(sys, "meta_path", [Finder])
    found = modules.find_source("plain_one")
    assert found is not None
    assert found.text == "x = 'é'"


def test_call_dependencies_ignore_replaced_module() -> None:
    assert not modules.CallDependencies().is_by_value(make_module(__name__, __file__=__file__))


def test_call_dependencies_omit_text_of_long_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "long.py"
    file.write_text("def f(): pass\n" + "#" * 300_000)
    namespace: dict[str, object] = {}
    exec(compile(file.read_text(), str(file), "exec"), namespace)
    dependencies = modules.CallDependencies()
    dependencies.add_function(namespace["f"])  # type: ignore[arg-type]
    assert dependencies.traceback_texts == {str(file): ""}
