"""Recognising a prompt in the text that ssh's terminal shows."""

from __future__ import annotations

import time

import pytest

from lazycluster._ssh.prompt_text import PromptKind, classify_prompt, other_asking_host

PROMPT = "u@dest's password: "


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        (f"{PROMPT}\r\n", None),
        ("Welcome.\r\n", None),
        ("Your password: is old\r\n$ ", None),
        (f"Welcome.\r\n{PROMPT}", PromptKind.PASSWORD),
        (f"\r{PROMPT}", PromptKind.PASSWORD),
        ("u@other's password: ", PromptKind.PASSWORD_OF_ANOTHER_HOST),
        ("Please type 'yes', 'no' or the fingerprint: ", PromptKind.HOST_KEY),
        ("Are you sure you want to continue connecting (yes/no)? ", PromptKind.HOST_KEY),
        ("Enter passphrase for key 'a b': ", PromptKind.PASSPHRASE),
        ("Bad passphrase, try again for key", None),
    ],
)
def test_classify_prompt_needs_unfinished_line(text: str, expected: PromptKind | None) -> None:
    assert classify_prompt(text, {"dest"}) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PROMPT, ""),
        ("u@bastion's password: ", "bastion"),
        ("(u@bastion) Password: ", "bastion"),
        ("(u@dest) Password: ", ""),
        ("(u@bastion) Code for dest:\r\nu@DEST's password: ", "bastion"),
    ],
)
def test_other_asking_host_is_named_by_prompt(text: str, expected: str) -> None:
    assert other_asking_host(text, {"dest"}) == expected


@pytest.mark.parametrize("piece", ["a", "a@", "(a@b) ", "Enter passphrase for ", "u@dest's password", "password for "])
def test_classify_prompt_long_text_takes_linear_time(piece: str) -> None:
    started = time.process_time()
    classify_prompt(piece * 50_000, {"dest"})

    assert time.process_time() - started < 1
