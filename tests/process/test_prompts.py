"""Logging in on a terminal, with small programs in the place of ssh that ask as it does: on /dev/tty, echo off."""

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
from lazycluster.testing import _process_guard
from tests.processes import child_pids, parent_by_pid
from tests.waiting import wait_until

SECRET = "correct horse é"
PROMPT = "u@dest's password: "

PRELUDE = """\
import getpass, os, signal, sys, time
here = os.path.dirname(os.path.abspath(__file__))

def note(name, text):
    with open(os.path.join(here, name + ".new"), "w") as file:
        file.write(str(text))
    os.rename(os.path.join(here, name + ".new"), os.path.join(here, name))

def ask(prompt):
    answer = getpass.getpass(prompt)
    with open(os.path.join(here, "answers"), "a") as file:
        file.write(answer + "\\n")
    return answer

def wait():
    while True:
        time.sleep(60)

note("pid", os.getpid())
"""

Run = Callable[..., LoginOutcome]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Log in with a program, written in Python, in the place of ssh."""

    def run(
        body: str,
        *,
        seconds: float = 10.0,
        names: Collection[str] = ("dest",),
        password: str = SECRET,
        stopping: threading.Event | None = None,
    ) -> LoginOutcome:
        program = tmp_path / "ssh"
        program.write_text(f"#!{sys.executable}\n{PRELUDE}{body}", encoding="utf-8")
        program.chmod(0o700)
        deadline = time.monotonic() + seconds
        return log_in([str(program), "-f"], password, deadline=deadline, host_names=names, cancel_event=stopping)

    return run


@pytest.fixture
def answers(tmp_path: Path) -> Callable[[], list[str]]:
    """Return what was typed."""

    def answers() -> list[str]:
        file = tmp_path / "answers"
        return file.read_text(encoding="utf-8").splitlines() if file.exists() else []

    return answers


def has_ended(tmp_path: Path, name: str = "pid") -> bool:
    pid = int((tmp_path / name).read_text())
    return wait_until(lambda: pid not in parent_by_pid(), timeout=5)


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
def test_a_prompt_is_answered_once(run: Run, answers: Callable[[], list[str]], tmp_path: Path, prompt: str) -> None:
    outcome = run(f"ask({prompt!r}); sys.exit(3)")

    assert (outcome.end_reason, outcome.exit_code, outcome.prompt) == (LoginEndReason.EXITED, 3, "")
    assert answers() == [SECRET]
    assert SECRET not in outcome.text
    assert has_ended(tmp_path)


def test_what_goes_to_the_background_lives_on_though_it_keeps_the_terminal(run: Run, tmp_path: Path) -> None:
    """As ssh -f does it; its helper for a jump host even stays in the session that the terminal hangs up."""
    begun = time.monotonic()
    outcome = run(
        f"""
ask({PROMPT!r})
if os.fork() == 0:
    note("helper", os.getpid())
    wait()
if os.fork() == 0:
    os.setsid()
    note("background", os.getpid())
    wait()
while not all(os.path.exists(os.path.join(here, name)) for name in ("helper", "background")):
    time.sleep(0.005)
"""
    )
    took = time.monotonic() - begun

    pids = {int((tmp_path / name).read_text()) for name in ("helper", "background")}
    try:
        assert (outcome.end_reason, outcome.exit_code) == (LoginEndReason.EXITED, 0)
        assert took < 5
        assert not wait_until(lambda: not pids <= parent_by_pid().keys(), timeout=0.3)
    finally:
        _process_guard.kill_all(lambda: pids & parent_by_pid().keys())


def test_a_passphrase_that_does_not_fit_lets_ssh_go_on(run: Run, answers: Callable[[], list[str]]) -> None:
    key = "Enter passphrase for key '/{}': "
    outcome = run(
        f"for prompt in ({key.format('a')!r}, {key.format('a')!r}, {key.format('b')!r}, {PROMPT!r}): ask(prompt)"
    )

    assert (outcome.end_reason, outcome.exit_code) == (LoginEndReason.EXITED, 0)
    assert answers() == [SECRET, "", SECRET, SECRET]


def test_a_passphrase_is_typed_whatever_the_hosts_are_called(run: Run, answers: Callable[[], list[str]]) -> None:
    assert run("ask(\"Enter passphrase for key '/u@jump': \")", names=()).exit_code == 0
    assert answers() == [SECRET]


def test_an_empty_password_is_one(run: Run, answers: Callable[[], list[str]]) -> None:
    assert run(f"ask({PROMPT!r})", password="").exit_code == 0
    assert answers() == [""]


# Prompts that are not ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [PROMPT, "(u@dest) Password: "])
def test_a_second_time_is_a_refusal(run: Run, answers: Callable[[], list[str]], tmp_path: Path, prompt: str) -> None:
    outcome = run(f"ask({prompt!r}); print('Permission denied, please try again.'); ask({prompt!r})")

    assert (outcome.end_reason, outcome.exit_code, outcome.prompt) == (LoginEndReason.REFUSED, None, prompt.strip())
    assert answers() == [SECRET]
    assert has_ended(tmp_path)
    assert type(diagnose("dest", outcome.text, exit_code=outcome.exit_code, timed_out=True)) is AuthenticationError


@pytest.mark.parametrize(
    "prompt",
    ["u@jump's password: ", "(u@jump) Password: ", "(u@jump) Hello.\nPassword: ", "(u@jump) x\nu@dest's password: "],
)
def test_another_host_does_not_get_the_password(
    run: Run, answers: Callable[[], list[str]], tmp_path: Path, prompt: str
) -> None:
    outcome = run(f"ask({prompt!r})")

    assert (outcome.end_reason, outcome.exit_code) == (LoginEndReason.OTHER_HOST, None)
    assert outcome.prompt == prompt.rpartition("\n")[2].strip()
    assert answers() == []
    assert has_ended(tmp_path)


def test_a_jump_host_that_asks_is_named(run: Run) -> None:
    outcome = run('ask("u@jump\'s password: ")')
    error = diagnose("dest", outcome.text, exit_code=outcome.exit_code, timed_out=True)

    assert (type(error), error.hop) == (AuthenticationError, "jump")


def test_a_host_key_is_never_accepted(run: Run, tmp_path: Path) -> None:
    outcome = run(
        """
