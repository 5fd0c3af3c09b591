"""Prompts that a person answers, with small programs in place of ssh that prompt as it does."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lazycluster._ssh.prompts import AskUser, InteractiveOutcome, run_interactive
from tests.processes import parent_by_pid
from tests.waiting import wait_until

HOST_KEY = """\
sys.stdout.write("The authenticity of host '[h]:22 ([1.2.3.4]:22)' can't be established.\\n"
    "ED25519 key fingerprint is SHA256:abc.\\n"
    "Are you sure you want to continue connecting (yes/no/[fingerprint])? ")
sys.stdout.flush()
answer = sys.stdin.readline().strip()
while answer not in ("yes", "no"):
    sys.stdout.write("Please type 'yes', 'no' or the fingerprint: ")
    sys.stdout.flush()
    answer = sys.stdin.readline().strip()
print("Warning: Permanently added 'h'." if answer == "yes" else "Host key verification failed.")
if answer == "no":
    sys.exit(255)
"""

Run = Callable[..., InteractiveOutcome]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a function that lets a person answer the prompts of a Python program."""

    def run(
        body: str, ask: AskUser, *, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> InteractiveOutcome:
        program = tmp_path / "program"
        prelude = "import getpass, os, signal, subprocess, sys, time\ndirectory = os.path.dirname(__file__)\n"
        program.write_text(f"#!{sys.executable}\n{prelude}{body}", encoding="utf-8")
        program.chmod(0o700)
        return run_interactive([str(program)], ask, timeout=seconds, clock=clock)

    return run


class Person:
    """Gives answers one after the other, and records the questions."""

    def __init__(self, *answers: str | None) -> None:
        self._answers = list(answers)
        self.questions: list[tuple[str, bool]] = []

    def __call__(self, text: str, secret: bool) -> str | None:
        self.questions.append((text, secret))
        return self._answers.pop(0)


def test_interactive_host_key_answer_is_typed(run: Run) -> None:
    person = Person("maybe", "yes", "s3cret")
    ended = run(HOST_KEY + "print('[' + getpass.getpass(\"u@h's password: \") + ']')", person)

    assert (ended.exit_code, ended.unanswered_prompt) == (0, "")
    first, second, third = person.questions
    assert first[0].splitlines() == [
        "The authenticity of host '[h]:22 ([1.2.3.4]:22)' can't be established.",
        "ED25519 key fingerprint is SHA256:abc.",
        "Are you sure you want to continue connecting (yes/no/[fingerprint])?",
    ]
    assert second[0] == "Please type 'yes', 'no' or the fingerprint:"
    assert third[0] == "Warning: Permanently added 'h'.\nu@h's password:"
    assert [secret for _, secret in person.questions] == [False, False, True]
    assert "s3cret" not in ended.text
    assert "[[password]]" in ended.text


def test_interactive_no_is_typed(run: Run) -> None:
    ended = run(HOST_KEY, Person("no"))

    assert ended.exit_code == 255
    assert ended.text.endswith("Host key verification failed.\r\n")


def test_interactive_refused_password_is_asked_again(run: Run) -> None:
    body = """
for _ in range(2):
    getpass.getpass("u@h's password: ")
    print("Permission denied, please try again.")
sys.exit(5)
"""
    person = Person("wrong", "also wrong")

    assert run(body, person).exit_code == 5
    assert [text for text, _ in person.questions] == [
        "u@h's password:",
        "Permission denied, please try again.\nu@h's password:",
    ]


@pytest.mark.parametrize("prompt", ["(u@h) Verification code: ", "Enter passphrase for key '/k': ", "PIN? "])
def test_interactive_prompt_without_echo_is_secret(run: Run, prompt: str) -> None:
    person = Person("123456")
    ended = run(f"sys.exit(getpass.getpass({prompt!r}) != '123456')", person)

    assert ended.exit_code == 0
    assert person.questions == [(prompt.strip(), True)]


def test_interactive_prompt_with_echo_is_not_answered(run: Run) -> None:
    body = 'sys.stdout.write("u@h\'s password: "); sys.stdout.flush(); time.sleep(1.5); print()'

    assert run(body, Person()).exit_code == 0


def test_interactive_prompt_has_no_escape_sequences(run: Run) -> None:
    person = Person("x")
    run("getpass.getpass('\\x1b[2Jhello\\x07 (u@h) Password: ')", person)

    assert "\x1b" not in person.questions[0][0]
    assert "\x07" not in person.questions[0][0]


def test_interactive_no_answer_ends_program(run: Run, tmp_path: Path) -> None:
    ended = run("open(directory + '/pid', 'w').write(str(os.getpid()))\n" + HOST_KEY, Person(None))

    assert ended.exit_code is None
    assert ended.unanswered_prompt.startswith("Are you sure")
    pid = int((tmp_path / "pid").read_text())
    assert wait_until(lambda: pid not in parent_by_pid(), timeout=20)


def test_interactive_ended_program_may_clean_up(run: Run, tmp_path: Path) -> None:
    body = """
def clean(*_):
    open(directory + "/cleaned", "w")
    sys.exit(1)
signal.signal(signal.SIGTERM, clean)
getpass.getpass("u@h's password: ")
"""
    run(body, Person(None))

    assert (tmp_path / "cleaned").exists()


def test_interactive_stubborn_program_is_killed(run: Run, tmp_path: Path) -> None:
    body = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "60"])
