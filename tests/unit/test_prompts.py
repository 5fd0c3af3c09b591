"""Logging in on a terminal, with small programs in place of ssh that prompt as it does: on /dev/tty, echo off."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pexpect
import pytest

from lazycluster._ssh.diagnosis import diagnose
from lazycluster._ssh.prompts import LoginEndReason, LoginOutcome, log_in
from lazycluster.exceptions import AuthenticationError, ConnectTimeoutError, UnknownHostKeyError
from lazycluster.testing._process_guard import kill_all
from tests.processes import child_pids, parent_by_pid
from tests.waiting import wait_until

SECRET = "correct horse é"
PROMPT = "u@dest's password: "

PRELUDE = """\
import getpass, os, signal, sys, time
directory = os.path.dirname(os.path.abspath(__file__))

def record(name, text):
    with open(os.path.join(directory, name + ".new"), "w") as file:
        file.write(str(text))
    os.rename(os.path.join(directory, name + ".new"), os.path.join(directory, name))

def ask(prompt):
    answer = getpass.getpass(prompt)
    with open(os.path.join(directory, "answers"), "a") as file:
        file.write(answer + "\\n")
    return answer

def wait():
    while True:
        time.sleep(60)

record("pid", os.getpid())
"""

Run = Callable[..., LoginOutcome]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a function that logs in with a Python program in place of ssh."""

    def run(
        body: str,
        *,
        seconds: float = 60.0,
        names: Collection[str] = ("dest",),
        password: str = SECRET,
        cancel_event: threading.Event | None = None,
    ) -> LoginOutcome:
        program = tmp_path / "ssh"
        program.write_text(f"#!{sys.executable}\n{PRELUDE}{body}", encoding="utf-8")
        program.chmod(0o700)
        deadline = time.monotonic() + seconds
        return log_in([str(program), "-f"], password, deadline=deadline, host_names=names, cancel_event=cancel_event)

    return run


@pytest.fixture
def answers(tmp_path: Path) -> Callable[[], list[str]]:
    """Return a function that returns the answers so far."""

    def answers() -> list[str]:
        file = tmp_path / "answers"
        return file.read_text(encoding="utf-8").splitlines() if file.exists() else []

    return answers


def has_ended(tmp_path: Path, name: str = "pid") -> bool:
    pid = int((tmp_path / name).read_text())
    return wait_until(lambda: pid not in parent_by_pid(), timeout=20)


# Prompts that are answered -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt",
    [
        PROMPT,
        "u@DEST's password: ",
        "a user@dest's password: ",
        "(u@dest) Password: ",
        "(u@dest) Password for u@dest: ",
        "(u@dest) Passwort: ",
        "(u@dest) 密码\uff1a",
        "(u@dest) One moment.\nPassword: ",
        "Password: ",
        "Password:",
        "Enter passphrase for key '/home/u/.ssh/id': ",
        "Enter passphrase for /home/u/.ssh/id: ",
    ],
)
def test_log_in_answers_prompt_once(run: Run, answers: Callable[[], list[str]], tmp_path: Path, prompt: str) -> None:
    outcome = run(f"ask({prompt!r}); sys.exit(3)")

    assert (outcome.end_reason, outcome.exit_code, outcome.prompt) == (LoginEndReason.EXITED, 3, "")
    assert answers() == [SECRET]
    assert SECRET not in outcome.text
    assert has_ended(tmp_path)


def test_log_in_background_process_survives_terminal(run: Run, tmp_path: Path) -> None:
    """ssh -f leaves such processes. Its helper for a jump host even stays in the session that the terminal hangs up."""
    outcome = run(
        f"""
ask({PROMPT!r})
if os.fork() == 0:
    record("helper", os.getpid())
    wait()
if os.fork() == 0:
    os.setsid()
    record("background", os.getpid())
    wait()
while not all(os.path.exists(os.path.join(directory, name)) for name in ("helper", "background")):
    time.sleep(0.005)
"""
    )

    pids = {int((tmp_path / name).read_text()) for name in ("helper", "background")}
    try:
        assert (outcome.end_reason, outcome.exit_code) == (LoginEndReason.EXITED, 0)
        assert not wait_until(lambda: not pids <= parent_by_pid().keys(), timeout=0.3)
    finally:
        kill_all(lambda: pids & parent_by_pid().keys())


