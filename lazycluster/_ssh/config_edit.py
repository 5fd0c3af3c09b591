"""Add hosts to an ssh configuration and remove them, in a file of lazycluster's own that the configuration includes.

The configuration itself gets one line, once, and every other byte of it stays. The line is the first one, because ssh
takes the first value that it finds.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import attrs

from lazycluster._processes.run import run_and_capture
from lazycluster._ssh.argv import config_file_argv
from lazycluster._ssh.config import EffectiveConfig, HostLine, parse_config_line, parse_effective_config
from lazycluster._ssh.config_file import (
    ConfigFileError,
    back_up,
    locked_directory,
    os_errors_explained,
    read_config_text,
    replace_config,
)
from lazycluster._ssh.config_hosts import default_config, lines_naming_host

HostSettings = Sequence[tuple[str, str]]
"""Keywords and values of a block, the values as they are written in a file, with their quotes."""

_HEADER = (
    "# `lazycluster add-runtime` and `lazycluster delete-runtime` write this file.\n"
    "# A comment belongs to the host above it.\n"
)
_UNQUOTED_VALUE = re.compile(r"[\w./@%+~:,-]+")
_INCLUDE_METACHARACTERS = frozenset("*?[]\\%$\"'")
"""Characters that Include does not take literally: glob(7), quotes, and the tokens and variables of newer versions."""


@attrs.frozen
class AddedHost:
    """The result of `add_host()`.

    Attributes:
        replaced: Whether this entry replaced one that was added before.
        backup: A copy of the configuration, if it existed and got the line that includes the file.
    """

    replaced: bool
    backup: Path | None = None


def hosts_file(config: Path) -> Path:
    """Return the file with the hosts that were added to a configuration."""
    return config.with_name(f"{config.name}.lazycluster")


def include_line(config: Path) -> str:
    """Return the line with which a configuration includes that file.

    Raises:
        ValueError: If Include cannot name the file.
    """
    file = hosts_file(config)
    if config == default_config():
        return f"Include {file.name}"  # a relative path starts in ~/.ssh (ssh_config(5))
    if _INCLUDE_METACHARACTERS & {*str(file)}:
        raise ValueError(f"config must be a path without * ? [ ] \\ % $ and quotes, got {str(config)!r}")
    return f"Include {quote_value(str(file))}"


def quote_value(text: str) -> str:
    """Return a value as one word of a configuration.

    Raises:
        ValueError: If the value has control characters.
    """
    if not text.isprintable():
        raise ValueError(f"value must be one line without control characters, got {text!r}")
    if _UNQUOTED_VALUE.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def add_host(
    config: Path, name: str, settings: HostSettings, *, force: bool = False, check_timeout: float = 15.0
) -> AddedHost:
    """Add a host to a configuration, or replace the host of that name that was added before.

    Args:
        config: The configuration; it need not exist.
        name: The name for the Host line, without wildcards.
        settings: The lines after the Host line.
        force: Whether to add the host even if a line names it already.
        check_timeout: Seconds for each `ssh -G`, in which a `Match exec` may run and names may be resolved.

    Raises:
        ConfigFileError: If the name is taken, a file cannot be written, or ssh does not take the settings. The files
            are as they were.
        ValueError: If Include cannot name the file with the hosts.
    """
    include, hosts = include_line(config), hosts_file(config)
    block = f"Host {name}\n" + "".join(f"    {keyword} {value}\n" for keyword, value in settings)
    wanted = _settings_of_block(block, config, name, check_timeout)
    if config.exists():
        refused = ConfigFileError(config, "ssh does not accept it as it is now", "Repair it first.")
        _settings_in(config, name, refused, check_timeout)
    with os_errors_explained(hosts), locked_directory(hosts), contextlib.ExitStack() as undo:
        lines = lines_naming_host(name, config)
        if lines and not force:
            advice = "Choose another name, or use --force: ssh then takes the new entry first."
            raise ConfigFileError(hosts, f"{lines[0]}, names {name} already", advice)
        before = read_config_text(hosts)
        others = _without_host(before or _HEADER, name)
        replace_config(hosts, before, f"{others.rstrip()}\n\n{block}", undo)
        backup = None
        if not any(line.file.samefile(hosts) for line in lines_naming_host(name, config)):
            with os_errors_explained(config, f"Put this line at its top by hand, and try again: {include}"):
                backup = _put_on_top(config, include, undo)
        _check_first_values(config, name, settings, wanted, check_timeout)
        undo.pop_all()
    return AddedHost(replaced=others != (before or _HEADER), backup=backup)


def remove_host(config: Path, name: str) -> tuple[HostLine, ...]:
    """Remove a host that was added, and return the lines that still name it.

    Raises:
        ConfigFileError: If no host of that name was added, or the file cannot be written.
    """
    hosts = hosts_file(config)
    with os_errors_explained(hosts), locked_directory(hosts), contextlib.ExitStack() as undo:
        before = read_config_text(hosts) or ""
        after = _without_host(before, name)
        if after == before:
            lines = "; ".join(map(str, lines_naming_host(name, config)))
            advice = f"Remove it by hand: {lines}." if lines else "Patterns such as `*` are no names."
            raise ConfigFileError(hosts, f"no host {name} was added", advice)
        replace_config(hosts, before, after, undo)
        undo.pop_all()
    return lines_naming_host(name, config)


def _without_host(text: str, name: str) -> str:
    """Return a text without the blocks that are for this host alone."""
    blocks = [""]
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        if parse_config_line(line)[0] in {"host", "match"}:
            blocks.append("")
        blocks[-1] += line
    return "".join(block for block in blocks if parse_config_line(block.partition("\n")[0]) != ("host", (name,)))


def _put_on_top(config: Path, line: str, undo: contextlib.ExitStack) -> Path | None:
    before = read_config_text(config)
    backup = None if before is None else back_up(config, before, undo)
    replace_config(config, before, f"{line}\n{before or ''}", undo)
    return backup


def _settings_of_block(block: str, config: Path, name: str, timeout: float) -> EffectiveConfig:
    with tempfile.NamedTemporaryFile("w", prefix="lazycluster-new-host-", encoding="utf-8") as file:
        file.write(block)
        file.flush()
        refused = ConfigFileError(config, "ssh does not accept the new lines", "Check the options given.")
        return _settings_in(Path(file.name), name, refused, timeout)


def _check_first_values(
    config: Path, name: str, settings: HostSettings, wanted: EffectiveConfig, timeout: float
) -> None:
    """Raise a `ConfigFileError` if ssh takes a value of another block; repeatable keywords collect those of all."""
    refused = ConfigFileError(config, "ssh does not accept it with the new line")
    found = _settings_in(config, name, refused, timeout)
    for keyword, _ in settings:
        values, others = (each.settings.get(keyword.lower(), ()) for each in (wanted, found))
        if not set(values) <= set(others):
            raise ConfigFileError(
                config,
                f"{keyword} of {name} would be {', '.join(others) or 'unset'} and not {', '.join(values)}",
                f"ssh takes the first value that it finds: move the line `{include_line(config)}` to the top.",
            )


def _settings_in(file: Path, name: str, refused: ConfigFileError, timeout: float) -> EffectiveConfig:
    """Return the settings that ssh finds in a file for a host.

    Raises:
        ConfigFileError: If ssh cannot be started, does not end in time, or refuses the file (`refused`).
    """
    try:
        ended = run_and_capture(config_file_argv(file, name), timeout=timeout)
    except OSError as error:
        reason = f"ssh, which checks the new lines, cannot be started ({error.strerror})"
        raise ConfigFileError(refused.path, reason, "Install it (Debian and Ubuntu: openssh-client).") from error
    if ended.exit_code is None:
        reason = f"`ssh -G {name}` did not end within {timeout:g} s"
        raise ConfigFileError(refused.path, reason, output=ended.stderr)
    if ended.exit_code != 0:
        raise attrs.evolve(refused, output=ended.stderr)
    return parse_effective_config(ended.stdout)
