"""The rules of the code base: which room may import from which, and what modules must not do."""

from __future__ import annotations

import ast
import functools
import graphlib
import importlib
import itertools
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import lazycluster
import lazycluster.testing

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(lazycluster.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# A module imports only from its own room and from those before it. Rooms on one line may use each other, but there is
# no circle. A room is a module or a package. A new room is added here, at the earliest place that its imports allow.
ROOMS = (
    ("exceptions", "_typing"),
    ("_waiting",),
    ("_display",),
    ("results", "steps", "options", "hardware", "gpus", "managed"),
    ("_model",),
    ("_remote",),
    ("_processes",),
    ("_ssh",),
    ("_functions",),
    ("_files",),
    ("_transports", "connection"),
    ("_prefixed_output", "_step_output", "_invoke", "executor", "_gather"),
    ("_execution", "tasks"),
    ("_process_streams", "_process_execution", "remote_process"),
    ("_resources", "_facts", "_requirements", "_runtime_ports", "_runtime_files", "_task_history", "_runtime_core"),
    ("_process_start", "callers", "runtimes"),
    ("_mapping",),
    (
        "_membership",
        "_group_calls",
        "_group_facts",
        "_group_files",
        "_group_ports",
        "_group_tasks",
        "group_callers",
        "groups",
    ),
    ("manager",),
    ("_explain",),
    ("_doctor",),
    ("testing",),
    ("_demo",),
    ("_cli",),
)
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}
# They hold a docstring, or names that are imported when they are first used.
FACADES = {"lazycluster", "lazycluster.__main__", "lazycluster.testing", "lazycluster._doctor"} | {
    f"lazycluster.{room}" for room in ("_model", "_processes", "_remote", "_ssh", "_functions", "_files", "_transports")
}
ONLY_IMPORTERS = {
    # `testing` starts sshd and ssh-keygen by itself; the library never does.
    "subprocess": {"lazycluster._processes.popen", "lazycluster.testing._process_guard"},
    "pexpect": {"lazycluster._ssh.prompts"},
    "cloudpickle": {"lazycluster._functions.serialize"},
    "multiprocessing": set[str](),
    "paramiko": set[str](),
    "fabric": set[str](),
}
ON_HOSTS = [name for name in MODULES if name.startswith("lazycluster._remote.")]
TESTS = Path(__file__).parents[1]
VAGUE_NAMES = {"util", "utils", "helper", "helpers", "common", "base", "misc"}


@functools.cache
def nodes(module: str) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))))


@functools.cache
def imports(module: str) -> frozenset[str]:
    """Return the modules that one imports, also under TYPE_CHECKING; a name imported from a package may be one."""
    found: set[str] = set()
    for node in nodes(module):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} uses a relative import"
            assert node.module
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else node.module)
    return frozenset(found)


def own_imports(module: str) -> set[str]:
    return {name for name in imports(module) if name.partition(".")[0] == "lazycluster"}


def room(module: str) -> str:
    return module.split(".")[1]


def edges() -> Iterator[tuple[str, str]]:
    """Yield each importing module with each that it imports."""
    for module in MODULES:
        if module not in {"lazycluster", "lazycluster.__main__"}:
            yield from ((module, name) for name in own_imports(module))


def test_rooms_list_is_complete() -> None:
    assert {room(module) for module in MODULES if module != "lazycluster"} - {"__main__"} == set(RANK)


def test_imports_run_to_earlier_rooms_only() -> None:
    upward = [(one, other) for one, other in edges() if other == "lazycluster" or RANK[room(other)] > RANK[room(one)]]

    assert upward == []


def test_imports_of_modules_have_no_circle() -> None:
    graph = {name: own_imports(name) - FACADES for name in MODULES if name not in FACADES}

    graphlib.TopologicalSorter(graph).prepare()


def test_libraries_with_one_importer_have_no_other() -> None:
    strangers = [
        (module, root)
        for module in MODULES
        for root in {name.partition(".")[0] for name in imports(module)}
        if module not in ONLY_IMPORTERS.get(root, {module})
    ]

    assert strangers == []


def test_host_modules_import_standard_library_only() -> None:
    for module in ON_HOSTS:
        own = own_imports(module)
        roots = {name.partition(".")[0] for name in imports(module) - own}

        assert roots - set(sys.stdlib_module_names) == set(), module
        assert own <= set(ON_HOSTS), module


def test_testing_is_imported_by_demo_and_cli_only() -> None:
    importers = {room(one) for one, other in edges() if room(f"{other}.") == "testing"}

    assert importers <= {"testing", "_demo", "_cli"}


def test_public_classes_live_in_public_modules() -> None:
    """Nothing rewrites `__module__`, on which pickles and the documentation rely."""
    for package in (lazycluster, lazycluster.testing):
        for name in package.__all__:
            thing = getattr(package, name)
            assert "._" not in str(getattr(thing, "__module__", "")), name
            if isinstance(thing, type):
                assert getattr(importlib.import_module(thing.__module__), name) is thing


