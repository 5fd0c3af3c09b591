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

from lazycluster._files.install import discard, place, temporary_beside
from lazycluster._files.script_runner import Dialogue, Scripts
from lazycluster._files.tar_reader import unpack
from lazycluster._files.tar_writer import END_MARKER, pack
from lazycluster._model.checks import absolute
from lazycluster._model.watch import Watch
from lazycluster._processes import Child, Finished
from lazycluster._ssh.argv import remote_operand, scp_argv
from lazycluster._ssh.client import Sessions
from lazycluster._ssh.diagnosis import scp_reason, session_refused, tar_reason
from lazycluster._ssh.host_scripts import (
    CREATE_LINK,
    FETCH,
    PLACE_FILE,
    PREPARE_FILE,
    RECEIVE_FILE,
    RECEIVE_TREE,
    REMOVE,
)
from lazycluster._ssh.lifeline import Keeper
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
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9_./+,=@-]*")
# Through a master scp is not told that the subsystem was refused, and sees no more than a closed connection (measured
# with OpenSSH 9.2). Where that had another reason and the master lives, the older protocol fails in its turn.
_NO_SFTP = re.compile(r"subsystem request failed|\A\s*(scp: )?Connection closed\s*\Z")
_HARMLESS_TAR = re.compile(r".*: (file changed as we read it|File removed before we read it)\s*")
_NAMELESS = {"", ".", "..", "~"}
_CLEAN_UP_TIMEOUT = 10.0
_PIECE = 1 << 18
_ANY_SIZE = 1 << 62
_LAST_TIME = 253402300799
"""The last second of the year 9999, the last one that touch(1) can be given."""
_PROGRESS_EVERY = 0.2


@attrs.frozen
class Route:
    """The way that files take: scripts on the host, and the sessions for scp.

    Files of up to `streamed` bytes go through a script's own streams, which takes one round trip; -1 for none.
    """

    scripts: Scripts
    sessions: Sessions
    streamed: int = -1

    @property
    def host(self) -> str:
        """Return the host as it was given."""
        return self.scripts.host


def put(route: Route, local: Path, remote: str | None, *, cwd: str | None, watch: Watch) -> None:
    """Send a file or a directory; see `Connection.put()`."""
    with _naming(route.host, "send", str(local)):
        status = local.stat()
        name = absolute(local).name
        if not name:
            raise TransferError(route.host, "send", str(local), "the root directory has no name to send it under")
        target = remote or "."
        if stat.S_ISDIR(status.st_mode):
            _put_tree(route.scripts, local, name, target, cwd, watch)
        elif not stat.S_ISREG(status.st_mode):
            raise TransferError(route.host, "send", str(local), "neither a regular file nor a directory")
        elif status.st_size <= route.streamed:
            _put_stream(route.scripts, local, name, target, cwd, watch)
        else:
            try:
                _put_file(route, local, name, target, cwd, watch)
            except SessionRefusedError:  # the supervisor has the only one
                if route.streamed < 0:
                    raise
                _put_stream(route.scripts, local, name, target, cwd, watch)


def get(route: Route, remote: str, local: Path, *, cwd: str | None, watch: Watch) -> None:
    """Fetch a file or a directory; see `Connection.get()`."""
    if not remote:
        raise ValueError("the path on the host must not be empty")
    with _naming(route.host, "fetch", remote):
        found = _fetch(route.scripts, remote, local, cwd, watch, streamed=route.streamed)
        if found is None:
            return
        try:
            _get_file(route, found, _local_target(local, remote, found.name), watch)
        except SessionRefusedError:  # as above
            if route.streamed < 0:
                raise
            _fetch(route.scripts, remote, local, cwd, watch, streamed=_ANY_SIZE)


@contextlib.contextmanager
def _naming(host: str, action: str, path: str) -> Iterator[None]:
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


def _script(text: str, *words: str) -> str:
    """Return a script with its positional parameters set to words that are quoted already."""
    return f"set -- {' '.join(words)}\n{text}"


