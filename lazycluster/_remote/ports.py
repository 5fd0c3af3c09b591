"""The check whether ports are free: on the local machine, and by the same code on a host that has Python."""

from __future__ import annotations

import errno
import inspect
import socket


def is_port_free(port: int) -> bool:
    """Return whether a server could bind a port on every address, IPv4 and IPv6, as far as the machine has them."""
    addresses = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, ""), (socket.AF_INET6, "::1"), (socket.AF_INET6, "::")]
    for family, address in addresses:
        try:
            probe = socket.socket(family, socket.SOCK_STREAM)
        except OSError:
            continue
        try:
            # Servers set it, too: without it a port is taken for minutes after its last connection (TIME_WAIT).
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind((address, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
        finally:
            probe.close()
    return True


def find_free_port() -> int:
    """Return a port of 127.0.0.1 that is free now, chosen by the system."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def port_check_program() -> str:
    """Return a Python program (3.6 and newer) that reads ports, one a line, and prints those that are free."""
    loop = "for line in sys.stdin:\n    if is_port_free(int(line)):\n        print(int(line))\n"
    return f"import errno, socket, sys\n{inspect.getsource(is_port_free)}\n{loop}"
