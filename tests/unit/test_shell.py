"""The script of a session, run for real by every shell of this machine, and the reader of its marks."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lazycluster._model.command import Command
from lazycluster._processes.local_process import LocalProcess
from lazycluster._ssh.shell import (
    MANUAL_SHELL_BOOTSTRAP,
    PROCESS_MARK_VARIABLE,
    SHELL_BOOTSTRAP,
    OutputDecoder,
    Script,
    escape_for_printf,
    process_label,
    quote_path,
)
from lazycluster._waiting import Deadline
from lazycluster.results import Stream
from lazycluster.testing._process_guard import kill_all
from tests import processes
from tests.waiting import wait_until

OUT, ERR = Stream.STDOUT, Stream.STDERR


def find_shells(*shells: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return the shells that this machine has, with their full paths."""
    paths = [(shutil.which(name), rest) for name, *rest in shells]
    return [(path, *rest) for path, rest in paths if path is not None]


LOGIN_SHELLS = find_shells(
    ("sh",), ("dash",), ("bash",), ("zsh",), ("fish",), ("tcsh",), ("csh",), ("ksh",), ("mksh",), ("busybox", "sh")
)
"""The login shells of accounts: sshd runs one with -c and the words of the session."""
POSIX_SHELLS = find_shells(("dash",), ("bash", "--posix"), ("busybox", "sh"), ("ksh",), ("mksh",))
"""The shells that may be /bin/sh on a host."""
needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks at processes in /proc")


def shell_name(shell: tuple[str, ...]) -> str:
    return Path(shell[0]).name


login_shells = pytest.mark.parametrize("login", LOGIN_SHELLS, ids=shell_name)
posix_shells = pytest.mark.parametrize("posix", POSIX_SHELLS, ids=shell_name)

# Text for a POSIX shell holds no NUL. Surrogates represent bytes that are not UTF-8 (PEP 383).
TEXT = st.text(
    st.characters(codec="ascii", exclude_characters="\0") | st.characters(codec="utf-8", exclude_characters="\0")
)
RAW = st.binary(max_size=30).map(lambda data: data.replace(b"\0", b"").decode("utf-8", "surrogateescape"))


def script(command: str, **fields: object) -> Script:
    """Return a script with fresh marks."""
    marks = {"output_mark": f"mark-{secrets.token_hex(8)}", "process_mark": f"{secrets.token_hex(8)}.0."}
    of_script = {name: fields.pop(name) for name in (*marks, "grace", "inline") if name in fields}
    record = Command(command, **fields)  # type: ignore[arg-type]  # the fields of a table
    return Script(record, **{**marks, **of_script})  # type: ignore[arg-type]  # as above


@attrs.define
class ScriptOutcome:
    """The outcome of a script: its status, its output, and the text before its marks."""

    status: str | None = None
    out: bytes = b""
    err: bytes = b""
    noise: bytes = b""


@attrs.define
class Host:
    """A shell of this machine in place of a host, started as sshd starts it, in a session of its own."""

    home: Path
    shell: tuple[str, ...] = ("/bin/sh",)
    posix: tuple[str, ...] | None = None
    environment: Mapping[str, str] = attrs.field(factory=dict)
    children: list[LocalProcess] = attrs.field(factory=list)

    def argv(self, program: Script) -> tuple[str, ...]:
        words = " ".join(program.command_words)
        if self.posix is not None:
            words = words.replace("/bin/sh", " ".join(self.posix), 1)
        return (*self.shell, "-c", words)

    def start(
        self, program: Script, outcome: ScriptOutcome, marks: OutputDecoder, seconds: float = 30.0
    ) -> LocalProcess:
        """Start the session and send the script's line."""

        def on_output(stream: Stream, data: bytes) -> None:
            data = marks.feed(stream, data)
            if stream is OUT:
                outcome.out += data
            else:
                outcome.err += data

        environment = {
            **{name: os.environ[name] for name in ("PATH", "TMPDIR", "LAZYCLUSTER_TEST_RUN") if name in os.environ},
            "HOME": str(self.home),
            "SHELL": self.shell[0],
            **self.environment,
        }
        with pytest.MonkeyPatch.context() as patch:
            for name in set(os.environ) - set(environment):
                patch.delenv(name)
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.chdir(self.home)
            child = LocalProcess(self.argv(program), on_output=on_output, deadline=Deadline(seconds))
        self.children.append(child)
        child.write(program.encode())
        return child

    def run(self, program: Script, stdin: bytes = b"") -> ScriptOutcome:
        """Run a script to its end, as a session does."""
        outcome, marks = ScriptOutcome(), OutputDecoder(program.output_mark)
        child = self.start(program, outcome, marks)
        child.write(stdin)
        complete = child.pump(lambda: marks.has_ended)
        if not complete:
            outcome.out += marks.flush(OUT)
            outcome.err += marks.flush(ERR)
        child.close_stdin()
        assert child.wait(10.0) is not None
        outcome.status = marks.reported_status
        outcome.noise = marks.preamble(OUT) + marks.preamble(ERR) if complete else b""
        child.close()
        return outcome


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def host(home: Path) -> Iterator[Host]:
    """Return a host with /bin/sh for everything; the processes that a test leaves on it are ended."""
    host = Host(home)
    yield host
    for child in host.children:
        child.close()


