"""`lazycluster list-runtimes`."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import click

from lazycluster._cli.options import config_option, connect_timeout_option, json_option, resident_option
from lazycluster._cli.selection import hosts_option, max_connections_option
from lazycluster._ssh.config_hosts import check_config, default_config
from lazycluster.exceptions import NoRuntimesDetectedError
from lazycluster.manager import RuntimeManager, failure_reason
from lazycluster.runtimes import Runtime


@click.command(short_help="List the hosts that can be used, and why others cannot.")
@click.option("-l", "--long", "in_full", is_flag=True, help="With OS, Python, cores, memory and GPUs.")
@hosts_option
@config_option
@connect_timeout_option
@max_connections_option
@resident_option
@json_option
def list_runtimes(
    in_full: bool,
    hosts: tuple[str, ...],
    config: Path | None,
    connect_timeout: float,
    max_connections: int,
    resident: bool,
    as_json: bool,
) -> int:
    """List the hosts of the ssh configuration: which can be used, and why the others cannot.

    All, or those of --hosts, are tried in parallel, up to --max-connections at once. The exit status is 1 if no host
    can be used.

    \b
    Examples:
      lazycluster list-runtimes
      lazycluster list-runtimes -l --hosts web-1,web-2
      lazycluster list-runtimes -l --config ./cluster.conf
      lazycluster list-runtimes --json | jq -r '.active[].host'
    """  # noqa: D301 - \b keeps click from wrapping what follows
    with RuntimeManager(
        config,
        hosts or None,
        connect_timeout=connect_timeout,
        max_connections=max_connections,
        resident=resident,
        progress=True,
    ) as manager:
        active, inactive = manager.hosts, manager.inactive_hosts
        if not active and not inactive:
            check_config(config)
            raise NoRuntimesDetectedError(str(config or default_config()))
        if as_json:
            click.echo(
                json.dumps(
                    {
                        "active": [_runtime_record(runtime, in_full=in_full) for runtime in manager.runtimes],
                        "inactive": [
                            {"host": host, "error": failure_reason(host, error)} for host, error in inactive.items()
                        ],
                    },
                    indent=2,
                )
            )
            return 0 if active else 1
        if in_full:
            manager.print_runtime_info()
        else:
            manager.print_hosts()
        if inactive:
            click.echo()
            manager.print_inactive_hosts()
    return 0 if active else 1


def _runtime_record(runtime: Runtime, *, in_full: bool) -> dict[str, object]:
    if not in_full:
        return {"host": runtime.host}
    info = runtime.host_info
    return {
        "host": runtime.host,
        "os": info.os,
        "python_version": info.python_version,
        "cpu_cores": info.cpu_cores,
        "memory": info.memory,
        "gpus": [attrs.asdict(gpu) for gpu in info.gpus],
    }
