"""The lines that `lazycluster explain` prints, run by a real shell: they do what the library does with the task."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pexpect
import pytest

from lazycluster import Connection, Runtime, RuntimeTask, TaskExecutionError
from lazycluster.testing import LocalSshd
from tests.awkward_text import TEXTS
from tests.command_line import main
from tests.file_trees import FILE_NAMES, describe_tree, make_full_tree, write_file
from tests.observation import skip_or_fail
from tests.waiting import assert_eventually

if TYPE_CHECKING:
    from tests.sshd_fixtures import MakeSshd

# As a word, a name of 255 bytes is longer than the comment shows.
PATHS = [name for name in FILE_NAMES if len(name) < 255]
WHEN = 1_000_000_000
# A plain bash does not run these two: `bash -c -n` takes an option.
COMMANDS = [text for name, text in TEXTS.items() if name not in {"leading dash", "only a variable"}]


@pytest.fixture(autouse=True)
def _restore_sys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore what `lazycluster explain` changes in its process, as `python TASK.py` would: sys.argv and sys.path."""
    monkeypatch.setattr(sys, "argv", [*sys.argv])
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture(params=["bash", "dash", "zsh"])
def shell(request: pytest.FixtureRequest) -> str:
    """Return the local shell that runs the lines."""
    name: str = request.param
    if shutil.which(name) is None:
        skip_or_fail(f"there is no {name} on this machine")
    return name


@pytest.fixture
def host(sshd: LocalSshd) -> LocalSshd:
    """Return the host, with an empty home."""
    for entry in sshd.home.iterdir():
        subprocess.run(("chmod", "-R", "u+rwx", entry))
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return sshd


@pytest.fixture
def local_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "it's local"
    directory.mkdir()
    return directory


def explain(
    server: LocalSshd,
    task: RuntimeTask,
    working_dir: str | None = None,
    *,
    host: str | None = None,
    payloads: Path | None = None,
) -> str:
    """Return the lines that the command line prints for a task."""
    file = server.directory / "explained_task.py"
    file.write_text(f"import pickle\ntask = pickle.loads({pickle.dumps(task)!r})\n")
    options = {"--host": host or server.host, "--config": server.config_file}
    options |= {} if working_dir is None else {"--working-dir": working_dir}
    options |= {} if payloads is None else {"--write-payloads": payloads}
    words = [str(word) for option in options.items() for word in option]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert main(["explain", str(file), *words]) == 0
    return output.getvalue()


def run(shell: str, text: str, directory: Path) -> subprocess.CompletedProcess[bytes]:
    script = directory / "script"
    script.write_bytes(text.encode("utf-8"))
    return subprocess.run(
        (shell, str(script)), cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )


def execute_by_library(host: LocalSshd, task: RuntimeTask, working_dir: str | None = None) -> RuntimeTask:
    if working_dir is None:
        with Connection(host.host, **host.connection_kwargs) as connection:
            return task.copy().execute(connection)
    with Runtime(host.host, working_dir=working_dir, **host.connection_kwargs) as runtime:
        return runtime.execute_task(task.copy(), execute_async=False)


# Commands ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("working_dir", [None, '~/it\'s a "work" dir/ü'])
def test_explain_commands_print_as_by_library(
    host: LocalSshd, local_dir: Path, shell: str, working_dir: str | None
) -> None:
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

    done = run(shell, explain(host, task, working_dir), local_dir)

    expected = execute_by_library(host, task, working_dir)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == "".join(result.output.stdout for result in expected.results)
    assert done.stderr.decode() == "".join(result.output.stderr for result in expected.results)
    assert_eventually(lambda: host.connections() == 0, "the connection is closed")


def test_explain_failed_step_ends_script_with_its_status(host: LocalSshd, local_dir: Path, shell: str) -> None:
    task = RuntimeTask().run_command("echo started; exit 37").run_command("touch never")

    done = run(shell, explain(host, task), local_dir)

    with pytest.raises(TaskExecutionError):
        execute_by_library(host, task)
    assert (done.returncode, done.stdout) == (37, b"started\n")
    assert list(host.home.iterdir()) == []
    assert_eventually(lambda: host.connections() == 0, "the connection is closed after a failure, too")


