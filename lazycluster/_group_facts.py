"""The hosts of a group, their tasks and tables, under the names of the reference."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator

from lazycluster._display import pluralize, print_table
from lazycluster._facts import HOST_TABLE_COLUMNS, host_table_row
from lazycluster._membership import Members, unknown_hosts
from lazycluster.managed import ManagedProcess
from lazycluster.runtimes import Runtime


class GroupFacts:
    """The part of `RuntimeGroup` that only reads its members."""

    _members: Members

    def __repr__(self) -> str:
        """Return the hosts."""
        return f"<{type(self).__name__} {', '.join(self.hosts) or 'without hosts'}>"

    def __len__(self) -> int:
        """Return the number of hosts."""
        return len(self._members.all())

    def __bool__(self) -> bool:
        """Return True: a group without hosts is a group, too."""
        return True

    def __iter__(self) -> Iterator[Runtime]:
        """Iterate over the runtimes as they are now, in the order of their hosts."""
        return iter(self.runtimes)

    def __contains__(self, host_or_runtime: object) -> bool:
        """Return whether a host, given by its name, or a runtime belongs to the group."""
        runtimes = self._members.all()
        return host_or_runtime in runtimes or any(runtime is host_or_runtime for runtime in runtimes.values())

    def __getitem__(self, host: str) -> Runtime:
        """Return the runtime on a host.

        Raises:
            KeyError: If the host is not in the group; `get_runtime()` raises a `ValueError` for it.
        """
        runtimes = self._members.all()
        if host not in runtimes:
            raise KeyError(unknown_hosts([host], runtimes))
        return runtimes[host]

    @property
    def hosts(self) -> list[str]:
        """The hosts, in the order given."""
        return list(self._members.all())

    @property
    def runtimes(self) -> list[Runtime]:
        """The runtimes, in the order of their hosts."""
        return list(self._members.all().values())

    @property
    def runtime_count(self) -> int:
        """The number of hosts."""
        return len(self._members.all())

    @property
    def failed_hosts(self) -> dict[str, Exception]:
        """The hosts that were skipped when the group was made, with their errors."""
        return dict(self._members.failed)

    def contains_runtime(self, host: str) -> bool:
        """Return whether a host belongs to the group."""
        return host in self._members.all()

    def get_runtime(self, host: str | None = None) -> Runtime:
        """Return the runtime on a host; by default the least busy, by running tasks, then by the order given.

        A host that was lost when its last task ended comes after the others, and the one lost last comes last. It
        would otherwise get every task, and fail it at once. A task or `run()` that succeeds on it clears this mark, as
        does `clear_tasks()`.

        Raises:
            ValueError: If the host is not in the group.
            NoRuntimesError: If the group is empty.
        """
        return self._members.get(host)

    def get_runtimes(
        self,
        include_hosts: str | Iterable[str] | None = None,
        exclude_hosts: str | Iterable[str] | None = None,
    ) -> dict[str, Runtime]:
        """Return runtimes by host, in the order of the group: the included hosts, or all, without those excluded.

        Raises:
            ValueError: If a host is not in the group.
        """
        return self._members.select(include_hosts, exclude_hosts)

    @property
    def task_processes(self) -> list[ManagedProcess]:
        """The processes of the tasks in the background, host by host."""
        return [process for runtime in self.runtimes for process in runtime.task_processes]

    @property
    def function_returns(self) -> Generator[object, None, None]:
        """The values that the functions of the tasks returned, host by host in the order of the group.

        Iterating waits for the tasks of each host in turn.
        """
        for runtime in self.runtimes:
            yield from runtime.function_returns

    def print_log(self) -> None:
        """Print the logs of the tasks, host by host."""
        for runtime in self.runtimes:
            runtime.print_log()

    def print_hosts(self) -> None:
        """Print the hosts with their working directories as a table."""
        rows = [(runtime.host, runtime.working_dir) for runtime in self.runtimes]
        print_table(pluralize(len(rows), "host"), ("host", "working directory"), rows)

    def print_runtime_info(self) -> None:
        """Print the facts about the hosts as a table."""
        rows = [host_table_row(runtime) for runtime in self.runtimes]
        print_table(pluralize(len(rows), "host"), HOST_TABLE_COLUMNS, rows)
