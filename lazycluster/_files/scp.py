"""One file through `scp`, over the shared connection."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import secrets
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from lazycluster._files.install import discard, move_into_place, temporary_path_beside
from lazycluster._files.scripts import script_fields, transfer_script
from lazycluster._files.streams import FoundFile
from lazycluster._model.running_command import CommandRunner
from lazycluster._model.watch import Watch
from lazycluster._processes.local_process import LocalProcess
from lazycluster._processes.run import Completed
from lazycluster._ssh.argv import remote_operand, scp_argv
from lazycluster._ssh.client import SshClient
from lazycluster._ssh.diagnosis import describe_exit, scp_failure_reason, session_refusal_reason, start_failure
from lazycluster._ssh.host_scripts import CREATE_LINK, MOVE_FILE, REMOVE_PATH, RESOLVE_FILE_TARGET
from lazycluster._ssh.lifeline import Lifeline
from lazycluster._ssh.master import Master
from lazycluster._ssh.mux import ControlSocketError
from lazycluster._ssh.shell import quote_path
from lazycluster._waiting import CancelledError, Deadline
from lazycluster.exceptions import CommandStoppedError, ConnectionLostError, LazyclusterError, TransferError
from lazycluster.results import Collector

_log = logging.getLogger(__name__)
# Every version of scp, its server and any login shell take such a path as it is. Others need a symbolic link.
_SCP_SAFE_ABSOLUTE_PATH = re.compile(r"/[A-Za-z0-9_./+,=@-]*")
# Through a master, scp does not learn that the subsystem was refused, and sees only a closed connection (measured with
# OpenSSH 9.2). If that had another reason and the master lives, the older protocol fails in its turn.
_SFTP_MISSING_PATTERN = re.compile(r"subsystem request failed|\A\s*(scp: )?Connection closed\s*\Z")
_REMOVE_TIMEOUT_SECONDS = 10.0
_PROGRESS_INTERVAL_SECONDS = 0.2


def put_file_by_scp(
    runner: CommandRunner,
    ssh_client: SshClient,
    local: Path,
    name: str,
    target: str,
    cwd: str | None,
    watch: Watch,
) -> None:
    """Send a file under a temporary name, and rename it on the host when it is complete."""
    host = runner.host
    words = quote_path(target), shlex.quote(name)
    prepare = transfer_script(RESOLVE_FILE_TARGET, *words, title=f"prepare {target}", cwd=cwd)
    prepared = runner.run(prepare, Watch(cancel_token=watch.cancel_token))
    directory, base = script_fields(host, "send", str(local), prepared, target)
    temporary = f".lazycluster-{secrets.token_hex(8)}"
    size = local.stat().st_size

    sent = 0

    def progress(process: LocalProcess) -> None:
        nonlocal sent
        sent = max(sent, _read_position(process.pid, local))  # 0 again once scp has closed the file
        watch.on_progress(sent, size)

    with _scp_safe_path(runner, directory) as path:
        try:
            failure = _copy_file_by_scp(
                ssh_client,
                str(local.absolute()),
                f"{path}/{temporary}",
                watch,
                progress,
                sending=True,
                on_lost=f"rm -f -- {shlex.quote(f'{directory}/{temporary}')}",
            )
            if failure:
                raise TransferError(host, "send", str(local), failure, target)
            words = shlex.quote(f"{directory}/{temporary}"), shlex.quote(f"{directory}/{base}")
            placed = runner.run(transfer_script(MOVE_FILE, *words, title=f"place {target}"))
            script_fields(host, "send", str(local), placed, target)
        except BaseException:
            _remove_on_host(runner, f"{directory}/{temporary}")
            raise
    watch.on_progress(size, size)


def get_file_by_scp(runner: CommandRunner, ssh_client: SshClient, found: FoundFile, target: Path, watch: Watch) -> None:
    """Fetch a file under a temporary name, and rename it when it is complete."""
    temporary = temporary_path_beside(target)

    def progress(_process: LocalProcess) -> None:
        with contextlib.suppress(OSError):
            watch.on_progress(temporary.stat().st_size, found.size)

    try:
        with _scp_safe_path(runner, found.directory, found.name) as path:
            failure = _copy_file_by_scp(ssh_client, path, str(temporary.absolute()), watch, progress, sending=False)
        if failure:
            raise TransferError(runner.host, "fetch", f"{found.directory}/{found.name}", failure, str(target))
        move_into_place(temporary, target)
    finally:
        discard(temporary)
    watch.on_progress(found.size, found.size)


@contextlib.contextmanager
def _scp_safe_path(runner: CommandRunner, directory: str, name: str | None = None) -> Iterator[str]:
    """Yield a path that needs no quoting in any version of scp: the path itself or a symbolic link to it."""
    path = directory if name is None else f"{directory.rstrip('/')}/{name}"
    if _SCP_SAFE_ABSOLUTE_PATH.fullmatch(path):
        yield path
        return
    made = runner.run(transfer_script(CREATE_LINK, shlex.quote(path), title=f"link to {path}"))
    link = script_fields(runner.host, "reach", path, made)[0]
    try:
        yield link
    finally:
        _remove_on_host(runner, str(PurePosixPath(link).parent))


def _remove_on_host(runner: CommandRunner, path: str) -> None:
    """Remove a file or tree from the host, if the host can still be reached."""
    with contextlib.suppress(LazyclusterError):
        title = f"remove {path}"
        runner.run(transfer_script(REMOVE_PATH, shlex.quote(path), title=title, timeout=_REMOVE_TIMEOUT_SECONDS))


def _copy_file_by_scp(
    ssh_client: SshClient,
    source: str,
    target: str,
    watch: Watch,
    progress: Callable[[LocalProcess], None],
    *,
    sending: bool,
    on_lost: str = ":",
) -> str:
    """Copy one file, and return why that failed, or ''.

    A second attempt uses the older protocol if the host has no sftp subsystem. If this process dies during the copy,
    the host runs `on_lost` and ends the connection, and scp with it.
    """
    destination = ssh_client.destination
    operands = (
        (source, remote_operand(destination, target)) if sending else (remote_operand(destination, source), target)
    )
    title = f"scp {source} {target}"
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
        with _holding_lifeline(ssh_client, master, on_lost) if can_open_second_session else contextlib.nullcontext():
            ended = _run_scp(ssh_client, argv, master, watch, progress)
        can_open_second_session = session_refusal_reason(ended.stderr) is None
        return ended

    ended = ssh_client.run_with_master(copy, title, watch.cancel_token)
    if _SFTP_MISSING_PATTERN.search(ended.stderr) and used[-1].check():
        ended = ssh_client.run_with_master(functools.partial(copy, legacy=True), title, watch.cancel_token)
    if ended.exit_code == 0:
        return ""
    if not used[-1].check():
        raise ConnectionLostError(ssh_client.host, title, used[-1].exit_reason, started=True)
    return scp_failure_reason(ended.stderr) or describe_exit("scp", ended.exit_code)


@contextlib.contextmanager
def _holding_lifeline(ssh_client: SshClient, master: Master, on_lost: str) -> Iterator[None]:
    """Let the host notice the death of this process, if a session for that is free."""
    lifeline: Lifeline | None = None
    with ssh_client.session_limit.acquire_if_free() as has_session:
        if has_session:
            try:
                lifeline = Lifeline(master.control_socket, on_lost, timeouts=ssh_client.timeouts)
            except ControlSocketError as error:
                _log.debug("no lifeline: %s", error)
        try:
            yield
        finally:
            if lifeline is not None:
                lifeline.close()


def _run_scp(
    ssh_client: SshClient, argv: tuple[str, ...], master: Master, watch: Watch, progress: Callable[[LocalProcess], None]
) -> Completed:
    collector = Collector()
    try:
        process = LocalProcess(
            argv,
            stdin=False,
            on_output=collector.write,
            deadline=Deadline(None),
            cancel_token=watch.cancel_token,
        )
    except OSError as error:
        raise start_failure(ssh_client.host, error) from error
    try:
        while not process.pump(lambda: process.at_eof, timeout=_PROGRESS_INTERVAL_SECONDS):
            ssh_client.check_master(master, " ".join(argv[-2:]))
            progress(process)
        return Completed.from_collector(process.wait(5.0), collector)
    except CancelledError:
        raise CommandStoppedError(ssh_client.host, " ".join(argv[-2:])) from None
    finally:
        process.close()


def _read_position(pid: int, path: Path) -> int:
    """Return how far a process has read a file, if the kernel shows it (Linux: proc(5), fdinfo), else 0."""
    with contextlib.suppress(OSError, ValueError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            if link.readlink() == path.absolute():
                return int(Path(f"/proc/{pid}/fdinfo/{link.name}").read_text().split()[1])
    return 0
