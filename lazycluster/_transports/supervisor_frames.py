"""The first and the last message of a supervisor."""

from __future__ import annotations

import attrs

from lazycluster._functions.bootstrap import PythonInfo
from lazycluster._remote import protocol


@attrs.frozen
class Hello:
    """The first message of a supervisor."""

    python: PythonInfo
    pid: int
    working_dir: str
    probe_output: str = attrs.field(repr=False)
    working_dir_error: str = ""
    """Why there is no working directory."""

    @classmethod
    def parse(cls, body: bytes) -> Hello:
        """Read the body of a HELLO frame.

        Raises:
            FrameError: If it is not the body of a HELLO frame of this protocol version.
        """
        version, *fields = protocol.unpack(body) or [b""]
        if version != protocol.encode_number(protocol.PROTOCOL_VERSION) or len(fields) != 7:
            raise protocol.FrameError(f"a HELLO of protocol {version!r}", body)
        implementation, release, executable, working_dir_error, pid, working_dir, probe_output = fields
        texts = [field.decode("utf-8", "surrogateescape") for field in (release, executable, implementation)]
        return cls(
            PythonInfo(*texts),
            int(pid),
            working_dir.decode("utf-8", "surrogateescape"),
            probe_output.decode(errors="replace"),
            working_dir_error.decode(errors="replace"),
        )


@attrs.frozen
class Goodbye:
    """The last message of a supervisor."""

    unremoved_paths: tuple[str, ...] = ()
    """The directories that could not be removed."""
    left_running: tuple[str, ...] = ()
    """The command lines of processes that outlived their command or function, and that the supervisor has ended."""

    @classmethod
    def parse(cls, body: bytes) -> Goodbye:
        """Read the body of a GOODBYE frame.

        Raises:
            FrameError: If it is not the body of a GOODBYE frame.
        """
        fields = protocol.unpack(body)
        if len(fields) != 2:
            raise protocol.FrameError("a GOODBYE of another form", body)
        paths, commands = ([text.decode(errors="replace") for text in protocol.unpack(field)] for field in fields)
        return cls(tuple(paths), tuple(commands))
