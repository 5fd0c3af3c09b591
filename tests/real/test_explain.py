"""The lines of `explain`, run by a real shell, do what the task does through the library."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pexpect
import pytest

from lazycluster import Connection, Runtime, RuntimeTask, TaskExecutionError
from lazycluster._explain import explain_steps, setup_blocks, teardown_block
from lazycluster._functions.serialize import serialize_call
from lazycluster._functions.standalone import render_standalone_file
from lazycluster._ssh.destination import Destination
from lazycluster.testing import LocalSshd
from tests.file_trees import FILE_NAMES as NAMES
from tests.file_trees import describe_tree as described
from tests.file_trees import make_full_tree as tree
from tests.file_trees import write_file as file
from tests.observation import skip_or_fail
from tests.real.test_commands import TEXTS
from tests.waiting import assert_eventually

# A name of 255 bytes is longer as a word than the comment shows, and no test of these lines.
PATHS = [name for name in NAMES if len(name) < 255]
WHEN = 1_000_000_000
# `bash -c -n` is no command, and the other one none for bash.
COMMANDS = [text for name, text in TEXTS.items() if name not in {"leading dash", "only a variable"}]


@pytest.fixture(params=["bash", "dash", "zsh"])
def shell(request: pytest.FixtureRequest) -> str:
    """Return a shell that runs the lines here."""
    name: str = request.param
    if shutil.which(name) is None:
        skip_or_fail(f"there is no {name} on this machine")
    return name


@pytest.fixture
def host(sshd: LocalSshd) -> LocalSshd:
    """Return the host; its home is empty."""
    for entry in sshd.home.iterdir():
        subprocess.run(("chmod", "-R", "u+rwx", entry))
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return sshd


@pytest.fixture
def here(tmp_path: Path) -> Path:
    directory = tmp_path / "it's here"
    directory.mkdir()
    return directory


def lines_for(host: LocalSshd, task: RuntimeTask, working_dir: str | None = None, **keywords: object) -> str:
    to = Destination(host.host, config_file=host.config_file)
    steps = explain_steps(task.steps, to, working_dir, is_directory=Path.is_dir, **keywords)  # type: ignore[arg-type]
    return "".join(f"{block}\n\n" for block in (*setup_blocks(to, working_dir), *steps, teardown_block()))


def run(shell: str, text: str, directory: Path) -> subprocess.CompletedProcess[bytes]:
    script = directory / "script"
    script.write_bytes(text.encode("utf-8"))
    return subprocess.run(
        (shell, str(script)), cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )


def by_library(host: LocalSshd, task: RuntimeTask, working_dir: str | None = None) -> RuntimeTask:
    if working_dir is None:
        with Connection(host.host, **host.connection_kwargs) as connection:
            return task.copy().execute(connection)
    with Runtime(host.host, working_dir=working_dir, **host.connection_kwargs) as runtime:
        return runtime.execute_task(task.copy(), execute_async=False)


# Commands ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("working_dir", [None, '~/it\'s a "work" dir/ü'])
def test_commands(host: LocalSshd, here: Path, shell: str, working_dir: str | None) -> None:
    task = RuntimeTask()
    for text in [
        *COMMANDS,
        "cat",
        "pwd",
        'echo "$WORKING_DIR"',
        "EOF() { echo EOF; }\nEOF\necho 'x'",
        "echo \t1",
    ]:
        task.run_command(text)

    done = run(shell, lines_for(host, task, working_dir), here)

    expected = by_library(host, task, working_dir)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == "".join(result.output.stdout for result in expected.results)
    assert done.stderr.decode() == "".join(result.output.stderr for result in expected.results)
    assert_eventually(lambda: host.connections() == 0, "the connection is closed")


def test_the_step_that_fails_is_the_last_one_and_gives_its_status(host: LocalSshd, here: Path, shell: str) -> None:
    task = RuntimeTask().run_command("echo begun; exit 37").run_command("touch never")

    done = run(shell, lines_for(host, task), here)

    with pytest.raises(TaskExecutionError):
        by_library(host, task)
    assert (done.returncode, done.stdout) == (37, b"begun\n")
    assert list(host.home.iterdir()) == []
    assert_eventually(lambda: host.connections() == 0, "the connection is closed after a failure, too")


def test_a_connection_that_cannot_be_made_is_told_once_and_nothing_is_run(
    here: Path, shell: str, host: LocalSshd
) -> None:
    to = Destination("no-such-host.invalid", config_file=host.config_file)
    steps = explain_steps(RuntimeTask().run_command("x").steps, to, is_directory=Path.is_dir)

    done = run(shell, "\n".join(map(str, (*setup_blocks(to, None), *steps, teardown_block()))), here)

    assert done.returncode == 255
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("account", ["fish", "tcsh", "zsh", "bash"])
def test_whatever_the_login_shell_is(make_sshd: object, here: Path, account: str) -> None:
    if shutil.which(account) is None:
        skip_or_fail(f"there is no {account} on this machine")
    server = make_sshd(shell=account)  # type: ignore[operator]
    task = RuntimeTask()
    for text in COMMANDS:
        task.run_command(text)
    task.send_file(file(here / "it's! a\nfile")).get_file("it's! a\nfile", here / "back").run_command("echo $0")

    done = run("sh", lines_for(server, task, "it's! a \\work dir"), here)

    expected = by_library(server, task, "it's! a \\work dir")
    assert (done.returncode, done.stderr.decode()) == (0, "".join(each.output.stderr for each in expected.results))
    assert done.stdout.decode() == "".join(result.output.stdout for result in expected.results)
    assert (here / "back").read_text() == "content"


@pytest.mark.parametrize("shell", ["bash", "dash"], indirect=True)
def test_a_script_on_standard_input(host: LocalSshd, shell: str) -> None:
    task = RuntimeTask().run_command("cat; echo 'one'").run_command("echo two")
    done = subprocess.run((shell,), input=lines_for(host, task).encode(), capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"one\ntwo\n")


# Files ---------------------------------------------------------------------------------------------------------------


def there_and_back(here: Path, results: Path) -> RuntimeTask:
    """Return a task that sends files and trees of all names, and fetches them again under other names."""
    results.mkdir()
    task = RuntimeTask()
    for number, name in enumerate(PATHS):
        source = here / "sources" / str(number)
        source.mkdir(parents=True, exist_ok=True)
        one = source / name
        if not one.exists():
            file(one, name.encode("utf-8", "surrogateescape").hex()).chmod(0o640)
            os.utime(one, (WHEN, WHEN))
        many = here / "trees" / str(number) / name
        if not many.exists():
            many.parent.mkdir(parents=True)
            tree(many)
        if name not in {"~", "~root {a,b}"}:  # as a path on the host it is somebody's home
            task.send_file(one).get_file(name, results / f"as {number}")
            task.send_file(one, f"./{number}/{name}".replace(f"/{number}", "")).run_command(
                f"mkdir 'd {number}' 'e {number}'"
            )
            task.send_file(one, f"d {number}").get_file(f"d {number}/{name}", results / f"from {number}")
        else:
            task.send_file(one).get_file(f"./{name}", results / f"as {number}").run_command(
                f"mkdir 'd {number}' 'e {number}'"
            )
        task.send_file(many, f"e {number}").send_file(many, f"t {number}")
        task.get_file(f"e {number}", results).get_file(f"t {number}/.", results / f"new {number}")
    task.get_file("./", results / "all")
    return task


@pytest.mark.parametrize(
    ("shell", "working_dir"),
    [
        ("bash", '~/it\'s a "work" dir\n/ü'),
        pytest.param("dash", "work", marks=pytest.mark.soak),
        pytest.param("zsh", "temporary", marks=pytest.mark.soak),
    ],
    indirect=["shell"],
)
def test_files_and_trees(host: LocalSshd, here: Path, shell: str, working_dir: str, tmp_path: Path) -> None:
    found = []
    if working_dir == "temporary":
        working_dir = str(tmp_path / "lazycluster-X1y2Z3")
    for way in ("by hand", "by library"):
        results = here / way
        task = there_and_back(here, results)
        if way == "by hand":
            done = run(shell, lines_for(host, task, working_dir), here)
            assert (done.returncode, done.stdout, done.stderr.decode()) == (0, b"", "")
        else:
            by_library(host, task, working_dir)
        place = Path(working_dir.replace("~", str(host.home))) if "~" in working_dir else host.home / working_dir
        found.append((described(place), described(results)))
        for directory in (place, results):
            subprocess.run(("chmod", "-R", "u+rwx", directory))
            shutil.rmtree(directory)
    by_hand, expected = ([_without_times(side) for side in sides] for sides in found)
    assert by_hand == expected
    assert [path.name for path in host.home.iterdir() if path.name.startswith(".lazy")] == []


def _without_times(tree: dict[str, tuple[object, ...]]) -> dict[str, tuple[object, ...]]:
    """Leave out when a directory was changed: those that a task makes are as young as the task."""
    return {
        name: (*facts[:2], None, *facts[3:]) if facts[0] == stat.S_IFDIR and not _dated(facts) else facts
        for name, facts in tree.items()
    }


def _dated(facts: tuple[object, ...]) -> bool:
    return isinstance(facts[2], int) and facts[2] < WHEN + 1000


@pytest.mark.parametrize("name", ["no such", "nosuch", "no such/"])
def test_a_file_that_is_not_there(host: LocalSshd, here: Path, shell: str, name: str) -> None:
    task = RuntimeTask().get_file(name, here / "x").run_command("touch never")

    done = run(shell, lines_for(host, task), here)

    assert done.returncode != 0
    assert list(host.home.iterdir()) == []
    assert not (here / "x").exists()
    with pytest.raises(TaskExecutionError):
        by_library(host, task)


# Functions -----------------------------------------------------------------------------------------------------------


def double(number: int) -> dict[str, object]:
    print("doubling in", Path.cwd().name)
    return double_of(number, os.environ.get("WORKING_DIR"))


def double_of(number: int, place: str | None) -> dict[str, object]:
    return {"doubled": 2 * number, "in": place}


def fail() -> None:
    raise KeyError("on purpose")


def test_functions(host: LocalSshd, here: Path, shell: str) -> None:
    task = RuntimeTask().run_function(double, 21).run_function(fail).run_command("touch never")
    payloads = {index: here / f"it's {index}.py" for index in (0, 1)}
    for index, function in enumerate((lambda: double(21), fail)):
        payloads[index].write_text(render_standalone_file(serialize_call(function)))

    done = run(shell, lines_for(host, task, "~/a work dir", payloads=payloads), here)

    with pytest.raises(TaskExecutionError) as caught:
        by_library(host, task, "~/a work dir")
    assert done.returncode == 1
    assert done.stdout.decode() == f"{double_of(21, f'{host.home}/a work dir')}\n"
    said = done.stderr.decode()
    assert said.startswith("doubling in a work dir\n")
    assert said.endswith("KeyError: 'on purpose'\n")
    assert "on purpose" in str(caught.value)
    assert not (host.home / "a work dir" / "never").exists()


def test_a_script_does_not_leave_out_a_function_in_silence(host: LocalSshd, here: Path, shell: str) -> None:
    task = RuntimeTask().run_command("echo begun").run_function(double, 21).run_command("echo never")

    done = run(shell, lines_for(host, task), here)

    assert (done.returncode, done.stdout) == (1, b"begun\n")
    assert done.stderr == b"step 2 is left out, see --write-payloads\n"


# In a terminal -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [("bash", "--norc"), ("zsh", "-f")], ids=lambda argv: argv[0])
@pytest.mark.parametrize("bracketed", [True, False], ids=["as one paste", "as if typed"])
def test_pasted_into_a_terminal(host: LocalSshd, here: Path, argv: tuple[str, ...], bracketed: bool) -> None:
    if shutil.which(argv[0]) is None:
        skip_or_fail(f"there is no {argv[0]} on this machine")
    odd = file(here / "what! a 'fi\nle' `id` $HOME \t;x")
    task = RuntimeTask().run_command("false; echo 'it!works' > here; touch second # it's; touch oops").send_file(odd)
    task.run_command("exit 3").run_command("echo it goes on").get_file("here", here / "back")
    text = lines_for(host, task, "work! dir")
    environment = {**os.environ, "TERM": "xterm", "HISTFILE": str(here / "history"), "PS1": "% "}
    terminal = pexpect.spawn(argv[0], list(argv[1:]), cwd=str(here), env=environment, timeout=30, encoding="utf-8")
    try:
        terminal.sendline("echo rea''dy")
        terminal.expect("ready")
        pasted = text.rstrip("\n")
        for piece in _pieces(f"\x1b[200~{pasted}\x1b[201~" if bracketed else pasted):
            terminal.send(piece)
        terminal.sendline("")
        terminal.sendline("echo fini''shed")
        terminal.expect("finished", timeout=60)
        terminal.sendline("exit 0")
        terminal.expect(pexpect.EOF)
    finally:
        terminal.close(force=True)

    assert sorted(path.name for path in host.home.iterdir()) == ["work! dir"]
    assert sorted(path.name for path in (host.home / "work! dir").iterdir()) == sorted(["here", "second", odd.name])
    assert (here / "back").read_text() == "it!works\n"
    assert sorted(path.name for path in here.iterdir() if path.name != "history") == ["back", odd.name]
    assert_eventually(lambda: host.connections() == 0, "the connection is closed")


def _pieces(text: str) -> list[str]:
    return re.findall(r"(?s).{1,500}", text)