def find_marked_pids(process_mark: str) -> set[int]:
    return processes.find_marked_pids(f"{PROCESS_MARK_VARIABLE}={process_mark}")


def kill_marked(process_mark: str) -> None:
    kill_all(lambda: find_marked_pids(process_mark))
    assert not find_marked_pids(process_mark)


# The words of the session --------------------------------------------------------------------------------------------


def test_bootstrap_has_no_special_characters() -> None:
    for bootstrap in (
        SHELL_BOOTSTRAP,
        MANUAL_SHELL_BOOTSTRAP.replace("[ ! -x", ""),
    ):  # a space makes the ! harmless (csh(1))
        assert bootstrap.isascii()
        assert bootstrap.isprintable()
        assert not set(bootstrap) & set("\\!")
        assert bootstrap.count("'") == 2


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("nproc", "nproc"),
        ("ls -l", "'ls -l'"),
        ("echo $HOME `x` *", "'echo $HOME `x` *'"),
        ('it\'s "so" \\ !', "'it?s ?so? ? ?'"),
        ("a\nb\tc\0", "'a?b?c?'"),
        ("grüße", "'gr??e'"),
        ("x" * 200, "x" * 200),
        ("x" * 201, "x" * 197 + "..."),
        ("", "''"),
    ],
)
def test_process_label(command: str, text: str) -> None:
    assert process_label(command) == text


@given(TEXT)
def test_process_label_is_one_short_printable_word(command: str) -> None:
    assert len(shlex.split(process_label(command))) == 1
    assert process_label(command).isascii()
    assert process_label(command).isprintable()
    assert len(process_label(command)) <= 202


@login_shells
def test_process_label_is_inert_in_login_shells(login: tuple[str, ...], home: Path) -> None:
    commands = [
        "a b",
        "$HOME",
        "`id`",
        "$(id)",
        "!!",
        "~",
        "*",
        "a;b|c&d>e<f",
        "{a,b}",
        "#x",
        "(a)",
        "%1",
        "^a^b",
        "a=b",
    ]
    line = "printf '%s,' " + " ".join(process_label(command) for command in [*commands, "'", '"', "\\", "\n", ""])
    ended = subprocess.run([*login, "-c", line], cwd=home, capture_output=True, check=True, stdin=subprocess.DEVNULL)
    expected = [*(command.replace("!", "?") for command in commands), "?", "?", "?", "?", ""]
    assert ended.stdout.decode() == "".join(f"{text}," for text in expected)


@given(RAW | TEXT)
@example("\\0101 %s\\n")
def test_escape_for_printf_is_one_line_of_ascii(text: str) -> None:
    data = escape_for_printf(text)
    assert all(0x20 <= byte <= 0x7E for byte in data)


@posix_shells
@settings(max_examples=25, deadline=None)
@given(text=RAW | TEXT)
@example(text="\\0101 \\n %s %% \\c -n x")
@example(text="-e x")
@example(text="".join(map(chr, range(1, 256))))
@example(text=b"".join(bytes((byte,)) for byte in range(1, 256)).decode("utf-8", "surrogateescape"))
def test_escape_for_printf_is_decoded_by_shell(posix: tuple[str, ...], text: str) -> None:
    ended = subprocess.run(
        [*posix, "-c", 'IFS= read -r p && printf %b "$p"'],
        input=escape_for_printf(text) + b"\n",
        capture_output=True,
        check=True,
    )
    assert ended.stdout == text.encode("utf-8", "surrogateescape")


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("", "''"),
        ("/a/b", "/a/b"),
        ("a b", "'a b'"),
        ("-a", "./-a"),
        ("-a b", "'./-a b'"),
        ("~", '"$HOME"'),
        ("~/", "\"$HOME\"/''"),
        ("~/a b", "\"$HOME\"/'a b'"),
        ("~/$x", "\"$HOME\"/'$x'"),
        ("~me", "~me"),
        ("~me/a b", "~me/'a b'"),
        ("~me;x", "'~me;x'"),
        ("~me x/a", "'~me x/a'"),
        ("a/~", "'a/~'"),
        ("~/a\nb", "\"$HOME\"/'a\nb'"),
        ("~+", "'~+'"),
        ("~-/x", "'~-/x'"),
    ],
)
def test_quote_path(path: str, word: str) -> None:
    assert quote_path(path) == word


def test_quote_path_nul_raises() -> None:
    with pytest.raises(ValueError, match="path must be text without NUL"):
        quote_path("a\0b")


@posix_shells
@settings(max_examples=25, deadline=None)
@given(path=TEXT)
@example(path="~")
@example(path="~/a  b")
@example(path="-n")
def test_quote_path_is_one_word(posix: tuple[str, ...], path: str) -> None:
    text = f"set -- {quote_path(path)}; printf '%s,%s' $# \"$1\""
    ended = subprocess.run([*posix, "-c", text], env={"HOME": "/h x"}, capture_output=True, check=True)
    count, _, word = ended.stdout.decode().partition(",")
    expected = "/h x" + path[1:] if path == "~" or path.startswith("~/") else path
    assert (count, word) in {("1", expected), ("1", f"./{path}")}


# Commands ------------------------------------------------------------------------------------------------------------