open(directory + "/pids", "w").write(f"{os.getpid()} {child.pid}")
getpass.getpass("u@h's password: ")
"""
    run(body, Person(None))

    pids = {int(pid) for pid in (tmp_path / "pids").read_text().split()}
    assert wait_until(lambda: not pids & set(parent_by_pid()), timeout=20)


def test_interactive_time_of_person_does_not_count(run: Run) -> None:
    clock_offset = 0.0

    def answer_slowly(text: str, secret: bool) -> str:
        nonlocal clock_offset
        clock_offset += 1000
        return "yes"

    ended = run(HOST_KEY, answer_slowly, clock=lambda: time.monotonic() + clock_offset)
    assert ended.exit_code == 0


def test_interactive_timeout_ends_program(run: Run) -> None:
    ended = run("time.sleep(1000)", Person(), seconds=0.5)

    assert (ended.exit_code, ended.unanswered_prompt) == (None, "")


def test_interactive_keyboard_interrupt_ends_program(run: Run, tmp_path: Path) -> None:
    def interrupt(text: str, secret: bool) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("open(directory + '/pid', 'w').write(str(os.getpid()))\n" + HOST_KEY, interrupt)
    pid = int((tmp_path / "pid").read_text())
    assert wait_until(lambda: pid not in parent_by_pid(), timeout=20)


@pytest.mark.parametrize("secret", ["line\nbreak", "\x03", "\ud800"])
def test_interactive_untypeable_secret_raises(run: Run, secret: str) -> None:
    with pytest.raises(ValueError, match="password") as caught:
        run('getpass.getpass("u@h\'s password: ")', Person(secret))

    assert secret not in str(caught.value)


def test_interactive_program_ends_at_answer_is_no_error(run: Run, tmp_path: Path) -> None:
    def answer_after_kill(text: str, secret: bool) -> str:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        return "too late"

    ended = run(
        "open(directory + '/pid', 'w').write(str(os.getpid()))\ngetpass.getpass(\"u@h's password: \")",
        answer_after_kill,
    )
    assert ended.exit_code == -signal.SIGKILL


def test_interactive_secrets_are_not_logged(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    ended = run('print(getpass.getpass("u@h\'s password: "))', Person("s3cret"))

    assert "s3cret" not in caplog.text + repr(ended) + ended.text


def test_interactive_missing_program_raises() -> None:
    with pytest.raises(FileNotFoundError):
        run_interactive(["/nonexistent/ssh-copy-id"], Person(), timeout=1)
