"""A Python function on its way to a host. The only importer of cloudpickle."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.resources
import io
import pickle
import sys
import threading
import zlib
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import attrs
import cloudpickle

from lazycluster._functions.function_call import Payload
from lazycluster._functions.modules import CallDependencies, is_module, is_user_module
from lazycluster._functions.outcome import SENT_CLASSES
from lazycluster.exceptions import FunctionNotSerializableError
from lazycluster.steps import function_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

P = ParamSpec("P")
T = TypeVar("T")


@functools.cache
def cloudpickle_source() -> bytes:
    """Return the modules of cloudpickle, as the host's program imports them from memory."""
    sent = {}
    for file in importlib.resources.files("cloudpickle").iterdir():
        if file.name.endswith(".py"):
            is_package = file.name == "__init__.py"
            name = "cloudpickle" if is_package else f"cloudpickle.{file.name.removesuffix('.py')}"
            sent[name] = (f"<cloudpickle>/{file.name}", is_package, file.read_text("utf-8"))
    return zlib.compress(pickle.dumps(sent), 9)


def full_request(payload: Payload) -> bytes:
    """Return the request that a host's program reads, with everything that the host needs."""
    return payload.encode_request(cloudpickle_source())


def serialize_call(function: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> Payload:
    """Pickle a function with its arguments, and with the modules that it needs and that are not installed.

    Raises:
        FunctionNotSerializableError: If the function or an argument cannot be pickled.
    """
    return _serialize(function, (args, kwargs))


def serialize_batch(function: Callable[[T], object], items: Sequence[T], max_seconds: float) -> Payload:
    """Pickle a function with items to call it with, one after another, until `max_seconds` have passed.

    Raises:
        FunctionNotSerializableError: If the function or an item cannot be pickled.
    """
    return _serialize(function, ((max_seconds, list(items)), None))


def _serialize(function: Callable[..., object], arguments: tuple[object, object]) -> Payload:
    name = function_name(function)
    try:
        with _CLOUDPICKLE_REGISTRY_LOCK, _pickling_modules_by_value() as dependencies:
            pickles = _pickle_call(dependencies, function, arguments)
            modules = _encode_modules(dependencies)
            texts = pickle.dumps({file: _compress(text) for file, text in dependencies.traceback_texts.items()})
    except Exception as error:  # pickling runs any code of the user's
        raise FunctionNotSerializableError(name, f"{type(error).__name__}: {error}") from error
    return Payload(name, modules, texts, pickles)


@functools.lru_cache(maxsize=64)
def _compress(text: str) -> bytes:
    return zlib.compress(text.encode("utf-8", "surrogatepass"))


_CLOUDPICKLE_REGISTRY_LOCK = threading.RLock()
"""Held while cloudpickle's registry is not as the user left it."""


@contextlib.contextmanager
def _pickling_modules_by_value() -> Iterator[CallDependencies]:
    """Have cloudpickle send the modules that are not installed by value, during the block."""
    dependencies = CallDependencies(frozenset(cloudpickle.list_registry_pickle_by_value()))
    try:
        yield dependencies
    finally:
        for module in dependencies.temporarily_registered:
            with contextlib.suppress(ValueError):  # there were two names for one module
                cloudpickle.unregister_pickle_by_value(module)


def _pickle_call(
    dependencies: CallDependencies, function: Callable[..., object], arguments: tuple[object, object]
) -> bytes:
    """Return the pickles that a call reads: the function and then the arguments, each with contents of modules."""
    file = io.BytesIO()
    pickler = _Pickler(file, dependencies)
    for item in (function, arguments):
        pickler.dump(item)
        while needed := dependencies.pop_needed_attributes():
            for module, name, value in needed:
                _pickle_attribute(pickler, dependencies, (module, name, value))
        pickler.dump(None)
    return file.getvalue()


def _pickle_attribute(
    pickler: _Pickler, dependencies: CallDependencies, attribute: tuple[ModuleType, str, object]
) -> None:
    """Pickle one attribute of a module, or leave it out with the reason."""
    module, name, value = attribute
    if is_module(value) and not dependencies.is_by_value(value) and value.__name__ in sys.modules:
        pickler.dump((module.__name__, name, None, value.__name__))
        return
    try:
        _Pickler(_NullWriter(), dependencies).dump(value)
    except Exception as error:  # noqa: BLE001 - raised on the host when the attribute is used
        dependencies.omitted_attributes[module.__name__, name] = f"{type(error).__name__}: {error}"
    else:
        pickler.dump((module.__name__, name, value, None))


def _encode_modules(dependencies: CallDependencies) -> bytes:
    """Return the modules as the host's program imports them from memory."""
    sent: dict[str, tuple[str, bool, str | None]] = {
        name: (source.file, source.is_package, source.text) for name, source in dependencies.module_sources.items()
    }
    for name, module in dependencies.modules_by_value.items():
        if name != "__main__":
            sent[name] = (str(vars(module).get("__file__") or ""), "__path__" in vars(module), None)
    return (
        zlib.compress(pickle.dumps((sent, dependencies.omitted_attributes)))
        if sent or dependencies.omitted_attributes
        else b""
    )


class _NullWriter:
    """A file that discards its data."""

    def write(self, data: Any) -> int:  # noqa: ANN401 - bytes, or an object with their buffer
        return len(data)


@attrs.frozen(eq=False)
class _ModuleReference:
    """Stands in a pickle for a module that exists on the host under the same name."""

    name: str


@attrs.frozen(eq=False)
class _NamespaceReference:
    """Stands in a pickle for the namespace of such a module."""

    module: _ModuleReference


class _Pickler(cloudpickle.Pickler):
    """cloudpickle, with the modules that travel rebuilt on the host under their names.

    There the module's namespace is the globals of its functions, `import` finds the module, and plain pickle finds its
    definitions. cloudpickle alone would copy a whole module for every reference to it, with all its locks.
    """

    def __init__(self, file: Any, dependencies: CallDependencies) -> None:  # noqa: ANN401 - what pickle.Pickler takes
        super().__init__(file)
        self._dependencies = dependencies
        self._namespaces: dict[str, _NamespaceReference] = {}

    def reducer_override(self, obj: Any) -> Any:  # noqa: ANN401 - overrides one that is so typed
        if type(obj) is CodeType:
            return self._reduce_code(obj)
        if isinstance(obj, _ModuleReference):
            reduced: Any = importlib.import_module, (obj.name,)
        elif isinstance(obj, _NamespaceReference):
            reduced = vars, (obj.module,)
        elif is_module(obj) and self._dependencies.is_by_value(obj):
            self._dependencies.add_accessed_module(obj.__name__)
            reduced = importlib.import_module, (obj.__name__,)
        elif isinstance(obj, type) and self._is_in_extension_module(obj):
            reduced = NotImplemented
        else:
            if isinstance(obj, (FunctionType, type, TypeVar)):
                self._register_module(obj.__module__)
            reduced = super().reducer_override(obj)
            if isinstance(reduced, tuple) and len(reduced) > 2:  # by value
                reduced = self._record_by_value(obj, reduced)
        return reduced

    def _reduce_code(self, code: CodeType) -> Any:  # noqa: ANN401 - as above
        """Reduce code with its file's name for tracebacks, which cloudpickle leaves out since 3.1.3 (its #560)."""
        reduced: Any = self.dispatch_table[CodeType](code)
        make, made = reduced
        return make, tuple(code.co_filename if part == "<dynamic-code>" else part for part in made)

    def _register_module(self, name: object) -> None:
        """Have cloudpickle send the definitions of a module by value, if it is not installed."""
        dependencies = self._dependencies
        if name in dependencies.checked_modules:
            return
        dependencies.checked_modules.add(name)
        module = sys.modules.get(name) if isinstance(name, str) else None
        if (
            is_module(module)
            and name != "__main__"
            and name not in dependencies.user_registered
            and is_user_module(module)
        ):
            with contextlib.suppress(ValueError):  # the module is not known by the name that it gives itself
                cloudpickle.register_pickle_by_value(module)
                dependencies.temporarily_registered.append(module)

    def _record_by_value(self, obj: FunctionType | type, reduced: tuple[Any, ...]) -> tuple[Any, ...]:
        """Note a function or class that goes by value."""
        if isinstance(obj, FunctionType):
            self._dependencies.add_function(obj)
            return self._share_namespace(obj, reduced)
        self._dependencies.add_class(obj)
        SENT_CLASSES.add(obj)
        return reduced

    def _is_in_extension_module(self, cls: type) -> bool:
        """Return whether a class belongs to an extension module, in a package that goes by value."""
        module = sys.modules.get(str(cls.__module__))
        return module is not None and str(getattr(module, "__file__", "")).endswith((".so", ".pyd"))

    def _share_namespace(self, function: FunctionType, reduced: tuple[Any, ...]) -> tuple[Any, ...]:
        """Replace cloudpickle's copy of the globals with the namespace of the module on the host."""
        name = str(function.__globals__.get("__name__"))
        module = sys.modules.get(name)
        made = reduced[1]
        own = module is not None and vars(module) is function.__globals__ and self._dependencies.is_by_value(module)
        if not (own and len(made) > 1 and isinstance(made[1], dict)):  # as cloudpickle 3 has it
            return reduced
        self._dependencies.add_module(name)
        namespace = self._namespaces.setdefault(name, _NamespaceReference(_ModuleReference(name)))
        return (reduced[0], (made[0], namespace, *made[2:]), *reduced[2:])