AWKWARD = [
    "printf hello",
    "printf '%s' \"it's\"",
    'printf "%s" "a\nb"',
    "printf '%s' 'grüße ☃ 🎉'",
    "# a comment\nprintf x",
    "if true; then\n  printf 'yes'\nfi",
    "cat <<'END'\n$HOME `x` \\ 'quotes' \"more\"\nEND",
    "printf '\\\\ \\\\0101 %%'",
    'f() { printf "$1"; }; f x',
    "printf '%s' \"$(printf '(%s)' 'a b')\"",
    "printf '%s' '!! !x ^a^b ~ {a,b} * ?'",
    "printf '\\t' ; printf '%s' '\t\r'",
    " printf x ; ",
]


@login_shells
@pytest.mark.parametrize("command", AWKWARD)
def test_script_same_result_under_login_shells(login: tuple[str, ...], command: str, host: Host) -> None:
    host.shell = login
    expected = subprocess.run(["/bin/sh", "-c", command], capture_output=True, check=True).stdout
    assert host.run(script(command)) == ScriptOutcome("0", expected)


@posix_shells
@pytest.mark.parametrize("command", AWKWARD)
def test_script_same_result_under_posix_shells(posix: tuple[str, ...], command: str, host: Host) -> None:
    host.posix = posix
    expected = subprocess.run(["/bin/sh", "-c", command], capture_output=True, check=True).stdout
    assert host.run(script(command)) == ScriptOutcome("0", expected)


@posix_shells
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXT, value=RAW | TEXT, directory=TEXT)
@example(text="'\"'", value="\n\n", directory="~")
@example(text="\\", value="\\\n", directory="-")
def test_script_any_text_reaches_command(
    posix: tuple[str, ...], text: str, value: str, directory: str, home: Path
) -> None:
    name = directory.replace("/", "_").encode()[:80].decode(errors="ignore").strip(".") or "x"
    (home / f"d{name}").mkdir(exist_ok=True)
    command = f'printf %s {shlex.quote(text)}; printf %s "$V" >&2; [ -f "$PWD"/../witness ] || exit 9'
    (home / "witness").touch()
    outcome = Host(home, posix=posix).run(script(command, env={"V": value}, cwd=f"d{name}"))
    assert outcome == ScriptOutcome("0", text.encode(), value.encode("utf-8", "surrogateescape"))


@login_shells
def test_script_command_of_100_kilobytes(login: tuple[str, ...], host: Host) -> None:
    host.shell = login
    text = "".join(f'{number} $x \\ " ü!\n' for number in range(9000)).encode()[:99_986].decode(errors="ignore")
    command = f"printf '%s' '{text}'"
    assert 99_990 <= len(command.encode()) <= 100_000
    assert host.run(script(command)) == ScriptOutcome("0", text.encode())


@pytest.mark.skipif(sys.platform != "linux", reason="execve(2): MAX_ARG_STRLEN is Linux's")
@posix_shells
def test_script_command_too_long_is_exit_code_126(posix: tuple[str, ...], host: Host) -> None:
    host.posix = posix
    outcome = host.run(script("# ".ljust(140_000, "x")))
    assert (outcome.status, outcome.out) == ("126", b"")
    assert b"too long" in outcome.err


@login_shells
def test_script_env_and_cwd_under_login_shells(login: tuple[str, ...], host: Host) -> None:
    host.shell = login
    directory = host.home / "a b'c"
    directory.mkdir(exist_ok=True)
    env = {"LINES_OF_TEXT": "one\ntwo\n\n", "QUOTES": "'\"`$x\\", "EMPTY": "", "U": "ü☃"}
    command = r'''printf '%s|' "$LINES_OF_TEXT" "$QUOTES" "${EMPTY-unset}" "$U" "$(pwd)"'''
    outcome = host.run(script(command, env=env, cwd="~/a b'c"))
    assert outcome == ScriptOutcome("0", f"one\ntwo\n\n|'\"`$x\\||ü☃|{directory}|".encode())


@posix_shells
@pytest.mark.parametrize("path", ["~", "~/", ".", "sub dir", "./sub dir", "~/sub dir", "-dash", "new\nline", "link"])
def test_script_cwd(posix: tuple[str, ...], path: str, host: Host) -> None:
    host.posix = posix
    host.environment = {"CDPATH": "/usr:/"}  # it would lead elsewhere, and make cd print
    for name in ("sub dir", "-dash", "new\nline", "usr"):
        (host.home / name).mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (host.home / "link").symlink_to("sub dir")
    outcome = host.run(script("pwd -P; cat", cwd=path))
    expected = host.home / path.removeprefix("~").lstrip("/")
    assert outcome == ScriptOutcome("0", os.fsencode(expected.resolve()) + b"\n")


@posix_shells
@pytest.mark.parametrize("path", ["/no/such", "no such", "~/no", "witness", "~nosuchuser0"])
def test_script_missing_cwd_reports_cd(posix: tuple[str, ...], path: str, host: Host) -> None:
    (host.home / "witness").touch()
    host.posix = posix
    outcome = host.run(script("printf 'must not run'", cwd=path))
    assert (outcome.status, outcome.out) == ("cd", b"")
    assert outcome.err.strip()


@posix_shells
@pytest.mark.parametrize("status", [0, 1, 2, 77, 125, 126, 127, 128, 129, 137, 254, 255])
def test_script_exit_status_under_posix_shells(posix: tuple[str, ...], status: int, host: Host) -> None:
    host.posix = posix
    assert host.run(script(f"exit {status}")) == ScriptOutcome(str(status))


