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

from lazycluster._processes import run_to_end
from lazycluster._ssh.argv import settings_argv
from lazycluster._ssh.config import EffectiveConfig, parse_effective
from lazycluster._ssh.config_edit import EditingError, Settings, block_text, line_for_all
from lazycluster._waiting import Deadline
from lazycluster.exceptions import LazyclusterError, indented

_ANSWER_TIMEOUT = 15.0
"""Seconds for `ssh -G`, in which a `Match exec` of the user's may run and names may be resolved."""
_LOCK_TIMEOUT = 30.0
_POLL = 0.05

# A name with a dot in front fits none of the patterns by which files are included: * leaves it out (glob(7)).
_CANDIDATE = ".{name}.lazycluster-new-"
_BACKUP = ".{name}.lazycluster-backup-{written}"


@attrs.frozen(slots=False)
class ConfigFileError(LazyclusterError):
    """An ssh configuration was not changed."""

    path: Path
    reason: str
    advice: str = ""
    output: str = attrs.field(default="", repr=False)

    def __str__(self) -> str:
        advice = f" {self.advice}" if self.advice else ""
        return f"{self.path} was not changed: {self.reason}.{advice}{indented(self.output)}"


@attrs.frozen
class Change:
    """What was done to a file: whether it had to be written, and the file as it was, if there was one."""

    written: bool
    backup: Path | None = None


def change(path: Path, edit: Callable[[str], str], check: Callable[[Path, str], None]) -> Change:
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
    real = Path(os.path.realpath(path))
    try:
        if not real.parent.exists():
            real.parent.mkdir(mode=0o700)
        with _turn(real.parent):
            return _change(real, edit, check)
    except EditingError as error:
        raise ConfigFileError(path, str(error)) from error
    except OSError as error:
        raise ConfigFileError(path, _said(error)) from error


def check_accepted(path: Path, candidate: Path, name: str) -> None:
    """Have ssh read a configuration that is to come into the place of another.

    Raises:
        ConfigFileError: ssh does not accept it.
    """
    _settings_of(path, candidate, name)


def check_outcome(path: Path, candidate: Path, text: str, name: str, settings: Settings) -> None:
    """Have ssh read a configuration, and see that what a block for a host says is what holds for the host.

    Raises:
        ConfigFileError: ssh does not accept it, or something else in it wins.
    """
    whole = _settings_of(path, candidate, name)
    with tempfile.NamedTemporaryFile(prefix="lazycluster-") as file:
        file.write(block_text(name, settings).encode("utf-8", "surrogateescape"))
        file.flush()
        alone = _settings_of(path, Path(file.name), name)
    for keyword, _ in settings:
        wanted, found = (each.settings.get(keyword.lower(), ()) for each in (alone, whole))
        # Keywords that can be given several times, such as IdentityFile, gather what all blocks say.
        if not set(wanted) <= set(found):
            line = line_for_all(text, keyword)
            raise ConfigFileError(
                path,
                f"{keyword} of {name} would be {', '.join(found) or 'unset'} and not {', '.join(wanted)}, "
                + (
                    "because something before it wins" if line is None else f"because line {line} sets it for all hosts"
                ),
                "ssh takes the first value that it finds: look at the files that it includes, with `ssh -G`."
                if line is None
                else "ssh takes the first value that it finds: move that line to the end, under a line `Host *`.",
            )


def _settings_of(path: Path, candidate: Path, name: str) -> EffectiveConfig:
    try:
        ended = run_to_end(settings_argv(candidate, name), seconds=_ANSWER_TIMEOUT, errors=True)
    except OSError as error:
        reason = f"ssh, which is to look at it first, cannot be started ({error.strerror})"
        raise ConfigFileError(path, reason, "Install it (Debian and Ubuntu: openssh-client).") from error
    if ended.status == 0:
        return parse_effective(ended.text)
    said = ended.text.replace(str(candidate), str(path))
    if ended.status is None:
        raise ConfigFileError(path, f"`ssh -G {name}` did not end within {_ANSWER_TIMEOUT:g} s", output=said)
    was_broken = path.exists() and run_to_end(settings_argv(path, name), seconds=_ANSWER_TIMEOUT).status != 0
    if was_broken:
        raise ConfigFileError(path, "ssh does not accept it as it is now", "Mend that first.", said)
    raise ConfigFileError(path, "ssh would not accept it", "Check the options given.", said)


def _change(real: Path, edit: Callable[[str], str], check: Callable[[Path, str], None]) -> Change:
    before = _read(real)
    text = edit((before or b"").decode("utf-8", "surrogateescape"))
    after = text.encode("utf-8", "surrogateescape")
    if after == before:
        return Change(written=False)
    descriptor, name = tempfile.mkstemp(prefix=_CANDIDATE.format(name=real.name), dir=real.parent)
    candidate = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(after)
            file.flush()
            if before is not None:
                _keep_owner_and_mode(file.fileno(), real)
            os.fsync(file.fileno())
        check(candidate, text)
        if _read(real) != before:  # an editor knows nothing of turns
            raise ConfigFileError(real, "somebody else changed it meanwhile", "Try again.")
        backup = None if before is None else _keep(real)
        candidate.replace(real)
    finally:
        candidate.unlink(missing_ok=True)
    _sync(real.parent)
    return Change(written=True, backup=backup)


def _read(path: Path) -> bytes | None:
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


def _keep_owner_and_mode(descriptor: int, path: Path) -> None:
    old, new = path.stat(), os.fstat(descriptor)
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        os.fchown(descriptor, old.st_uid, old.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(old.st_mode))


def _keep(path: Path) -> Path:
    """Give a file that is about to be replaced a second name, which tells when it was written, and return that."""
    written = time.strftime("%Y%m%d-%H%M%S", time.localtime(path.stat().st_mtime))
    first = path.parent / _BACKUP.format(name=path.name, written=written)
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
def _turn(directory: Path) -> Iterator[None]:
    """Hold a lock on a directory, where its file system has such; no file is made for it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    deadline = Deadline(_LOCK_TIMEOUT)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if deadline.passed:
                    raise TimeoutError(f"somebody else has been changing it for {_LOCK_TIMEOUT:g} s") from None
                time.sleep(_POLL)
            except OSError:
                break
        yield
    finally:
        os.close(descriptor)


def _sync(directory: Path) -> None:
    """Have the disk know of a new name; some file systems cannot."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _said(error: OSError) -> str:
    if error.strerror is None:
        return str(error)
    return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