def _checked(host: str, action: str, path: str, result: CommandResult, target: str = "") -> list[str]:
    """Return the NUL-terminated fields that a script printed."""
    if not result.ok:
        reason = tar_reason(result.stderr) or f"exit status {result.exit_code}"
        raise TransferError(host, action, path, reason, target)
    return [field.decode("utf-8", "surrogateescape") for field in result.stdout_bytes.split(b"\0")[:-1]]


# One file ------------------------------------------------------------------------------------------------------------


def _put_file(route: Route, local: Path, name: str, target: str, cwd: str | None, watch: Watch) -> None:
    host, scripts = route.host, route.scripts
    script = _script(PREPARE_FILE, quote_path(target), shlex.quote(name))
    prepared = scripts.run(
        script, cwd=cwd, title=f"prepare {target}", watch=Watch(cancellation=watch.cancellation), login_shell=False
    )
    directory, base = _checked(host, "send", str(local), prepared, target)
    temporary = f".lazycluster-{secrets.token_hex(8)}"
    size = local.stat().st_size

    def progress(child: Child) -> None:
        watch.on_progress(_position(child.pid, local), size)

    with _reachable(scripts, directory) as path:
        try:
            failure = _scp(
                route.sessions,
                str(local.absolute()),
                f"{path}/{temporary}",
                watch,
                progress,
                sending=True,
                on_lost=f"rm -f -- {shlex.quote(f'{directory}/{temporary}')}",
            )
            if failure:
                raise TransferError(host, "send", str(local), failure, target)
            placing = _script(PLACE_FILE, shlex.quote(f"{directory}/{temporary}"), shlex.quote(f"{directory}/{base}"))
            placed = scripts.run(placing, title=f"place {target}", login_shell=False)
            _checked(host, "send", str(local), placed, target)
        except BaseException:
            _remove(scripts, f"{directory}/{temporary}")
            raise
    watch.on_progress(size, size)


@attrs.frozen
class _Found:
    """A file on the host: the directory it is in, its name there, and its size in bytes."""

    directory: str
    name: str
    size: int


def _get_file(route: Route, found: _Found, target: Path, watch: Watch) -> None:
    temporary = _temporary(target)

    def progress(_child: Child) -> None:
        with contextlib.suppress(OSError):
            watch.on_progress(temporary.stat().st_size, found.size)

    try:
        with _reachable(route.scripts, found.directory, found.name) as path:
            failure = _scp(route.sessions, path, str(temporary.absolute()), watch, progress, sending=False)
        if failure:
            raise TransferError(route.host, "fetch", f"{found.directory}/{found.name}", failure, str(target))
        place(temporary, target)
    finally:
        discard(temporary)
    watch.on_progress(found.size, found.size)


@contextlib.contextmanager
def _reachable(scripts: Scripts, directory: str, name: str | None = None) -> Iterator[str]:
    """Give a path that needs no quoting in any version of scp, through a symbolic link where it takes one."""
    path = directory if name is None else f"{directory.rstrip('/')}/{name}"
    if _PLAIN_PATH.fullmatch(path):
        yield path
        return
    made = scripts.run(_script(CREATE_LINK, shlex.quote(path)), title=f"link to {path}", login_shell=False)
    link = _checked(scripts.host, "reach", path, made)[0]
    try:
        yield link
    finally:
        _remove(scripts, str(PurePosixPath(link).parent))


def _remove(scripts: Scripts, path: str) -> None:
    """Remove what a transfer has left on the host, as far as the host can still be reached."""
    with contextlib.suppress(LazyclusterError):
        script = _script(REMOVE, shlex.quote(path))
        scripts.run(script, title=f"remove {path}", timeout=_CLEAN_UP_TIMEOUT, login_shell=False)