def test_script_every_exit_status(host: Host) -> None:
    statuses = [host.run(script(f"exit {status}", stdin=None)).status for status in range(256)]
    assert statuses == [str(status) for status in range(256)]


@posix_shells
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("raw", [False, True])
def test_script_signal_is_exit_status_above_128(
    posix: tuple[str, ...], number: signal.Signals, raw: bool, host: Host
) -> None:
    host.posix = posix
    command = f"ulimit -c 0; printf out; printf err >&2; kill -{number.value} $$; sleep 60"
    assert host.run(script(command, stdin=None if raw else b"")) == ScriptOutcome(str(128 + number), b"out", b"err")


@posix_shells
@pytest.mark.parametrize(
    ("command", "status"),
    [("no-such-program-anywhere", "127"), ("/etc/passwd", "126"), ("if", "2")],
)
def test_script_bad_command_message_is_stderr(posix: tuple[str, ...], command: str, status: str, host: Host) -> None:
    host.posix = posix
    outcome = host.run(script(command))
    assert outcome.status == status
    assert outcome.err.strip()
    assert b"mark-" not in outcome.err


def test_script_command_may_close_its_streams(host: Host) -> None:
    assert host.run(script("exec 2>&1; echo a; ls /no-such 2>/dev/null >&2; exec >&-; exit 3")) == ScriptOutcome(
        "3", b"a\n"
    )
    assert host.run(script("exec >&- 2>&-; exit 4")) == ScriptOutcome("4")


def test_script_variables_are_not_in_environment(host: Host) -> None:
    program = script("env; set", env={"A": "1"})
    outcome = host.run(program)
    names = {line.partition(b"=")[0] for line in outcome.out.splitlines()}
    assert not {name for name in names if name.startswith(b"lc_")}
    assert f"{PROCESS_MARK_VARIABLE}={program.process_mark}".encode() in outcome.out.splitlines()
    assert b"A=1" in outcome.out.splitlines()


@needs_proc
@pytest.mark.parametrize(
    "form",
    [{}, {"stdin": b"data"}, {"stdin": None}, {"stdin": None, "has_lifeline": True}, {"stdin": None, "inline": True}],
    ids=["no input", "stored input", "open input", "fed input", "inline"],
)
def test_script_command_inherits_three_descriptors(form: dict[str, Any], host: Host) -> None:
    """The script keeps no descriptor open that a background process could inherit."""
    outcome = host.run(script("ls /proc/self/fd", **form), form.get("stdin") or b"")  # ls has the directory open
    assert outcome.out.split() == [b"0", b"1", b"2", b"3"]


@pytest.mark.parametrize("name", ["bash", "dash", "zsh", "fish", "tcsh"])
def test_script_runs_in_bourne_shell_of_account(name: str, host: Host) -> None:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"this machine has no {name}")
    bourne = name in {"bash", "dash"}
    command = 'readlink /proc/$$/exe || printf "%s" "$0"'
    host.environment = {"SHELL": path}
    program = Path(os.fsdecode(host.run(script(command)).out.strip())).name
    assert program == (name if bourne else Path("/bin/sh").resolve().name)
    default = Path(os.fsdecode(host.run(script(command, login_shell=False)).out.strip())).name
    assert default == Path("/bin/sh").resolve().name


def test_script_missing_shell_of_account_is_not_used(host: Host) -> None:
    host.environment = {"SHELL": "/no/such/bash"}
    assert host.run(script("echo x")) == ScriptOutcome("0", b"x\n")


@login_shells
def test_script_output_without_start_up_file_noise(login: tuple[str, ...], host: Host, tmp_path: Path) -> None:
    for name in (".bashrc", ".zshenv", ".tcshrc", ".cshrc"):
        (tmp_path / name).write_text("echo noise; echo more noise 1>&2\n" if "csh" not in name else "echo noise\n")
    (tmp_path / ".config/fish").mkdir(parents=True)
    (tmp_path / ".config/fish/config.fish").write_text("echo noise; echo more >&2\n")
    host = Host(tmp_path, login, environment={"SSH_CLIENT": "127.0.0.1 1 2", "SSH_CONNECTION": "x", "BASH_ENV": ""})
    outcome = host.run(script("printf out; printf err >&2"))
    assert (outcome.status, outcome.out, outcome.err) == ("0", b"out", b"err")
    if shell_name(login) in {"zsh", "fish", "tcsh", "csh"}:
        assert b"noise" in outcome.noise


# Standard input ------------------------------------------------------------------------------------------------------


@posix_shells
@pytest.mark.parametrize(
    "data",
    [b"x", b"a\0b\0", bytes(range(256)) * 3, b"\n", b"no newline at the end", b"EOF\n" * 2, b"y" * 300_000],
    ids=["one", "nul", "all", "newline", "text", "eof", "large"],
)
def test_script_stdin(posix: tuple[str, ...], data: bytes, host: Host) -> None:
    host.posix = posix
    assert host.run(script("cat; cat", stdin=data), data) == ScriptOutcome("0", data)


@posix_shells
def test_script_without_stdin_reads_nothing(posix: tuple[str, ...], host: Host) -> None:
    host.posix = posix
    assert host.run(script("cat; read x; echo $?")) == ScriptOutcome("0", b"1\n")


