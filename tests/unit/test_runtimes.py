"""Runtimes: the checks of their arguments before anything runs, and their facts as text."""

from __future__ import annotations

import inspect
import math
import re
import subprocess
from typing import Any, get_type_hints

import pytest

from lazycluster import Connection, Gpu, HostInfo, LazyclusterError, Runtime
from lazycluster._facts import Facts, info_rows
from lazycluster._transports.factory import make_transport
from lazycluster._transports.per_command import PerCommandTransport
from lazycluster._transports.resident import ResidentTransport
from lazycluster.gpus import MigDevice
from lazycluster.options import ConnectionOptions, RuntimeOptions


@pytest.fixture(autouse=True)
def forbid_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **_: object) -> None:
        pytest.fail(f"started {arguments}")

    monkeypatch.setattr(subprocess, "Popen", refuse)


def test_runtime_unknown_keyword_raises_type_error() -> None:
    keywords: Any = {"usr": "me"}
    with pytest.raises(TypeError) as caught:
        Runtime("web1", **keywords)
    assert str(caught.value) == (
        "Runtime() got an unexpected keyword argument 'usr'; there are: config_file, connect_timeout, env, "
        "grace, identity_file, max_sessions, options, password, port, python, resident, user"
    )


def test_runtime_keywords_include_those_of_connection() -> None:
    parameters = inspect.signature(Connection.__init__).parameters.values()
    keywords = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    assert keywords == ConnectionOptions.__annotations__.keys()
    assert RuntimeOptions.__annotations__.keys() - keywords == {"python", "resident", "grace"}
    assert get_type_hints(ConnectionOptions)["port"] == get_type_hints(Connection.__init__)["port"]


@pytest.mark.parametrize(
    ("host", "keywords"),
    [
        ("", {}),
        ("-x", {}),
        ("web 1", {}),
        ("-oProxyCommand=touch pwned", {}),
        ("two\nlines", {}),
        ("web1", {"port": 0}),
        ("web1", {"port": 65536}),
        ("web1", {"user": "-me"}),
        ("web1", {"connect_timeout": 0}),
        ("web1", {"options": {"ControlPath": "x"}}),
        ("web1", {"env": {"1": "x"}}),
        ("web1", {"env": {"": "x"}}),
        ("web1", {"env": {"no-identifier": "x"}}),
    ],
)
def test_runtime_bad_argument_raises_value_error(host: str, keywords: Any) -> None:
    with pytest.raises(ValueError):
        Runtime(host, **keywords)
    with pytest.raises(ValueError):
        Connection(host, **keywords)


@pytest.mark.parametrize("grace", [-1, -0.001, 1e6, math.inf, math.nan, True, "5", None])
def test_runtime_bad_grace_raises_value_error(grace: Any) -> None:
    with pytest.raises(
        ValueError, match=re.escape(f"grace must be a number of seconds from 0 to 1,000,000, got {grace!r}")
    ):
        Runtime("web1", grace=grace)


@pytest.mark.parametrize(
    ("keywords", "transport_class"),
    [({}, ResidentTransport), ({"resident": True}, ResidentTransport), ({"resident": False}, PerCommandTransport)],
)
def test_make_transport_resident_chooses_the_class(
    keywords: RuntimeOptions, transport_class: type[ResidentTransport | PerCommandTransport]
) -> None:
    transport = make_transport("web1", keywords)
    assert isinstance(transport, transport_class)
    assert (transport.host, transport.temp_dirs) == ("web1", [])
    transport.close()


def test_make_transport_grace_is_five_seconds_by_default() -> None:
    graces = []
    for keywords in (RuntimeOptions(), RuntimeOptions(grace=0), RuntimeOptions(grace=0.5)):
        transport = make_transport("web1", keywords)
        assert isinstance(transport, ResidentTransport)
        graces.append(transport.ssh_client.grace)
        transport.close()
    assert graces == [5.0, 0, 0.5]


class KnownHost(Facts):
    """A host all of whose facts are known."""

    host = "web1"
    working_dir = "/work"
    host_info = HostInfo(
        "Debian 12",
        "Linux",
        "6.1",
        "x86_64",
        1.5,
        3 << 29,
        gpus=(
            Gpu(0, "A100", 80 << 30, "535.1", "GPU-1", 5, (MigDevice(0, "1g.10gb", "MIG-1"), MigDevice(1, "2g", "M"))),
            Gpu(1, "Orin"),
        ),
    )


def test_info_rows_lists_the_facts() -> None:
    assert info_rows(KnownHost()) == [
        ("Host", "web1"),
        ("OS", "Debian 12"),
        ("Python", "none"),
        ("CPU cores", "1.5"),
        ("Memory", "1.5 GiB"),
        ("GPUs", "2"),
        ("GPU 0", "A100, 80 GiB, MIG 1g.10gb, MIG 2g"),
        ("GPU 1", "Orin"),
        ("Working directory", "/work"),
    ]


def test_facts_are_text_or_numbers() -> None:
    facts = KnownHost()
    assert (facts.os, facts.python_version, facts.cpu_cores) == ("Debian 12", "", "1.5")
    assert (facts.memory, facts.memory_in_mb, facts.gpu_count) == (str(3 << 29), "1536", 2)
    assert facts.gpus == list(KnownHost.host_info.gpus)
    assert facts.info["gpus"] == facts.gpus


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"password": 5}, "password must be text, got an object of int"),
        ({"python": ""}, "python must be text, not empty and without NUL, got ''"),
        ({"resident": "no"}, "resident must be True or False, got 'no'"),
        ({"working_dir": ""}, "working_dir must be text, not empty and without NUL, got ''"),
    ],
)
def test_runtime_bad_keyword_raises_value_error(keywords: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$") as caught:
        Runtime("web1", **keywords)
    assert not isinstance(caught.value, LazyclusterError)
