"""The arguments of `add-runtime`, and the lines of a configuration that they become."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from lazycluster._cli import edit_config
from lazycluster._cli.edit_config import build_settings, parse_address, parse_name, parse_option
from lazycluster._ssh.destination import Destination


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("h", (None, "h", None)),
        ("me@h.example.org:2222", ("me", "h.example.org", 2222)),
        ("me@corp@h", ("me@corp", "h", None)),
        ("10.0.0.1:022", (None, "10.0.0.1", 22)),
        ("::1", (None, "::1", None)),
        ("2001:db8::7", (None, "2001:db8::7", None)),
        ("[::1]", (None, "::1", None)),
        ("[::1]:22", (None, "::1", 22)),
        ("me@[fe80::1%eth0]:22", ("me", "fe80::1%eth0", 22)),
        ("münchen", (None, "münchen", None)),
    ],
)
def test_parse_address_returns_user_host_port(text: str, expected: tuple[str | None, str, int | None]) -> None:
    address = parse_address(text)

    assert (address.user, address.host, address.port) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must not be empty"),
        ("me@", "must not be empty"),
        ("@h", "user must not be empty"),
        ("h:", "port must be a whole number"),
        ("h:ssh", "port must be a whole number"),
        ("h:0", "1 to 65535"),
        ("h:65536", "1 to 65535"),
        ("h:\uff12", "port must be a whole number"),
        ("[::1", r"\[ADDRESS\]:PORT"),
        ("[::1]22", r"\[ADDRESS\]:PORT"),
        ("-oProxyCommand=x", "without '='"),
        ("-h", "must not begin with a dash"),
        ("-u@h", "must not begin with a dash"),
        ("a b", "without spaces, got 'a b'"),
        ("a\u00a0b", r"without '\\xa0', "),
        ("ssh://h", "port must be a whole number"),
        ("h/x", "without '/'"),
        ("*.example.org", r"without '\*'"),
        ("#h", "without '#'"),
        ("me;id@h", "must not hold ;"),
        ("h\nHost *", r"without '\\n', spaces, '\*'"),
    ],
)
def test_parse_address_refuses_other_texts(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_address(text)


@pytest.mark.parametrize("text", ["web", "gpu-1.example.org", "a_b", "a:b", "ünï", "a+b"])
def test_parse_name_returns_the_name(text: str) -> None:
    assert parse_name(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-w",
        "w*",
        "w?",
        "!w",
        "a b",
        "a\tb",
        "a\nb",
        "a@b",
        "a,b",
        'a"b',
        "a'b",
        "#a",
        "a=b",
        "a/b",
        "a;b",
        "\udce4",
    ],
)
def test_parse_name_refuses_other_texts(text: str) -> None:
    with pytest.raises(ValueError, match="must not"):
        parse_name(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ForwardAgent=yes", ("ForwardAgent", "yes")),
        (" port = 22 ", ("port", "22")),
        ("ProxyCommand=ssh -W %h:%p -o A=b j", ("ProxyCommand", "ssh -W %h:%p -o A=b j")),
        ('SetEnv=A="b c"', ("SetEnv", 'A="b c"')),
    ],
)
def test_parse_option_returns_keyword_and_value(text: str, expected: tuple[str, str]) -> None:
    assert parse_option(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "x", "=x", "x=", "A B=c", "-A=b", "Host=*", "host=x", "Match=all", "Port=1\nHost *", "Port=1\rx", "A=\x1b"],
)
def test_parse_option_refuses_other_texts(text: str) -> None:
    with pytest.raises(ValueError, match=r"option|value"):
        parse_option(text)


def block(address: str, id_file: str | None = None, *options: tuple[str, str]) -> list[str]:
    settings = build_settings(parse_address(address), Path(id_file) if id_file else None, options)
    return [f"{keyword} {value}" for keyword, value in settings]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (block("h"), ["HostName h"]),
        (block("me@h:1"), ["HostName h", "Port 1", "User me"]),
        (block("[fe80::1%eth0]:1"), ["HostName fe80::1%%eth0", "Port 1"]),
        (block("h", "/k"), ["HostName h", "IdentityFile /k"]),
        (block("h", '/my "k" \\ 100%'), ["HostName h", 'IdentityFile "/my \\"k\\" \\\\ 100%%"']),
        (block("h", "/#k"), ["HostName h", 'IdentityFile "/#k"']),
        (block("h", None, ("port", "2"), ("user", "u")), ["HostName h", "port 2", "user u"]),
        (block("h", "/k", ("IdentityFile", "/l")), ["HostName h", "IdentityFile /k", "IdentityFile /l"]),
    ],
    ids=["host", "user and port", "IPv6 zone", "key", "key with quotes", "key with hash", "options", "two keys"],
)
def test_build_settings_returns_the_lines(lines: list[str], expected: list[str]) -> None:
    assert lines == expected


def test_build_settings_refuses_key_of_two_lines() -> None:
    with pytest.raises(ValueError, match="one line without control characters"):
        build_settings(parse_address("h"), Path("/k\nHost *"), ())


@pytest.mark.parametrize("option", ["HostName", "hostname", "Port", "user"])
def test_build_settings_refuses_option_of_address(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} is given twice"):
        build_settings(parse_address("me@h:1"), None, ((option, "1"),))


def test_build_settings_refuses_option_given_twice() -> None:
    adding_up = (("SendEnv", "A"), ("sendenv", "B"), ("Include", "a"), ("Include", "b"))
    assert build_settings(parse_address("h"), None, adding_up)[1:] == adding_up
    options = (("ForwardAgent", "yes"), *adding_up, ("forwardagent", "no"))
    with pytest.raises(ValueError, match=r"duplicates, of which ssh would take the first: forwardagent$"):
        build_settings(parse_address("h"), None, options)


@pytest.mark.skipif(shutil.which("ssh") is None, reason="ssh checks the configuration")
@pytest.mark.parametrize(
    ("options", "attempt", "copy_key"),
    [
        ((), None, None),
        (("--try",), True, None),
        (("--no-try", "--copy-key"), False, True),
        (("--no-copy-key",), None, False),
    ],
    ids=["no options", "try", "copy key only", "no copy key"],
)
def test_add_runtime_passes_choices_to_try_connection(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    attempt: bool | None,
    copy_key: bool | None,
) -> None:
    calls: list[tuple[tuple[object, ...], dict[str, object]]] = []
    monkeypatch.setattr(edit_config, "try_connection", lambda *args, **kwargs: calls.append((args, kwargs)))
    config, key = tmp_path / "config", tmp_path / "key"
    key.touch()
    words = ["web", "me@h", "--config", str(config), "--id-file", str(key), "--connect-timeout", "7", *options]
    result = CliRunner().invoke(edit_config.add_runtime, words, standalone_mode=False)

    assert result.exception is None
    destination = Destination("web", config_file=config, connect_timeout=7.0)
    assert calls == [((destination, key), {"attempt": attempt, "copy_key": copy_key, "interactive": False})]