@posix_shells
def test_script_unread_stdin_is_dropped(posix: tuple[str, ...], host: Host) -> None:
    host.posix = posix
    assert host.run(script("echo done", stdin=b"x" * 200_000), b"x" * 200_000) == ScriptOutcome("0", b"done\n")


@posix_shells
def test_script_incomplete_stdin_runs_nothing(posix: tuple[str, ...], host: Host) -> None:
    host.posix = posix
    program, outcome = script("echo must not run", stdin=bytes(100)), ScriptOutcome()
    marks = OutputDecoder(program.output_mark)
    child = host.start(program, outcome, marks)
    child.write(b"only a part")
    child.close_stdin()
    assert child.pump(lambda: marks.has_ended)
    assert (marks.reported_status, outcome.out) == ("1", b"")
    assert outcome.err.startswith(b"standard input cannot be stored in ")


def test_script_stored_stdin_leaves_no_file(host: Host, tmp_path: Path) -> None:
    host.environment = {"TMPDIR": str(tmp_path)}
    assert host.run(script("ls -A $TMPDIR", stdin=b"abc"), b"abc") == ScriptOutcome("0", b"")
    assert list(tmp_path.iterdir()) == []


@posix_shells
def test_script_open_stdin_reaches_command_at_once(posix: tuple[str, ...], host: Host) -> None:
    host.posix = posix
    program, outcome = script('read -r a; echo "got $a"; cat', stdin=None), ScriptOutcome()
    marks = OutputDecoder(program.output_mark)
    child = host.start(program, outcome, marks)
    child.write(b"first\n")
    assert child.pump(lambda: outcome.out == b"got first\n")
    child.write(b"sec\0ond")
    child.close_stdin()
    assert child.pump(lambda: marks.has_ended)
    assert (marks.reported_status, outcome.out) == ("0", b"got first\nsec\0ond")


@posix_shells
def test_script_fed_stdin_is_confirmed_in_pieces(posix: tuple[str, ...], host: Host) -> None:
    host.posix = posix
    command = 'read -r a; echo "got $a"; echo err >&2; cat; echo end'
    program, outcome = script(command, stdin=None, has_lifeline=True), ScriptOutcome()
    marks = OutputDecoder(program.output_mark)
    child = host.start(program, outcome, marks)
    child.write(b"6\nfirst\n")
    assert child.pump(lambda: marks.confirmed_pieces == 1 and outcome.out == b"got first\n")
    child.write(b"7\nsec\0ond")
    assert child.pump(lambda: marks.confirmed_pieces == 2)
    child.write(b"0\n")
    assert child.pump(lambda: marks.has_ended)
    assert (marks.reported_status, outcome.out, outcome.err) == ("0", b"got first\nsec\0ondend\n", b"err\n")


@posix_shells
def test_script_fed_stdin_leaves_no_file(posix: tuple[str, ...], host: Host, tmp_path: Path) -> None:
    host.posix, host.environment = posix, {"TMPDIR": str(tmp_path)}
    program, outcome = script("ls -A $TMPDIR; exit 3", stdin=None, has_lifeline=True), ScriptOutcome()
    marks = OutputDecoder(program.output_mark)
    assert host.start(program, outcome, marks).pump(lambda: marks.has_ended)
    assert (marks.reported_status, outcome.out, list(tmp_path.iterdir())) == ("3", b"", [])


@posix_shells
def test_script_fed_without_temp_dir_runs_nothing(posix: tuple[str, ...], host: Host, tmp_path: Path) -> None:
    host.posix, host.environment = posix, {"TMPDIR": str(tmp_path / "missing")}
    program, outcome = script("echo must not run", stdin=None, has_lifeline=True), ScriptOutcome()
    marks = OutputDecoder(program.output_mark)
    assert host.start(program, outcome, marks).pump(lambda: marks.has_ended)
    assert (marks.reported_status, outcome.out) == ("1", b"")
    assert outcome.err == f"no pipe can be made in {tmp_path / 'missing'}\n".encode()


@needs_proc
@posix_shells
def test_script_fed_unread_stdin_hides_no_end(posix: tuple[str, ...], host: Host) -> None:
    """The command reads nothing, and its input is more than a pipe takes."""
    host.posix = posix
    program = script("echo ready; sleep 1000", stdin=None, has_lifeline=True)
    child, outcome, marks = start_and_wait_ready(host, program)
    piece = b"%d\n" % (1 << 16) + bytes(1 << 16)
    child.write(piece)
    assert child.pump(lambda: marks.confirmed_pieces == 1)
    child.write(piece)
    child.close_stdin()
    assert wait_until(lambda: not find_marked_pids(program.process_mark), 20)
    assert child.wait(20) is not None
    assert outcome.err == b""


@posix_shells
@pytest.mark.parametrize(
    "command", ["exit 7", "exit 7 # the end", "(exit 7)\n", "trap 'exit 7' EXIT", "f() { return 7; }; f"]
)
def test_script_inline_runs_in_subshell(posix: tuple[str, ...], command: str, host: Host) -> None:
    """The command runs in a subshell with its own streams and no arguments, and ends only that."""
    host.posix = posix
    text = f'read -r a; echo "$a $# $A"; echo err >&2; {command}'
    program, outcome = script(text, stdin=None, inline=True, env={"A": "é $x"}), ScriptOutcome()
    marks = OutputDecoder(program.output_mark)
    child = host.start(program, outcome, marks)
    child.write(b"first\n")
    assert child.pump(lambda: marks.has_ended)
    assert (marks.reported_status, outcome.out, outcome.err) == ("7", "first 0 é $x\n".encode(), b"err\n")
    assert find_marked_pids(program.process_mark) == set()


