"""The programs that a host gets, and their hello line."""

from __future__ import annotations

import ast
import marshal
import platform
import re
import sys
import zlib

import pytest

from lazycluster._functions import bootstrap
from lazycluster.exceptions import PythonVersionMismatchError

LOCAL_MINOR = ".".join(map(str, sys.version_info[:2]))


def test_bootstrap_needs_no_quoting_in_any_shell() -> None:
    program = bootstrap.build_call_program("abc")
    assert not set("'\\!\n") & set(program.bootstrap)
    assert program.bootstrap.isascii()
    ast.parse(program.bootstrap)
    assert str(len(program.stdin_prefix)) in program.bootstrap
    assert len(repr(program)) < 500


@pytest.mark.parametrize(
    ("program", "start"),
    [
        (
            bootstrap.build_call_program("abc", 2.5),
            "call_program.main('abc', watchdog.fork_worker, lambda worker: watchdog.watch_worker(worker, 2.5))",
        ),
        (
            bootstrap.build_supervisor_program("abc", "M=t.", 2.5, "~/a b'", "echo"),
            "sys.exit(supervisor.main('abc', 'M=t.', 2.5, b\"~/a b'\", 'echo'))",
        ),
        (
            bootstrap.build_supervisor_program("abc", "M=t.", 5.0, None, ""),
            "sys.exit(supervisor.main('abc', 'M=t.', 5.0, None, ''))",
        ),
    ],
    ids=["call", "supervisor", "supervisor without working_dir"],
)
def test_host_program_is_python_3_6_syntax(program: bootstrap.HostProgram, start: str) -> None:
    """It makes modules from their sources, each importing earlier ones only, and calls the last one."""
    stream = zlib.decompressobj()
    text = stream.decompress(program.stdin_prefix).decode()
    assert text.endswith(f"\n{start}\n")
    ast.parse(text, feature_version=(3, 6))
    sources = loaded_sources(zlib.decompress(program.source or stream.unused_data).decode())
    for number, (name, source) in enumerate(sources.items()):
        own = re.findall(r"^from lazycluster\._remote\.(\w+) import", source, re.MULTILINE)
        assert set(own) <= set(list(sources)[:number]), name
        ast.parse(source, feature_version=(3, 6))
    assert list(sources)[-1] == start.removeprefix("sys.exit(").partition(".")[0]


def test_supervisor_program_has_bytecode_of_sources() -> None:
    sent = bootstrap.build_supervisor_program("abc", "M=t.", 5.0, None, "")
    stream = zlib.decompressobj()
    stream.decompress(sent.stdin_prefix)
    codes = marshal.loads(zlib.decompress(stream.unused_data))
    assert [name for name, _ in codes] == list(loaded_sources(zlib.decompress(sent.source).decode()))
    assert len(sent.stdin_prefix) < (10 + 20 + 40) * 1448, (
        "more than three flights of TCP (RFC 6928) are a round trip more"
    )


@pytest.mark.parametrize("text", [bootstrap.calls_extension(), bootstrap.ports_extension()], ids=["calls", "ports"])
def test_extension_is_python_3_6_syntax(text: bytes) -> None:
    for source in loaded_sources(zlib.decompress(text).decode()).values():
        ast.parse(source, feature_version=(3, 6))


def loaded_sources(text: str) -> dict[str, str]:
    """Return the sources of the modules that a program makes, by name, in its order."""
    tree = ast.parse(text, feature_version=(3, 6))
    calls = [node.value for node in tree.body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]
    loads = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "_load"]
    return {ast.literal_eval(load.args[0]): ast.literal_eval(load.args[1]) for load in loads}


@pytest.mark.parametrize("token", ["", "a b", "a'b", "é", "a\n", "a-b"])
def test_build_call_program_invalid_token_raises(token: str) -> None:
    with pytest.raises(ValueError):
        bootstrap.build_call_program(token)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"LAZYCLUSTER-CALL tok cpython 3.11.7 /usr/bin/python3\n", ("3.11.7", "/usr/bin/python3", "cpython")),
        (b"LAZYCLUSTER-CALL tok cpython 3.6.9 /a b/py\\xe9\\u20ac\n", ("3.6.9", "/a b/pyé€", "cpython")),
        (b"noise of a start-up fileLAZYCLUSTER-CALL tok pypy 3.10.1 p\r\n", ("3.10.1", "p", "pypy")),
        (b"LAZYCLUSTER-CALL other cpython 3.11.7 /usr/bin/python3\n", None),
        (b"LAZYCLUSTER-CALL tok cpython\n", None),
        (b"Welcome!\n", None),
        (b"\xff\xfe", None),
        (b"", None),
    ],
)
def test_parse_python_info_reads_hello_line(line: bytes, expected: tuple[str, str, str] | None) -> None:
    python_info = bootstrap.parse_python_info(line, "tok")
    assert python_info == (bootstrap.PythonInfo(*expected) if expected else None)


@pytest.mark.parametrize("version", [platform.python_version(), f"{LOCAL_MINOR}.99", f"{LOCAL_MINOR}.0rc1"])
def test_check_python_version_accepts_same_minor(version: str) -> None:
    bootstrap.check_python_version(bootstrap.PythonInfo(version, "/p", sys.implementation.name), "h")


@pytest.mark.parametrize(
    ("python_info", "version"),
    [
        (bootstrap.PythonInfo("3.6.15", "/usr/bin/python3"), "3.6.15"),
        (bootstrap.PythonInfo("4.0.0", "/p"), "4.0.0"),
        (bootstrap.PythonInfo(f"{LOCAL_MINOR}.1", "/p", "pypy"), f"{LOCAL_MINOR}.1 (pypy)"),
    ],
)
def test_check_python_version_other_python_raises(python_info: bootstrap.PythonInfo, version: str) -> None:
    with pytest.raises(PythonVersionMismatchError) as caught:
        bootstrap.check_python_version(python_info, "h")
    error = caught.value
    assert (error.host, error.local_version, error.remote_version) == ("h", LOCAL_MINOR, version)
    assert error.remote_executable == python_info.executable
