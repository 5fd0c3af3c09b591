"""The first contact with a host: try the connection, install the key, and have the user answer ssh's questions."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import click

from lazycluster._display import is_terminal
from lazycluster._ssh.argv import copy_key_argv, login_attempt_argv
from lazycluster._ssh.destination import Destination
from lazycluster.connection import Connection
from lazycluster.exceptions import AuthenticationError, LazyclusterError, UnknownHostKeyError, indented_tail

_MAX_SSH_COPY_ID_LOGINS = 4
"""The most log-ins of ssh-copy-id: to see the version, to try the key, and to install it; one is to spare."""


@attrs.frozen(slots=False)
class KeyNotInstalledError(LazyclusterError):
    """ssh-copy-id did not install a public key."""

    host: str
    reason: str
    advice: str
    output: str = attrs.field(default="", repr=False)

    def __str__(self) -> str:
        return (
            f"{self.host}: the public key was not installed ({self.reason}). {self.advice}{indented_tail(self.output)}"
        )


def has_terminal() -> bool:
    """Return whether a user at a terminal can answer questions."""
    return is_terminal(sys.stdin) and is_terminal(sys.stderr)


def run_true(destination: Destination) -> None:
    """Log in as a runtime does, and run `true`."""
    with Connection(
        destination.host, config_file=destination.config_file, connect_timeout=destination.connect_timeout
    ) as connection:
        connection.run("true")


def try_connection(
    destination: Destination,
    key: Path | None,
    *,
    attempt: bool | None,
    copy_key: bool | None,
    interactive: bool,
    log_in: Callable[[Destination], None] = run_true,
) -> None:
    """Try the connection and install the public key, as far as the user wants that.

    Args:
        destination: The host.
        key: The private key whose public half is installed; None: the one that ssh-copy-id finds.
        attempt: Whether to try the connection; None: ask.
        copy_key: Whether to install the public key; None: ask, if the host refuses the user.
        interactive: Whether the user can be asked.
        log_in: Called for each attempt.
    """
    if copy_key:
        _install_key(destination, key, interactive=interactive)
    elif attempt is None:
        attempt = interactive and click.confirm("Try the connection now?", default=True, err=True)
    if not attempt and not (copy_key and attempt is None):
        return
    try:
        _log_in(destination, log_in, interactive=interactive)
    except AuthenticationError as error:
        if copy_key is not None or not interactive:
            raise
        click.echo(str(error), err=True)
        if not click.confirm("Install your public key there (ssh-copy-id)?", default=True, err=True):
            raise
        _install_key(destination, key, interactive=interactive)
        _log_in(destination, log_in, interactive=interactive)
    click.echo(f"{destination.host} can be reached.")


def _log_in(destination: Destination, log_in: Callable[[Destination], None], *, interactive: bool) -> None:
    """Log in; the question whether to trust a host key is left to the user."""
    try:
        log_in(destination)
    except UnknownHostKeyError:
        if not interactive:
            raise
        from lazycluster._ssh.prompts import run_interactive  # noqa: PLC0415 - pexpect is needed by few

        run_interactive(
            login_attempt_argv(destination, batch=False), _prompt_unless_secret, timeout=destination.connect_timeout
        )
        log_in(destination)


def _install_key(destination: Destination, key: Path | None, *, interactive: bool) -> None:
    """Have ssh-copy-id install the public key; its questions go to the user.

    Raises:
        KeyNotInstalledError: If it did not install the key.
    """
    from lazycluster._ssh.prompts import run_interactive  # noqa: PLC0415 - as above

    private = None if key is None else key.with_name(key.name.removesuffix(".pub"))
    argv = copy_key_argv(attrs.evolve(destination, identity_file=private))
    ask = _prompt_user if interactive else _never_answer
    try:
        ended = run_interactive(argv, ask, timeout=_MAX_SSH_COPY_ID_LOGINS * destination.connect_timeout)
    except FileNotFoundError as error:
        advice = "Install it (Debian and Ubuntu: openssh-client)."
        raise KeyNotInstalledError(destination.host, "there is no ssh-copy-id", advice) from error
    except ValueError as error:
        raise KeyNotInstalledError(destination.host, str(error), "Try again.") from error
    if ended.exit_code == 0:
        already_installed = "already exist on the remote system" in ended.text
        click.echo(
            f"Your public key {'was there already' if already_installed else 'is installed'} on {destination.host}."
        )
        return
    advice = f"Try `ssh-copy-id {destination.host}` in a terminal."
    if ended.unanswered_prompt:
        reason = f"no answer was given to {ended.unanswered_prompt!r}"
    elif ended.exit_code is None:
        reason = "no answer in time"
    else:
        reason = f"ssh-copy-id ended with {ended.exit_code}"
        if "No identities found" in ended.text:
            advice = "You have no key: make one with `ssh-keygen -t ed25519`."
    raise KeyNotInstalledError(destination.host, reason, advice, ended.text.replace("\r", ""))


def _prompt_user(text: str, secret: bool) -> str | None:
    """Put a question of ssh to the user, with the lines above it."""
    *above, question = text.split("\n")
    for line in above:
        click.echo(line, err=True)
    answer: str = click.prompt(question, default="", show_default=False, hide_input=secret, prompt_suffix=" ", err=True)
    return answer


def _prompt_unless_secret(text: str, secret: bool) -> str | None:
    """Do the same except for secrets: without them the log-in that follows shows what is missing."""
    return None if secret else _prompt_user(text, secret)


def _never_answer(text: str, secret: bool) -> str | None:  # noqa: ARG001 - the signature of `_prompt_user`
    return None
