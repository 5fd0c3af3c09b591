"""Which modules travel with a function: those that are not installed, as far as its code names and imports them."""

from __future__ import annotations

import dis
import functools
import importlib.util
import linecache
import os
import site
import sys
import sysconfig
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, TypeGuard

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from importlib.machinery import ModuleSpec

_NEVER = frozenset({"__mp_main__", "cloudpickle", "lazycluster"})
_REFLECTION = frozenset({"__dict__", "attrgetter", "getattr", "globals", "hasattr", "import_module", "vars"})
"""Code with one of these names may look up any attribute of a module."""
_MADE_BY_IMPORT = frozenset(
    {"__builtins__", "__cached__", "__file__", "__loader__", "__name__", "__package__", "__path__", "__spec__"}
)
_IMPORT_NAME = dis.opmap["IMPORT_NAME"]
_LONGEST_TEXT = 256 * 1024  # characters of a file that is sent only for the lines of tracebacks


@attrs.frozen
class Source:
    """The source of a module that is not loaded here."""

    file: str
    is_package: bool
    text: str


def travels(module: ModuleType) -> bool:
    """Tell whether a module is not installed: the user's script, what lies beside it, an editable project."""
    facts = _facts(module)
    name = facts.get("__name__")
    if not isinstance(name, str) or name.partition(".")[0] in _NEVER:
        return False
    file, path = facts.get("__file__"), facts.get("__path__")
    if name == "__main__":
        return True
    if isinstance(file, str):
        return file.endswith((".py", ".pyc")) and not is_installed(file)
    return _is_own_namespace(path)


def is_module(thing: object) -> TypeGuard[ModuleType]:
    """Tell whether something is a module; what only says so of itself (cffi's libraries do) is none."""
    return issubclass(type(thing), ModuleType)


def is_installed(file: str) -> bool:
    """Tell whether a file belongs to the standard library or to an installed distribution."""
    return _is_installed(file) if file.startswith(os.sep) else _is_installed.__wrapped__(file)


@functools.cache
def _is_installed(file: str) -> bool:
    # Looked at once: for every call of a function each loaded module is asked for.
    return any(_is_below(form, _installations()) for form in (os.path.realpath(file), str(Path(file).absolute())))


@functools.cache
def _is_below(file: str, roots: tuple[str, ...]) -> bool:
    parts = Path(file).parts
    return "site-packages" in parts or "dist-packages" in parts or file.startswith(roots)


@functools.cache
def _installations() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    roots = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    roots |= {*site.getsitepackages(), site.getusersitepackages()}
    return tuple(form + os.sep for root in roots for form in {root, os.path.realpath(root)})


def _facts(module: ModuleType) -> dict[str, object]:
    """Return the namespace of a module without waking a lazy one (`importlib.util.LazyLoader`)."""
    facts: dict[str, object] = object.__getattribute__(module, "__dict__")
    return facts


def _is_own_namespace(path: object) -> bool:
    """Tell whether a `__path__` is that of a namespace package of which no part is installed."""
    entries = _entries(path)
    return bool(entries) and not any(is_installed(entry) for entry in entries)


def _entries(path: object) -> list[str]:
    """Return the entries of a `__path__`; anything may stand there."""
    return [str(entry) for entry in path] if isinstance(path, Iterable) else []


