"""Functions, their modules and their arguments as they are sent, and as they arrive."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import cloudpickle
import pytest

from lazycluster._functions import serialize
from lazycluster.exceptions import FunctionNotSerializableError
from lazycluster.steps import function_name
from tests.client_programs import call_in_parallel
from tests.unit.local_calls import LocalHost

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
_LOCK = threading.Lock()
"""A value that cannot be pickled, for the functions that use it."""


class Adder:
    """A class with every kind of callable."""

    created = 0

    def __init__(self, first: int) -> None:
        self.first = first

    def __call__(self, second: int) -> int:
        return self.first + second

    def add(self, second: int) -> int:
        return self(second)

    @classmethod
    def make(cls, first: int) -> Adder:
        cls.created += 1
        return cls(first)

    @staticmethod
    def one() -> int:
        return 1


def factorial(number: int) -> int:
    return 1 if number < 2 else number * factorial(number - 1)


def even(number: int) -> bool:
    return number == 0 or odd(number - 1)


def odd(number: int) -> bool:
    return number != 0 and even(number - 1)


def adder_of(first: int) -> Callable[[int], int]:
    return lambda second: first + second


def product(first: int, *rest: int, scale: int = 1) -> int:
    return scale * functools.reduce(lambda left, right: left * right, rest, first)


@pytest.mark.parametrize(
    ("function", "args", "expected"),
    [
        pytest.param(lambda: 5, (), 5, id="lambda"),
        pytest.param(adder_of(3), (4,), 7, id="closure"),
        pytest.param(functools.partial(product, 2, scale=10), (3, 4), 240, id="partial"),
        pytest.param(functools.partial(functools.partial(product, 2), 3), (4,), 24, id="partial of a partial"),
        pytest.param(Adder(3).add, (4,), 7, id="bound method"),
        pytest.param(Adder(3), (4,), 7, id="callable instance"),
        pytest.param(Adder.one, (), 1, id="static method"),
        pytest.param(factorial, (10,), 3628800, id="recursion"),
        pytest.param(even, (10,), True, id="mutual recursion"),
        pytest.param(len, ("four",), 4, id="builtin"),
        pytest.param(json.loads, ("[1]",), [1], id="standard library"),
        pytest.param(str.upper, ("a",), "A", id="method of a builtin"),
        pytest.param(dict, ([(1, 2)],), {1: 2}, id="builtin class"),
    ],
)
def test_serialize_call_every_kind_of_callable(
    function: Callable[..., object], args: tuple[object, ...], expected: object
) -> None:
    assert LocalHost().value(function, *args) == expected


def test_serialize_call_function_without_module() -> None:
    namespace: dict[str, object] = {"offset": 2}
    exec("def f(x): return x + offset", namespace)
    assert LocalHost().value(namespace["f"], 3) == 5  # type: ignore[arg-type]


def test_serialize_call_keyword_arguments() -> None:
    assert LocalHost().value(product, 1, 2, scale=3) == 6


def test_serialize_call_result_is_of_the_same_class() -> None:
    result = LocalHost().value(Adder, 3)
    assert type(result) is Adder
    assert result.first == 3


def test_serialize_call_result_does_not_change_its_class() -> None:
    add = Adder.add
    result = LocalHost().value(Adder.make, 3)
    assert type(result) is Adder
    assert Adder.created == 0
    assert Adder.add is add


def test_serialize_call_local_class() -> None:
    class Local:
        seen: list[int] = []  # noqa: RUF012

        def grow(self) -> Local:
            self.seen.append(1)
            return self

    assert isinstance(LocalHost().value(Local().grow), Local)
    assert Local.seen == []


def test_serialize_call_class_made_on_host() -> None:
    def make() -> object:
        class OfHost:
            def name(self) -> str:
                return "of the host"

        return OfHost()

    result = LocalHost().value(make)
    assert result.name() == "of the host"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("function", "args", "reason"),
    [
        (_LOCK.acquire, (), "lock"),
        (lambda: _LOCK, (), "lock"),
        (len, ([threading.Lock()],), "lock"),
        (len, ((number for number in [1]),), "generator"),
    ],
    ids=["method of a lock", "global lock", "lock argument", "generator argument"],
)
def test_serialize_call_unsendable_is_refused(
    function: Callable[..., object], args: tuple[object, ...], reason: str
) -> None:
    with pytest.raises(FunctionNotSerializableError) as caught:
        serialize.serialize_call(function, *args)
    assert isinstance(caught.value.__cause__, TypeError)
    assert caught.value.function == function_name(function)
    assert reason in caught.value.reason


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (len, "len"),
        (functools.partial(functools.partial(factorial), 1), "factorial"),
        (Adder(1), "Adder"),
        (Adder(1).add, "Adder.add"),
        (lambda: None, "<lambda>"),
    ],
    ids=["builtin", "partial", "callable instance", "method", "lambda"],
)
def test_function_name_of_callables(function: Callable[..., object], name: str) -> None:
    assert function_name(function) == name


def test_payload_repr_hides_its_bytes() -> None:
    assert len(repr(serialize.serialize_call(len, "x" * 100000))) < 100


@pytest.fixture
def registry() -> set[str]:
    """Return cloudpickle's registry of modules by value as it is before the test."""
    return cloudpickle.list_registry_pickle_by_value()


