"""An ssh configuration as text: hosts come and go, and everything else stays byte for byte."""

from __future__ import annotations

from itertools import takewhile

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lazycluster._ssh.config_edit import (
    ConfigEditError,
    add_host,
    format_block,
    global_setting_line_number,
    host_line_numbers,
    remove_host,
    replace_host,
)

SETTINGS = (("HostName", "h.example"), ("Port", "2222"))
BLOCK = "Host web\n  HostName h.example\n  Port 2222\n"


# Where a new block goes, and how it looks -----------------------------------------------------------------------------

ADDED = [
    pytest.param("", BLOCK, id="an empty file"),
    pytest.param("Host a\n  User u\n", f"Host a\n  User u\n\n{BLOCK}", id="at the end"),
    pytest.param("Host a\n  User u", f"Host a\n  User u\n\n{BLOCK}", id="the last newline was missing"),
    pytest.param("Host a\n\n\n", f"Host a\n\n\n\n{BLOCK}", id="empty lines at the end stay"),
    pytest.param("Host *\n  User u\n", f"{BLOCK}\nHost *\n  User u\n", id="before what is for all"),
    pytest.param("Host a\nHost w*\nHost b\n", f"Host a\n{BLOCK}\nHost w*\nHost b\n", id="before a pattern that fits"),
    pytest.param("Host * !web\n", f"Host * !web\n\n{BLOCK}", id="after a pattern that leaves it out"),
    pytest.param("Host a\nMatch exec x\n", f"Host a\n{BLOCK}\nMatch exec x\n", id="before a Match block"),
    pytest.param("Host=*\n", f"{BLOCK}\nHost=*\n", id="with an equals sign"),
    pytest.param('hOsT\t"*"\n', f'{BLOCK}\nhOsT\t"*"\n', id="quoted, in any case, after a tab"),
    pytest.param("Include x\n\nHost *\n", f"Include x\n\n{BLOCK}\nHost *\n", id="an Include for all stays for all"),
    pytest.param("User u\n", f"User u\n\n{BLOCK}", id="a setting for all stays for all"),
    pytest.param("# x\nHost a\n\n# y\n# z\nHost *\n", f"# x\nHost a\n\n{BLOCK}\n# y\n# z\nHost *\n", id="its comment"),
    pytest.param("Host a\n  # in a\nHost *\n", f"Host a\n  # in a\n{BLOCK}\nHost *\n", id="a comment in another"),
    pytest.param("# web\nHost a\n# Host web\n", f"# web\nHost a\n# Host web\n\n{BLOCK}", id="comments name nobody"),
    pytest.param("Host web#x\n Port 1\n", f"Host web#x\n Port 1\n\n{BLOCK.replace('  ', ' ')}", id="a # within a name"),
    pytest.param("Host a\nUser u\n", f"Host a\nUser u\n\n{BLOCK.replace('  ', '')}", id="no indentation"),
    pytest.param("Host a\n\tUser u\n", f"Host a\n\tUser u\n\n{BLOCK.replace('  ', chr(9))}", id="tabs where tabs are"),
    pytest.param(
        "Host a\r\n\tUser u\r\n",
        "Host a\r\n\tUser u\r\n\r\nHost web\r\n\tHostName h.example\r\n\tPort 2222\r\n",
        id="CRLF where CRLF is",
    ),
    pytest.param("# x\x0b\u2028Host *\x85\n", f"# x\x0b\u2028Host *\x85\n\n{BLOCK}", id="only a newline ends a line"),
    pytest.param("# \udce4\udcff\n", f"# \udce4\udcff\n\n{BLOCK}", id="bytes that are no UTF-8"),
]


@pytest.mark.parametrize(("text", "expected"), ADDED)
def test_add(text: str, expected: str) -> None:
    assert add_host(text, "web", SETTINGS) == expected


@pytest.mark.parametrize("text", [param.values[0] for param in ADDED], ids=[str(param.id) for param in ADDED])
def test_remove_is_the_reverse_of_add(text: object) -> None:
    assert isinstance(text, str)
    restored = text if not text or text.endswith("\n") else f"{text}\n"

    assert remove_host(add_host(text, "web", SETTINGS), "web") == restored


