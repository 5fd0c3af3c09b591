"""A slow network before a port on loopback, as a program: `python -m benchmarks.slow_link PORT SECONDS`.

It is a process of its own because a thread in the measuring one would compete with it for the interpreter.
"""

import sys

from lazycluster.testing import Relay


def _main(port: int, delay: float) -> None:
    with Relay(port, delay=delay) as relay:
        print(relay.port, flush=True)
        sys.stdin.buffer.read()  # ends with the program that started this one


if __name__ == "__main__":
    _main(int(sys.argv[1]), float(sys.argv[2]))