def test_class_names_are_unique() -> None:
    found = [node.name.lstrip("_") for path in MODULES for node in nodes(path) if isinstance(node, ast.ClassDef)]

    assert [name for name, group in itertools.groupby(sorted(found)) if len(list(group)) > 1] == []


def test_modules_have_at_most_400_lines() -> None:
    lines = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}

    assert {module: count for module, count in lines.items() if count > 400} == {}


def test_modules_read_no_wall_clock() -> None:
    """The wall clock may jump at any moment; only the doctor reads it, to compare clocks."""
    settable = {"time.time", "time.time_ns", "datetime.now", "datetime.datetime.now", "time.clock_gettime"}
    used = {
        (module, ast.unparse(node))
        for module in MODULES
        for node in nodes(module)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in settable
    }

    assert used == {("lazycluster._doctor.clock", "time.clock_gettime")}


def test_modules_use_no_local_shell_or_fork() -> None:
    shells = {"os.system", "os.popen", "pty.spawn", "subprocess.getoutput", "subprocess.getstatusoutput"}
    forks = {"os.fork", "os.forkpty", "pty.fork", "os.posix_spawn", "os.posix_spawnp"}
    used = []
    for module, node in ((name, node) for name in MODULES for node in nodes(name)):
        forbidden = shells if module in ON_HOSTS else shells | forks
        if isinstance(node, ast.Attribute) and ast.unparse(node) in forbidden:
            used.append((module, ast.unparse(node)))
        elif isinstance(node, ast.ImportFrom):
            used += [(module, alias.name) for alias in node.names if f"{node.module}.{alias.name}" in forbidden]
        elif isinstance(node, ast.keyword) and node.arg == "shell":
            assert isinstance(node.value, ast.Constant | ast.Name)
            used += (
                [(module, "shell=True")] if isinstance(node.value, ast.Constant) and node.value.value is True else []
            )

    assert used == []


def test_modules_have_no_vague_name() -> None:
    assert [name for name in MODULES if VAGUE_NAMES & {part.lstrip("_") for part in name.split(".")}] == []


@pytest.mark.parametrize("module", ["lazycluster", "lazycluster.runtimes", "lazycluster.exceptions"])
def test_import_is_light_and_without_effects(module: str) -> None:
    """No module that only a display, a password or a cluster needs is imported, and no logging is configured."""
    program = (
        "import logging, sys, threading\n"
        f"import {module}\n"
        "heavy = {'rich', 'multiprocessing', 'pexpect', 'asyncio', 'dask', 'importlib.metadata'} & set(sys.modules)\n"
        "ours = [None] + [name for name in logging.root.manager.loggerDict if name.startswith('lazycluster')]\n"
        "handlers = [each for name in ours for each in logging.getLogger(name).handlers]\n"
        "handlers = [each for each in handlers if not isinstance(each, logging.NullHandler)]\n"
        "print(sorted(heavy), handlers, logging.root.level, threading.active_count())\n"
    )

    ended = subprocess.run((sys.executable, "-c", program), capture_output=True, text=True, check=False, timeout=60)

    assert (ended.stdout, ended.stderr) == ("[] [] 30 1\n", "")


def test_process_guard_imports_standard_library_only() -> None:
    roots = {name.partition(".")[0] for name in imports("lazycluster.testing._process_guard")}

    assert roots <= sys.stdlib_module_names


# The tests' own rules ------------------------------------------------------------------------------------------------


@functools.cache
def nodes_of_tests() -> tuple[tuple[str, ast.AST], ...]:
    """Return the syntax nodes of all tests, each with the path of its file."""
    return tuple(
        (path.relative_to(TESTS).as_posix(), node)
        for path in sorted(TESTS.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    )


def is_private(name: str) -> bool:
    """Return whether a name, or the last part of a dotted one, begins with an underscore and is no `__name__`."""
    last = name.rpartition(".")[2]
    return last.startswith("_") and not last.endswith("__")


def test_private_modules_are_imported_in_unit_tests_only() -> None:
    imported = []
    for path, node in nodes_of_tests():
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        own = [name for name in names if name.partition(".")[0] == "lazycluster" and not path.startswith("unit/")]
        imported += [(path, name) for name in own if any(map(is_private, name.split(".")))]

    assert imported == []


def test_names_of_tests_have_at_most_60_characters() -> None:
    names = [
        (path, node.name)
        for path, node in nodes_of_tests()
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and len(node.name) > 60
    ]

    assert names == []


def test_tests_set_no_private_attribute() -> None:
    """`monkeypatch.setattr(module, "_NAME", ...)` and its form with a dotted name; tests inject values instead."""
    of_cpython = {"_acquire_restore"}  # a test interrupts threading.Condition where CPython gets it wrong
    replaced = []
    for path, node in nodes_of_tests():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr":
            texts = [each.value for each in node.args[:2] if isinstance(each, ast.Constant)]
            replaced += [(path, text) for text in texts[:1] if isinstance(text, str) and is_private(text)]

    assert [(path, text) for path, text in replaced if text not in of_cpython] == []