@functools.lru_cache(maxsize=1024)
def imports(code: CodeType, package: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the absolute name of each module that the code imports, with what it takes from it."""
    return tuple(_imports(code, package))


def _imports(code: CodeType, package: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    if _IMPORT_NAME in code.co_code[::2]:
        before: deque[object] = deque([None, None], maxlen=2)
        for instruction in dis.get_instructions(code):
            if instruction.opname == "IMPORT_NAME":
                level, taken = before
                name = _absolute(instruction.argval, level, package)
                if name:
                    yield name, taken if isinstance(taken, tuple) else ()
            elif instruction.opname != "EXTENDED_ARG":
                before.append(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _imports(constant, package)


def _absolute(name: str, level: object, package: str) -> str:
    try:
        return importlib.util.resolve_name("." * level + name, package) if isinstance(level, int) else ""
    except ImportError:  # a relative import outside of a package: fails there as it does here
        return ""


def names(code: CodeType) -> set[str]:
    """Return every global and attribute that the code names, with those of the functions within it."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= names(constant)
    return found


def find_source(name: str) -> Source | None:
    """Find the source of a module that is not loaded, importing nothing; None where it is installed, or no Python."""
    if name.partition(".")[0] in _NEVER:
        return None
    parent = name.rpartition(".")[0]
    spec = _spec(name, _search_path(parent) if parent else None)
    if spec is None:
        return None
    if spec.origin is None:
        return Source("", is_package=True, text="") if _is_own_namespace(spec.submodule_search_locations) else None
    if not spec.origin.endswith(".py") or is_installed(spec.origin):
        return None
    read = getattr(spec.loader, "get_source", None)
    text = read(name) if read else importlib.util.decode_source(Path(spec.origin).read_bytes())
    return Source(spec.origin, spec.submodule_search_locations is not None, text or "")


def _search_path(package: str) -> Sequence[str]:
    if package in sys.modules:
        return _entries(_facts(sys.modules[package]).get("__path__"))
    parent = package.rpartition(".")[0]
    spec = _spec(package, _search_path(parent) if parent else None)
    return list(spec.submodule_search_locations or ()) if spec else ()


def _spec(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        spec = finder.find_spec(name, path)
        if spec is not None:
            return spec
    return None


@attrs.define
class Survey:
    """What the code of one call has been seen to need.

    `shells` are modules whose contents go by value, `sources` those that the code imports and that are not loaded
    here, `texts` files for the lines of tracebacks.
    """

    registered: frozenset[str] = frozenset()
    """What the user registered with cloudpickle."""
    registered_here: list[ModuleType] = attrs.field(factory=list)
    """What was registered for the time of the call."""
    asked: set[object] = attrs.field(factory=set)
    """The names of modules that were looked at, whether they go by value."""
    shells: dict[str, ModuleType] = attrs.field(factory=dict)
    sources: dict[str, Source] = attrs.field(factory=dict)
    texts: dict[str, str] = attrs.field(factory=dict)
    left_out: dict[tuple[str, str], str] = attrs.field(factory=dict)
    _names: set[str] = attrs.field(factory=set)
    _looked_into: set[str] = attrs.field(factory=set)
    _starred: set[str] = attrs.field(factory=set)
    _defined: set[tuple[str, str]] = attrs.field(factory=set)
    _taken: set[tuple[str, str]] = attrs.field(factory=set)

    def by_value(self, module: ModuleType) -> bool:
        """Tell whether a loaded module goes by value."""
        name = str(_facts(module).get("__name__"))
        if sys.modules.get(name) is not module:
            return False
        parents = {name.rsplit(".", depth)[0] for depth in range(name.count(".") + 1)}
        return travels(module) or bool(parents & self.registered)

    def see_shell(self, name: str) -> None:
        """Note a module that has to exist on the host, and its parents."""
        while name:
            module = sys.modules.get(name)
            if module is not None and self.by_value(module):
                self.shells[name] = module
            name = name.rpartition(".")[0]

    def see_module(self, name: str) -> None:
        """Note a module of which the code holds the module object, or imports it."""
        self.see_shell(name)
        self._looked_into.add(name)

    def see_function(self, function: FunctionType) -> None:
        """Note what a function that goes by value names and imports."""
        self._see_definition(function)
        namespace = function.__globals__
        self._see_code(function.__code__, str(namespace.get("__package__") or ""))
        file = function.__code__.co_filename
        if file not in self.texts:
            text = "".join(linecache.getlines(file, namespace))
            self.texts[file] = text if len(text) <= _LONGEST_TEXT else ""

    def see_class(self, cls: type) -> None:
        """Note a class that goes by value."""
        self._see_definition(cls)

    def _see_definition(self, thing: FunctionType | type) -> None:
        module = sys.modules.get(str(thing.__module__))
        if module is not None and _facts(module).get(thing.__name__) is thing and self.by_value(module):
            self.see_shell(module.__name__)
            self._defined.add((module.__name__, thing.__name__))

    def _see_code(self, code: CodeType, package: str) -> None:
        self._names |= names(code)
        for name, taken in imports(code, package):
            if "*" in taken:
                self._starred.add(name)
            for wanted in (name, *(f"{name}.{item}" for item in taken)):
                self._see_import(wanted)

    def _see_import(self, name: str) -> None:
        parent = name.rpartition(".")[0]
        if parent:
            self._see_import(parent)
        if name in sys.modules:
            self.see_module(name)
        elif name not in self.sources:
            source = find_source(name)
            if source is not None:
                self.sources[name] = source
                self._see_source(name, source)

    def _see_source(self, name: str, source: Source) -> None:
        try:
            code = compile(source.text, source.file, "exec", dont_inherit=True)
        except (SyntaxError, ValueError):  # the import fails there as it does here
            return
        self._see_code(code, name if source.is_package else name.rpartition(".")[0])

    def take(self) -> list[tuple[ModuleType, str, object]]:
        """Return the contents of modules that have been needed since the last time: module, name, value."""
        needed = []
        for name, module in sorted(self.shells.items()):
            contents = _facts(module)
            for attribute in sorted(self._needed_of(name, contents)):
                if (name, attribute) not in self._taken:
                    self._taken.add((name, attribute))
                    needed.append((module, attribute, contents[attribute]))
        return needed

    def _needed_of(self, name: str, contents: dict[str, object]) -> set[str]:
        defined = {attribute for module, attribute in self._defined if module == name}
        if name not in self._looked_into:
            return defined
        everything = name != "__main__" and (name in self._starred or bool(self._names & _REFLECTION))
        named = set(contents) if everything else self._names & (set(contents) | {"__getattr__"})
        if "__getattr__" in contents:
            named.add("__getattr__")
        return (named & set(contents) - _MADE_BY_IMPORT) | defined