def test_script_inline_keeps_ifs(host: Host) -> None:
    env = {"IFS": "x", "A": "1x2 3"}
    outcome = host.run(script('echo "$IFS" $A', stdin=None, inline=True, env=env))
    assert outcome.out == host.run(script('echo "$IFS" $A', stdin=None, env=env)).out
    assert b"1x2 3" in outcome.out


# The lifeline --------------------------------------------------------------------------------------------------------


def start_and_wait_ready(
    host: Host, program: Script, until: bytes = b"ready\n"
) -> tuple[LocalProcess, ScriptOutcome, OutputDecoder]:
    """Start a script and wait until it has printed that it is ready."""
    outcome, marks = ScriptOutcome(), OutputDecoder(program.output_mark)
    child = host.start(program, outcome, marks)
    assert child.pump(lambda: until in outcome.out), outcome
    return child, outcome, marks


@needs_proc
@posix_shells
@pytest.mark.parametrize("stdin", [b"", b"data"])
def test_script_stdin_end_ends_all_children(posix: tuple[str, ...], stdin: bytes, host: Host, tmp_path: Path) -> None:
    host.posix = posix
    command = (
        "sleep 1000 & (sleep 1001 &) & setsid sleep 1002 & setsid sh -c 'trap \"\" HUP; sleep 1003 & wait' & "
        "nohup sleep 1004 >/dev/null 2>&1 & sh -c 'exec >/dev/null 2>&1; sleep 1005' & sleep 0.1; echo ready; wait"
    )
    program = script(command, stdin=stdin)
    outcome, marks = ScriptOutcome(), OutputDecoder(program.output_mark)
    child = host.start(program, outcome, marks)
    child.write(stdin)
    assert child.pump(lambda: b"ready" in outcome.out)
    assert len(find_marked_pids(program.process_mark)) >= 6
    child.close_stdin()
    assert wait_until(lambda: not find_marked_pids(program.process_mark), 20)
    assert child.wait(20) is not None
    assert outcome.err == b""


@needs_proc
@posix_shells
def test_script_stdin_end_leaves_grace_period(posix: tuple[str, ...], host: Host, tmp_path: Path) -> None:
    host.posix = posix
    command = f"trap 'echo cleaned > {tmp_path}/x; exit' TERM; echo ready; while :; do sleep 0.05; done"
    program = script(command)
    child, _, _ = start_and_wait_ready(host, program)
    child.close_stdin()
    assert wait_until((tmp_path / "x").exists, 20)
    assert wait_until(lambda: not find_marked_pids(program.process_mark), 20)


@needs_proc
@posix_shells
@pytest.mark.parametrize("grace", [0.3, 2])
def test_script_ignored_sigterm_is_killed_after_grace(posix: tuple[str, ...], grace: float, host: Host) -> None:
    host.posix = posix
    stubborn = 'trap "" TERM HUP INT; sleep 1000 & while :; do sleep 1000; done'
    program = script(
        f"setsid sh -c '{stubborn}' & trap '' TERM HUP INT; echo ready; while :; do sleep 1000; done", grace=grace
    )
    child, _, _ = start_and_wait_ready(host, program)
    assert wait_until(lambda: len(find_marked_pids(program.process_mark)) >= 4, 20)
    started = time.monotonic()
    child.close_stdin()
    assert wait_until(lambda: not find_marked_pids(program.process_mark), 20)
    assert time.monotonic() - started >= 0.9 * grace, "a lower bound: the host's shell keeps the time"
    assert child.wait(20) is not None


@needs_proc
@posix_shells
@pytest.mark.parametrize("form", [{}, {"stdin": None, "has_lifeline": True}], ids=str)
def test_script_empty_line_ends_grace_period(posix: tuple[str, ...], form: dict[str, object], host: Host) -> None:
    host.posix = posix
    program = script("trap '' TERM HUP INT; echo ready; while :; do sleep 1000; done", grace=1000, **form)
    child, _, _ = start_and_wait_ready(host, program)
    child.write(b"\n")
    child.close_stdin()
    assert wait_until(lambda: not find_marked_pids(program.process_mark), 20)
    assert child.wait(20) is not None


@needs_proc
@login_shells
def test_script_stdin_end_under_login_shells(login: tuple[str, ...], host: Host) -> None:
    host.shell = login
    program = script("setsid sleep 1000 & echo ready; sleep 1000")
    child, _, _ = start_and_wait_ready(host, program)
    child.close_stdin()
    assert wait_until(lambda: not find_marked_pids(program.process_mark), 20)
    assert child.wait(20) is not None


@needs_proc
def test_script_stdin_end_spares_other_scripts(host: Host) -> None:
    ours, other = (
        script("echo ready; sleep 1000", process_mark=f"{secrets.token_hex(4)}.{number}.") for number in (1, 11)
    )
    first, _, _ = start_and_wait_ready(host, ours)
    second, _, _ = start_and_wait_ready(host, other)
    first.close_stdin()
    assert wait_until(lambda: not find_marked_pids(ours.process_mark), 20)
    assert find_marked_pids(other.process_mark)
    second.close_stdin()
    assert wait_until(lambda: not find_marked_pids(other.process_mark), 20)


