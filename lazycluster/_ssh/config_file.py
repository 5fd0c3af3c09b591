"""Change an ssh configuration on disk: whole or not at all, with what was there kept, and only if ssh accepts it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from lazycluster._processes.run import run_and_capture
from lazycluster._ssh.argv import config_file_argv
from lazycluster._ssh.config import EffectiveConfig, parse_effective_config
from lazycluster._ssh.config_edit import ConfigEditError, HostSettings, format_block, global_setting_line_number
from lazycluster._waiting import Deadline
from lazycluster.exceptions import LazyclusterError, indented_tail

_CONFIG_CHECK_TIMEOUT_SECONDS = 15.0
"""Seconds for `ssh -G`, in which a `Match exec` of the user's may run and names may be resolved."""
_LOCK_TIMEOUT_SECONDS = 30.0
_LOCK_POLL_SECONDS = 0.05

# A name with a dot in front fits none of the patterns by which files are included: * leaves it out (glob(7)).
_CANDIDATE_NAME_PREFIX = ".{name}.lazycluster-new-"
_BACKUP_NAME = ".{name}.lazycluster-backup-{written}"


@attrs.frozen(slots=False)
class ConfigFileError(LazyclusterError):
    """An ssh configuration was not changed."""

    path: Path
    reason: str
    advice: str = ""
    output: str = attrs.field(default="", repr=False)

    def __str__(self) -> str:
        advice = f" {self.advice}" if self.advice else ""
        return f"{self.path} was not changed: {self.reason}.{advice}{indented_tail(self.output)}"


@attrs.frozen
class ConfigChange:
    """What was done to a file: whether it had to be written, and the file as it was, if there was one."""

    written: bool
    backup: Path | None = None


def edit_config_file(path: Path, edit: Callable[[str], str], check: Callable[[Path, str], None]) -> ConfigChange:
    """Replace a configuration by an edited one at a single instant; two that do so at once take turns.

    Its mode and owner stay, a link stays a link, and the file as it was is kept beside it under a name of its own. A
    file that is not there is made for this user alone, with its directory.

    Args:
        path: The file.
        edit: Returns the new text. Bytes that are no UTF-8 come as surrogates, and go back as they were.
        check: Looks at a file with the new text, and raises where that must not be used.

    Raises:
        ConfigFileError: The file cannot be read or written, or changed meanwhile.
    """
    real_path = Path(os.path.realpath(path))
    try:
        if not real_path.parent.exists():
            real_path.parent.mkdir(mode=0o700)
        with _locked_directory(real_path.parent):
            return _edit_in_place(real_path, edit, check)
    except ConfigEditError as error:
        raise ConfigFileError(path, str(error)) from error
    except OSError as error:
        raise ConfigFileError(path, _os_error_text(error)) from error


def check_ssh_accepts(path: Path, candidate: Path, host: str) -> None:
    """Have ssh read a configuration that is to come into the place of another.

    Raises:
        ConfigFileError: ssh does not accept it.
    """
    _query_settings(path, candidate, host)


def check_settings_apply(path: Path, candidate: Path, text: str, host: str, settings: HostSettings) -> None:
    """Have ssh read a configuration, and see that what a block for a host says is what holds for the host.

    Raises:
        ConfigFileError: ssh does not accept it, or something else in it wins.
    """
    whole = _query_settings(path, candidate, host)
    with tempfile.NamedTemporaryFile(prefix="lazycluster-") as file:
        file.write(format_block(host, settings).encode("utf-8", "surrogateescape"))
        file.flush()
        alone = _query_settings(path, Path(file.name), host)
    for keyword, _ in settings:
        wanted, found = (each.settings.get(keyword.lower(), ()) for each in (alone, whole))
        # Keywords that can be given several times, such as IdentityFile, gather what all blocks say.
        if not set(wanted) <= set(found):
            line = global_setting_line_number(text, keyword)
            raise ConfigFileError(
                path,
                f"{keyword} of {host} would be {', '.join(found) or 'unset'} and not {', '.join(wanted)}, "
                + (
                    "because something before it wins" if line is None else f"because line {line} sets it for all hosts"
                ),
                "ssh takes the first value that it finds: look at the files that it includes, with `ssh -G`."
                if line is None
                else "ssh takes the first value that it finds: move that line to the end, under a line `Host *`.",
            )


