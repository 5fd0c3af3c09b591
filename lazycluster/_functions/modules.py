"""The modules that travel with a function: those that are not installed, if its code names or imports them."""

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

_NEVER_SENT_PACKAGES = frozenset({"__mp_main__", "cloudpickle", "lazycluster"})
_REFLECTION_NAMES = frozenset({"__dict__", "attrgetter", "getattr", "globals", "hasattr", "import_module", "vars"})
"""Code with one of these names may look up any attribute of a module."""
_IMPORT_SYSTEM_ATTRIBUTES = frozenset(
    {"__builtins__", "__cached__", "__file__", "__loader__", "__name__", "__package__", "__path__", "__spec__"}
)
_IMPORT_NAME_OPCODE = dis.opmap["IMPORT_NAME"]
_MAX_TRACEBACK_TEXT_CHARACTERS = 256 * 1024
"""The most characters of a file that is sent only for the lines of tracebacks."""


@attrs.frozen
class ModuleSource:
    """The source of a module that is not loaded in the local process."""

    file: str
    is_package: bool
    text: str


def is_user_module(module: ModuleType) -> bool:
    """Return whether a module is not installed: the user's script, a file beside it, an editable project."""
    namespace = _module_namespace(module)
    name = namespace.get("__name__")
    if not isinstance(name, str) or name.partition(".")[0] in _NEVER_SENT_PACKAGES:
        return False
    if name == "__main__":
        return True
    file = namespace.get("__file__")
    if isinstance(file, str):
        return file.endswith((".py", ".pyc")) and not is_installed(file)
    return _is_user_namespace_package(namespace.get("__path__"))


def is_module(obj: object) -> TypeGuard[ModuleType]:
    """Return whether something is a module; cffi's libraries fake their `__class__`."""
    return issubclass(type(obj), ModuleType)


def is_installed(file: str) -> bool:
    """Return whether a file belongs to the standard library or to an installed distribution."""
    if file.startswith(os.sep):
        return _is_installed_absolute(file)
    return _is_installed_absolute(str(Path(file).absolute()))  # made absolute now: the current directory may change


@functools.cache
def _is_installed_absolute(file: str) -> bool:
    # Cached, because every call of a function checks each loaded module.
    return _is_in_installation(file) or _is_in_installation(os.path.realpath(file))


def _is_in_installation(file: str) -> bool:
    return not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts) or file.startswith(_installation_roots())


@functools.cache
def _installation_roots() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    roots = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    roots |= {*site.getsitepackages(), site.getusersitepackages()}
    return tuple(form + os.sep for root in roots for form in {root, os.path.realpath(root)})


def _module_namespace(module: ModuleType) -> dict[str, object]:
    """Return the namespace of a module without waking a lazy one (`importlib.util.LazyLoader`)."""
    namespace: dict[str, object] = object.__getattribute__(module, "__dict__")
    return namespace


def _is_user_namespace_package(path: object) -> bool:
    """Return whether a `__path__` is that of a namespace package of which no part is installed."""
    entries = _path_entries(path)
    return bool(entries) and not any(is_installed(entry) for entry in entries)


def _path_entries(path: object) -> list[str]:
    """Return the entries of a `__path__`, which may be anything."""
    return [str(entry) for entry in path] if isinstance(path, Iterable) else []


