"""The test that holds the house up: who may import what, and what nobody does."""

from __future__ import annotations

import ast
import functools
import graphlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import lazycluster

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(lazycluster.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# From the ground up. A module may import from its own floor, without a cycle, and from those below. The longest prefix
# counts. Whoever adds a module decides here on which floor it lives.
FLOORS = {
    "lazycluster._typing": 0,
    "lazycluster.exceptions": 0,
    "lazycluster.results": 0,
    "lazycluster.steps": 0,
    "lazycluster._gpus": 0,
    "lazycluster.hardware": 0,
    "lazycluster.managed": 0,
    "lazycluster._waiting": 0,
    "lazycluster.testing.processes": 1,
    "lazycluster.testing.relay": 1,
    "lazycluster.testing.local_sshd": 1,
    "lazycluster._functions.bytecode": 1,
    "lazycluster._remote.call_program": 1,
    "lazycluster._remote.temp_dirs": 1,
    "lazycluster._remote.protocol": 1,
    "lazycluster._remote.child": 1,
    "lazycluster._functions.modules": 1,
    "lazycluster._remote.send_queue": 1,
    "lazycluster._remote.supervisor": 1,
    "lazycluster._remote.spawn": 1,
    "lazycluster._remote.process_tree": 1,
    "lazycluster._remote.watchdog": 1,
    "lazycluster._remote.workers": 1,
    "lazycluster._functions.serialize": 2,
    "lazycluster._functions.standalone": 2,
    "lazycluster._functions.bootstrap": 2,
    "lazycluster._functions.outcome": 2,
    "lazycluster._ssh.destination": 1,
    "lazycluster._ssh.argv": 1,
    "lazycluster._model.forwarding": 1,
    "lazycluster._ssh.diagnosis": 1,
    "lazycluster._ssh.messages": 1,
    "lazycluster._ssh.config": 1,
    "lazycluster._ssh.config_edit": 1,
    "lazycluster._ssh.shell": 1,
    "lazycluster._ssh.host_scripts": 1,
    "lazycluster._remote.ports": 1,
    "lazycluster._files.tar_writer": 1,
    "lazycluster._files.tar_reader": 1,
    "lazycluster._files.install": 1,
    "lazycluster._processes": 2,
    "lazycluster._ssh.config_hosts": 2,
    "lazycluster._ssh.config_file": 3,
    "lazycluster._ssh.prompts": 3,
    "lazycluster._ssh.mux": 3,
    "lazycluster._ssh.lifeline": 3,
    "lazycluster._ssh.session_limit": 3,
    "lazycluster._transports.interface": 3,
    "lazycluster._ssh.master": 4,
    "lazycluster._files.script_runner": 4,
    "lazycluster._ssh.session": 4,
    "lazycluster._ssh.client": 4,
    "lazycluster._functions.python_finder": 5,
    "lazycluster._files.transfer": 5,
    "lazycluster._ssh.tunnel_connection": 5,
    "lazycluster._ssh.tunnel_manager": 5,
    "lazycluster._ssh.tunnel": 5,
    "lazycluster.connection": 6,
    "lazycluster._transports.supervisor_client": 6,
    "lazycluster._transports.jobs": 6,
    "lazycluster._display": 6,
    "lazycluster._explain": 6,
    "lazycluster._transports.per_command": 7,
    "lazycluster._transports.resident": 8,
    "lazycluster._facts": 7,
    "lazycluster.executor": 7,
    "lazycluster.tasks": 8,
    "lazycluster._invoke": 8,
    "lazycluster._resources": 9,
    "lazycluster._transports.factory": 9,
    "lazycluster.runtimes": 10,
    "lazycluster._gather": 3,
    "lazycluster._membership": 11,
    "lazycluster._mapping": 11,
    "lazycluster._doctor": 11,
    "lazycluster.groups": 12,
    "lazycluster.manager": 12,
    "lazycluster.cluster": 13,
    "lazycluster.testing": 13,
    "lazycluster._demo": 14,
    "lazycluster._cli": 15,
    "lazycluster.__main__": 16,
}
# Packages whose __init__ holds a docstring, or names from above: nobody imports from them inside of the house.
HOLLOW = {"lazycluster"} | {
    f"lazycluster.{name}"
    for name in ("openssh", "supervisor", "_model", "_remote", "_ssh", "_functions", "_files", "_transports")
}

ONLY_IMPORTERS = {
    # `testing` is the one exception: it starts sshd and ssh-keygen, which are no affair of the library itself.
    "subprocess": {"lazycluster._processes", "lazycluster.testing.processes"},
    "pexpect": {"lazycluster._ssh.prompts"},
    "cloudpickle": {"lazycluster._functions.serialize"},
    "sshconf": {"lazycluster._ssh.config_edit"},
    "multiprocessing": set[str](),
    "paramiko": set[str](),
    "fabric": set[str](),
}
SENT = sorted(name for name in MODULES if name.startswith("lazycluster._remote."))
"""What runs on a host finds nothing there but a Python, and what is sent along with it."""
VAGUE_NAMES = {"util", "utils", "helper", "helpers", "common", "base", "misc"}


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def walk(node: ast.AST, *, types: bool) -> Iterator[ast.AST]:
    """Yield the nodes under one; `types` is whether those under `if TYPE_CHECKING` count."""
    yield node
    for child in node.orelse if isinstance(node, ast.If) and is_for_types(node) and not types else _children(node):
        yield from walk(child, types=types)


def _children(node: ast.AST) -> Iterator[ast.AST]:
    return ast.iter_child_nodes(node)


@functools.cache
def imports(module: str, *, types: bool = True) -> frozenset[str]:
    """Return the modules that one imports, anywhere in it; a name imported from a package may be a module of it."""
    found: set[str] = set()
    for node in walk(tree(module), types=types):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} uses a relative import"
            assert node.module
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else node.module)
    return frozenset(found)