print("The authenticity of host 'dest (192.0.2.1)' can't be established.")
print("ED25519 key fingerprint is SHA256:x.")
answer = input("Are you sure you want to continue connecting (yes/no/[fingerprint])? ")
note("accepted", answer)
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
        # What the password must not become.
        "ask('(u@dest) New password: ')",
        "ask('(u@dest) You must change it.\\n(current) UNIX password: ')",
        "ask('(u@dest) You must change it.\\nCurrent password: ')",
        'ask("Enter u@dest\'s new password: ")',
        # A terminal that would show it: a banner that plays the prompt.
        f"sys.stdout.write({PROMPT!r}); sys.stdout.flush(); note('shown', input())",
    ],
)
def test_a_prompt_for_anything_else_is_quoted_when_the_time_is_up(
    run: Run, answers: Callable[[], list[str]], tmp_path: Path, body: str
) -> None:
    begun = time.monotonic()
    outcome = run(body, seconds=1.5)

    assert time.monotonic() - begun < 5
    assert (outcome.end_reason, outcome.exit_code) == (LoginEndReason.TIMED_OUT, None)
    assert outcome.prompt
    assert outcome.prompt in body
    assert answers() == []
    assert not (tmp_path / "shown").exists()
    assert has_ended(tmp_path)


def test_silence_is_ended_with_all_its_helpers(run: Run, tmp_path: Path) -> None:
    outcome = run(
        """
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
    note("helper", os.getpid())
wait()
""",
        seconds=1.5,
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


def test_one_that_is_stopped_is_ended(run: Run, tmp_path: Path) -> None:
    stopping = threading.Event()

    def stop() -> None:
        wait_until((tmp_path / "pid").exists, 20)
        stopping.set()

    stopper = threading.Thread(target=stop)
    stopper.start()
    begun = time.monotonic()
    outcome = run("wait()", seconds=60, stopping=stopping)
    stopper.join()

    assert time.monotonic() - begun < 30
    assert (outcome.end_reason, outcome.exit_code) == (LoginEndReason.TIMED_OUT, None)
    assert has_ended(tmp_path)


def test_ctrl_c_in_the_moment_of_its_start_leaves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[pexpect.spawn] = []  # one that nobody holds is ended by its destructor
    spawn, main = pexpect.spawn, threading.get_ident()

    def interrupted(*arguments: Any, **keywords: Any) -> pexpect.spawn:
        child = spawn(*arguments, **keywords)
        made.append(child)
        wait_until((tmp_path / "pid").exists, 20)
        signal.pthread_kill(main, signal.SIGINT)
        return child

    monkeypatch.setattr(pexpect, "spawn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("wait()", seconds=60)
    assert has_ended(tmp_path)


def test_one_that_never_stops_talking_is_ended(run: Run, tmp_path: Path) -> None:
    begun = time.monotonic()
    outcome = run(f"ask({PROMPT!r})\nwhile True: print('x' * 999)", seconds=1.5)

    assert time.monotonic() - begun < 5
    assert (outcome.end_reason, outcome.exit_code) == (LoginEndReason.TIMED_OUT, None)
    assert 100_000 < len(outcome.text) < 1_000_000
    assert has_ended(tmp_path)


def test_one_that_closes_its_terminal_is_waited_for(run: Run) -> None:
    assert run("os.closerange(0, 3); time.sleep(0.3); os._exit(4)").exit_code == 4


def test_one_that_closes_its_terminal_and_stays_is_ended(run: Run, tmp_path: Path) -> None:
    outcome = run("os.closerange(0, 3); wait()", seconds=1.0)

    assert (outcome.end_reason, outcome.exit_code) == (LoginEndReason.TIMED_OUT, None)
    assert has_ended(tmp_path)


# How it ends ---------------------------------------------------------------------------------------------------------


def test_a_death_by_a_signal_is_told_apart(run: Run) -> None:
    outcome = run("os.kill(os.getpid(), signal.SIGTERM)")

    assert (outcome.end_reason, outcome.exit_code) == (LoginEndReason.EXITED, -signal.SIGTERM)


def test_a_failure_is_told_with_all_that_was_said(run: Run) -> None:
    outcome = run("sys.stdout.buffer.write(b'x' * 100_000 + b'\\xff' + b'\\r\\nlast words\\r\\n'); sys.exit(255)")

    assert (outcome.end_reason, outcome.exit_code) == (LoginEndReason.EXITED, 255)
    assert outcome.text.count("x") == 100_000
    assert outcome.text.endswith("\N{REPLACEMENT CHARACTER}\r\r\nlast words\r\r\n")


def test_one_that_dies_at_its_prompt_is_no_error(run: Run) -> None:
    outcome = run(f"sys.stderr.write({PROMPT!r}); sys.stderr.flush(); os._exit(255)")

    assert (outcome.end_reason, outcome.exit_code) == (LoginEndReason.EXITED, 255)


def test_a_process_that_somebody_else_waited_for_has_ended_with_no_status(run: Run) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel then does the waiting
    try:
        outcome = run("print('Gone.')")
    finally:
        signal.signal(signal.SIGCHLD, before)

    assert (outcome.end_reason, outcome.exit_code, outcome.text) == (LoginEndReason.EXITED, None, "Gone.\r\n")


def test_a_program_that_is_not_there_cannot_be_started(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        log_in([str(tmp_path / "ssh")], SECRET, deadline=time.monotonic() + 5, host_names=())

    assert str(tmp_path / "ssh") in str(raised.value)
    assert SECRET not in repr(raised.value)


def test_the_environment_is_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ssh"
    program.write_text('#!/bin/sh\necho "$A $SSH_ASKPASS_REQUIRE"\n')
    program.chmod(0o700)

    for env, expected in (({}, " never"), ({"A": "b", "SSH_ASKPASS_REQUIRE": "force"}, "b never")):
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        outcome = log_in([str(program)], SECRET, deadline=time.monotonic() + 5, host_names=())
        assert outcome.text == f"{expected}\r\n"


# The password is nowhere ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("password", ["a\nb", "a\x03", "a\x7f", "\tb", "\udc80x"])
def test_what_cannot_be_typed_is_refused_before_anything_runs(tmp_path: Path, password: str) -> None:
    with pytest.raises(ValueError, match="password must") as raised:
        log_in([str(tmp_path / "none")], password, deadline=0, host_names=())

    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    assert password not in str(raised.value)


def test_the_password_is_in_no_log_and_no_record(run: Run, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level(logging.DEBUG)
    outcome = run(f"print('You said', ask({PROMPT!r})); note('argv', sys.argv); note('env', os.environ)")

    assert outcome.exit_code == 0
    assert "You said [password]" in outcome.text
    assert SECRET not in outcome.text + repr(outcome) + caplog.text
    assert outcome.text not in repr(outcome)
    assert "on a terminal" in caplog.text
    assert SECRET not in (tmp_path / "argv").read_text() + (tmp_path / "env").read_text(encoding="utf-8")


def test_no_descriptor_is_left_open(run: Run) -> None:
    directory = Path("/dev/fd")
    gc.collect()
    before = len(list(directory.iterdir()))
    for body in ("pass", f"ask({PROMPT!r}); ask({PROMPT!r})", "wait()"):
        run(body, seconds=0.5 if body == "wait()" else 10)

    assert len(list(directory.iterdir())) == before


def test_a_deadline_in_the_past_ends_it_at_once() -> None:
    before = child_pids(os.getpid())
    begun = time.monotonic()

    assert log_in(["sleep", "60"], SECRET, deadline=0, host_names=()).end_reason is LoginEndReason.TIMED_OUT
    assert time.monotonic() - begun < 5
    assert child_pids(os.getpid()) == before


def test_many_log_ins_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    program = tmp_path / "ssh"
    program.write_text(f"#!{sys.executable}\nimport getpass, sys\nsys.exit(int(getpass.getpass({PROMPT!r})))")
    program.chmod(0o700)

    def one(number: int) -> int | None:
        return log_in([str(program)], str(number), deadline=time.monotonic() + 30, host_names=("dest",)).exit_code

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(16))) == list(range(16))


def test_a_process_that_goes_while_it_is_ended_is_no_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.killpg

    def kill_twice(group: int, number: int) -> None:
        real(group, number)
        raise ProcessLookupError

    monkeypatch.setattr(os, "killpg", kill_twice)
    assert run("wait()", seconds=0.5).end_reason is LoginEndReason.TIMED_OUT
