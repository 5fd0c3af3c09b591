"""Files and directories, there and back: one file through `scp`, a directory as one tar stream.

Everything is written under a temporary name in the directory where it belongs, and renamed when it is complete.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import secrets
import shlex
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import attrs

from lazycluster._files.install import discard, move_into_place, temporary_path_beside
from lazycluster._files.script_runner import RunningScript, ScriptRunner
from lazycluster._files.tar_reader import extract_tar
from lazycluster._files.tar_writer import END_MARKER, write_tar
from lazycluster._model.checks import absolute_path
from lazycluster._model.watch import Watch
from lazycluster._processes.local_process import LocalProcess
from lazycluster._processes.run import Completed
from lazycluster._ssh.argv import remote_operand, scp_argv
from lazycluster._ssh.client import SshClient
from lazycluster._ssh.diagnosis import scp_failure_reason, session_refusal_reason, tar_failure_reason
from lazycluster._ssh.host_scripts import (
    CREATE_LINK,
    FETCH,
    MOVE_FILE,
    RECEIVE_FILE,
    RECEIVE_TREE,
    REMOVE_PATH,
    RESOLVE_FILE_TARGET,
)
from lazycluster._ssh.lifeline import Lifeline
from lazycluster._ssh.master import Master
from lazycluster._ssh.mux import ControlSocketError
from lazycluster._ssh.session import SessionEndedError
from lazycluster._ssh.shell import quote_path
from lazycluster._waiting import CancelledError, Deadline
from lazycluster.exceptions import (
    CommandStoppedError,
    ConnectError,
    ConnectionLostError,
    LazyclusterError,
    RuntimeClosedError,
    SessionRefusedError,
    TransferError,
    UnsafeArchiveError,
)
from lazycluster.results import Collector, CommandResult, Stream

_log = logging.getLogger(__name__)
# What scp, its server and any login shell all take as it is. Other paths are reached through a symbolic link.
_SCP_SAFE_ABSOLUTE_PATH = re.compile(r"/[A-Za-z0-9_./+,=@-]*")
# Through a master scp is not told that the subsystem was refused, and sees no more than a closed connection (measured
# with OpenSSH 9.2). Where that had another reason and the master lives, the older protocol fails in its turn.
_SFTP_MISSING_PATTERN = re.compile(r"subsystem request failed|\A\s*(scp: )?Connection closed\s*\Z")
_HARMLESS_TAR_WARNING = re.compile(r".*: (file changed as we read it|File removed before we read it)\s*")
_PATHS_WITHOUT_NAME = {"", ".", "..", "~"}
_REMOVE_TIMEOUT_SECONDS = 10.0
_UPLOAD_READ_BYTES = 1 << 18
_UNLIMITED_BYTES = 1 << 62
_MAX_TOUCH_SECONDS = 253402300799
"""The last second of the year 9999, the last one that touch(1) can be given."""
_PROGRESS_INTERVAL_SECONDS = 0.2


@attrs.frozen
class TransferBackend:
    """The way that files take: scripts on the host, and the sessions for scp.

    Files of up to `max_streamed_bytes` bytes go through a script's own streams, which takes one round trip; -1 for
    none.
    """

    runner: ScriptRunner
    ssh_client: SshClient
    max_streamed_bytes: int = -1

    @property
    def host(self) -> str:
        """Return the host as it was given."""
        return self.runner.host


def put(backend: TransferBackend, local: Path, remote: str | None, *, cwd: str | None, watch: Watch) -> None:
    """Send a file or a directory; see `Connection.put()`."""
    with _raising_transfer_errors(backend.host, "send", str(local)):
        status = local.stat()
        name = absolute_path(local).name
        if not name:
            raise TransferError(backend.host, "send", str(local), "the root directory has no name to send it under")
        target = remote or "."
        if stat.S_ISDIR(status.st_mode):
            _put_tree(backend.runner, local, name, target, cwd, watch)
        elif not stat.S_ISREG(status.st_mode):
            raise TransferError(backend.host, "send", str(local), "neither a regular file nor a directory")
        elif status.st_size <= backend.max_streamed_bytes:
            _put_file_by_stdin(backend.runner, local, name, target, cwd, watch)
        else:
            try:
                _put_file_by_scp(backend, local, name, target, cwd, watch)
            except SessionRefusedError:  # the supervisor has the only one
                if backend.max_streamed_bytes < 0:
                    raise
                _put_file_by_stdin(backend.runner, local, name, target, cwd, watch)


def get(backend: TransferBackend, remote: str, local: Path, *, cwd: str | None, watch: Watch) -> None:
    """Fetch a file or a directory; see `Connection.get()`."""
    if not remote:
        raise ValueError("the path on the host must not be empty")
    with _raising_transfer_errors(backend.host, "fetch", remote):
        found = _fetch(backend.runner, remote, local, cwd, watch, max_streamed_bytes=backend.max_streamed_bytes)
        if found is None:
            return
        try:
            _get_file_by_scp(backend, found, _local_target(local, remote, found.name), watch)
        except SessionRefusedError:  # as above
            if backend.max_streamed_bytes < 0:
                raise
            _fetch(backend.runner, remote, local, cwd, watch, max_streamed_bytes=_UNLIMITED_BYTES)


@contextlib.contextmanager
def _raising_transfer_errors(host: str, action: str, path: str) -> Iterator[None]:
    """Turn what goes wrong into a `TransferError` that names the path."""
    try:
        yield
    except (TransferError, ConnectError, CommandStoppedError, RuntimeClosedError):
        raise
    except LazyclusterError as error:
        raise TransferError(host, action, path, str(error).removeprefix(f"{host}: ")) from error
    except OSError as error:
        reason = error.strerror or str(error)
        named = f" ({error.filename})" if error.filename and str(error.filename) != path else ""
        raise TransferError(host, action, path, f"{reason}{named}") from error


def _script_with_arguments(text: str, *words: str) -> str:
    """Return a script with its positional parameters set to words that are quoted already."""
    return f"set -- {' '.join(words)}\n{text}"


def _script_fields(host: str, action: str, path: str, result: CommandResult, target: str = "") -> list[str]:
    """Return the NUL-terminated fields that a script printed."""
    if not result.ok:
        reason = tar_failure_reason(result.stderr) or f"exit status {result.exit_code}"
        raise TransferError(host, action, path, reason, target)
    return [field.decode("utf-8", "surrogateescape") for field in result.stdout_bytes.split(b"\0")[:-1]]


# One file ------------------------------------------------------------------------------------------------------------


def _put_file_by_scp(
    backend: TransferBackend, local: Path, name: str, target: str, cwd: str | None, watch: Watch
) -> None:
    host, runner = backend.host, backend.runner
    script = _script_with_arguments(RESOLVE_FILE_TARGET, quote_path(target), shlex.quote(name))
    prepared = runner.run(
        script, cwd=cwd, title=f"prepare {target}", watch=Watch(cancel_token=watch.cancel_token), login_shell=False
    )
    directory, base = _script_fields(host, "send", str(local), prepared, target)
    temporary = f".lazycluster-{secrets.token_hex(8)}"
    size = local.stat().st_size

    def progress(process: LocalProcess) -> None:
        watch.on_progress(_read_position(process.pid, local), size)

    with _scp_safe_path(runner, directory) as path:
        try:
            failure = _copy_file_by_scp(
                backend.ssh_client,
                str(local.absolute()),
                f"{path}/{temporary}",
                watch,
                progress,
                sending=True,
                on_disconnect=f"rm -f -- {shlex.quote(f'{directory}/{temporary}')}",
            )
            if failure:
                raise TransferError(host, "send", str(local), failure, target)
            placing = _script_with_arguments(
                MOVE_FILE, shlex.quote(f"{directory}/{temporary}"), shlex.quote(f"{directory}/{base}")
            )
            placed = runner.run(placing, title=f"place {target}", login_shell=False)
            _script_fields(host, "send", str(local), placed, target)
        except BaseException:
            _remove_on_host(runner, f"{directory}/{temporary}")
            raise
    watch.on_progress(size, size)


@attrs.frozen
class _FoundFile:
    """A file on the host: the directory it is in, its name there, and its size in bytes."""

    directory: str
    name: str
    size: int


def _get_file_by_scp(backend: TransferBackend, found: _FoundFile, target: Path, watch: Watch) -> None:
    temporary = _temporary_path(target)

    def progress(_process: LocalProcess) -> None:
        with contextlib.suppress(OSError):
            watch.on_progress(temporary.stat().st_size, found.size)

    try:
        with _scp_safe_path(backend.runner, found.directory, found.name) as path:
            failure = _copy_file_by_scp(
                backend.ssh_client, path, str(temporary.absolute()), watch, progress, sending=False
            )
        if failure:
            raise TransferError(backend.host, "fetch", f"{found.directory}/{found.name}", failure, str(target))
        move_into_place(temporary, target)
    finally:
        discard(temporary)
    watch.on_progress(found.size, found.size)


@contextlib.contextmanager
def _scp_safe_path(runner: ScriptRunner, directory: str, name: str | None = None) -> Iterator[str]:
    """Give a path that needs no quoting in any version of scp, through a symbolic link where it takes one."""
    path = directory if name is None else f"{directory.rstrip('/')}/{name}"
    if _SCP_SAFE_ABSOLUTE_PATH.fullmatch(path):
        yield path
        return
    made = runner.run(
        _script_with_arguments(CREATE_LINK, shlex.quote(path)), title=f"link to {path}", login_shell=False
    )
    link = _script_fields(runner.host, "reach", path, made)[0]
    try:
        yield link
    finally:
        _remove_on_host(runner, str(PurePosixPath(link).parent))


def _remove_on_host(runner: ScriptRunner, path: str) -> None:
    """Remove what a transfer has left on the host, as far as the host can still be reached."""
    with contextlib.suppress(LazyclusterError):
        script = _script_with_arguments(REMOVE_PATH, shlex.quote(path))
        runner.run(script, title=f"remove {path}", timeout=_REMOVE_TIMEOUT_SECONDS, login_shell=False)


def _copy_file_by_scp(
    ssh_client: SshClient,
    source: str,
    target: str,
    watch: Watch,
    progress: Callable[[LocalProcess], None],
    *,
    sending: bool,
    on_disconnect: str = ":",
) -> str:
    """Copy one file, again in the older protocol where the host has no sftp subsystem; return why it failed, or ''.

    Should this process die meanwhile the host ends the connection, and scp with it, after `on_disconnect`.
    """
    destination = ssh_client.destination
    operands = (
        (source, remote_operand(destination, target)) if sending else (remote_operand(destination, source), target)
    )
    what = f"scp {source} {target}"
    used: list[Master] = []
    can_open_second_session = True

    def copy(master: Master, *, legacy: bool = False) -> Completed:
        nonlocal can_open_second_session
        used.append(master)
        argv = scp_argv(
            destination,
            master.socket_path,
            *operands,
            legacy=legacy,
            unsupported_options=ssh_client.unsupported_options,
        )
        with _holding_lifeline(master, on_disconnect) if can_open_second_session else contextlib.nullcontext():
            ended = _run_scp(ssh_client, argv, master, watch, progress)
        can_open_second_session = session_refusal_reason(ended.text) is None
        return ended

    ended = ssh_client.run_with_master(copy, what, watch.cancel_token)
    if _SFTP_MISSING_PATTERN.search(ended.text) and used[-1].check():
        ended = ssh_client.run_with_master(functools.partial(copy, legacy=True), what, watch.cancel_token)
    if ended.exit_code == 0:
        return ""
    if used[-1].control_socket is not None and not used[-1].check():
        raise ConnectionLostError(ssh_client.host, what, used[-1].exit_reason, started=True)
    return scp_failure_reason(ended.text) or f"scp ended with exit status {ended.exit_code}"


@contextlib.contextmanager
def _holding_lifeline(master: Master, on_disconnect: str) -> Iterator[None]:
    """Have the host notice should this process die."""
    if master.control_socket is None:
        yield
        return
    try:
        lifeline = Lifeline(master.control_socket, on_disconnect)
    except ControlSocketError as error:
        _log.debug("no keeper: %s", error)
        yield
        return
    try:
        yield
    finally:
        lifeline.close()


def _run_scp(
    ssh_client: SshClient, argv: tuple[str, ...], master: Master, watch: Watch, progress: Callable[[LocalProcess], None]
) -> Completed:
    output: list[bytes] = []
    process = LocalProcess(
        argv,
        stdin=False,
        on_output=lambda _stream, data: output.append(data),
        deadline=Deadline(None),
        cancel_token=watch.cancel_token,
    )
    try:
        while not process.pump(lambda: process.at_eof, timeout=_PROGRESS_INTERVAL_SECONDS):
            ssh_client.check_master(master, " ".join(argv[-2:]))
            progress(process)
        return Completed(process.wait(5.0), b"".join(output).decode(errors="replace"))
    except CancelledError:
        raise CommandStoppedError(ssh_client.host, " ".join(argv[-2:])) from None
    finally:
        process.close()


def _read_position(pid: int, path: Path) -> int:
    """Return how far a process has read a file, where the kernel tells (Linux: proc(5), fdinfo), else 0."""
    with contextlib.suppress(OSError, ValueError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            if link.readlink() == path.absolute():
                return int(Path(f"/proc/{pid}/fdinfo/{link.name}").read_text().split()[1])
    return 0


# One file in the stream of a script -----------------------------------------------------------------------------------


def _put_file_by_stdin(
    runner: ScriptRunner, local: Path, name: str, target: str, cwd: str | None, watch: Watch
) -> None:
    """Send a file through the standard input of a script that writes it."""
    with local.open("rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        mtime = min(max(int(status.st_mtime), 0), _MAX_TOUCH_SECONDS)
        when = time.strftime("%Y%m%d%H%M.%S", time.gmtime(mtime))
        mode = f"{stat.S_IMODE(status.st_mode) & 0o777:o}"
        words = quote_path(target), shlex.quote(name), secrets.token_hex(8), str(status.st_size), mode, when
        script = runner.script(
            _script_with_arguments(RECEIVE_FILE, *words),
            title=f"receive {target}",
            cwd=cwd,
            raw_stdin=True,
            login_shell=False,
        )
        collector = Collector()

        def work(running_script: RunningScript) -> None:
            done = 0
            while done < status.st_size and (data := file.read(min(_UPLOAD_READ_BYTES, status.st_size - done))):
                running_script.write(data)
                done += len(data)
                watch.on_progress(done, status.st_size)
            running_script.close_stdin()
            running_script.wait()

        exit_code = runner.run_script(script, work, collector=collector, watch=Watch(cancel_token=watch.cancel_token))
    _script_fields(runner.host, "send", str(local), collector.result("", exit_code, 0.0), target)


def _receive_file(running_script: RunningScript, temporary: Path, size: int, watch: Watch) -> None:
    """Write what comes of a file, behind its mode and time."""
    mode, _, mtime = (running_script.read_until(b"\0") or b"").decode("ascii").partition(" ")
    done = 0
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        while data := running_script.read_some():
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            done += len(data)
            watch.on_progress(done, size)
        os.fchmod(descriptor, int(mode, 8) & 0o777)
        os.utime(descriptor, (int(mtime), int(mtime)))


# A directory ---------------------------------------------------------------------------------------------------------


@attrs.frozen
class _StdinWriter:
    """Standard input of a session, as a file that is written to."""

    script: RunningScript

    def write(self, data: bytes, /) -> None:
        """Send all of the data."""
        self.script.write(data)


@attrs.frozen
class _StdoutReader:
    """Standard output of a session, as a file that is read from."""

    script: RunningScript

    def read(self, size: int, /) -> bytes:
        """Return so many bytes, fewer only at the end."""
        return self.script.read(size)


@attrs.define
class _ProgressCounter:
    """Adds up what was moved."""

    on_progress: Callable[[int, int | None], None]
    done: int = 0

    def add(self, size: int) -> None:
        """Count, and report."""
        self.done += size
        self.on_progress(self.done, None)


def _put_tree(runner: ScriptRunner, local: Path, name: str, target: str, cwd: str | None, watch: Watch) -> None:
    mode = stat.S_IMODE(local.stat().st_mode) & 0o777
    words = quote_path(target), shlex.quote(name), secrets.token_hex(8), END_MARKER, f"{mode:o}"
    script = runner.script(
        _script_with_arguments(RECEIVE_TREE, *words),
        title=f"receive {target}",
        cwd=cwd,
        raw_stdin=True,
        login_shell=False,
    )
    collector = Collector()

    def work(running_script: RunningScript) -> None:
        write_tar(local, _StdinWriter(running_script), on_progress=_ProgressCounter(watch.on_progress).add)
        running_script.close_stdin()
        running_script.wait()

    exit_code = runner.run_script(script, work, collector=collector, watch=Watch(cancel_token=watch.cancel_token))
    _script_fields(runner.host, "send", str(local), collector.result("", exit_code, 0.0), target)


def _fetch(
    runner: ScriptRunner, remote: str, local: Path, cwd: str | None, watch: Watch, *, max_streamed_bytes: int
) -> _FoundFile | None:
    """Fetch a directory, or a file of up to `max_streamed_bytes` bytes; where a larger file is, is returned."""
    text = _script_with_arguments(FETCH, quote_path(remote), str(max_streamed_bytes))
    script = runner.script(text, title=f"fetch {remote}", cwd=cwd, login_shell=False)
    collector = Collector()
    header: list[str] = []
    received: list[tuple[Path, Path]] = []

    def work(running_script: RunningScript) -> None:
        header.clear()
        fields = [running_script.read_until(b"\0") for _ in range(4)]
        if None in fields:
            raise SessionEndedError
        header.extend((field or b"").decode("utf-8", "surrogateescape") for field in fields)
        if header[0] == "d":
            target = _local_target(local, remote, header[2])
            temporary = _temporary_path(target)
            received.append((temporary, target))
            temporary.mkdir(mode=0o700)
            extract_tar(_StdoutReader(running_script), temporary, on_progress=_ProgressCounter(watch.on_progress).add)
        elif int(header[3]) <= max_streamed_bytes:
            target = _local_target(local, remote, header[2])
            temporary = _temporary_path(target)
            received.append((temporary, target))
            _receive_file(running_script, temporary, int(header[3]), watch)
        running_script.wait()

    try:
        exit_code = runner.run_script(script, work, collector=collector, watch=Watch(cancel_token=watch.cancel_token))
        stderr_text = collector.getvalue(Stream.STDERR).decode(errors="replace").strip()
        changed = (
            exit_code == 1
            and bool(stderr_text)
            and all(_HARMLESS_TAR_WARNING.fullmatch(line) for line in stderr_text.splitlines())
        )
        if not header or (exit_code != 0 and not changed):
            raise TransferError(runner.host, "fetch", remote, stderr_text or f"exit status {exit_code}")
        for temporary, target in received[-1:]:
            move_into_place(temporary, target)
    finally:
        for temporary, _ in received:
            discard(temporary)
    return None if received else _FoundFile(header[1], header[2], int(header[3]))


def _local_target(local: Path, remote: str, name: str) -> Path:
    """Return where something fetched belongs: into an existing directory, under its own name, or as `local` itself."""
    if not local.is_dir():
        return local
    requested_name = PurePosixPath(remote).name
    if requested_name not in _PATHS_WITHOUT_NAME:
        return local / requested_name
    if name in {"", ".", ".."} or "/" in name:
        raise UnsafeArchiveError(name, "the host gives that as the directory's name; name a target that is not there")
    return local / name


def _temporary_path(target: Path) -> Path:
    """Return a temporary name for what is fetched to `target`; a missing directory is named as itself."""
    temporary = temporary_path_beside(target)
    temporary.parent.stat()
    return temporary