@pytest.mark.parametrize("argument", ["fine", threading.Lock()], ids=["sendable", "unsendable"])
def test_serialize_call_restores_cloudpickle_registry(registry: set[str], argument: object) -> None:
    this = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(this)
    cloudpickle.register_pickle_by_value(json)
    try:
        try:
            serialize.serialize_call(factorial, argument)  # type: ignore[arg-type]
        except FunctionNotSerializableError:
            assert argument != "fine"
        assert cloudpickle.list_registry_pickle_by_value() == registry | {__name__, "json"}
    finally:
        cloudpickle.unregister_pickle_by_value(this)
        cloudpickle.unregister_pickle_by_value(json)
    serialize.serialize_call(factorial, 1)
    assert cloudpickle.list_registry_pickle_by_value() == registry


def test_serialize_call_module_of_two_names_is_unregistered(
    registry: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "another_name_of_it", sys.modules[__name__])
    serialize.serialize_call(factorial, 1)
    assert cloudpickle.list_registry_pickle_by_value() == registry


def test_serialize_call_in_threads_at_once_works() -> None:
    payloads = call_in_parallel([lambda: serialize.serialize_call(factorial, 3)] * 8)
    assert len(set(map(serialize.full_request, payloads))) == 1


def test_serialize_call_extension_class_by_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = ModuleType("own_package.compiled")
    compiled.__file__ = "/project/own_package/compiled.so"
    compiled.Thing = type("Thing", (), {"__module__": compiled.__name__})  # type: ignore[attr-defined]
    package = ModuleType("own_package")
    package.__file__ = "/project/own_package/__init__.py"
    package.__path__ = ["/project/own_package"]
    monkeypatch.setitem(sys.modules, "own_package", package)
    monkeypatch.setitem(sys.modules, "own_package.compiled", compiled)
    assert b"own_package.compiled\x94\x8c\x05Thing" in serialize.full_request(serialize.serialize_call(compiled.Thing))


HELPER_MODULE = """
import collections, socket, sys, threading
import no_such_module_there as absent
LOCK = threading.Lock()
SOCKET = socket.socket()
SOCKET.close()
GENERATOR = (item for item in ())
STATE = 1
BIG = "x" * 1_000_000

class Point:
    def __init__(self, x): self.x = x
    def twice(self): return Point(2 * self.x)

class Complaint(Exception):
    def __init__(self, code, what):
        super().__init__(f"{code}: {what}")
        self.code = code

def g(): return 42
def state(): return STATE
def set_state(value):
    global STATE
    STATE = value
def complain(): raise Complaint(7, "no")
def joined(*names): return collections.OrderedDict.fromkeys(names)
"""