def test_log_in_wrong_passphrase_tries_next_key(run: Run, answers: Callable[[], list[str]]) -> None:
    key = "Enter passphrase for key '/{}': "
    outcome = run(
        f"for prompt in ({key.format('a')!r}, {key.format('a')!r}, {key.format('b')!r}, {PROMPT!r}): ask(prompt)"
    )

    assert (outcome.end_reason, outcome.exit_code) == (LoginEndReason.EXITED, 0)
    assert answers() == [SECRET, "", SECRET, SECRET]


def test_log_in_passphrase_for_any_host_name(run: Run, answers: Callable[[], list[str]]) -> None:
    assert run("ask(\"Enter passphrase for key '/u@jump': \")", names=()).exit_code == 0
    assert answers() == [SECRET]


def test_log_in_empty_password_is_typed(run: Run, answers: Callable[[], list[str]]) -> None:
    assert run(f"ask({PROMPT!r})", password="").exit_code == 0
    assert answers() == [""]


# Prompts that are not answered ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [PROMPT, "(u@dest) Password: "])
def test_log_in_second_password_prompt_is_refusal(
    run: Run, answers: Callable[[], list[str]], tmp_path: Path, prompt: str
) -> None:
    outcome = run(f"ask({prompt!r}); print('Permission denied, please try again.'); ask({prompt!r})")

    assert (outcome.end_reason, outcome.exit_code, outcome.prompt) == (LoginEndReason.REFUSED, None, prompt.strip())
    assert answers() == [SECRET]
    assert has_ended(tmp_path)
    assert type(diagnose("dest", outcome.text, exit_code=outcome.exit_code, timed_out=True)) is AuthenticationError


@pytest.mark.parametrize(
    "prompt",
    ["u@jump's password: ", "(u@jump) Password: ", "(u@jump) Hello.\nPassword: ", "(u@jump) x\nu@dest's password: "],
)
def test_log_in_other_host_gets_no_password(
    run: Run, answers: Callable[[], list[str]], tmp_path: Path, prompt: str
) -> None:
    outcome = run(f"ask({prompt!r})")

    assert (outcome.end_reason, outcome.exit_code) == (LoginEndReason.OTHER_HOST, None)
    assert outcome.prompt == prompt.rpartition("\n")[2].strip()
    assert answers() == []
    assert has_ended(tmp_path)


def test_log_in_jump_host_prompt_names_hop(run: Run) -> None:
    outcome = run('ask("u@jump\'s password: ")')
    error = diagnose("dest", outcome.text, exit_code=outcome.exit_code, timed_out=True)

    assert (type(error), error.hop) == (AuthenticationError, "jump")


def test_log_in_host_key_is_not_accepted(run: Run, tmp_path: Path) -> None:
    outcome = run(
        """
print("The authenticity of host 'dest (192.0.2.1)' can't be established.")
print("ED25519 key fingerprint is SHA256:x.")
answer = input("Are you sure you want to continue connecting (yes/no/[fingerprint])? ")
record("accepted", answer)
"""
    )

    assert (outcome.end_reason, outcome.exit_code) == (LoginEndReason.UNKNOWN_HOST_KEY, None)
    assert not (tmp_path / "accepted").exists()
    assert has_ended(tmp_path)
    assert type(diagnose("dest", outcome.text, exit_code=outcome.exit_code)) is UnknownHostKeyError


