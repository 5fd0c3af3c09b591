"""The bare resident Python: the least that a call into a process of its own can take, and so the floor for `call`.

It runs on the host as `python3 -u -c`, after the source of `benchmarks.remote`, whose functions it calls by name.
Requests and results are pickles, each after its length.
"""

import os
import pickle
import struct
import sys

LENGTH_HEADER = struct.Struct("!Q")


def _serve() -> None:
    """Answer requests until there are no more: a child for each, which writes the result itself."""
    while len(head := sys.stdin.buffer.read(LENGTH_HEADER.size)) == LENGTH_HEADER.size:
        request = sys.stdin.buffer.read(*LENGTH_HEADER.unpack(head))
        child = os.fork()
        if not child:
            _answer(request)
        os.waitpid(child, 0)


def _answer(request: bytes) -> None:
    """Call the function, write its result, and end this process; one that fails ends without an answer."""
    status = 1
    try:
        name, arguments = pickle.loads(request)
        result = pickle.dumps(globals()[name](*arguments), protocol=pickle.HIGHEST_PROTOCOL)
        rest = memoryview(result)[os.writev(1, (LENGTH_HEADER.pack(len(result)), result)) - LENGTH_HEADER.size :]
        while rest:
            rest = rest[os.write(1, rest) :]
        status = 0
    finally:
        os._exit(status)


if __name__ == "__main__":
    _serve()