def _query_settings(path: Path, candidate: Path, host: str) -> EffectiveConfig:
    try:
        ended = run_and_capture(
            config_file_argv(candidate, host), timeout=_CONFIG_CHECK_TIMEOUT_SECONDS, include_stderr=True
        )
    except OSError as error:
        reason = f"ssh, which is to look at it first, cannot be started ({error.strerror})"
        raise ConfigFileError(path, reason, "Install it (Debian and Ubuntu: openssh-client).") from error
    if ended.exit_code == 0:
        return parse_effective_config(ended.text)
    output = ended.text.replace(str(candidate), str(path))
    if ended.exit_code is None:
        raise ConfigFileError(
            path, f"`ssh -G {host}` did not end within {_CONFIG_CHECK_TIMEOUT_SECONDS:g} s", output=output
        )
    was_broken = (
        path.exists()
        and run_and_capture(config_file_argv(path, host), timeout=_CONFIG_CHECK_TIMEOUT_SECONDS).exit_code != 0
    )
    if was_broken:
        raise ConfigFileError(path, "ssh does not accept it as it is now", "Mend that first.", output)
    raise ConfigFileError(path, "ssh would not accept it", "Check the options given.", output)


def _edit_in_place(real_path: Path, edit: Callable[[str], str], check: Callable[[Path, str], None]) -> ConfigChange:
    before = _read_writable(real_path)
    text = edit((before or b"").decode("utf-8", "surrogateescape"))
    after = text.encode("utf-8", "surrogateescape")
    if after == before:
        return ConfigChange(written=False)
    descriptor, name = tempfile.mkstemp(prefix=_CANDIDATE_NAME_PREFIX.format(name=real_path.name), dir=real_path.parent)
    candidate = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(after)
            file.flush()
            if before is not None:
                _copy_owner_and_mode(file.fileno(), real_path)
            os.fsync(file.fileno())
        check(candidate, text)
        if _read_writable(real_path) != before:  # an editor knows nothing of turns
            raise ConfigFileError(real_path, "somebody else changed it meanwhile", "Try again.")
        backup = None if before is None else _back_up(real_path)
        candidate.replace(real_path)
    finally:
        candidate.unlink(missing_ok=True)
    _fsync_directory(real_path.parent)
    return ConfigChange(written=True, backup=backup)


def _read_writable(path: Path) -> bytes | None:
    """Return what is in a file; None where there is none."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigFileError(path, "it is no file")
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if not os.access(path, os.W_OK):
        raise ConfigFileError(path, "it is read-only")
    return data


def _copy_owner_and_mode(descriptor: int, path: Path) -> None:
    old, new = path.stat(), os.fstat(descriptor)
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        os.fchown(descriptor, old.st_uid, old.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(old.st_mode))


def _back_up(path: Path) -> Path:
    """Give a file that is about to be replaced a second name, which tells when it was written, and return that."""
    written = time.strftime("%Y%m%d-%H%M%S", time.localtime(path.stat().st_mtime))
    first = path.parent / _BACKUP_NAME.format(name=path.name, written=written)
    for number in range(1, 1000):
        backup = first if number == 1 else first.with_name(f"{first.name}-{number}")
        try:
            os.link(path, backup)
        except FileExistsError:
            continue
        except OSError:  # there are file systems that know no links
            with backup.open("xb"):
                shutil.copy2(path, backup)
        return backup
    raise ConfigFileError(path, f"there are too many files like {first}", "Remove some.")


@contextlib.contextmanager
def _locked_directory(directory: Path) -> Iterator[None]:
    """Hold a lock on a directory, where its file system has such; no file is made for it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    deadline = Deadline(_LOCK_TIMEOUT_SECONDS)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if deadline.has_passed:
                    raise TimeoutError(f"somebody else has been changing it for {_LOCK_TIMEOUT_SECONDS:g} s") from None
                time.sleep(_LOCK_POLL_SECONDS)
            except OSError:
                break
        yield
    finally:
        os.close(descriptor)


def _fsync_directory(directory: Path) -> None:
    """Have the disk know of a new name; some file systems cannot."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _os_error_text(error: OSError) -> str:
    if error.strerror is None:
        return str(error)
    return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
