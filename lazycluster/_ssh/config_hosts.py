"""The hosts that the ssh configuration on this machine names: `config.host_names` with real files."""

from __future__ import annotations

import glob
import os
import pwd
import shlex
from pathlib import Path

import attrs

from lazycluster._processes.run import run_and_capture
from lazycluster._ssh.argv import config_check_argv
from lazycluster._ssh.config import HostLine, host_lines, host_names
from lazycluster._ssh.diagnosis import diagnose
from lazycluster.exceptions import LazyclusterError, SshConfigurationError

_MAX_CONFIG_CHARACTERS = 1 << 20
"""Characters of a file that are read; a configuration is no longer, but a pattern may fit anything."""
_CHECK_TIMEOUT_SECONDS = 5.0


@attrs.frozen(slots=False)
class ConfigRefusedError(LazyclusterError):
    """ssh does not accept a configuration, for any host; `reason` is ssh's own, with file and line."""

    reason: str
    argv: tuple[str, ...]

    def __str__(self) -> str:
        return f"ssh does not accept the configuration ({self.reason}). Check it with `{shlex.join(self.argv)}`."


def check_config(config_file: Path | None = None) -> None:
    """Have ssh read a configuration, by default the user's own, which seems to name no host.

    Raises:
        ConfigRefusedError: If ssh does not accept it.
    """
    argv = config_check_argv(config_file)
    try:
        ended = run_and_capture(argv, timeout=_CHECK_TIMEOUT_SECONDS)
    except OSError:  # no ssh: the first use of a host reports that
        return
    if ended.exit_code in {0, None}:
        return
    error = diagnose(argv[-1], ended.stderr, exit_code=ended.exit_code)
    if isinstance(error, SshConfigurationError):
        raise ConfigRefusedError(error.reason, argv)


def default_config() -> Path:
    """Return the user's own configuration, where ssh looks for it: in the home that the password database names."""
    return home() / ".ssh" / "config"


def home() -> Path:
    """Return the home directory as ssh finds it; it does not look at $HOME."""
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return Path.home()


def configured_hosts(config_file: Path | None = None) -> tuple[str, ...]:
    """Return the hosts that a configuration file and those it includes name, each once, in the order of the files.

    Args:
        config_file: The file; default: the user's own. A file that cannot be read names no hosts.
    """
    return host_names(config_file or default_config(), read_text=_read_text, glob=_glob_files, home=home())


def lines_naming_host(host: str, config_file: Path) -> tuple[HostLine, ...]:
    """Return the lines that name a host, of a configuration file and the files that it includes."""
    named = host_lines(config_file, read_text=_read_text, glob=_glob_files, home=home())
    return tuple(line for line in named if line.host == host)


def _read_text(path: Path) -> str | None:
    try:
        if not path.is_file():
            return None
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_MAX_CONFIG_CHARACTERS)
    except OSError:
        return None


def _glob_files(pattern: str) -> list[Path]:
    return [Path(found) for found in sorted(glob.glob(pattern))]  # noqa: PTH207 - an absolute pattern
