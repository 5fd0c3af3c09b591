"""The first contact with a host: try the connection, install the key, and have the user answer what ssh asks."""

from __future__ import annotations

import sys
from pathlib import Path

import attrs
import click

from lazycluster._ssh.argv import attempt_argv, copy_key_argv
from lazycluster._ssh.destination import Destination
from lazycluster.connection import Connection
from lazycluster.exceptions import AuthenticationError, LazyclusterError, UnknownHostKeyError, indented

_LOG_INS = 4
"""How often ssh-copy-id logs in, at most: to see the version, with the key, to install it; one is to spare."""


@attrs.frozen(slots=False)
class KeyNotInstalledError(LazyclusterError):
    """ssh-copy-id did not install a public key."""

    host: str
    reason: str
    advice: str
    output: str = attrs.field(default="", repr=False)

    def __str__(self) -> str:
        return f"{self.host}: the public key was not installed ({self.reason}). {self.advice}{indented(self.output)}"


def make_contact(to: Destination, key: Path | None, *, attempt: bool | None, copy_key: bool | None) -> None:
    """Try the connection and install the public key, as far as the user wants that."""
    if copy_key:
        _install_key(to, key)
    elif attempt is None:
        attempt = _at_terminal() and click.confirm("Try the connection now?", default=True, err=True)
    if not attempt and not (copy_key and attempt is None):
        return
    try:
        _reach(to)
    except AuthenticationError as error:
        if copy_key is not None or not _at_terminal():
            raise
        click.echo(str(error), err=True)
        if not click.confirm("Install your public key there (ssh-copy-id)?", default=True, err=True):
            raise
        _install_key(to, key)
        _reach(to)
    click.echo(f"{to.host} can be reached.")


def _at_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _reach(to: Destination) -> None:
    """Log in as a runtime does; the question whether to trust a host key is left to the user."""
    try:
        _dial(to)
    except UnknownHostKeyError:
        if not _at_terminal():
            raise
        from lazycluster._ssh.prompts import converse  # noqa: PLC0415 - pexpect is needed by few

        converse(attempt_argv(to, batch=False), _ask_openly, seconds=to.connect_timeout)
        _dial(to)


def _dial(to: Destination) -> None:
    with Connection(to.host, config_file=to.config_file, connect_timeout=to.connect_timeout) as connection:
        connection.run("true")


def _install_key(to: Destination, key: Path | None) -> None:
    """Have ssh-copy-id install the public key; whatever it asks, the user is asked.

    Raises:
        KeyNotInstalledError: It did not.
    """
    from lazycluster._ssh.prompts import converse  # noqa: PLC0415 - as above

    private = None if key is None else key.with_name(key.name.removesuffix(".pub"))
    argv = copy_key_argv(attrs.evolve(to, identity_file=private))
    ask = _ask if _at_terminal() else _ask_nobody
    try:
        ended = converse(argv, ask, seconds=_LOG_INS * to.connect_timeout)
    except FileNotFoundError as error:
        advice = "Install it (Debian and Ubuntu: openssh-client)."
        raise KeyNotInstalledError(to.host, "there is no ssh-copy-id", advice) from error
    except ValueError as error:
        raise KeyNotInstalledError(to.host, str(error), "Try again.") from error
    if ended.status == 0:
        there = "already exist on the remote system" in ended.text
        click.echo(f"Your public key {'was there already' if there else 'is installed'} on {to.host}.")
        return
    advice = f"Try `ssh-copy-id {to.host}` in a terminal."
    if ended.unanswered:
        reason = f"nobody answered {ended.unanswered!r}"
    elif ended.status is None:
        reason = "no answer in time"
    else:
        reason = f"ssh-copy-id ended with {ended.status}"
        if "No identities found" in ended.text:
            advice = "You have no key: make one with `ssh-keygen -t ed25519`."
    raise KeyNotInstalledError(to.host, reason, advice, ended.text.replace("\r", ""))


def _ask(text: str, secret: bool) -> str | None:
    """Put a question of ssh to the user, with the lines above it."""
    *above, question = text.split("\n")
    for line in above:
        click.echo(line, err=True)
    answer: str = click.prompt(question, default="", show_default=False, hide_input=secret, prompt_suffix=" ", err=True)
    return answer


def _ask_openly(text: str, secret: bool) -> str | None:
    """Do the same, but not for secrets: without them the log-in that follows tells what is missing."""
    return None if secret else _ask(text, secret)


def _ask_nobody(text: str, secret: bool) -> str | None:  # noqa: ARG001 - the signature is that of a question
    return None