def own_imports(module: str, *, types: bool = True) -> set[str]:
    return {name for name in imports(module, types=types) if name.partition(".")[0] == "lazycluster"}


def floor(module: str) -> int:
    prefix = module
    while prefix not in FLOORS:
        prefix, _, _ = prefix.rpartition(".")
        if not prefix or prefix in HOLLOW:
            pytest.fail(f"{module} has no floor: decide on which one it lives and add it to FLOORS in {__file__}")
    return FLOORS[prefix]


inhabitants = pytest.mark.parametrize("module", [name for name in MODULES if name not in HOLLOW])
every_module = pytest.mark.parametrize("module", list(MODULES))


@inhabitants
def test_no_import_runs_upward(module: str) -> None:
    upward = {name for name in own_imports(module) if name in HOLLOW or floor(name) > floor(module)}

    assert upward == set()


def test_no_import_runs_in_a_circle() -> None:
    graph = {name: own_imports(name, types=False) for name in MODULES if name not in HOLLOW}

    graphlib.TopologicalSorter(graph).prepare()


@every_module
def test_what_has_one_importer_is_imported_by_no_other(module: str) -> None:
    roots = {name.partition(".")[0] for name in imports(module)}

    assert {root for root in roots if module not in ONLY_IMPORTERS.get(root, {module})} == set()


@pytest.mark.parametrize("module", SENT)
def test_a_host_module_imports_only_the_standard_library_and_its_own_room(module: str) -> None:
    own = own_imports(module)
    roots = {name.partition(".")[0] for name in imports(module) - own}

    assert roots - set(sys.stdlib_module_names) == set()
    assert own <= set(SENT)


@every_module
def test_testing_is_for_the_demo_and_for_tests_alone(module: str) -> None:
    if not module.startswith(("lazycluster.testing", "lazycluster._demo", "lazycluster._cli")):
        assert not {name for name in own_imports(module) if name.startswith("lazycluster.testing")}


@every_module
def test_nothing_waits_by_a_clock_that_can_be_set(module: str) -> None:
    settable = {"time.time", "time.time_ns", "datetime.now", "datetime.datetime.now", "time.clock_gettime"}
    used = {ast.unparse(node) for node in ast.walk(tree(module)) if isinstance(node, ast.Attribute)} & settable

    # What the doctor compares is these clocks themselves.
    assert used == ({"time.clock_gettime"} if module == "lazycluster._doctor.machine" else set())


@every_module
def test_no_local_shell_and_no_fork_is_used(module: str) -> None:
    forbidden = {"os.system", "os.popen", "pty.spawn", "subprocess.getoutput", "subprocess.getstatusoutput"}
    if module not in SENT:
        forbidden |= {"os.fork", "os.forkpty", "pty.fork", "os.posix_spawn", "os.posix_spawnp"}
    used = []
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in forbidden:
            used.append(ast.unparse(node))
        elif isinstance(node, ast.ImportFrom):
            used += [name for alias in node.names if (name := f"{node.module}.{alias.name}") in forbidden]
        elif isinstance(node, ast.keyword) and node.arg == "shell":
            assert isinstance(node.value, ast.Constant | ast.Name)
            used += ["shell=True"] if isinstance(node.value, ast.Constant) and node.value.value is True else []

    assert used == []


@every_module
def test_no_wait_is_measured_by_a_clock_that_jumps(module: str) -> None:
    """The wall clock may be set at any moment; the monotonic one is what deadlines and patience are measured by."""
    clocks = {"time.time", "time.time_ns", "datetime.datetime.now", "datetime.now"}
    used = [ast.unparse(node) for node in ast.walk(tree(module)) if isinstance(node, ast.Attribute)]

    assert not clocks & set(used)


@every_module
def test_nothing_has_a_vague_name(module: str) -> None:
    assert not VAGUE_NAMES & {part.lstrip("_") for part in module.split(".")}


@pytest.mark.parametrize("module", ["lazycluster", "lazycluster.runtimes", "lazycluster.exceptions"])
def test_importing_is_light_and_without_effects(module: str) -> None:
    """Nothing that only a display, a password or a cluster needs is imported, and no logging is configured."""
    program = (
        "import logging, sys, threading\n"
        f"import {module}\n"
        "heavy = {'rich', 'multiprocessing', 'pexpect', 'asyncio', 'dask'} & set(sys.modules)\n"
        "ours = [None] + [name for name in logging.root.manager.loggerDict if name.startswith('lazycluster')]\n"
        "handlers = [each for name in ours for each in logging.getLogger(name).handlers]\n"
        "handlers = [each for each in handlers if not isinstance(each, logging.NullHandler)]\n"
        "print(sorted(heavy), handlers, logging.root.level, threading.active_count())\n"
    )

    ended = subprocess.run((sys.executable, "-c", program), capture_output=True, text=True, check=False, timeout=60)

    assert (ended.stdout, ended.stderr) == ("[] [] 30 1\n", "")


def test_the_guard_of_a_private_sshd_needs_the_standard_library_alone() -> None:
    roots = {name.partition(".")[0] for name in imports("lazycluster.testing.processes")}

    assert roots <= sys.stdlib_module_names
