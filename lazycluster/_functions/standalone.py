"""A function as a Python file that runs it on a host by hand: `ssh host python3 - <file >answer`."""

from __future__ import annotations

import base64
import sys

from lazycluster._functions.bootstrap import CALL_MODULES, LOADER_SOURCE, modules_source
from lazycluster._functions.function_call import Payload
from lazycluster._functions.serialize import cloudpickle_source

_FILE_HEADER = """\
# {function}, pickled by lazycluster for Python {major}.{minor}. This file runs the code that is in the pickle.
import sys
if sys.version_info[:2] != ({major}, {minor}):
    sys.exit("this function is bytecode of Python {major}.{minor}, and this is Python %s.%s" % sys.version_info[:2])
sys.path[:] = [p for p in sys.path if p]
"""
# In a function, because `call_program` empties the namespace of __main__ for the function that it calls.
_FILE_MAIN = """\
def _start(call_program, call_outcome):
    import base64, os, tempfile
    answer = os.dup(1)
    os.dup2(2, 1)
    call_program.prepare(base64.b64decode(b'''
{cloudpickle}'''))
    request = tempfile.TemporaryFile()
    request.write(base64.b64decode(b'''
{request}'''))
    request.seek(0)
    call_program.run_call(os.dup(request.fileno()), answer, call_outcome.DONE_RECORD)
_start(call_program, call_outcome)
"""


def render_standalone_file(payload: Payload) -> str:
    """Return the text of the file, which is ASCII.

    The output of the function goes to standard error, its outcome, for `read_outcome`, to standard output. No watchdog
    ends it: it goes on when the connection breaks.
    """
    major, minor = sys.version_info[:2]
    name = payload.function.encode("ascii", "backslashreplace").decode("ascii")
    start = _FILE_MAIN.format(
        cloudpickle=base64.encodebytes(cloudpickle_source()).decode("ascii"),
        request=base64.encodebytes(payload.encode_request()).decode("ascii"),
    )
    header = _FILE_HEADER.format(function=name, major=major, minor=minor)
    return f"{header}{LOADER_SOURCE}{modules_source(('descriptors', *CALL_MODULES))}{start}"
