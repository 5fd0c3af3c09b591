"""The shell lines of steps: a table of steps, and properties of all lines."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lazycluster._explain import READ_OUTCOME_PROGRAM, ShellBlock, explain_steps, quote, setup_blocks, teardown_block
from lazycluster._ssh.destination import Destination
from lazycluster.steps import GetFile, RunCommand, RunFunction, SendFile, Step

TO = Destination("gpu-1")
LOCAL_PYTHON = ".".join(map(str, sys.version_info[:2]))
TREES = {Path("/local/tree"), Path("/local/it's a tree")}
ENTER_DIR = 'cd /work && export WORKING_DIR="$PWD" || exit'


def lines(step: Step, working_dir: str | None = None, to: Destination = TO, **keywords: object) -> str:
    (block,) = explain_steps([step], to, working_dir, is_directory=TREES.__contains__, **keywords)  # type: ignore[arg-type]
    return "\n".join(block.lines)


def comment(step: Step) -> str:
    return explain_steps([step], TO, is_directory=TREES.__contains__)[0].comment


@pytest.mark.parametrize(
    ("command", "working_dir", "expected"),
    [
        ("nproc", None, "lc_ssh nproc </dev/null"),
        ('echo "$HOME"', None, "lc_ssh 'echo \"$HOME\"' </dev/null"),
        ("nproc", "/work", f"lc_ssh <<'EOF'\n{ENTER_DIR}\nnproc\nEOF"),
        ("awk '{print $1}' x", None, "lc_ssh <<'EOF'\nawk '{print $1}' x\nEOF"),
        ("a\nEOF\nEOF1", None, "lc_ssh <<'EOF2'\na\nEOF\nEOF1\nEOF2"),
        (
            "nproc",
            "~/it's",
            "lc_ssh <<'EOF'\ncd \"$HOME\"/'it'\"'\"'s' && export WORKING_DIR=\"$PWD\" || exit\nnproc\nEOF",
        ),
        ("nproc", "-x", f"lc_ssh <<'EOF'\n{ENTER_DIR.replace('/work', './-x')}\nnproc\nEOF"),
        (
            "echo 'a\tb'\n",
            None,
            'lc_ssh "echo \'a""$(printf \'\\011\')""\'b\'\n" </dev/null'.replace("\"'b'\n\"", '"b\'\n"'),
        ),
    ],
)
def test_explain_run_command(command: str, working_dir: str | None, expected: str) -> None:
    assert lines(RunCommand(command), working_dir) == expected


@pytest.mark.parametrize(
    ("local", "remote", "working_dir", "expected"),
    [
        ("/local/file", None, None, "lc_scp /local/file gpu-1:."),
        ("/local/it's", None, None, 'lc_scp "/local/it\'s" gpu-1:.'),
        ("/local/file", None, "/work", "lc_scp /local/file gpu-1:/work/"),
        ("/local/file", "a/b", "/work/", "lc_scp /local/file gpu-1:/work/a/b"),
        ("/local/file", "/a", "/work", "lc_scp /local/file gpu-1:/a"),
        ("/local/file", "~/a", "/work", "lc_scp /local/file gpu-1:a"),
        ("/local/file", "~", "/work", "lc_scp /local/file gpu-1:."),
        ("/local/file", "b", "~//a", "lc_scp /local/file gpu-1:a/b"),
        ("/local/file", "b", "~", "lc_scp /local/file gpu-1:b"),
        (
            "/local/file",
            "a b",
            None,
            (
                "lc_scp /local/file gpu-1:.lazycluster-step-1\n"
                "lc_ssh <<'EOF'\n"
                't=\'a b\' && { [ ! -d "$t" ] || t=$t/file; } && mv -f -- ~/.lazycluster-step-1 "$t"'
                " || { rm -f ~/.lazycluster-step-1; exit 1; }\n"
                "EOF"
            ),
        ),
        (
            "/local/file",
            "~me/a",
            None,
            (
                "lc_scp /local/file gpu-1:.lazycluster-step-1\n"
                'lc_ssh \'t=~me/a && { [ ! -d "$t" ] || t=$t/file; } && mv -f -- ~/.lazycluster-step-1 "$t"'
                " || { rm -f ~/.lazycluster-step-1; exit 1; }' </dev/null"
            ),
        ),
        (
            "/local/tree",
            None,
            None,
            (
                "(cd /local/tree && tar -cf - .) | lc_ssh "
                '\'t=./tree && { [ -d "$t" ] || mkdir -- "$t"; } && cd -- "$t" && tar -xpof -\''
            ),
        ),
        (
            "/local/tree",
            "data",
            "/work",
            (
                '(cd /local/tree && tar -cf - .) | lc_ssh \'cd /work && t=data && { [ ! -d "$t" ] || t=$t/tree; }'
                ' && { [ -d "$t" ] || mkdir -- "$t"; } && cd -- "$t" && tar -xpof -\''
            ),
        ),
    ],
)
def test_explain_send_file(local: str, remote: str | None, working_dir: str | None, expected: str) -> None:
    assert lines(SendFile(Path(local), remote), working_dir) == expected


def test_explain_send_file_newline_in_name_is_moved() -> None:
    assert "mv -f -- ~/.lazycluster-step-1" in lines(SendFile(Path("/local/a\nb")))


def test_explain_get_file_tests_for_directory() -> None:
    assert lines(GetFile("out/x", Path("/local")), "/work").splitlines() == [
        "if lc_ssh 'cd /work && [ -d out/x ]' </dev/null; then",
        '    lc_t=/local; [ ! -d "$lc_t" ] || lc_t=$lc_t/x',
        '    [ -d "$lc_t" ] || mkdir "$lc_t"',
        "    lc_ssh 'cd /work && cd out/x && tar -cf - .' </dev/null | (cd \"$lc_t\" && tar -xpof -)",
        "else",
        "    lc_scp gpu-1:/work/out/x /local",
        "fi",
    ]


def test_explain_get_file_odd_name_uses_link() -> None:
    assert lines(GetFile("it s", Path("/local"))).splitlines()[5:-1] == [
        "    lc_ssh '[ -f '\\''it s'\\'' ] && ln -sf -- \"$PWD\"/'\\''it s'\\'' ~/.lazycluster-step-1' </dev/null",
        "    lc_t=/local; [ ! -d \"$lc_t\" ] || lc_t=$lc_t/'it s'",
        '    lc_scp gpu-1:.lazycluster-step-1 "$lc_t"',
        "    lc_ssh 'rm -f -- ~/.lazycluster-step-1' </dev/null",
    ]
    assert "ln -sf -- /a/it" in lines(GetFile("/a/it's", Path("/local"))).replace("'\\''", "").replace("'", "")


@pytest.mark.parametrize("remote", [".", "..", "~", "a/..", "~/"])
def test_explain_get_file_dot_directory_asks_for_name(remote: str) -> None:
    text = lines(GetFile(remote, Path("/local")))
    assert 'lc_t=$lc_t/"$(lc_ssh ' in text
    assert "basename" in text
    assert not text.startswith("if ")


def test_explain_run_function_skips_broken_python(tmp_path: Path) -> None:
    """For instance, a shim of pyenv does not run if its version is not selected."""
    shim, python = tmp_path / "python9.9", tmp_path / "python3"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    python.symlink_to(sys.executable)
    (tmp_path / "f.py").write_text("print('run')")

    def run(python: str | None) -> subprocess.CompletedProcess[bytes]:
        line = lines(RunFunction(len), payloads={0: tmp_path / "f.py"}, python=python).splitlines()[0]
        script = f'lc_ssh() {{ sh -c "$1"; }}; {line}'.replace(f"python{LOCAL_PYTHON} ", "python9.9 ")
        return subprocess.run(["sh", "-c", script], env={"PATH": f"{tmp_path}:{os.defpath}"}, capture_output=True)

    assert run(None).stderr == b""
    assert (tmp_path / "f.answer").read_text() == "run\n"
    assert run("~/no such").returncode == 127
    assert run("~/no such").stderr.startswith(b"no Python: ")


def test_explain_run_function_needs_payload() -> None:
    step = RunFunction(len, ([1],))
    assert lines(step) == "echo 'step 1 is left out, see --write-payloads' >&2; false"  # so that a script ends
    assert "--write-payloads" in comment(step)

    run, read = lines(step, payloads={0: Path("/local/it's.py")}).splitlines()

    python = f"python{LOCAL_PYTHON}"
    find_it = f'for p in {python} python3; do "$p" -c "" </dev/null 2>/dev/null && exec "$p" -; done'
    run_it = f"{find_it}; echo no Python: {python} python3 >&2; exit 127"
    assert run == f"lc_ssh '{run_it}' <\"/local/it's.py\" >\"/local/it's.answer\""
    assert shlex.split(read) == [sys.executable, "-c", READ_OUTCOME_PROGRAM, "/local/it's.answer", "gpu-1", "len"]


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (RunCommand("nproc"), "1. run_command: nproc"),
        (RunCommand("a\n  b; c"), "1. run_command: 'a b; c'"),
        (RunCommand("x" * 80), f"1. run_command: '{'x' * 69}…'"),
        (RunCommand("a", 2.5), "1. run_command: a\nThe library ends it after 2.5 seconds."),
        (SendFile(Path("/a\x1bb")), "1. send_file: '/a?b' to the working directory"),
        (SendFile(Path("/a"), "> b"), "1. send_file: /a to '> b'"),
        (GetFile("a", Path("/b")), "1. get_file: a to /b"),
        (GetFile("a", Path("/b/{host}/c")), f"1. get_file: a to /b/{TO.host}/c"),
        (RunFunction(lambda: None), "1. run_function: '<lambda>'\nIt travels"),
    ],
)
def test_explain_comments(step: Step, expected: str) -> None:
    assert comment(step).startswith(expected)


NASTY = [
    "x; rm -rf y",
    "a\nb",
    "!!",
    "`id`",
    "$(id)",
    "it's",
    '"',
    "\\",
    "> x",
    "é\x85\u202e\x00\x1b\t"[:2],
    "#",
    "(",
    "&",
]


@pytest.mark.parametrize("text", NASTY)
def test_explain_comments_are_harmless_as_commands(text: str) -> None:
    """An interactive zsh has no comments: each line is the command `#` with words as its arguments."""
    blocks = [
        *setup_blocks(TO, text),
        *explain_steps([RunCommand(text), SendFile(Path("/") / text, text)], TO, is_directory=TREES.__contains__),
        teardown_block(),
    ]
    for block in blocks:
        for line in block.comment.splitlines():
            words = list(shlex.shlex(line, posix=False, punctuation_chars=True))
            assert not set("".join(word for word in words if not set(word) - set("();<>|&"))), line
            assert not set("`$!") & set(re.sub(r"'[^']*'", "", line)), line


@pytest.mark.parametrize("shell", ["sh", "bash", "zsh"])
def test_quote_keeps_text_in_every_shell(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    texts = [*NASTY, "", "plain", "\tx\x7f", "a\x1b[0m'b'", "\udcff\udcfe", "\u00a0", "''", "'!'", "end\n"]
    words = " ".join(map(quote, texts))

    printed = subprocess.run((shell, "-c", f"printf '%s\\0' {words}"), capture_output=True, check=True).stdout

    assert printed.decode("utf-8", "surrogateescape").split("\0")[:-1] == texts
    assert all(character.isprintable() or character == "\n" for character in words)


def test_setup_blocks_use_ssh_options_of_library() -> None:
    to = Destination("me@fe80::1", port=2222, config_file=Path("/my config"), options={"ProxyJump": "x"}.items())
    text = "\n".join(map(str, setup_blocks(to, None)))
    commands = re.sub(r"\\\n\s*", "", text)
    assert commands.count("-F '/my config'") == 4
    assert commands.count("-o Port=2222") == 4
    assert commands.count('-o "ControlPath=$lc_dir/m"') == 4
    assert commands.count("-o ProxyCommand=false") == 3
    assert commands.count("-- me@fe80::1") == 3
    assert "SessionType" not in text
    assert "BatchMode=no" in text
    assert "StrictHostKeyChecking" not in text
    assert "lc_scp /x 'me@[fe80::1]:y'" in lines(SendFile(Path("/x"), "y"), to=to)


def test_setup_blocks_make_working_dir() -> None:
    assert len(setup_blocks(TO, "/work")) == len(setup_blocks(TO, None)) + 1
    assert setup_blocks(TO, "/it's")[-1].lines == ("lc_ssh <<'EOF'", "mkdir -p -- '/it'\"'\"'s'", "EOF")


def test_shell_block_as_text() -> None:
    assert str(ShellBlock("a\nb", ("c", "d"))) == "# a\n# b\nc\nd"
    assert str(ShellBlock("", ("c",))) == "c"
    assert str(teardown_block()).endswith("\nlc_close")


@pytest.mark.parametrize("shell", ["sh", "bash", "zsh"])
def test_explain_lines_parse_in_every_shell(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    steps: list[Step] = [step for text in NASTY for step in (RunCommand(text), GetFile(text, Path("/") / text))]
    blocks = (
        *setup_blocks(TO, "it's"),
        *explain_steps(steps, TO, "it's", is_directory=TREES.__contains__),
        teardown_block(),
    )
    ended = subprocess.run((shell, "-n"), input="\n".join(map(str, blocks)).encode(), capture_output=True)
    assert (ended.returncode, ended.stderr) == (0, b"")
