"""The tables and logs that a group prints."""

from __future__ import annotations

import pytest

from lazycluster import (
    Runtime,
    RuntimeGroup,
    RuntimeTask,
)
from lazycluster.testing import FakeHost
from tests.unit.group_hosts import GROUP_HOSTS


def test_group_prints_tables(group: RuntimeGroup, fake_host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    fake_host.host("gpu").has(gpus=2, cpu_cores=1.5, memory=3 * 2**30, python_version="3.9.2")
    group.add_runtime(Runtime("gpu", "/work"))
    group.print_runtime_info()
    python = group.runtimes[0].python_version
    pad = " " * (max(0, 6 - len(python)))
    assert capsys.readouterr().out == (
        f"4 hosts\n"
        f"host  OS              Python{' ' * (len(python) - 6)}  CPU cores  memory   GPUs\n"
        f"----  --------------  {'-' * max(6, len(python))}  ---------  -------  ------------\n"
        f"web1  Fake Linux 1.0  {python}{pad}  4          8.0 GiB  0\n"
        f"web2  Fake Linux 1.0  {python}{pad}  4          8.0 GiB  0\n"
        f"web3  Fake Linux 1.0  {python}{pad}  4          8.0 GiB  0\n"
        f"gpu   Fake Linux 1.0  {'3.9.2'.ljust(max(6, len(python)))}  1.5        3.0 GiB  2 x Fake GPU\n"
    )
    group.print_hosts()
    width = min(60, max(len(runtime.working_dir) for runtime in group.runtimes))
    assert capsys.readouterr().out == (
        f"4 hosts\nhost  working directory\n----  {'-' * width}\n"
        + "".join(f"{runtime.host.ljust(4)}  {runtime.working_dir}\n" for runtime in group.runtimes)
    )


def test_print_log_names_hosts_and_tasks(
    group: RuntimeGroup, fake_host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    for host in GROUP_HOSTS:
        fake_host.host(host).on("id", stdout=f"I am {host}\n")
    group.execute_task(RuntimeTask("t").run_command("id"), broadcast=True, execute_async=False)
    group.print_log()
    assert capsys.readouterr().out == "".join(f"{host}: t\n[0] I am {host}\n" for host in GROUP_HOSTS)
    group.clear_tasks()
    group.print_log()
    assert capsys.readouterr().out == ""
    assert group.task_processes == []