def _scp(
    sessions: Sessions,
    source: str,
    target: str,
    watch: Watch,
    progress: Callable[[Child], None],
    *,
    sending: bool,
    on_lost: str = ":",
) -> str:
    """Copy one file, again in the older protocol where the host has no sftp subsystem; return why it failed, or ''.

    Should this process die meanwhile the host ends the connection, and scp with it, after `on_lost`.
    """
    to = sessions.destination
    operands = (source, remote_operand(to, target)) if sending else (remote_operand(to, source), target)
    what = f"scp {source} {target}"
    used: list[Master] = []
    room_for_two = True

    def copy(master: Master, *, legacy: bool = False) -> Finished:
        nonlocal room_for_two
        used.append(master)
        argv = scp_argv(to, master.socket, *operands, legacy=legacy, unsupported=sessions.unsupported)
        with _kept(master, on_lost) if room_for_two else contextlib.nullcontext():
            ended = _run_scp(sessions, argv, master, watch, progress)
        room_for_two = session_refused(ended.text) is None
        return ended

    ended = sessions.run_beside(copy, what, watch.cancellation)
    if _NO_SFTP.search(ended.text) and used[-1].check():
        ended = sessions.run_beside(functools.partial(copy, legacy=True), what, watch.cancellation)
    if ended.status == 0:
        return ""
    if used[-1].control is not None and not used[-1].check():
        raise ConnectionLostError(sessions.host, what, used[-1].reason, started=True)
    return scp_reason(ended.text) or f"scp ended with exit status {ended.status}"


@contextlib.contextmanager
def _kept(master: Master, on_lost: str) -> Iterator[None]:
    """Have the host notice should this process die."""
    if master.control is None:
        yield
        return
    try:
        keeper = Keeper(master.control, on_lost)
    except ControlSocketError as error:
        _log.debug("no keeper: %s", error)
        yield
        return
    try:
        yield
    finally:
        keeper.close()


def _run_scp(
    sessions: Sessions, argv: tuple[str, ...], master: Master, watch: Watch, progress: Callable[[Child], None]
) -> Finished:
    said: list[bytes] = []
    child = Child(
        argv,
        stdin=False,
        on_output=lambda _stream, data: said.append(data),
        deadline=Deadline(None),
        cancellation=watch.cancellation,
    )
    try:
        while not child.pump(lambda: child.at_end, seconds=_PROGRESS_EVERY):
            sessions.check(master, " ".join(argv[-2:]))
            progress(child)
        return Finished(child.wait(5.0), b"".join(said).decode(errors="replace"))
    except CancelledError:
        raise CommandStoppedError(sessions.host, " ".join(argv[-2:])) from None
    finally:
        child.abandon()