def test_explain_unknown_host_prints_one_error(local_dir: Path, shell: str, host: LocalSshd) -> None:
    done = run(shell, explain(host, RuntimeTask().run_command("x"), host="no-such-host.invalid"), local_dir)

    assert done.returncode == 255
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("account", ["fish", "tcsh", "zsh", "bash"])
def test_explain_other_login_shell_prints_as_by_library(make_sshd: MakeSshd, local_dir: Path, account: str) -> None:
    if shutil.which(account) is None:
        skip_or_fail(f"there is no {account} on this machine")
    server = make_sshd(shell=account)
    task = RuntimeTask()
    for text in COMMANDS:
        task.run_command(text)
    task.send_file(write_file(local_dir / "it's! a\nfile")).get_file("it's! a\nfile", local_dir / "back").run_command(
        "echo $0"
    )

    done = run("sh", explain(server, task, "it's! a \\work dir"), local_dir)

    expected = execute_by_library(server, task, "it's! a \\work dir")
    assert (done.returncode, done.stderr.decode()) == (0, "".join(each.output.stderr for each in expected.results))
    assert done.stdout.decode() == "".join(result.output.stdout for result in expected.results)
    assert (local_dir / "back").read_text() == "content"


@pytest.mark.parametrize("shell", ["bash", "dash"], indirect=True)
def test_explain_script_on_stdin_runs(host: LocalSshd, shell: str) -> None:
    task = RuntimeTask().run_command("cat; echo 'one'").run_command("echo two")
    done = subprocess.run((shell,), input=explain(host, task).encode(), capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"one\ntwo\n")


# Files ---------------------------------------------------------------------------------------------------------------


def round_trip_task(local_dir: Path, results: Path) -> RuntimeTask:
    """Return a task that sends files and trees of all names, and fetches them under other names."""
    results.mkdir()
    task = RuntimeTask()
    for number, name in enumerate(PATHS):
        source = local_dir / "sources" / str(number)
        source.mkdir(parents=True, exist_ok=True)
        path = source / name
        if not path.exists():
            write_file(path, name.encode("utf-8", "surrogateescape").hex()).chmod(0o640)
            os.utime(path, (WHEN, WHEN))
        directory = local_dir / "trees" / str(number) / name
        if not directory.exists():
            directory.parent.mkdir(parents=True)
            make_full_tree(directory)
        if name not in {"~", "~root {a,b}"}:  # as a path on the host it is a home directory
            task.send_file(path).get_file(name, results / f"as {number}")
            task.send_file(path, f"./{number}/{name}".replace(f"/{number}", "")).run_command(
                f"mkdir 'd {number}' 'e {number}'"
            )
            task.send_file(path, f"d {number}").get_file(f"d {number}/{name}", results / f"from {number}")
        else:
            task.send_file(path).get_file(f"./{name}", results / f"as {number}").run_command(
                f"mkdir 'd {number}' 'e {number}'"
            )
        task.send_file(directory, f"e {number}").send_file(directory, f"t {number}")
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
def test_explain_transfers_copy_as_by_library(
    host: LocalSshd, local_dir: Path, shell: str, working_dir: str, tmp_path: Path
) -> None:
    found = []
    if working_dir == "temporary":
        working_dir = str(tmp_path / "lazycluster-X1y2Z3")
    for method in ("by hand", "by library"):
        results = local_dir / method
        task = round_trip_task(local_dir, results)
        if method == "by hand":
            done = run(shell, explain(host, task, working_dir), local_dir)
            assert (done.returncode, done.stdout, done.stderr.decode()) == (0, b"", "")
        else:
            execute_by_library(host, task, working_dir)
        place = Path(working_dir.replace("~", str(host.home))) if "~" in working_dir else host.home / working_dir
        found.append((describe_tree(place), describe_tree(results)))
        for directory in (place, results):
            subprocess.run(("chmod", "-R", "u+rwx", directory))
            shutil.rmtree(directory)
    by_hand, expected = ([without_times(side) for side in sides] for sides in found)
    assert by_hand == expected
    assert [path.name for path in host.home.iterdir() if path.name.startswith(".lazy")] == []


def without_times(tree: dict[str, tuple[object, ...]]) -> dict[str, tuple[object, ...]]:
    """Leave out the times of new directories, which a task has made."""
    return {
        name: (*facts[:2], None, *facts[3:]) if facts[0] == stat.S_IFDIR and not is_dated(facts) else facts
        for name, facts in tree.items()
    }


def is_dated(facts: tuple[object, ...]) -> bool:
    return isinstance(facts[2], int) and facts[2] < WHEN + 1000