def test_a_keyword_may_be_given_several_times() -> None:
    settings = (("LocalForward", "1 x:1"), ("user", "u"), ("LocalForward", "2 x:2"))

    assert format_block("web", settings) == "Host web\n  LocalForward 1 x:1\n  LocalForward 2 x:2\n  User u\n"


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("web", (("Port", "1\nHost *"),)),
        ("web", (("Port", ""),)),
        ("web\nHost *", ()),
        ("a b", ()),
        ("#", ()),
        ("web", (("Host", "*"),)),
        ("web", (("host", "x"),)),
        ("web", (("self", "x"),)),
        ("web", (("Po rt", "x"),)),
    ],
)
def test_a_block_that_would_say_something_else_is_refused(name: str, settings: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(ConfigEditError):
        add_host("Host a\n", name, settings)


# What goes with a host ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Host web\n", ""),
        ("Host web", ""),
        ("Host web\n  Port 1\nHost b\n  Port 2\n", "Host b\n  Port 2\n"),
        ("Host a\n  Port 1\nHost web\n  Port 2\n", "Host a\n  Port 1\n"),
        # What would be swallowed or left behind by somebody who does not read as ssh does.
        ("User u\nHost web\n  HostName x\n  Port=2\n", "User u\n"),
        ("Host web\n  Port 1\nMatch host x\n  Port 2\nHost b\n", "Match host x\n  Port 2\nHost b\n"),
        ("Host web\n Port 1\nHost b\n Port 2\nHost web\n User u\n", "Host b\n Port 2\n"),
        ("Host=web\n  Port=1\nHost b\n", "Host b\n"),
        ('hOST\t=  "web" # c\n  Port 1\n\nHost b\n', "Host b\n"),
        ("Host web\r\n\tPort 1\r\n\r\nHost b\r\n", "Host b\r\n"),
        ("Host web !x\n  Port 1\nHost b\n", "Host b\n"),
        ("Host web web\n  Port 1\nHost b\n", "Host b\n"),
        ("Host web\n  Include x\n  ??? no line\nHost b\n", "Host b\n"),
        # Comments and empty lines
        ("# web\nHost web\n  # in it\n\n  Port 1\n  # in it\n\n# b\nHost b\n", "# web\n# b\nHost b\n"),
        ("Host web\n  Port 1\n\n\n\nHost b\n", "\n\nHost b\n"),
        ("Host a\n\n\nHost web\n  Port 1\n", "Host a\n\n"),
        ("Host web\n# of nobody\n", "# of nobody\n"),
        ("Host web\n  # in it\n\n  # of b\n  Host b\n", "  # of b\n  Host b\n"),
        # A line for several
        ("Host web b\n  Port 1\n", "Host b\n  Port 1\n"),
        ("Host a  web\tb # c\n  Port 1\n", "Host a\tb # c\n  Port 1\n"),
        ("Host a web\r\n", "Host a\r\n"),
        ('Host="web"   web "b c" web', 'Host="b c"'),
        ("Host web *.corp !x\n  Port 1\n", "Host *.corp !x\n  Port 1\n"),
        ("Host web\nHost a web\nHost b\n", "Host a\nHost b\n"),
    ],
)
def test_remove(text: str, expected: str) -> None:
    assert remove_host(text, "web") == expected


@pytest.mark.parametrize(
    "text",
    ["", "Host b\n", "# Host web\n", "Host web*\n", "Host !web *\n", "Host Web\n", "Match host web\n", "HostName web"],
)
def test_who_is_not_named_cannot_be_removed(text: str) -> None:
    assert host_line_numbers(text, "web") == ()
    with pytest.raises(ConfigEditError, match="no Host line names web"):
        remove_host(text, "web")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# web\nHost web\n  User u\n\nHost *\n", f"# web\n{BLOCK}\nHost *\n"),
        ("Host web\n  User u", BLOCK),
        ("Host web\n  User u\n  # in it\n\n\n# of b\nHost b\n", f"{BLOCK}\n\n# of b\nHost b\n"),
        ("Host web b\n  User u\n", f"Host b\n  User u\n\n{BLOCK}"),
        ("Host *\n  User u\n\nHost web\n  Port 1\n", f"{BLOCK}\nHost *\n  User u\n"),
        ("Host web\n  Port 1\nHost b\nHost web\n  User u\n", f"Host b\n\n{BLOCK}"),
    ],
)
def test_replace(text: str, expected: str) -> None:
    assert replace_host(text, "web", SETTINGS) == expected