NOTHING_ERROR = (
    "AttributeError module 'helper' was sent without 'nothing': it has none, or the code that was sent does not name it"
)
ABSENT_ERROR = (
    "AttributeError module 'helper' was sent without 'absent': ModuleNotFoundError: "
    "No module named 'no_such_module_there'"
)
CASES = {
    "function of __main__": (
        {},
        """
        OFFSET = 40
        def base(): return OFFSET
        def f(x): return base() + x
        show(f, 2)
        """,
        "42",
    ),
    "classes of __main__": (
        {},
        """
        import dataclasses, enum
        class Colour(enum.Enum):
            RED = 1
        @dataclasses.dataclass
        class Car:
            colour: Colour
            def repainted(self): return Car(self.colour)
        car = host.value(Car(Colour.RED).repainted)
        print(type(car) is Car, car.colour is Colour.RED, car == Car(Colour.RED))
        """,
        "True True True",
    ),
    "plain pickle finds functions of __main__": (
        {},
        """
        import multiprocessing
        def square(x): return x * x
        def f():
            with multiprocessing.get_context("fork").Pool(2) as pool:
                return pool.map(square, [1, 2, 3])
        show(f)
        """,
        "[1, 4, 9]",
    ),
    "function of a module beside the script": ({}, "from helper import g\nshow(g)", "42"),
    "module held by the function": ({}, "import helper\ndef f(): return helper.g()\nshow(f)", "42"),
    "module held by a lambda": ({}, "import helper\nshow(lambda: helper.g() + helper.state())", "43"),
    "module as an argument": ({}, "import helper\nshow(lambda module: module.g(), helper)", "42"),
    "attribute looked up by name": (
        {},
        "import helper\nshow(lambda name: getattr(helper, name)(), 'g')",
        "42",
    ),
    "current state of a module": ({}, "import helper\nhelper.STATE = 5\nshow(helper.state)", "5"),
    "one state for functions and module": (
        {},
        """
        import helper
        def f():
            helper.set_state(9)
            import helper as again
            return helper.STATE, again.state(), again is helper
        show(f)
        """,
        "(9, 9, True)",
    ),
    "one class for arguments and module": (
        {},
        """
        import helper
        def f(point):
            return isinstance(point, helper.Point) and point.twice()
        twice = host.value(f, helper.Point(4))
        print(type(twice) is helper.Point, twice.x)
        """,
        "True 8",
    ),
    "only referenced attributes are sent": (
        {},
        """
        import helper
        from lazycluster._functions import serialize
        print(len(serialize.full_request(serialize.serialize_call(lambda: helper.g()))) < 100_000)
        """,
        "True",
    ),
    "unsendable attribute is missing only for its users": (
        {},
        "import helper\nshow(lambda: helper.LOCK)",
        "AttributeError module 'helper' was sent without 'LOCK': TypeError: cannot pickle '_thread.lock' object",
    ),
    "attribute that does not exist": (
        {},
        "import helper\nshow(lambda: helper.nothing)",
        NOTHING_ERROR,
    ),
    "module that the host lacks is missing only for its users": (
        {"no_such_module_there.py": ""},
        """
        import helper
        import no_such_module_there
        no_such_module_there.__file__ = helper.collections.__file__  # as if it were installed on this machine
        def f(ask): return helper.absent if ask else helper.g()
        show(f, False)
        show(f, True)
        """,
        f"42\n{ABSENT_ERROR}",
    ),
    "exception of a module": (
        {},
        """
        import helper
        try:
            host.value(helper.complain)
        except helper.Complaint as error:
            print(error, error.code)
        """,
        "7: no 7",
    ),
    "import within the function": (
        {},
        "import helper\ndef f():\n    from helper import g, joined\n    return g(), list(joined('a'))\nshow(f)",
        "(42, ['a'])",
    ),
    "import within the function, not loaded yet": (
        {
            "late.py": "import json, other\ndef h(): return other.k() + json.loads('1')",
            "other.py": "def k(): return 3",
        },
        "import sys\ndef f():\n    import late\n    return late.h()\nshow(f)\nprint('late' in sys.modules)",
        "4\nFalse",
    ),
    "package, not loaded yet": (
        {
            "pkg/__init__.py": "from .first import one",
            "pkg/first.py": "from . import second\ndef one(): return second.TWO - 1",
            "pkg/second.py": "TWO = 2",
            "pkg/deep/__init__.py": "",
            "pkg/deep/third.py": "from ..second import *\nfrom helper import *\ndef three(): return TWO + 1 + g() - 42",
        },
        "import helper\ndef f():\n  import pkg, pkg.deep.third as t\n  return pkg.one(), t.three()\nshow(f)",
        "(1, 3)",
    ),
    "package, loaded already": (
        {
            "pkg/__init__.py": "",
            "pkg/first.py": "from . import second\ndef one():\n  from .second import TWO\n  return TWO - second.ONE",
            "pkg/second.py": "ONE, TWO = 1, 2",
        },
        "import pkg.first\nshow(lambda: pkg.first.one())",
        "1",
    ),
    "namespace package": (
        {"space/part.py": "def one(): return 1", "space/other.py": "def two(): return 2"},
        "import space.part\ndef f():\n    import space.other\n    return space.part.one(), space.other.two()\nshow(f)",
        "(1, 2)",
    ),
    "namespace package, not loaded yet": (
        {"space/part.py": "def one(): return 1"},
        "def f():\n    from space import part\n    return part.one()\nshow(f)",
        "1",
    ),
    "modules in a circle": (
        {
            "left.py": "import right\ndef l(n): return n and right.r(n - 1)",
            "right.py": "import left\ndef r(n): return n and left.l(n - 1)",
        },
        "import left\nshow(lambda: left.l(3))",
        "0",
    ),
    "module with __getattr__": (
        {"lazy.py": "def __getattr__(name):\n    return name.upper()"},
        "import lazy\nshow(lambda: lazy.something)",
        "SOMETHING",
    ),
    "module that does not compile": (
        {"broken.py": "def"},
        "def f():\n    import broken\nshow(f)",
        "SyntaxError invalid syntax (broken.py, line 1)",
    ),
    "import of a missing module": (
        {},
        "def f():\n    import no_such_module_at_all\nshow(f)",
        "ModuleNotFoundError No module named 'no_such_module_at_all'",
    ),
    "user's registration": (
        {},
        """
        import cloudpickle, helper
        cloudpickle.register_pickle_by_value(helper)
        show(lambda: helper.g())
        print(cloudpickle.list_registry_pickle_by_value())
        """,
        "42\n{'helper'}",
    ),
    "lines of the traceback": (
        {},
        """
        import traceback
        def f():
            return 1 / 0  # here
        try:
            host.value(f)
        except ZeroDivisionError:
            print("return 1 / 0  # here" in traceback.format_exc())
        """,
        "True",
    ),
}
"""Scripts beside which `helper.py` lies: further files, the text of the script, and the text that it prints."""

SCRIPT_START = """
from tests.unit.local_calls import LocalHost
host = LocalHost()
def show(function, *args):
    try:
        print(host.value(function, *args))
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.parametrize("case", CASES)
def test_serialize_call_in_a_script_prints_expected(case: str, tmp_path: Path) -> None:
    files, script, expected = CASES[case]
    script_dir = tmp_path / "script"  # not the directory in which the "host" works
    for name, text in {"no_such_module_there.py": "", "helper.py": HELPER_MODULE, **files}.items():
        (script_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (script_dir / name).write_text(text)
    (script_dir / "script.py").write_text(SCRIPT_START + textwrap.dedent(script))
    other_dir = tmp_path / "other"
    other_dir.mkdir()
    done = subprocess.run(
        [sys.executable, "-B", script_dir / "script.py"],
        cwd=other_dir,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.strip() == expected
    assert list(other_dir.iterdir()) == []