def _position(pid: int, path: Path) -> int:
    """Return how far a process has read a file, where the kernel tells (Linux: proc(5), fdinfo), else 0."""
    with contextlib.suppress(OSError, ValueError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            if link.readlink() == path.absolute():
                return int(Path(f"/proc/{pid}/fdinfo/{link.name}").read_text().split()[1])
    return 0


# One file in the stream of a script -----------------------------------------------------------------------------------


def _put_stream(scripts: Scripts, local: Path, name: str, target: str, cwd: str | None, watch: Watch) -> None:
    """Send a file through the standard input of a script that writes it."""
    with local.open("rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        mtime = min(max(int(status.st_mtime), 0), _LAST_TIME)
        when = time.strftime("%Y%m%d%H%M.%S", time.gmtime(mtime))
        mode = f"{stat.S_IMODE(status.st_mode) & 0o777:o}"
        words = quote_path(target), shlex.quote(name), secrets.token_hex(8), str(status.st_size), mode, when
        script = scripts.script(
            _script(RECEIVE_FILE, *words), title=f"receive {target}", cwd=cwd, raw_stdin=True, login_shell=False
        )
        collector = Collector()

        def work(session: Dialogue) -> None:
            done = 0
            while done < status.st_size and (data := file.read(min(_PIECE, status.st_size - done))):
                session.feed(data)
                done += len(data)
                watch.on_progress(done, status.st_size)
            session.close_stdin()
            session.finish()

        exit_code = scripts.perform(script, work, collector=collector, watch=Watch(cancellation=watch.cancellation))
    _checked(scripts.host, "send", str(local), collector.result("", exit_code, 0.0), target)


def _receive(session: Dialogue, temporary: Path, size: int, watch: Watch) -> None:
    """Write what comes of a file, behind its mode and time."""
    mode, _, mtime = (session.read_until(b"\0") or b"").decode("ascii").partition(" ")
    done = 0
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        while data := session.read_some():
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            done += len(data)
            watch.on_progress(done, size)
        os.fchmod(descriptor, int(mode, 8) & 0o777)
        os.utime(descriptor, (int(mtime), int(mtime)))


# A directory ---------------------------------------------------------------------------------------------------------


@attrs.frozen
class _Outgoing:
    """Standard input of a session, as a file that is written to."""

    session: Dialogue

    def write(self, data: bytes, /) -> None:
        """Send all of the data."""
        self.session.feed(data)


@attrs.frozen
class _Incoming:
    """Standard output of a session, as a file that is read from."""

    session: Dialogue

    def read(self, size: int, /) -> bytes:
        """Return so many bytes, fewer only at the end."""
        return self.session.read(size)


@attrs.define
class _Counter:
    """Adds up what was moved."""

    report: Callable[[int, int | None], None]
    done: int = 0

    def add(self, size: int) -> None:
        """Count, and report."""
        self.done += size
        self.report(self.done, None)


def _put_tree(scripts: Scripts, local: Path, name: str, target: str, cwd: str | None, watch: Watch) -> None:
    mode = stat.S_IMODE(local.stat().st_mode) & 0o777
    words = quote_path(target), shlex.quote(name), secrets.token_hex(8), END_MARKER, f"{mode:o}"
    script = scripts.script(
        _script(RECEIVE_TREE, *words), title=f"receive {target}", cwd=cwd, raw_stdin=True, login_shell=False
    )
    collector = Collector()

    def work(session: Dialogue) -> None:
        pack(local, _Outgoing(session), on_progress=_Counter(watch.on_progress).add)
        session.close_stdin()
        session.finish()

    exit_code = scripts.perform(script, work, collector=collector, watch=Watch(cancellation=watch.cancellation))
    _checked(scripts.host, "send", str(local), collector.result("", exit_code, 0.0), target)


def _fetch(
    scripts: Scripts, remote: str, local: Path, cwd: str | None, watch: Watch, *, streamed: int
) -> _Found | None:
    """Fetch a directory, or a file of up to `streamed` bytes; where a larger file is, is returned."""
    text = _script(FETCH, quote_path(remote), str(streamed))
    script = scripts.script(text, title=f"fetch {remote}", cwd=cwd, login_shell=False)
    collector = Collector()
    header: list[str] = []
    received: list[tuple[Path, Path]] = []

    def work(session: Dialogue) -> None:
        header.clear()
        fields = [session.read_until(b"\0") for _ in range(4)]
        if None in fields:
            raise SessionEndedError
        header.extend((field or b"").decode("utf-8", "surrogateescape") for field in fields)
        if header[0] == "d":
            target = _local_target(local, remote, header[2])
            temporary = _temporary(target)
            received.append((temporary, target))
            temporary.mkdir(mode=0o700)
            unpack(_Incoming(session), temporary, on_progress=_Counter(watch.on_progress).add)
        elif int(header[3]) <= streamed:
            target = _local_target(local, remote, header[2])
            temporary = _temporary(target)
            received.append((temporary, target))
            _receive(session, temporary, int(header[3]), watch)
        session.finish()

    try:
        exit_code = scripts.perform(script, work, collector=collector, watch=Watch(cancellation=watch.cancellation))
        said = collector.joined(Stream.STDERR).decode(errors="replace").strip()
        changed = exit_code == 1 and bool(said) and all(_HARMLESS_TAR.fullmatch(line) for line in said.splitlines())
        if not header or (exit_code != 0 and not changed):
            raise TransferError(scripts.host, "fetch", remote, said or f"exit status {exit_code}")
        for temporary, target in received[-1:]:
            place(temporary, target)
    finally:
        for temporary, _ in received:
            discard(temporary)
    return None if received else _Found(header[1], header[2], int(header[3]))


def _local_target(local: Path, remote: str, name: str) -> Path:
    """Return where something fetched belongs: into an existing directory, under its own name, or as `local` itself."""
    if not local.is_dir():
        return local
    given = PurePosixPath(remote).name
    if given not in _NAMELESS:
        return local / given
    if name in {"", ".", ".."} or "/" in name:
        raise UnsafeArchiveError(name, "the host gives that as the directory's name; name a target that is not there")
    return local / name


def _temporary(target: Path) -> Path:
    """Return a temporary name for what is fetched to `target`; a missing directory is named as itself."""
    temporary = temporary_beside(target)
    temporary.parent.stat()
    return temporary
