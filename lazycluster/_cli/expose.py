"""`lazycluster expose`."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import click

from lazycluster._cli.options import (
    complete_hosts,
    config_option,
    connect_timeout_option,
    parse_callback,
    parse_host,
    resident_option,
)
from lazycluster._display import Printer, show_status
from lazycluster._ssh.tunnel import Tunnel
from lazycluster.managed import ManagedProcess
from lazycluster.runtimes import Runtime

_TUNNEL_CHECK_SECONDS = 0.5
"""Seconds between two checks of the tunnel."""


def parse_ports(text: str) -> tuple[int, int]:
    """Read `PORT[:PORT]`: the port of the service, and the one where it is made reachable, by default the same.

    Raises:
        ValueError: If the text has another form.
    """
    first, colon, second = text.partition(":")
    words = (first, second) if colon else (first, first)
    if not all(word.isdecimal() and 1 <= int(word) <= 65535 for word in words):
        raise ValueError(f"ports must be PORT or PORT:PORT, with ports from 1 to 65535, got {text!r}")
    return int(words[0]), int(words[1])


@click.command()
@click.option(
    "--from/--to",
    "is_from",
    default=True,
    help="Make a service of the host reachable here (default), or one of this machine there.",
)
@config_option
@connect_timeout_option
@resident_option
@click.argument("host", callback=parse_callback(parse_host), shell_complete=complete_hosts)
@click.argument("ports", callback=parse_callback(parse_ports), metavar="PORT[:PORT]")
def expose(
    host: str, ports: tuple[int, int], is_from: bool, config: Path | None, connect_timeout: float, resident: bool
) -> int:
    """Make a service reachable through a tunnel, until Ctrl-C.

    The first PORT is where the service listens, the second where it is made reachable on the other side, at localhost;
    by default the same. When the connection breaks, the tunnel is brought back. Its state is shown as it changes.

    \b
    Examples:
      lazycluster expose web-1 8888              the host's 8888 at localhost:8888 here
      lazycluster expose --from web-1 5432:15432 the host's 5432 at localhost:15432 here
      lazycluster expose --to web-1 8000         this machine's 8000 at localhost:8000 there
    """  # noqa: D301 - \b keeps click from wrapping what follows
    service, listen = ports
    out = Printer()
    logging.getLogger("lazycluster").addHandler(logging.NullHandler())  # its warnings are shown here
    with show_status(f"connecting to {host} ..."):
        runtime = Runtime(host, "~", config_file=config, connect_timeout=connect_timeout, resident=resident)
    with runtime:
        if is_from:
            key = runtime.expose_port_from_runtime(service, listen)
            out.print_line(f"localhost:{listen} here is localhost:{service} on {host}; Ctrl-C ends it")
        else:
            key = runtime.expose_port_to_runtime(service, listen)
            out.print_line(f"localhost:{listen} on {host} is localhost:{service} here; Ctrl-C ends it")
        try:
            _report_tunnel_state(out, runtime.get_process(key))
        except KeyboardInterrupt:
            out.print_line("stopped")
    return 0


def _report_tunnel_state(out: Printer, tunnel: ManagedProcess) -> None:
    """Print a line each time the tunnel goes down or comes up."""
    was_up = True
    since = time.monotonic()
    while tunnel.is_alive():
        tunnel.join(_TUNNEL_CHECK_SECONDS)
        is_up = tunnel.is_up if isinstance(tunnel, Tunnel) else tunnel.pid is not None
        if is_up != was_up:
            now = time.monotonic()
            state = "the connection is back" if is_up else "the connection is gone; bringing it back"
            out.print_line(f"{time.strftime('%H:%M:%S')} {state}, after {now - since:.0f} s", success=is_up)
            was_up, since = is_up, now