@pytest.mark.parametrize(
    "body",
    [
        "ask('(u@dest) Verification code: ')",
        "ask('Enter PIN for ED25519-SK key /k: ')",
        # The password must not become a new one.
        "ask('(u@dest) New password: ')",
        "ask('(u@dest) You must change it.\\n(current) UNIX password: ')",
        "ask('(u@dest) You must change it.\\nCurrent password: ')",
        'ask("Enter u@dest\'s new password: ")',
        # A banner imitates the prompt: the terminal would show the password.
        f"sys.stdout.write({PROMPT!r}); sys.stdout.flush(); record('shown', input())",
    ],
)
def test_log_in_other_prompt_is_quoted_at_timeout(
    run: Run, answers: Callable[[], list[str]], tmp_path: Path, body: str
) -> None:
    outcome = run(body, seconds=3.0)

    assert (outcome.end_reason, outcome.exit_code) == (LoginEndReason.TIMED_OUT, None)
    assert outcome.prompt
    assert outcome.prompt in body
    assert answers() == []
    assert not (tmp_path / "shown").exists()
    assert has_ended(tmp_path)


def test_log_in_timeout_ends_helpers(run: Run, tmp_path: Path) -> None:
    outcome = run(
        """
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
    record("helper", os.getpid())
wait()
""",
        seconds=3.0,
    )

    assert (outcome.end_reason, outcome.exit_code, outcome.text, outcome.prompt) == (
        LoginEndReason.TIMED_OUT,
        None,
        "",
        "",
    )
    assert has_ended(tmp_path)
    assert has_ended(tmp_path, "helper")
    assert type(diagnose("dest", outcome.text, exit_code=None, timed_out=True)) is ConnectTimeoutError


def test_log_in_cancel_event_ends_ssh(run: Run, tmp_path: Path) -> None:
    cancel_event = threading.Event()

    def cancel() -> None:
        wait_until((tmp_path / "pid").exists, 20)
        cancel_event.set()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    outcome = run("wait()", seconds=1000, cancel_event=cancel_event)
    canceller.join()

    assert (outcome.end_reason, outcome.exit_code) == (LoginEndReason.TIMED_OUT, None)
    assert has_ended(tmp_path)


