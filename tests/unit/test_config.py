"""The hosts that an ssh configuration names, and the settings that `ssh -G` prints for one."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from pathlib import Path

import pytest

from lazycluster._ssh.config import (
    EffectiveConfig,
    HostLine,
    host_lines,
    host_names,
    parse_config_line,
    parse_effective_config,
)

HOME = Path("/home/u")
MAIN = HOME / ".ssh/config"


def find_names(files: dict[str, str], path: Path = MAIN) -> tuple[str, ...]:
    """Return the hosts that files name; the files exist in a dictionary only."""

    def glob(pattern: str) -> Iterable[Path]:
        return [Path(name) for name in sorted(files) if fnmatch.fnmatchcase(name, pattern)]

    lines = host_lines(path, read_text=lambda file: files.get(str(file)), glob=glob, home=HOME)
    assert all(str(line.file) in files for line in lines)
    found = host_names(path, read_text=lambda file: files.get(str(file)), glob=glob, home=HOME)
    assert found == tuple(dict.fromkeys(line.host for line in lines))
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("Host a\n  HostName 1.2.3.4\n  User u\nHost b\n", ("a", "b")),
        ("Host a b\tc\n", ("a", "b", "c")),
        ("host a\nHOST b\nHoSt c", ("a", "b", "c")),
        ("Host=a\nHost = b\nHost =c\nHost\t=\td e\n", ("a", "b", "c", "d", "e")),
        ("  \t Host a\r\n", ("a",)),
        # Patterns and negations
        ("Host *\nHost *.example.org a ?b !c\nHost !*\n", ("a",)),
        # A dash at the beginning: ssh refuses such a host.
        ("Host -oProxyCommand=x a\n", ("a",)),
        ("Host b a\nHost a b\n", ("b", "a")),
        # Comments
        ("# Host x\n   # Host y\nHost a # the first\nHost b#c\n", ("a", "b#c")),
        # Quotes and backslashes
        ('Host "a" \'b\' "c d" e\\ f\n', ("a", "b", "c d", "e f")),
        ('Host a"b"c "d\'e" \'f"g\' h\\"i j\\\\k l\\m\n', ("abc", "d'e", 'f"g', 'h"i', "j\\k", "l\\m")),
        ('"Host" a\n', ("a",)),
        # Lines that ssh refuses
        ('Host "a\nHost b\n', ("b",)),
        ("Host\nHost b\n???\n", ("b",)),
        ("Hostname a\nHostKeyAlias b\n", ()),
        ("Match host a\n  User x\nHost b\n", ("b",)),
        # Only a newline ends a line, and only spaces and tabs separate words.
        ("# x\u2028Host q\x0b\x85\nHost a\n", ("a",)),
        ("Host a\u00a0b c\n", ("a\u00a0b", "c")),
        ("Host a \f\r\n", ("a",)),
    ],
)
def test_host_names_of_one_file(text: str, expected: tuple[str, ...]) -> None:
    assert find_names({str(MAIN): text}) == expected


@pytest.mark.parametrize(
    ("line", "keyword", "words"),
    [
        ("", "", ()),
        ("# Host a", "", ()),
        ("Host a", "host", ("a",)),
        (' "HOST"=\t"a b" c#d # e\r', "host", ("a b", "c#d")),
        ('Host "a', "", ()),
    ],
)
def test_parse_config_line_returns_keyword_and_words(line: str, keyword: str, words: tuple[str, ...]) -> None:
    assert parse_config_line(line) == (keyword, words)


def test_host_lines_name_file_and_line() -> None:
    files = {MAIN: "Host a\nHost *\nInclude more\n", HOME / ".ssh/more": "# x\nHost b a\n"}
    lines = host_lines(MAIN, read_text=files.get, glob=lambda pattern: [Path(pattern)], home=HOME)

    more = HOME / ".ssh/more"
    assert lines == (HostLine("a", MAIN, 1), HostLine("b", more, 2), HostLine("a", more, 2))


def test_host_names_unreadable_file_has_no_hosts() -> None:
    assert find_names({}) == ()


@pytest.mark.parametrize(
    ("argument", "included"),
    [
        ("more", "/home/u/.ssh/more"),
        ("conf.d/*", "/home/u/.ssh/conf.d/x"),
        ("~/work/config", "/home/u/work/config"),
        ("/etc/hosts.conf", "/etc/hosts.conf"),
        ('"my hosts"', "/home/u/.ssh/my hosts"),
        ("nothing ~/work/* more", "/home/u/work/1"),
    ],
)
def test_host_names_follow_include_in_place(argument: str, included: str) -> None:
    files = {str(MAIN): f"Host a\nHost *\nInclude {argument}\nHost z\n", included: "Host m\n"}

    assert find_names(files) == ("a", "m", "z")


def test_host_names_include_relative_to_system_file() -> None:
    files = {"/etc/ssh/ssh_config": "Include ssh_config.d/*.conf\n", "/etc/ssh/ssh_config.d/1.conf": "Host s\n"}

    assert find_names(files, Path("/etc/ssh/ssh_config")) == ("s",)


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("", ("web.a", "db.a", "web.b")),
        ("Match all", ("web.a", "db.a", "web.b")),
        ("Match host web.a", ()),
        ("Host *.a", ("web.a", "db.a")),
        ("Host *.A !db.a", ("web.a",)),
        ("Host !web.*", ()),
        ("Host * !web.?", ("db.a",)),
        ("Host web.[a]", ()),
    ],
)
def test_host_names_include_in_block_filters_hosts(block: str, expected: tuple[str, ...]) -> None:
    files = {str(MAIN): f"{block}\n  Include inner\n", "/home/u/.ssh/inner": "Host web.a db.a\nHost web.b\n"}

    assert tuple(name for name in find_names(files) if "[" not in name) == expected


def test_host_names_include_cycle_ends() -> None:
    files = {str(MAIN): "Host a\nHost *\nInclude other\n", "/home/u/.ssh/other": "Host b\nHost *\nInclude config\n"}

    assert find_names(files) == ("a", "b")


def test_host_names_include_depth_is_that_of_ssh() -> None:
    files = {f"/home/u/.ssh/{level}": f"Host h{level}\nHost *\nInclude {level + 1}\n" for level in range(20)}

    assert find_names(files, HOME / ".ssh/0") == tuple(f"h{level}" for level in range(17))


# OpenSSH 9.2p1, shortened: ssh -G -F config -J a,b -o HostKeyAlias=foo -i /tmp/x u@h
CAPTURED = """\
host h
user u
hostname h.example.org
port 2222
addressfamily any
batchmode no
fingerprinthash SHA256
stricthostkeychecking ask
hostkeyalias foo
dynamicforward 1080
localforward 2400 [127.0.0.1]:80
remoteforward [0.0.0.0]:81 [x]:80
remoteforward [0.0.0.0]:82 [x]:80
identityfile /tmp/x
identityfile ~/.ssh/id_ed25519
userknownhostsfile /root/.ssh/known_hosts /root/.ssh/known_hosts2
canonicaldomains none
canonicalizePermittedcnames none
sendenv LANG
sendenv LC_*
rekeylimit 0 0
proxyjump a,b
"""


def test_parse_effective_config_returns_values() -> None:
    effective = parse_effective_config(CAPTURED)

    assert (effective.hostname, effective.user, effective.port) == ("h.example.org", "u", 2222)
    assert (effective.proxy_jump, effective.host_key_alias) == ("a,b", "foo")
    assert effective.identity_files == ("/tmp/x", "~/.ssh/id_ed25519")
    assert effective.forwardings == (
        ("localforward", "2400 [127.0.0.1]:80"),
        ("remoteforward", "[0.0.0.0]:81 [x]:80"),
        ("remoteforward", "[0.0.0.0]:82 [x]:80"),
        ("dynamicforward", "1080"),
    )
    assert effective.value("UserKnownHostsFile") == "/root/.ssh/known_hosts /root/.ssh/known_hosts2"
    assert effective.settings["sendenv"] == ("LANG", "LC_*")
    assert effective.settings["canonicalizepermittedcnames"] == ("none",)
    assert list(effective.settings)[:3] == ["host", "user", "hostname"]


@pytest.mark.parametrize("output", ["", "ssh: something went wrong: x\n", "hostname\nport\n\n"])
def test_parse_effective_config_missing_values_are_none(output: str) -> None:
    effective = parse_effective_config(output)

    assert effective == EffectiveConfig(effective.settings)
    assert (effective.hostname, effective.user, effective.port) == (None, None, None)
    assert (effective.proxy_jump, effective.host_key_alias) == (None, None)
    assert (effective.identity_files, effective.forwardings) == ((), ())


def test_parse_effective_config_none_is_no_value() -> None:
    effective = parse_effective_config("proxyjump none\nhostkeyalias None\nidentityfile none\nport ssh\n")

    assert (effective.proxy_jump, effective.host_key_alias, effective.identity_files) == (None, None, ())
    assert effective.port is None
