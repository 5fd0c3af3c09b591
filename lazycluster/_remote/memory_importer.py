"""The import of the user's modules from memory: a call brings their sources or their contents; sent to the host.

Standard library only, and the syntax of Python 3.6.
"""

import importlib
import pickle
import sys
import types
from importlib.machinery import ModuleSpec

from lazycluster._remote.call_outcome import exception_summary


class MemoryImporter:
    """Finds the modules that were sent: `name -> (file, is a package, source)`.

    The contents of a module without source are in the pickles, so the module begins empty. It raises AttributeError
    with a reason for an attribute that was not sent.
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
        spec = ModuleSpec(name, self, origin=file, is_package=is_package)  # type: ignore[arg-type] # a Loader, duck-typed
        spec.has_location = True
        return spec

    def create_module(self, _spec: ModuleSpec) -> None:
        """Leave it to the import system."""

    def exec_module(self, module: types.ModuleType) -> None:
        """Run the source, or prepare the module to be filled."""
        name = module.__name__
        file, _, source = self._modules[name]
        if source is not None:
            exec(compile(source, file, "exec"), vars(module))  # noqa: S102 - as every import does
            return

        def module_getattr(attribute: str) -> object:
            why = self.left_out.get((name, attribute), "it has none, or the code that was sent does not name it")
            raise AttributeError(f"module {name!r} was sent without {attribute!r}: {why}")

        vars(module)["__getattr__"] = module_getattr

    def get_source(self, name: str) -> "str | None":
        """Return the source, for the lines of a traceback."""
        return self._modules[name][2]


def make_importable(modules: "dict[str, tuple[str, bool, str | None]]", left_out: "dict[tuple[str, str], str]") -> None:
    """Let `import` find the modules that were sent."""
    sys.meta_path.insert(0, MemoryImporter(modules, left_out))


def fill_modules(unpickler: pickle.Unpickler, left_out: "dict[tuple[str, str], str]") -> None:
    """Set the attributes of the modules that were sent; those that are modules of the host are imported."""
    for module, name, value, imported in iter(unpickler.load, None):
        try:
            content = importlib.import_module(imported) if imported else value
        except ImportError as error:
            left_out[module, name] = exception_summary(error)
        else:
            setattr(importlib.import_module(module), name, content)