@needs_proc
@posix_shells
def test_script_end_leaves_no_watchdog(posix: tuple[str, ...], host: Host) -> None:
    host.posix = posix
    for form in ({"stdin": b""}, {"stdin": None}, {"stdin": None, "has_lifeline": True}):
        program = script("true", **form)
        assert host.run(program).status == "0"
        assert wait_until(lambda mark=program.process_mark: not find_marked_pids(mark), 20)  # type: ignore[misc]  # bound in time


@needs_proc
@posix_shells
def test_script_background_process_does_not_delay_status(posix: tuple[str, ...], host: Host) -> None:
    host.posix = posix
    program, outcome = script("sleep 1000 & echo $!; exit 7"), ScriptOutcome()
    marks = OutputDecoder(program.output_mark)
    child = host.start(program, outcome, marks)
    assert child.pump(lambda: marks.has_ended)
    assert (marks.reported_status, outcome.err) == ("7", b"")
    child.close_stdin()
    assert child.wait(20) is not None
    # During execve() a process shows no environment.
    assert wait_until(lambda: int(outcome.out) in find_marked_pids(program.process_mark), 20)
    kill_marked(program.process_mark)


@needs_proc
@posix_shells
def test_script_env_path_does_not_disturb_watchdog(posix: tuple[str, ...], host: Host) -> None:
    """The PATH is for the command alone: it has none of the programs that the watchdog needs."""
    host.posix = posix
    sleep = shutil.which("sleep")
    program = script(f"{sleep} 1000 & echo $PATH ready; wait", env={"PATH": "/nowhere", "IFS": "x"})
    child, outcome, _ = start_and_wait_ready(host, program, b"ready\n")
    assert outcome.out == b"/nowhere ready\n"
    child.close_stdin()
    assert wait_until(lambda: not find_marked_pids(program.process_mark), 20)
    assert child.wait(20) is not None
    assert outcome.err == b""


@posix_shells
@pytest.mark.parametrize(
    "form",
    [{}, {"stdin": None}, {"stdin": None, "has_lifeline": True}, {"stdin": None, "inline": True}],
    ids=str,
)
def test_script_env_cannot_replace_own_variables(form: dict[str, object], posix: tuple[str, ...], host: Host) -> None:
    host.posix = posix
    env = {"lc_command": "echo other", "lc_shell": "/bin/false", "lc_mark": "A=b"}
    outcome = host.run(script('echo "$lc_command $lc_mark $#"', env=env, **form))
    assert (outcome.status, outcome.out) == ("0", b"echo other A=b 0\n")


@needs_proc
def test_script_process_mark_is_on_command_only(host: Host) -> None:
    program = script("echo $$ ready; read x; sleep 1000")
    child, outcome, _ = start_and_wait_ready(host, program, b"ready\n")
    assert child.pid not in find_marked_pids(program.process_mark)
    assert int(outcome.out.split()[0]) in find_marked_pids(program.process_mark)
    kill_marked(program.process_mark)


def test_script_repr_hides_command_and_env() -> None:
    shown = repr(script("echo s3cret", title="a title", env={"TOKEN": "s3cret"}))
    assert "s3cret" not in shown
    assert "TOKEN" not in shown


# ps(1) of macOS prints with -E the arguments, then the environment, all on one line.
PS_OF_MACOS = """\
#!{python} -IS
import pathlib, sys
assert sys.argv[1:] == ["-A", "-E", "-ww", "-o", "pid=", "-o", "command="], sys.argv
for entry in pathlib.Path("/proc").iterdir():
    if entry.name.isdigit():
        try:
            data = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        print("%5s" % entry.name, data.replace(b"\\0", b" ").replace(b"\\n", b" ").decode("ascii", "replace"))
"""


@needs_proc
def test_script_without_proc_finds_processes_by_ps(host: Host, tmp_path: Path) -> None:
    """As on macOS. The processes include those that have left their session and their parent."""
    ps = tmp_path / "ps"
    ps.write_text(PS_OF_MACOS.format(python=sys.executable))
    ps.chmod(0o755)
    host.environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    program = script(
        "sh -c 'sleep 1000 & setsid sleep 1001 & wait' & (setsid sleep 1003 &) & echo ready; sleep 1002",
    )
    text = program.text().replace("/proc/self/environ", "/no/proc")
    assert text != program.text()
    outcome, marks = ScriptOutcome(), OutputDecoder(program.output_mark)

    class ScriptWithoutProc(Script):
        def text(self) -> str:
            return text

    child = host.start(ScriptWithoutProc(**attrs.asdict(program, recurse=False)), outcome, marks)
    assert child.pump(lambda: b"ready" in outcome.out)
    assert wait_until(lambda: len(find_marked_pids(program.process_mark)) >= 4, 20)
    child.close_stdin()
    assert wait_until(lambda: not find_marked_pids(program.process_mark), 20)


# The marks -----------------------------------------------------------------------------------------------------------

MARK = "lazycluster-0123456789abcdef"


def decode(data: bytes, cuts: list[int]) -> tuple[bytes, str | None, bytes, bool]:
    """Feed a stream in pieces; return its output, its status, its preamble, and whether the output began."""
    marks = OutputDecoder(MARK)
    positions = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    output = b"".join(marks.feed(OUT, data[start:end]) for start, end in itertools.pairwise(positions))
    status = marks.reported_status
    output += marks.flush(OUT)
    return output, status, marks.preamble(OUT), marks.has_started


