"""`lazycluster add-runtime` and `lazycluster delete-runtime`."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import click

from lazycluster._cli.first_connection import has_terminal, try_connection
from lazycluster._cli.options import (
    CONFIG_VARIABLE,
    ConfigOption,
    complete_hosts,
    connect_timeout_option,
    parse_callback,
)
from lazycluster._model.checks import absolute_path, check_port
from lazycluster._ssh.config_edit import HostSettings, add_host, hosts_file, quote_value, remove_host
from lazycluster._ssh.config_hosts import default_config
from lazycluster._ssh.destination import Destination

_OPTION_KEYWORD = re.compile(r"[A-Za-z][A-Za-z0-9]*")
_REPEATABLE_KEYWORDS = {
    "identityfile",
    "certificatefile",
    "localforward",
    "remoteforward",
    "dynamicforward",
    "sendenv",
    "include",
}
"""Keywords that add up if they are given several times (ssh_config(5))."""


# Arguments ------------------------------------------------------------------------------------------------------------


def parse_options(texts: Sequence[str]) -> HostSettings:
    """Read several options; see `parse_option()`."""
    return tuple(map(parse_option, texts))


def parse_name(text: str) -> str:
    """Read the name of a host for a Host line.

    Raises:
        ValueError: If the text is not a name; it may be a pattern.
    """
    wrong = _disallowed_characters(text, "._-:+")
    if wrong:
        raise ValueError(f"name must not contain {wrong}, got {text!r}")
    return Destination(text).host


def parse_address(text: str) -> Destination:
    """Read `[USER@]HOST[:PORT]`; an IPv6 address with a port is in brackets.

    Raises:
        ValueError: If the text is not an address.
    """
    user, at, rest = text.rpartition("@")
    host, colon, port = rest.partition(":")
    if rest.startswith("["):
        host, bracket, after = rest[1:].partition("]")
        colon, port = after[:1], after[1:]
        if not bracket or colon not in {"", ":"}:
            raise ValueError(f"an IPv6 address with a port must be [ADDRESS]:PORT, got {rest!r}")
    elif ":" in port:
        host, colon, port = rest, "", ""
    if at and not user:
        raise ValueError(f"user must not be empty, got {text!r}")
    if colon and not (port.isascii() and port.isdecimal()):
        raise ValueError(f"port must be a whole number from 1 to 65535, got {port!r}")
    wrong = _disallowed_characters(host, "._-:%")
    if wrong:
        raise ValueError(f"host must be a name or an address without {wrong}, got {host!r}")
    return Destination(host, user=user or None, port=check_port(int(port)) if colon else None)


def _disallowed_characters(text: str, allowed: str) -> str:
    """Return in words the characters of a text that are neither letters, nor digits, nor allowed."""
    wrong = sorted({char for char in text if not char.isalnum() and char not in allowed})
    return ", ".join("spaces" if char == " " else repr(char) for char in wrong)


def parse_option(text: str) -> tuple[str, str]:
    """Read `KEYWORD=VALUE`. The value is written as in a configuration; only ssh judges its meaning.

    Raises:
        ValueError: If the text is not an option, or would begin another block.
    """
    keyword, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not value or not _OPTION_KEYWORD.fullmatch(keyword):
        raise ValueError(f"option must be KEYWORD=VALUE, got {text!r}")
    if keyword.lower() in {"host", "match"}:
        raise ValueError(f"option must not begin another block, got {text!r}")
    if any(not char.isprintable() and char != "\t" for char in value):
        raise ValueError(f"value of {keyword} must be one line without control characters, got {value!r}")
    return keyword, value


def build_settings(address: Destination, id_file: Path | None, options: HostSettings) -> HostSettings:
    """Return the lines of a block.

    Raises:
        ValueError: If a keyword is given twice; ssh would take the first.
    """
    settings = [("HostName", address.host.replace("%", "%%"))]
    if address.port is not None:
        settings.append(("Port", str(address.port)))
    if address.user is not None:
        settings.append(("User", quote_value(address.user)))
    for keyword, _ in options:
        if keyword.lower() in {written.lower() for written, _ in settings}:
            raise ValueError(f"{keyword} is given twice: as an option, and in the address")
    keywords = [keyword.lower() for keyword, _ in options]
    duplicates = sorted({keyword for keyword in keywords if keywords.count(keyword) > 1} - _REPEATABLE_KEYWORDS)
    if duplicates:
        raise ValueError(f"options contain duplicates, of which ssh would take the first: {', '.join(duplicates)}")
    if id_file is not None:
        settings.append(("IdentityFile", quote_value(str(id_file).replace("%", "%%"))))
    return (*settings, *options)


# The commands ---------------------------------------------------------------------------------------------------------

_config_option = click.option(
    "--config",
    cls=ConfigOption,
    envvar=CONFIG_VARIABLE,
    show_envvar=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Change this ssh configuration in place of ~/.ssh/config.",
)


@click.command(short_help="Add a host to the ssh configuration.")
@click.argument("name", callback=parse_callback(parse_name))
@click.argument("address", callback=parse_callback(parse_address), metavar="[USER@]HOST[:PORT]")
@click.option("--id-file", type=click.Path(path_type=Path), metavar="FILE", help="The private key to log in with.")
@click.option(
    "--option",
    "options",
    callback=parse_callback(parse_options),
    multiple=True,
    metavar="K=V",
    help="One more keyword of ssh_config(5) with its value; may be repeated.",
)
@_config_option
@click.option(
    "--force",
    is_flag=True,
    help="Replace the host, or add it even if another line names it.",
)
@click.option("--try/--no-try", "attempt", default=None, help="Try the connection. On a terminal you are asked.")
@click.option(
    "--copy-key/--no-copy-key",
    default=None,
    help="Install your public key there (ssh-copy-id). On a terminal you are asked if it is missing.",
)
@connect_timeout_option
def add_runtime(
    name: str,
    address: Destination,
    id_file: Path | None,
    options: HostSettings,
    config: Path | None,
    force: bool,
    attempt: bool | None,
    copy_key: bool | None,
    connect_timeout: float,
) -> None:
    """Add a host to the ssh configuration, under a name of your choice.

    The host goes into a file beside the configuration, such as ~/.ssh/config.lazycluster. The configuration includes
    that file by a line at its top, which is written once; a copy without the line is kept. If ssh does not accept the
    result, both are as they were before.

    \b
    Examples:
      lazycluster add-runtime gpu1 me@gpu1.example.org
      lazycluster add-runtime gpu1 me@gpu1.example.org:2222 --id-file ~/.ssh/id_work --force
      lazycluster add-runtime lab [2001:db8::7]:22 --option ProxyJump=bastion --option ForwardAgent=yes
      lazycluster add-runtime gpu2 me@10.0.0.2 --copy-key --try
    """  # noqa: D301 - \b keeps click from wrapping what follows
    path = default_config() if config is None else absolute_path(config)
    key = None if id_file is None else _private_key_path(id_file)
    try:
        added = add_host(path, name, build_settings(address, key, options), force=force)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(f"{'Replaced' if added.replaced else 'Added'} {name} in {hosts_file(path)}.")
    if added.backup is not None:
        click.echo(f"{path} includes that file now. The configuration as it was: {added.backup}")
    to = Destination(name, config_file=None if path == default_config() else path, connect_timeout=connect_timeout)
    try_connection(to, key, attempt=attempt, copy_key=copy_key, interactive=has_terminal())


@click.command(short_help="Remove a host that add-runtime added.")
@click.argument("name", callback=parse_callback(parse_name), shell_complete=complete_hosts)
@_config_option
def delete_runtime(name: str, config: Path | None) -> None:
    """Remove a host that add-runtime added to the ssh configuration.

    Other lines that name the host are reported and stay as they are.

    \b
    Examples:
      lazycluster delete-runtime gpu1
      lazycluster delete-runtime gpu1 --config cluster/ssh_config
    """  # noqa: D301 - as above
    path = default_config() if config is None else absolute_path(config)
    lines = remove_host(path, name)
    click.echo(f"Removed {name} from {hosts_file(path)}.")
    for line in lines:
        click.echo(f"{line}, still names {name}.")


def _private_key_path(id_file: Path) -> Path:
    """Return the absolute path of a private key, also if its public half is given.

    A private key that only an agent or a card has is no file; then the path is that of its public half.
    """
    given = absolute_path(id_file)
    private = given.with_name(given.name.removesuffix(".pub"))
    if not any(os.path.isfile(path) for path in (given, private, f"{private}.pub")):  # noqa: PTH113 - never raises
        raise click.BadParameter(f"no such file: {given}", param_hint="--id-file")
    return private if os.path.isfile(private) else given  # noqa: PTH113
