"""Files of a group: the same file or directory to every host, and from each host to a place of its own."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, overload

from lazycluster import _group_tasks
from lazycluster._gather import check_on_error
from lazycluster._group_calls import run_on_all
from lazycluster._membership import Members
from lazycluster._model.checks import absolute_path, check_path
from lazycluster._model.watch import Watch, make_watch
from lazycluster._runtime_core import core_of
from lazycluster._waiting import CancelToken, interrupt_boundary
from lazycluster.results import Error, OnError
from lazycluster.runtimes import Runtime
from lazycluster.steps import GetFile
from lazycluster.tasks import RuntimeTask

_OnProgress = Callable[[str, int, int | None], object]


class GroupFiles:
    """The part of `RuntimeGroup` about files. Relative paths on a host start in its working directory."""

    _members: Members

    @overload
    def put(
        self,
        local: str | os.PathLike[str],
        remote: str | None = ...,
        *,
        on_error: Literal["raise"] = ...,
        on_progress: Callable[[str, int, int | None], object] | None = ...,
    ) -> None: ...
    @overload
    def put(
        self,
        local: str | os.PathLike[str],
        remote: str | None = ...,
        *,
        on_error: Literal["collect"],
        on_progress: Callable[[str, int, int | None], object] | None = ...,
    ) -> dict[str, Error | None]: ...
    def put(
        self,
        local: str | os.PathLike[str],
        remote: str | None = None,
        *,
        on_error: OnError = "raise",
        on_progress: Callable[[str, int, int | None], object] | None = None,
    ) -> Mapping[str, Error | None] | None:
        """Send a file or a directory to every host, all at once; see `Runtime.put()`.

        Args:
            local: The local file or directory.
            remote: The target on each host. Default: its own name in the working directory.
            on_error: `raise` the errors when all have ended, or `collect` them: the result has an `Error` by the name
                of each host that failed, and None for the others.
            on_progress: Called with the host, the bytes moved so far, and all of them, or None if that is unknown. The
                calls come in threads of the hosts.

        Raises:
            HostsFailedError: If it could not be sent to some hosts.
        """
        source = absolute_path(local)

        def work(runtime: Runtime, cancel_token: CancelToken) -> None:
            context, watch = core_of(runtime).context(), _watch(runtime.host, on_progress, cancel_token)
            context.transport.put(source, remote, cwd=context.cwd, watch=watch)

        sent = run_on_all(self._members, work, f"sending {source}", on_error)
        return sent if on_error == "collect" else None

    @overload
    def get(
        self,
        remote: str,
        local: str | os.PathLike[str] | None = ...,
        *,
        on_error: Literal["raise"] = ...,
        on_progress: Callable[[str, int, int | None], object] | None = ...,
    ) -> None: ...
    @overload
    def get(
        self,
        remote: str,
        local: str | os.PathLike[str] | None = ...,
        *,
        on_error: Literal["collect"],
        on_progress: Callable[[str, int, int | None], object] | None = ...,
    ) -> dict[str, Error | None]: ...
    def get(
        self,
        remote: str,
        local: str | os.PathLike[str] | None = None,
        *,
        on_error: OnError = "raise",
        on_progress: Callable[[str, int, int | None], object] | None = None,
    ) -> Mapping[str, Error | None] | None:
        """Fetch a file or a directory from every host, all at once; see `Runtime.get()`.

        Args:
            remote: The file or directory on each host.
            local: The local target. `{host}` in it is replaced by the name of the host, as in
                `results/{host}/out.csv`, and missing directories are then made. Several hosts need it, since each would
                write to the same place.
            on_error: `raise` the errors when all have ended, or `collect` them: the result has an `Error` by the name
                of each host that failed, and None for the others.
            on_progress: Called with the host, the bytes moved so far, and all of them, or None if that is unknown. The
                calls come in threads of the hosts.

        Raises:
            ValueError: If there are several hosts, and no `{host}` in the local path.
            HostsFailedError: If it could not be fetched from some hosts.
        """
        check_path("remote", remote)
        check_on_error(on_error)
        step = GetFile(remote, Path.cwd() if local is None else absolute_path(local))
        if not step.has_host_placeholder and len(self._members.all()) > 1:
            raise ValueError(f"local must contain {{host}} for several hosts, got {local!r}")

        def work(runtime: Runtime, cancel_token: CancelToken) -> None:
            target = step.local_path_for(runtime.host)
            if step.has_host_placeholder:
                target.parent.mkdir(parents=True, exist_ok=True)
            context, watch = core_of(runtime).context(), _watch(runtime.host, on_progress, cancel_token)
            context.transport.get(remote, target, cwd=context.cwd, watch=watch)

        fetched = run_on_all(self._members, work, f"fetching {remote}", on_error)
        return fetched if on_error == "collect" else None

    @overload
    def send_file(
        self,
        local_path: str | os.PathLike[str],
        remote_path: str | None = ...,
        execute_async: bool = ...,
        *,
        on_error: Literal["raise"] = ...,
    ) -> dict[str, RuntimeTask]: ...
    @overload
    def send_file(
        self,
        local_path: str | os.PathLike[str],
        remote_path: str | None = ...,
        execute_async: bool = ...,
        *,
        on_error: Literal["collect"],
    ) -> dict[str, RuntimeTask | Error]: ...
    def send_file(
        self,
        local_path: str | os.PathLike[str],
        remote_path: str | None = None,
        execute_async: bool = True,
        *,
        on_error: OnError = "raise",
    ) -> Mapping[str, RuntimeTask | Error]:
        """Send a file or directory to every host; see `RuntimeTask.send_file()` and `execute_task()`.

        Returns:
            The tasks that send it, by host.

        Raises:
            ValueError: If the local path does not exist.
            HostsFailedError: If it could not be sent to some hosts; with `execute_async`, `join()` raises it.
        """
        with interrupt_boundary:
            return _group_tasks.send_file(self._members, local_path, remote_path, on_error, execute_async=execute_async)


def _watch(host: str, on_progress: _OnProgress | None, cancel_token: CancelToken) -> Watch:
    callback = None if on_progress is None else functools.partial(on_progress, host)
    return make_watch(on_progress=callback, cancel_token=cancel_token)
