"""Checks of ports, variables, time-outs and destinations, which are made before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazycluster._model.checks import check_environment, check_port, check_timeout
from lazycluster._ssh.destination import RESERVED_OPTIONS, Destination


@pytest.mark.parametrize("port", [1, 22, 65535])
def test_check_port_returns_the_port(port: int) -> None:
    assert check_port(port) == port


@pytest.mark.parametrize("port", [0, -1, 65536, 2**31, True, False, 22.0, "22", None])
def test_check_port_refuses_other_values(port: Any) -> None:
    with pytest.raises(ValueError, match=r"^port must be a whole number from 1 to 65535, got "):
        check_port(port)


@given(st.integers())
def test_check_port_accepts_1_to_65535_only(port: int) -> None:
    if 1 <= port <= 65535:
        assert check_port(port) == port
    else:
        with pytest.raises(ValueError, match=str(port)):
            check_port(port)


@pytest.mark.parametrize(
    "variables",
    [None, {}, {"A": ""}, {"_": "x", "a_1": "two\nlines", "PATH": "/bin:'$x\"`"}, {"UMLAUT": "äöü ☃"}],
    ids=["none", "empty", "empty value", "special characters", "not ASCII"],
)
def test_check_environment_returns_a_copy(variables: dict[str, str] | None) -> None:
    checked = check_environment(variables)
    assert checked == (variables or {})
    assert checked is not variables


@pytest.mark.parametrize("name", ["", "1A", "A-B", "A B", "A=B", "Ä", "A\n", "A;x", 3, None])
def test_check_environment_refuses_wrong_names(name: Any) -> None:
    with pytest.raises(ValueError, match="the name of an environment variable must be") as caught:
        check_environment({"GOOD": "x", name: "x"})
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("value", ["a\0b", 3, None, b"x", Path("/x")], ids=repr)
def test_check_environment_refuses_wrong_values(value: Any) -> None:
    with pytest.raises(ValueError, match="the value of the environment variable GOOD must be text without NUL"):
        check_environment({"GOOD": value})


@pytest.mark.parametrize(
    "host",
    ["web1", "10.0.0.1", "fe80::1%eth0", "::1", "me@web1", "web-1.example.org", "ünïcode.example", "a_b", "a:22"],
)
def test_destination_accepts_hosts(host: str) -> None:
    assert Destination(host).host == host


@pytest.mark.parametrize("host", ["a/b", "ssh://web1", "ssh://me@web1:22/", "web1/", "/"])
def test_destination_refuses_urls(host: str) -> None:
    with pytest.raises(ValueError, match=r"not a URL \(see user= and port=\), got ") as caught:
        Destination(host)
    assert repr(host) in str(caught.value)


BAD_NAMES = [
    ("", "must not be empty"),
    (None, "must be text"),
    (b"web1", "must be text"),
    ("-oProxyCommand=x", "must not begin with a dash"),
    ("-", "must not begin with a dash"),
    ("web 1", "must not hold spaces or control characters"),
    ("web\t1", "must not hold spaces or control characters"),
    ("web1\n", "must not hold spaces or control characters"),
    ("web\x7f", "must not hold spaces or control characters"),
    ("web\u00a01", "must not hold spaces or control characters"),
    ("web\u202e1", "must not hold spaces or control characters"),
    ("web\0", "must not hold spaces or control characters"),
    ("a;b", "must not hold ;"),
    ("$(x)", r"must not hold \$ \( \)"),
    ("`x`", "must not hold `"),
    ("a|b&c", r"must not hold & \|"),
    ("a'b\"c", "must not hold"),
]


@pytest.mark.parametrize(("name", "reason"), BAD_NAMES)
def test_destination_refuses_wrong_hosts(name: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^host {reason}"):
        Destination(name)


@pytest.mark.parametrize(("name", "reason"), [case for case in BAD_NAMES if case[0] is not None])
def test_destination_refuses_wrong_users(name: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^user {reason}"):
        Destination("web1", user=name)


@given(st.text())
def test_destination_host_is_one_printable_word(host: str) -> None:
    try:
        accepted = Destination(host).host
    except ValueError:
        return
    assert accepted == host
    assert accepted
    assert not accepted.startswith("-")
    assert len(accepted.split()) == 1
    assert accepted.isprintable()


@pytest.mark.parametrize("port", [0, 65536, "22", True])
def test_destination_refuses_wrong_ports(port: Any) -> None:
    with pytest.raises(ValueError):
        Destination("web1", port=port)


@pytest.mark.parametrize("timeout", [0, -1, 0.0, 1e6, float("inf"), float("nan"), True, "10", None])
def test_destination_refuses_wrong_timeouts(timeout: Any) -> None:
    with pytest.raises(ValueError, match="connect_timeout must be a positive number of seconds"):
        Destination("web1", connect_timeout=timeout)


@pytest.mark.parametrize("timeout", [0.001, 1, 10.0, 999999])
def test_destination_accepts_timeouts(timeout: float) -> None:
    assert Destination("web1", connect_timeout=timeout).connect_timeout == timeout


@pytest.mark.parametrize("keyword", sorted(RESERVED_OPTIONS))
@pytest.mark.parametrize("case", [str.lower, str.upper], ids=["lower", "upper"])
def test_destination_refuses_reserved_options(keyword: str, case: Any) -> None:
    message = f"options must not set {case(keyword)}, which lazycluster sets itself$"
    with pytest.raises(ValueError, match=message):  # the value may be a secret
        Destination("web1", options=((case(keyword), "yes"),))


@pytest.mark.parametrize("keyword", ["", "a b", "Port=22", "-o", "1x", "Pört", "Port\n"])
def test_destination_refuses_wrong_keywords(keyword: str) -> None:
    with pytest.raises(ValueError, match="options must have keywords of ssh_config"):
        Destination("web1", options=((keyword, "x"),))


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\0b"])
def test_destination_refuses_option_of_two_lines(value: str) -> None:
    with pytest.raises(ValueError, match="options must have values of one line") as caught:
        Destination("web1", options=(("SetEnv", f"TOKEN=hunter2{value}"),))
    assert "SetEnv" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_destination_options_become_pairs_of_text() -> None:
    given_options: Any = {"Compression": "yes", "ServerAliveInterval": 7}
    assert Destination("web1", options=given_options).options == (("Compression", "yes"), ("ServerAliveInterval", "7"))
    assert Destination("web1").options == ()


def test_destination_paths_become_path_objects() -> None:
    text: Any = "/k"
    destination = Destination("web1", identity_file=text, config_file=text)
    assert (destination.identity_file, destination.config_file) == (Path("/k"), Path("/k"))


def test_destination_is_a_frozen_value() -> None:
    assert Destination("web1", user="me") == Destination("web1", user="me")
    assert len({Destination("web1"), Destination("web1"), Destination("web2")}) == 2
    with pytest.raises(AttributeError):
        Destination("web1").host = "web2"  # type: ignore[misc]  # the attribute is frozen


@pytest.mark.parametrize("seconds", [None, 0.001, 1, 3600.0, float("inf")])
def test_check_timeout_returns_the_seconds(seconds: float | None) -> None:
    assert check_timeout(seconds) == seconds


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), True, "5", b"5"])
def test_check_timeout_refuses_other_values(seconds: Any) -> None:
    with pytest.raises(ValueError, match="timeout must be a positive number of seconds or None, got "):
        check_timeout(seconds)