def test_log_in_keyboard_interrupt_at_start_ends_ssh(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children: list[pexpect.spawn] = []  # the destructor of a child would end it
    spawn, main = pexpect.spawn, threading.get_ident()

    def spawn_and_interrupt(*arguments: Any, **keywords: Any) -> pexpect.spawn:
        child = spawn(*arguments, **keywords)
        children.append(child)
        wait_until((tmp_path / "pid").exists, 20)
        signal.pthread_kill(main, signal.SIGINT)
        return child

    monkeypatch.setattr(pexpect, "spawn", spawn_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        run("wait()", seconds=60)
    assert has_ended(tmp_path)


def test_log_in_endless_output_is_ended(run: Run, tmp_path: Path) -> None:
    outcome = run(f"ask({PROMPT!r})\nwhile True: print('x' * 999)", seconds=3.0)

    assert (outcome.end_reason, outcome.exit_code) == (LoginEndReason.TIMED_OUT, None)
    assert 100_000 < len(outcome.text) < 1_000_000
    assert has_ended(tmp_path)


def test_log_in_closed_terminal_waits_for_exit(run: Run) -> None:
    assert run("os.closerange(0, 3); time.sleep(0.3); os._exit(4)").exit_code == 4


def test_log_in_closed_terminal_times_out(run: Run, tmp_path: Path) -> None:
    outcome = run("os.closerange(0, 3); wait()", seconds=1.0)

    assert (outcome.end_reason, outcome.exit_code) == (LoginEndReason.TIMED_OUT, None)
    assert has_ended(tmp_path)


# The end of ssh ------------------------------------------------------------------------------------------------------


def test_log_in_signal_is_negative_exit_code(run: Run) -> None:
    outcome = run("os.kill(os.getpid(), signal.SIGTERM)")

    assert (outcome.end_reason, outcome.exit_code) == (LoginEndReason.EXITED, -signal.SIGTERM)


def test_log_in_failure_keeps_all_text(run: Run) -> None:
    outcome = run("sys.stdout.buffer.write(b'x' * 100_000 + b'\\xff' + b'\\r\\nlast words\\r\\n'); sys.exit(255)")

    assert (outcome.end_reason, outcome.exit_code) == (LoginEndReason.EXITED, 255)
    assert outcome.text.count("x") == 100_000
    assert outcome.text.endswith("\N{REPLACEMENT CHARACTER}\r\r\nlast words\r\r\n")


def test_log_in_exit_at_prompt_is_no_error(run: Run) -> None:
    outcome = run(f"sys.stderr.write({PROMPT!r}); sys.stderr.flush(); os._exit(255)")

    assert (outcome.end_reason, outcome.exit_code) == (LoginEndReason.EXITED, 255)


def test_log_in_reaped_by_other_code_has_no_exit_code(run: Run) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel then reaps children (sigaction(2))
    try:
        outcome = run("print('Gone.')")
    finally:
        signal.signal(signal.SIGCHLD, before)

    assert (outcome.end_reason, outcome.exit_code, outcome.text) == (LoginEndReason.EXITED, None, "Gone.\r\n")


def test_log_in_missing_program_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        log_in([str(tmp_path / "ssh")], SECRET, deadline=time.monotonic() + 60, host_names=())

    assert str(tmp_path / "ssh") in str(raised.value)
    assert SECRET not in repr(raised.value)


def test_log_in_environment_never_uses_askpass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ssh"
    program.write_text('#!/bin/sh\necho "$A $SSH_ASKPASS_REQUIRE"\n')
    program.chmod(0o700)

    for env, expected in (({}, " never"), ({"A": "b", "SSH_ASKPASS_REQUIRE": "force"}, "b never")):
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        outcome = log_in([str(program)], SECRET, deadline=time.monotonic() + 60, host_names=())
        assert outcome.text == f"{expected}\r\n"


# The password is not shown -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("password", ["a\nb", "a\x03", "a\x7f", "\tb", "\udc80x"])
def test_log_in_untypeable_password_raises(tmp_path: Path, password: str) -> None:
    with pytest.raises(ValueError, match="password") as raised:
        log_in([str(tmp_path / "none")], password, deadline=0, host_names=())

    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    assert password not in str(raised.value)


def test_log_in_password_is_not_logged(run: Run, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level(logging.DEBUG)
    outcome = run(f"print('You said', ask({PROMPT!r})); record('argv', sys.argv); record('env', os.environ)")

    assert outcome.exit_code == 0
    assert "You said [password]" in outcome.text
    assert SECRET not in outcome.text + repr(outcome) + caplog.text
    assert outcome.text not in repr(outcome)
    assert "on a terminal" in caplog.text
    assert SECRET not in (tmp_path / "argv").read_text() + (tmp_path / "env").read_text(encoding="utf-8")


def test_log_in_leaves_no_descriptor(run: Run) -> None:
    directory = Path("/dev/fd")
    gc.collect()
    before = len(list(directory.iterdir()))
    for body in ("pass", f"ask({PROMPT!r}); ask({PROMPT!r})", "wait()"):
        run(body, seconds=0.5 if body == "wait()" else 60)

    assert len(list(directory.iterdir())) == before


def test_log_in_past_deadline_times_out() -> None:
    before = child_pids(os.getpid())

    assert log_in(["sleep", "60"], SECRET, deadline=0, host_names=()).end_reason is LoginEndReason.TIMED_OUT
    assert child_pids(os.getpid()) == before


def test_log_in_from_many_threads(tmp_path: Path) -> None:
    program = tmp_path / "ssh"
    program.write_text(f"#!{sys.executable}\nimport getpass, sys\nsys.exit(int(getpass.getpass({PROMPT!r})))")
    program.chmod(0o700)

    def log_in_with(number: int) -> int | None:
        return log_in([str(program)], str(number), deadline=time.monotonic() + 100, host_names=("dest",)).exit_code

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(log_in_with, range(16))) == list(range(16))


def test_log_in_ssh_gone_before_kill_is_no_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    killpg = os.killpg

    def kill_and_raise(group: int, number: int) -> None:
        killpg(group, number)
        raise ProcessLookupError

    monkeypatch.setattr(os, "killpg", kill_and_raise)
    assert run("wait()", seconds=0.5).end_reason is LoginEndReason.TIMED_OUT
