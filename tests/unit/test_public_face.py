"""The public face: each class in a public signature is exported, and none of them is private."""

from __future__ import annotations

import importlib.metadata
import inspect
import typing
from collections.abc import Iterator
from types import ModuleType

import attrs
import pytest

import lazycluster
import lazycluster.testing

PACKAGES = (lazycluster, lazycluster.testing)


def exported() -> Iterator[tuple[str, object]]:
    for package in PACKAGES:
        yield from ((f"{package.__name__}.{name}", getattr(package, name)) for name in package.__all__)


EXPORTED_CLASSES = {thing for _, thing in exported() if isinstance(thing, type)}


def signatures(name: str, thing: object) -> Iterator[tuple[str, object]]:
    """Yield the annotated parts of a public object: itself, its fields, methods and properties."""
    if not isinstance(thing, type):
        if inspect.isfunction(thing):
            yield name, thing
        return
    if attrs.has(thing):
        public = {field.name for field in attrs.fields(thing) if not field.name.startswith("_")}
        fields = {name: hint for name, hint in typing.get_type_hints(thing).items() if name in public}
        yield f"{name} fields", fields
    for attribute, member in inspect.getmembers(thing):
        function = member.fget if isinstance(member, property) else member
        if attribute.startswith("_") and attribute not in {"__init__", "__enter__"}:
            continue
        is_own = inspect.isfunction(function) and function.__module__.startswith("lazycluster")
        if is_own and (attribute != "__init__" or not attrs.has(thing)):
            yield f"{name}.{attribute}", function


def named_classes(hint: object) -> Iterator[type]:
    for part in typing.get_args(hint):
        if isinstance(part, list):
            for each in part:
                yield from named_classes(each)
        else:
            yield from named_classes(part)
    if isinstance(hint, type) and typing.get_origin(hint) is None:
        yield hint


@pytest.mark.parametrize(("name", "thing"), list(exported()), ids=lambda value: value if isinstance(value, str) else "")
def test_public_signature_names_exported_classes_only(name: str, thing: object) -> None:
    unexported = set()
    for where, function in signatures(name, thing):
        hints = function if isinstance(function, dict) else typing.get_type_hints(function)
        for hint in hints.values():
            for found in named_classes(hint):
                if found.__module__.startswith("lazycluster") and found not in EXPORTED_CLASSES:
                    unexported.add((where, found.__qualname__))

    assert unexported == set()


def test_public_class_has_no_module_as_attribute() -> None:
    """Such an attribute would be an import that leaked."""
    leaked = [
        (cls.__qualname__, name)
        for cls in EXPORTED_CLASSES
        for name, value in vars(cls).items()
        if isinstance(value, ModuleType)
    ]

    assert leaked == []


def test_version_is_that_of_the_package() -> None:
    assert lazycluster.__version__ == importlib.metadata.version("lazycluster")
    assert "__version__" in dir(lazycluster)