@functools.lru_cache(maxsize=1024)
def find_imports(code: CodeType, package: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the absolute name of each module that the code imports, with the names that it takes from it."""
    return tuple(_iter_imports(code, package))


def _iter_imports(code: CodeType, package: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    if _IMPORT_NAME_OPCODE in code.co_code[::2]:  # a quick test, since most functions import nothing
        last_arguments: deque[object] = deque([None, None], maxlen=2)
        for instruction in dis.get_instructions(code):
            if instruction.opname == "IMPORT_NAME":
                # The two instructions before it load the level and the names after `from` (dis, IMPORT_NAME).
                level, from_names = last_arguments
                name = _absolute_module_name(instruction.argval, level, package)
                if name:
                    yield name, from_names if isinstance(from_names, tuple) else ()
            elif instruction.opname != "EXTENDED_ARG":
                last_arguments.append(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _iter_imports(constant, package)


def _absolute_module_name(name: str, level: object, package: str) -> str:
    try:
        return importlib.util.resolve_name("." * level + name, package) if isinstance(level, int) else ""
    except ImportError:  # a relative import outside of a package fails on the host, too
        return ""


def referenced_names(code: CodeType) -> set[str]:
    """Return the names of all globals and attributes that the code uses, also in the functions within it."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= referenced_names(constant)
    return found


def find_source(name: str) -> ModuleSource | None:
    """Find the source of a module without an import; None if it is installed, or not written in Python."""
    if name.partition(".")[0] in _NEVER_SENT_PACKAGES:
        return None
    parent = name.rpartition(".")[0]
    spec = _find_spec(name, _search_path(parent) if parent else None)
    if spec is None:
        return None
    if spec.origin is None:
        return (
            ModuleSource("", is_package=True, text="")
            if _is_user_namespace_package(spec.submodule_search_locations)
            else None
        )
    if not spec.origin.endswith(".py") or is_installed(spec.origin):
        return None
    read = getattr(spec.loader, "get_source", None)
    text = read(name) if read else importlib.util.decode_source(Path(spec.origin).read_bytes())
    return ModuleSource(spec.origin, spec.submodule_search_locations is not None, text or "")


def _search_path(package: str) -> Sequence[str]:
    if package in sys.modules:
        return _path_entries(_module_namespace(sys.modules[package]).get("__path__"))
    parent = package.rpartition(".")[0]
    spec = _find_spec(package, _search_path(parent) if parent else None)
    return list(spec.submodule_search_locations or ()) if spec else ()


def _find_spec(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        spec = finder.find_spec(name, path)
        if spec is not None:
            return spec
    return None


@attrs.define
class CallDependencies:
    """The modules and files that the code of one call needs, as far as its pickling has shown."""

    user_registered: frozenset[str] = frozenset()
    """The names of modules that the user registered with cloudpickle."""
    temporarily_registered: list[ModuleType] = attrs.field(factory=list)
    """The modules that are registered for the time of the call."""
    checked_modules: set[object] = attrs.field(factory=set)
    """The names of modules for which it is decided whether their definitions go by value."""
    modules_by_value: dict[str, ModuleType] = attrs.field(factory=dict)
    """The loaded modules whose contents go by value."""
    module_sources: dict[str, ModuleSource] = attrs.field(factory=dict)
    """The sources of modules that the code imports and that are not loaded in the local process."""
    traceback_texts: dict[str, str] = attrs.field(factory=dict)
    """The texts of files, for the lines of tracebacks."""
    omitted_attributes: dict[tuple[str, str], str] = attrs.field(factory=dict)
    """The reason why an attribute cannot be sent, by module and attribute."""
    _referenced_names: set[str] = attrs.field(factory=set)
    _accessed_modules: set[str] = attrs.field(factory=set)
    _star_imports: set[str] = attrs.field(factory=set)
    _definitions: set[tuple[str, str]] = attrs.field(factory=set)
    _already_returned: set[tuple[str, str]] = attrs.field(factory=set)

    def is_by_value(self, module: ModuleType) -> bool:
        """Return whether a loaded module goes by value."""
        name = str(_module_namespace(module).get("__name__"))
        if sys.modules.get(name) is not module:
            return False
        parents = {name.rsplit(".", depth)[0] for depth in range(name.count(".") + 1)}
        return is_user_module(module) or bool(parents & self.user_registered)

    def add_module(self, name: str) -> None:
        """Note a module that has to exist on the host, and its parents."""
        while name:
            module = sys.modules.get(name)
            if module is not None and self.is_by_value(module):
                self.modules_by_value[name] = module
            name = name.rpartition(".")[0]

    def add_accessed_module(self, name: str) -> None:
        """Note a module of which the code holds the module object, or imports it."""
        self.add_module(name)
        self._accessed_modules.add(name)

    def add_function(self, function: FunctionType) -> None:
        """Note the names and imports of a function that goes by value."""
        self._add_definition(function)
        namespace = function.__globals__
        self._add_code(function.__code__, str(namespace.get("__package__") or ""))
        file = function.__code__.co_filename
        if file not in self.traceback_texts:
            text = "".join(linecache.getlines(file, namespace))
            self.traceback_texts[file] = text if len(text) <= _MAX_TRACEBACK_TEXT_CHARACTERS else ""

    def add_class(self, cls: type) -> None:
        """Note a class that goes by value."""
        self._add_definition(cls)

    def _add_definition(self, obj: FunctionType | type) -> None:
        module = sys.modules.get(str(obj.__module__))
        if module is not None and _module_namespace(module).get(obj.__name__) is obj and self.is_by_value(module):
            self.add_module(module.__name__)
            self._definitions.add((module.__name__, obj.__name__))

    def _add_code(self, code: CodeType, package: str) -> None:
        self._referenced_names |= referenced_names(code)
        for name, taken in find_imports(code, package):
            if "*" in taken:
                self._star_imports.add(name)
            for wanted in (name, *(f"{name}.{item}" for item in taken)):
                self._add_import(wanted)

    def _add_import(self, name: str) -> None:
        parent = name.rpartition(".")[0]
        if parent:
            self._add_import(parent)
        if name in sys.modules:
            self.add_accessed_module(name)
        elif name not in self.module_sources:
            source = find_source(name)
            if source is not None:
                self.module_sources[name] = source
                self._add_source(name, source)

    def _add_source(self, name: str, source: ModuleSource) -> None:
        try:
            code = compile(source.text, source.file, "exec", dont_inherit=True)
        except (SyntaxError, ValueError):  # the import fails on the host, too
            return
        self._add_code(code, name if source.is_package else name.rpartition(".")[0])

    def pop_needed_attributes(self) -> list[tuple[ModuleType, str, object]]:
        """Return each attribute of a module that the code needs, once: module, name, value."""
        needed = []
        for name, module in sorted(self.modules_by_value.items()):
            namespace = _module_namespace(module)
            for attribute in sorted(self._needed_attributes(name, namespace)):
                if (name, attribute) not in self._already_returned:
                    self._already_returned.add((name, attribute))
                    needed.append((module, attribute, namespace[attribute]))
        return needed

    def _needed_attributes(self, name: str, namespace: dict[str, object]) -> set[str]:
        defined = {attribute for module, attribute in self._definitions if module == name}
        if name not in self._accessed_modules:
            return defined
        existing = set(namespace) - _IMPORT_SYSTEM_ATTRIBUTES
        may_use_any = name in self._star_imports or bool(self._referenced_names & _REFLECTION_NAMES)
        if may_use_any and name != "__main__":
            return existing | defined
        return (existing & (self._referenced_names | {"__getattr__"})) | defined