def test_lines_that_name_a_host() -> None:
    assert host_line_numbers('# web\nHost a web\n\nhost="web"\n  HostName web\nHost web*\n', "web") == (2, 4)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", None),
        ("# x\nuser=u\nHost a\n", 2),
        ("Host a\nUser u\n", None),
        ("Match all\nUser u\n", None),
        ("Users u", None),
    ],
)
def test_the_line_that_sets_something_for_all_hosts(text: str, line: int | None) -> None:
    assert global_setting_line_number(text, "User") == line


# Whatever is in a file ------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["web", '"web"', "Web", "w*", "*", "!web", "a", "b#c", '"a b"', "web#", "ünï", "we\\ b"])
SPACE = st.sampled_from([" ", "\t", "  ", "=", " = ", "\t=\t"])
HEADERS = st.builds(
    lambda keyword, space, names, tail: keyword + space + " ".join(names) + tail,
    st.sampled_from(["Host", "host", "HOST", '"Host"', "  Host", "\tHost"]),
    SPACE,
    st.lists(NAMES, min_size=1, max_size=4),
    st.sampled_from(["", " # c", " #", "\t", " "]),
)
LINES = st.one_of(
    HEADERS,
    st.sampled_from(["Match all", "Match host web", "match exec 'x y'", "Include x", "  Include ~/y", "Include=z"]),
    st.sampled_from(
        ["  Port 1", "\tPort=2", "User u", 'User "u', "???", "  # Host web", "# Host web", "#", "", "  ", "\f"]
    ),
    st.text(st.characters(exclude_characters="\n", exclude_categories=[]), max_size=12),
)
TEXTS = st.builds(
    lambda lines, last: "".join(line + end for line, end in lines) + last,
    st.lists(st.tuples(LINES, st.sampled_from(["\n", "\n", "\n", "\r\n"])), max_size=12),
    st.one_of(st.just(""), LINES),
)


def in_common(one: str, other: str) -> int:
    """Return how many characters two texts share, from the start and from the end."""

    def at_start(one: str, other: str) -> int:
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))

    start = at_start(one, other)
    return start + at_start(one[start:][::-1], other[start:][::-1])


@given(TEXTS)
def test_adding_inserts_one_piece(text: str) -> None:
    added = add_host(text, "new", SETTINGS)

    assert in_common(text, added) == len(text)
    assert len(host_line_numbers(added, "new")) == 1
    assert remove_host(added, "new") in {text, f"{text}\n", f"{text}\r\n"}


@given(TEXTS)
@example("Host a# web\nHost b")
def test_removing_takes_nothing_of_anybody_else(text: str) -> None:
    named = host_line_numbers(text, "web")
    if not named:
        with pytest.raises(ConfigEditError):
            remove_host(text, "web")
        return
    removed = remove_host(text, "web")

    assert host_line_numbers(removed, "web") == ()
    assert len(removed) < len(text)
    if len(named) == 1:
        header = text.split("\n")[named[0] - 1]
        assert in_common(text, removed) >= len(removed) - len(header)
    for other in ("Web", "a", "ünï", "a b", "b#c"):  # who is named with it stays named, and so do all others
        assert len(host_line_numbers(removed, other)) == len(host_line_numbers(text, other))


@given(TEXTS)
def test_replacing_leaves_one_block_that_says_what_it_is_to_say(text: str) -> None:
    if host_line_numbers(text, "web"):
        replaced = replace_host(text, "web", SETTINGS)
        (line,) = host_line_numbers(replaced, "web")
        block = replaced.split("\n")[line - 1 : line + 2]
        assert [part.strip() for part in block] == ["Host web", "HostName h.example", "Port 2222"]


@given(st.binary(max_size=200))
def test_bytes_stay_bytes(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    added = add_host(text, "new", SETTINGS)

    assert added.encode("utf-8", "surrogateescape").replace(data, b"", 1) or not data
    assert in_common(text, added) == len(text)
    assert text.encode("utf-8", "surrogateescape") == data