@pytest.mark.parametrize("name", ["no such", "nosuch", "no such/"])
def test_explain_get_missing_file_ends_script(host: LocalSshd, local_dir: Path, shell: str, name: str) -> None:
    task = RuntimeTask().get_file(name, local_dir / "x").run_command("touch never")

    done = run(shell, explain(host, task), local_dir)

    assert done.returncode != 0
    assert list(host.home.iterdir()) == []
    assert not (local_dir / "x").exists()
    with pytest.raises(TaskExecutionError):
        execute_by_library(host, task)


# Functions -----------------------------------------------------------------------------------------------------------


def double(number: int) -> dict[str, object]:
    print("doubling in", Path.cwd().name)
    return double_of(number, os.environ.get("WORKING_DIR"))


def double_of(number: int, place: str | None) -> dict[str, object]:
    return {"doubled": 2 * number, "in": place}


def fail() -> None:
    raise KeyError("on purpose")


def test_explain_functions_print_value_and_error(host: LocalSshd, local_dir: Path, shell: str) -> None:
    task = RuntimeTask().run_function(double, 21).run_function(fail).run_command("touch never")

    done = run(shell, explain(host, task, "~/a work dir", payloads=local_dir / "it's payloads"), local_dir)

    with pytest.raises(TaskExecutionError) as caught:
        execute_by_library(host, task, "~/a work dir")
    assert done.returncode == 1
    assert done.stdout.decode() == f"{double_of(21, f'{host.home}/a work dir')}\n"
    stderr = done.stderr.decode()
    assert stderr.startswith("doubling in a work dir\n")
    assert stderr.endswith("KeyError: 'on purpose'\n")
    assert isinstance(caught.value.__cause__, KeyError)
    assert not (host.home / "a work dir" / "never").exists()


def test_explain_function_without_payload_ends_script(host: LocalSshd, local_dir: Path, shell: str) -> None:
    task = RuntimeTask().run_command("echo started").run_function(double, 21).run_command("echo never")

    done = run(shell, explain(host, task), local_dir)

    assert (done.returncode, done.stdout) == (1, b"started\n")
    assert b"--write-payloads" in done.stderr


# In a terminal -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [("bash", "--norc"), ("zsh", "-f")], ids=lambda argv: argv[0])
@pytest.mark.parametrize("bracketed", [True, False], ids=["as one paste", "as if typed"])
def test_explain_pasted_into_terminal_runs_all_lines(
    host: LocalSshd, local_dir: Path, argv: tuple[str, ...], bracketed: bool
) -> None:
    if shutil.which(argv[0]) is None:
        skip_or_fail(f"there is no {argv[0]} on this machine")
    odd = write_file(local_dir / "what! a 'fi\nle' `id` $HOME \t;x")
    task = RuntimeTask().run_command("false; echo 'it!works' > first; touch second # it's; touch oops").send_file(odd)
    task.run_command("exit 3").run_command("echo it goes on").get_file("first", local_dir / "back")
    text = explain(host, task, "work! dir")
    environment = {**os.environ, "TERM": "xterm", "HISTFILE": str(local_dir / "history"), "PS1": "% "}
    terminal = pexpect.spawn(argv[0], list(argv[1:]), cwd=str(local_dir), env=environment, timeout=30, encoding="utf-8")
    try:
        terminal.sendline("echo rea''dy")
        terminal.expect("ready")
        pasted = text.rstrip("\n")
        for piece in split_text(f"\x1b[200~{pasted}\x1b[201~" if bracketed else pasted):
            terminal.send(piece)
        terminal.sendline("")
        terminal.sendline("echo fini''shed")
        terminal.expect("finished", timeout=60)
        terminal.sendline("exit 0")
        terminal.expect(pexpect.EOF)
    finally:
        terminal.close(force=True)

    assert sorted(path.name for path in host.home.iterdir()) == ["work! dir"]
    assert sorted(path.name for path in (host.home / "work! dir").iterdir()) == sorted(["first", "second", odd.name])
    assert (local_dir / "back").read_text() == "it!works\n"
    assert sorted(path.name for path in local_dir.iterdir() if path.name != "history") == ["back", odd.name]
    assert_eventually(lambda: host.connections() == 0, "the connection is closed")


def split_text(text: str) -> list[str]:
    return re.findall(r"(?s).{1,500}", text)
