"""The file with the added hosts, and the line of the configuration that includes it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lazycluster._ssh import config_hosts
from lazycluster._ssh.config_edit import add_host, hosts_file, include_line, quote_value, remove_host
from lazycluster._ssh.config_file import ConfigFileError
from tests.processes import is_alive
from tests.waiting import assert_eventually


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the user's own configuration, which includes the file with the added hosts."""
    monkeypatch.setattr(config_hosts, "home", lambda: tmp_path)
    (tmp_path / ".ssh").mkdir()
    path = tmp_path / ".ssh/config"
    path.write_text(f"{include_line(path)}\n")
    return path


def test_include_line_is_relative_in_users_configuration(config: Path) -> None:
    assert hosts_file(config) == config.with_name("config.lazycluster")
    assert include_line(config) == "Include config.lazycluster"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/etc/my/config", "Include /etc/my/config.lazycluster"),
        ("/my files/config", 'Include "/my files/config.lazycluster"'),
        ("/#/config", 'Include "/#/config.lazycluster"'),
        ("/ü/config", "Include /ü/config.lazycluster"),
    ],
)
def test_include_line_is_absolute_elsewhere(path: str, expected: str) -> None:
    assert include_line(Path(path)) == expected


@pytest.mark.parametrize(
    "path", ["/a*/c", "/a?/c", "/[a]/c", "/a\\/c", "/100%/c", "/$HOME/c", '/"/c', "/'/c", "/a\n/c"]
)
def test_include_line_refuses_special_characters(path: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        include_line(Path(path))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("/k-1:%h", "/k-1:%h"), ("a b", '"a b"'), ("#k", '"#k"'), ('my "k" \\', '"my \\"k\\" \\\\"'), ("", '""')],
)
def test_quote_value_quotes_only_if_needed(text: str, expected: str) -> None:
    assert quote_value(text) == expected


@pytest.mark.parametrize("text", ["a\nHost *", "a\r", "\x1b[m", "\t", "\udce4"])
def test_quote_value_refuses_control_characters(text: str) -> None:
    with pytest.raises(ValueError, match="one line without control characters"):
        quote_value(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Host web\n", ""),
        ("Host web", ""),
        ("# x\n\nHost web\n    Port 1\n\nHost b\n    Port 2\n", "# x\n\nHost b\n    Port 2\n"),
        ("Host a\n    Port 1\n\nHost web\n    Port 2\n", "Host a\n    Port 1\n\n"),
        # Lines that were edited by hand
        ("Host web\nPort 1\n# c\n\n  User u\nHost b\n", "Host b\n"),
        ("Host web\n  Port 1\nMatch host x\n  Port 2\nHost b\n", "Match host x\n  Port 2\nHost b\n"),
        ("Host web\n Port 1\nHost b\n Port 2\nHost web\n User u\n", "Host b\n Port 2\n"),
        ('hOST\t=  "web" # c\r\n  Port 1\r\nHost b\r\n', "Host b\r\n"),
        ("Host web\n  # Host b\n\x0b\u2028Host b\n", ""),
        ("Host web\n  # \udce4\nHost \udce4\n", "Host \udce4\n"),
    ],
)
def test_remove_host_removes_its_block_only(config: Path, text: str, expected: str) -> None:
    hosts = hosts_file(config)
    hosts.write_bytes(text.encode("utf-8", "surrogateescape"))

    assert remove_host(config, "web") == ()
    assert hosts.read_bytes() == expected.encode("utf-8", "surrogateescape")


@pytest.mark.parametrize(
    "text",
    ["", "Host b\n", "# Host web\n", "Host web*\n", "Host !web *\n", "Host Web\n", "Match host web\n", "HostName web"],
)
def test_remove_host_refuses_other_names(config: Path, text: str) -> None:
    hosts_file(config).write_text(text)
    with pytest.raises(ConfigFileError) as caught:
        remove_host(config, "web")
    assert (caught.value.path, caught.value.reason) == (hosts_file(config), "no host web was added")
    assert hosts_file(config).read_text() == text


def test_remove_host_names_lines_to_remove_by_hand(config: Path) -> None:
    hosts = hosts_file(config)
    hosts.write_text("Host b\n\nHost web b\n")
    config.write_text(f"{include_line(config)}\nHost a\nHost a web\n")

    with pytest.raises(ConfigFileError) as caught:
        remove_host(config, "web")
    assert f"{hosts}, line 3; {config}, line 3" in caught.value.advice
    hosts.write_text("Host web\n")
    assert [str(line) for line in remove_host(config, "web")] == [f"{config}, line 3"]


NAMES = st.sampled_from(["web", '"web"', "Web", "w*", "*", "!web", "a", "b#c", '"a b"', "web#", "ünï", "we\\ b"])
LINES = st.one_of(
    st.builds(
        lambda keyword, space, names, tail: keyword + space + " ".join(names) + tail,
        st.sampled_from(["Host", "host", '"Host"', "  Host", "\tHost"]),
        st.sampled_from([" ", "\t", "=", " = "]),
        st.lists(NAMES, min_size=1, max_size=3),
        st.sampled_from(["", " # c", "\t"]),
    ),
    st.sampled_from(["Match all", "  Port 1", "User u", "???", "  # Host web", "# Host web", "", "\f"]),
    st.text(st.characters(exclude_characters="\n", exclude_categories=[]), max_size=12),
)
TEXTS = st.lists(st.tuples(LINES, st.sampled_from(["\n", "\r\n"])), max_size=12).map(
    lambda lines: "".join(line + end for line, end in lines)
)


@given(TEXTS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_remove_host_keeps_every_other_host(config: Path, text: str) -> None:
    hosts = hosts_file(config)
    hosts.write_bytes(text.encode("utf-8", "surrogatepass"))
    before = config_hosts.configured_hosts(config)
    try:
        lines = remove_host(config, "web")
    except ConfigFileError:
        assert hosts.read_bytes() == text.encode("utf-8", "surrogatepass")
    else:
        kept = tuple(name for name in before if name != "web" or lines)
        assert sorted(config_hosts.configured_hosts(config)) == sorted(kept)


def test_add_host_without_ssh_changes_nothing(config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(ConfigFileError) as caught:
        add_host(config, "web", (("Port", "1"),))
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert [file.name for file in config.parent.iterdir()] == ["config"]


@pytest.mark.skipif(shutil.which("ssh") is None, reason="ssh checks the configuration")
def test_add_host_ends_a_match_that_hangs(tmp_path: Path) -> None:
    config, pid_file = tmp_path / "config", tmp_path / "pid"
    text = f'Host a\nMatch exec "echo $$ >{pid_file}; exec sleep 1000"\n  Port 1\n'
    config.write_text(text)

    with pytest.raises(ConfigFileError) as caught:
        add_host(config, "web", (("Port", "1"),), check_timeout=2.0)
    assert caught.value.reason == "`ssh -G web` did not end within 2 s"
    assert config.read_text() == text
    assert not hosts_file(config).exists()
    assert_eventually(lambda: not is_alive(int(pid_file.read_text())), "the command of Match has ended")