START, END = f"{MARK}<".encode(), f"{MARK}=0;".encode()
STREAMS: list[tuple[bytes, tuple[bytes, str | None, bytes, bool]]] = [
    (START + END, (b"", "0", b"", True)),
    (START + b"out" + END, (b"out", "0", b"", True)),
    (START + b"out" + f"{MARK}=255;".encode(), (b"out", "255", b"", True)),
    (START + f"{MARK}=cd;".encode(), (b"", "cd", b"", True)),
    (b"noise\n" + START + b"out" + END, (b"out", "0", b"noise\n", True)),
    (b"lazycluster-" + START + b"x" + END, (b"x", "0", b"lazycluster-", True)),
    (START + b"out" + END + b"after", (b"outafter", "0", b"", True)),
    (START + b"broken off", (b"broken off", None, b"", True)),
    (START + b"x" + f"{MARK}=2".encode(), (b"x" + f"{MARK}=2".encode(), None, b"", True)),
    (START + b"x" + MARK.encode(), (b"x" + MARK.encode(), None, b"", True)),
    (b"never any mark", (b"", None, b"never any mark", False)),
    (MARK.encode(), (b"", None, MARK.encode(), False)),
    (b"", (b"", None, b"", False)),
    (START + START + b"x" + END, (START + b"x", "0", b"", True)),
    *(
        (START + near + END, (near, "0", b"", True))
        for near in (
            f"{MARK}=;".encode(),
            f"{MARK}=1234;".encode(),
            f"{MARK}=cdx;".encode(),
            f"{MARK}=c;".encode(),
            f"{MARK}=12 ;".encode(),
            f"{MARK}=abcdefghijk;".encode(),
            f"{MARK};".encode(),
            b"lazycluster-",
            b"lazycluster-0123456789abcde",
            b"l" * 50,
            b"lazylazylazycluster-lazycluster-0",
            b"\0\xff\n",
        )
    ),
]


@pytest.mark.parametrize(("data", "expected"), STREAMS)
def test_output_decoder_any_cut(data: bytes, expected: tuple[bytes, str | None, bytes, bool]) -> None:
    assert decode(data, []) == expected
    assert decode(data, list(range(len(data)))) == expected
    for cut in range(len(data)):
        assert decode(data, [cut]) == expected


PIECES = st.sampled_from(
    [START, END, MARK.encode(), b"=", b";", b"cd", b"1", b"255", b"l", b"lazy", b"x\n", b"", MARK.encode()[:-1], b"<"]
)


@given(st.lists(PIECES, max_size=12).map(b"".join), st.lists(st.integers(0, 10**6), max_size=10))
def test_output_decoder_random_cuts(data: bytes, cuts: list[int]) -> None:
    assert decode(data, cuts) == decode(data, []) == decode(data, list(range(len(data))))


@given(st.binary(max_size=200), st.binary(max_size=50), st.integers(0, 255), st.lists(st.integers(0, 10**6)))
def test_output_decoder_keeps_output(output: bytes, noise: bytes, status: int, cuts: list[int]) -> None:
    data = noise + START + output + f"{MARK}={status};".encode()
    assert decode(data, cuts) == (output, str(status), noise, True)


@given(st.lists(st.integers(0, 10**6), max_size=10), st.binary(max_size=20))
def test_output_decoder_counts_confirmed_pieces(cuts: list[int], output: bytes) -> None:
    marks = OutputDecoder(MARK)
    data = START + f"{MARK}+".encode() + output + f"{MARK}+{MARK}+".encode() + output + END
    positions = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    fed = b"".join(marks.feed(ERR, data[start:end]) for start, end in itertools.pairwise(positions))
    assert (fed, marks.confirmed_pieces, marks.reported_status) == (output * 2, 3, "0")


def test_output_decoder_holds_back_only_possible_marks() -> None:
    marks = OutputDecoder(MARK)
    assert marks.feed(OUT, START + b"a line\n") == b"a line\n"
    assert marks.feed(OUT, b"lazy") == b""
    assert marks.feed(OUT, b"bones") == b"lazybones"
    assert marks.feed(OUT, f"{MARK}=".encode() + b"x" * 20) == f"{MARK}=".encode() + b"x" * 20


def test_output_decoder_needs_marks_of_both_streams() -> None:
    marks = OutputDecoder(MARK)
    assert (marks.has_started, marks.has_ended, marks.reported_status) == (False, False, None)
    marks.feed(ERR, b"ssh says\n")
    assert marks.preamble(ERR) == b"ssh says\n"
    marks.feed(ERR, START)
    assert (marks.has_started, marks.has_ended) == (True, False)
    assert marks.feed(OUT, START + b"out" + END) == b"out"
    assert (marks.reported_status, marks.has_ended) == ("0", False)
    assert marks.feed(ERR, b"err" + END) == b"err"
    assert marks.has_ended


def test_output_decoder_many_pieces_take_linear_time() -> None:
    marks = OutputDecoder(MARK)
    marks.feed(OUT, START)
    started = time.process_time()
    total = sum(len(marks.feed(OUT, b"lazycluster-" * 100)) for _ in range(5000))
    assert total >= 5000 * 1200 - 100
    assert time.process_time() - started < 5
