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

from lazycluster._functions.modules import Survey, is_module, travels
from lazycluster._functions.outcome import SENT_CLASSES
from lazycluster._remote import call_program
from lazycluster.exceptions import FunctionNotSerializableError
from lazycluster.steps import function_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

P = ParamSpec("P")
T = TypeVar("T")


@attrs.frozen
class Payload:
    """A function and its arguments, ready to be sent."""

    function: str
    modules: bytes = attrs.field(repr=lambda data: f"<{len(data)} bytes>")
    texts: bytes = attrs.field(repr=lambda data: f"<{len(data)} bytes>")
    pickles: bytes = attrs.field(repr=lambda data: f"<{len(data)} bytes>")

    def request(self, cloudpickle: bytes = b"") -> bytes:
        """Return the request that `call` reads, with the sources of cloudpickle where the host has not got them."""
        parts = (cloudpickle, self.modules, self.texts, self.pickles)
        return b"".join((call_program.REQUEST.pack(*map(len, parts)), *parts))

    @property
    def data(self) -> bytes:
        """Return the request with all that a host needs."""
        return self.request(cloudpickle_source())


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


def dump(function: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> Payload:
    """Pickle a function with its arguments, and with the modules that it needs and that are not installed.

    Raises FunctionNotSerializableError.
    """
    return _dump(function, (args, kwargs))


def dump_each(function: Callable[[T], object], items: Sequence[T], seconds: float) -> Payload:
    """Pickle a function with items to call it with, one after another, until so many seconds have passed.

    Raises FunctionNotSerializableError.
    """
    return _dump(function, ((seconds, list(items)), None))


def _dump(function: Callable[..., object], arguments: tuple[object, object]) -> Payload:
    name = function_name(function)
    try:
        with _LOCK, _modules_by_value() as survey:
            pickles = _pickles(survey, function, arguments)
            modules = _modules(survey)
            texts = pickle.dumps({file: _compressed(text) for file, text in survey.texts.items()})
    except Exception as error:  # pickling runs any code of the user's
        raise FunctionNotSerializableError(name, f"{type(error).__name__}: {error}") from error
    return Payload(name, modules, texts, pickles)


@functools.lru_cache(maxsize=64)
def _compressed(text: str) -> bytes:
    return zlib.compress(text.encode("utf-8", "surrogatepass"))


_LOCK = threading.RLock()
"""Held while cloudpickle's registry is not as the user left it."""


@contextlib.contextmanager
def _modules_by_value() -> Iterator[Survey]:
    """Have cloudpickle send the modules that are not installed by value, for a while."""
    survey = Survey(frozenset(cloudpickle.list_registry_pickle_by_value()))
    try:
        yield survey
    finally:
        for module in survey.registered_here:
            with contextlib.suppress(ValueError):  # two names for one module
                cloudpickle.unregister_pickle_by_value(module)


def _pickles(survey: Survey, function: Callable[..., object], arguments: tuple[object, object]) -> bytes:
    """Return the pickles that `call` reads: the function and then the arguments, each with contents of modules."""
    file = io.BytesIO()
    pickler = _Pickler(file, survey)
    for item in (function, arguments):
        pickler.dump(item)
        while needed := survey.take():
            for module, name, value in needed:
                _dump_content(pickler, survey, (module, name, value))
        pickler.dump(None)
    return file.getvalue()


def _dump_content(pickler: _Pickler, survey: Survey, content: tuple[ModuleType, str, object]) -> None:
    """Pickle one attribute of a module, or leave it out with the reason."""
    module, name, value = content
    if is_module(value) and not survey.by_value(value) and value.__name__ in sys.modules:
        pickler.dump((module.__name__, name, None, value.__name__))
        return
    try:
        _Pickler(_Nowhere(), survey).dump(value)
    except Exception as error:  # noqa: BLE001 - told to whoever asks the module for it on the host
        survey.left_out[module.__name__, name] = f"{type(error).__name__}: {error}"
    else:
        pickler.dump((module.__name__, name, value, None))


def _modules(survey: Survey) -> bytes:
    """Return the modules as the host's program imports them from memory."""
    sent: dict[str, tuple[str, bool, str | None]] = {
        name: (source.file, source.is_package, source.text) for name, source in survey.sources.items()
    }
    for name, module in survey.shells.items():
        if name != "__main__":
            sent[name] = (str(vars(module).get("__file__") or ""), "__path__" in vars(module), None)
    return zlib.compress(pickle.dumps((sent, survey.left_out))) if sent or survey.left_out else b""


class _Nowhere:
    """A file that forgets."""

    def write(self, data: Any) -> int:  # noqa: ANN401 - bytes, or what has its buffer
        return len(data)


@attrs.frozen(eq=False)
class _Shell:
    """Stands in a pickle for a module that exists on the host under the same name."""

    name: str


@attrs.frozen(eq=False)
class _Namespace:
    """Stands in a pickle for the namespace of such a module."""

    shell: _Shell


class _Pickler(cloudpickle.Pickler):
    """cloudpickle, with the modules that travel rebuilt on the host under their names.

    There, their functions have the module's namespace for their globals, `import` finds them, and plain pickle finds
    what they define. cloudpickle alone would copy a whole module for every reference to it, with all its locks.
    """

    def __init__(self, file: Any, survey: Survey) -> None:  # noqa: ANN401 - what pickle.Pickler takes
        super().__init__(file)
        self._survey = survey
        self._namespaces: dict[str, _Namespace] = {}

    def reducer_override(self, obj: Any) -> Any:  # noqa: ANN401 - overrides one that is so typed
        if type(obj) is CodeType:
            return self._with_file_name(obj)
        if isinstance(obj, _Shell):
            reduced: Any = importlib.import_module, (obj.name,)
        elif isinstance(obj, _Namespace):
            reduced = vars, (obj.shell,)
        elif is_module(obj) and self._survey.by_value(obj):
            self._survey.see_module(obj.__name__)
            reduced = importlib.import_module, (obj.__name__,)
        elif isinstance(obj, type) and self._is_compiled(obj):
            reduced = NotImplemented
        else:
            if isinstance(obj, (FunctionType, type, TypeVar)):
                self._register_module(obj.__module__)
            reduced = super().reducer_override(obj)
            if isinstance(reduced, tuple) and len(reduced) > 2:  # by value
                reduced = self._seen(obj, reduced)
        return reduced

    def _with_file_name(self, code: CodeType) -> Any:  # noqa: ANN401 - as above
        """Reduce code with the name of its file, which cloudpickle leaves out since 3.1.3: tracebacks need it."""
        reduced: Any = self.dispatch_table[CodeType](code)
        make, made = reduced
        return make, tuple(code.co_filename if part == "<dynamic-code>" else part for part in made)

    def _register_module(self, name: object) -> None:
        """Have cloudpickle send what a module defines by value, where that one is not installed."""
        survey = self._survey
        if name in survey.asked:
            return
        survey.asked.add(name)
        module = sys.modules.get(name) if isinstance(name, str) else None
        if is_module(module) and name != "__main__" and name not in survey.registered and travels(module):
            with contextlib.suppress(ValueError):  # it is not known by the name that it gives itself
                cloudpickle.register_pickle_by_value(module)
                survey.registered_here.append(module)

    def _seen(self, thing: FunctionType | type, reduced: tuple[Any, ...]) -> tuple[Any, ...]:
        """Note a function or class that goes by value."""
        if isinstance(thing, FunctionType):
            self._survey.see_function(thing)
            return self._with_shared_namespace(thing, reduced)
        self._survey.see_class(thing)
        SENT_CLASSES.add(thing)
        return reduced

    def _is_compiled(self, cls: type) -> bool:
        """Tell whether a class is of an extension module within a package that goes by value."""
        module = sys.modules.get(str(cls.__module__))
        return module is not None and str(getattr(module, "__file__", "")).endswith((".so", ".pyd"))

    def _with_shared_namespace(self, function: FunctionType, reduced: tuple[Any, ...]) -> tuple[Any, ...]:
        """Replace the copy of the globals that cloudpickle makes by the namespace of the module on the host."""
        name = str(function.__globals__.get("__name__"))
        module = sys.modules.get(name)
        made = reduced[1]
        own = module is not None and vars(module) is function.__globals__ and self._survey.by_value(module)
        if not (own and len(made) > 1 and isinstance(made[1], dict)):  # as cloudpickle 3 has it
            return reduced
        self._survey.see_shell(name)
        namespace = self._namespaces.setdefault(name, _Namespace(_Shell(name)))
        return (reduced[0], (made[0], namespace, *made[2:]), *reduced[2:])
