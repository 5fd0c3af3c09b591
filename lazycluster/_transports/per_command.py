"""The transport that runs each command in a session of its own, through one master."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import IO

import attrs

from lazycluster._functions import session_call
from lazycluster._functions.function_call import FunctionCall
from lazycluster._functions.python_finder import exec_python_script
from lazycluster._model.command import Command
from lazycluster._model.input_source import PIECE_BYTES, read_input
from lazycluster._model.running_command import Conversation, RunningCommand
from lazycluster._model.watch import UNWATCHED, Watch
from lazycluster._remote.ports import port_check_program
from lazycluster._ssh.host_scripts import MAKE_WORKING_DIRECTORY, build_probe_script
from lazycluster._ssh.shell import quote_path
from lazycluster._transports.ssh_transport import SshTransport, directory_error
from lazycluster.exceptions import LazyclusterError, PythonNotFoundError
from lazycluster.hardware import HostInfo, parse_probe_output


class PerCommandTransport(SshTransport):
    """Runs each command in an ssh process of its own; a host needs a Python only for functions and ports."""

    def set_up(self, working_dir: str | None) -> tuple[str, HostInfo]:
        """Make the working directory and probe the machine, in one round trip."""
        directory = "" if working_dir is None else quote_path(working_dir)
        script = f"set -- {directory}\n{MAKE_WORKING_DIRECTORY}\n{build_probe_script(self._python)}"
        result = self.run_sh(script, "set up a runtime")
        path, separator, facts = result.stdout_bytes.partition(b"\0")
        if not separator:
            raise directory_error(self.host, working_dir, result.output.strip() or f"exit status {result.exit_code}")
        made = path.decode("utf-8", "surrogateescape")
        self._set_working_dir(made, is_temporary=working_dir is None)
        return made, parse_probe_output(facts.decode(errors="replace"))

    def _carry_out(self, command: Command, watch: Watch) -> int:
        """Run a command; one that reads a file begins when all of that is on the host, as with bytes."""
        if command.source is None:
            return super()._carry_out(command, watch)
        with tempfile.TemporaryFile() as spool:
            for piece in read_input(self.host, command, watch):
                spool.write(piece)
            sized = attrs.evolve(command, source=None, stdin_size=spool.tell())

            def send(running: RunningCommand) -> None:
                spool.seek(0)
                while piece := spool.read(PIECE_BYTES):
                    running.write(piece)
                running.wait()

            return self.communicate(sized, send, watch)

    def communicate(self, command: Command, conversation: Conversation, watch: Watch = UNWATCHED) -> int:
        """Run a command in a session of its own; see `CommandRunner.communicate()`."""
        with self._replacing_lost_dir():
            return self.ssh_client.communicate(command, conversation, watch)

    def call(self, call: FunctionCall, outcome: IO[bytes], watch: Watch = UNWATCHED) -> None:
        """Call a function in a Python process of its own."""
        grace = self.ssh_client.grace
        session_call.run_function_in_session(self, call, outcome, python=self._python, grace=grace, watch=watch)

    def is_alive(self) -> bool:
        """Return whether the host can run a command now."""
        if self.ssh_client.closed:
            return False
        try:
            return self.run(Command("true", timeout=self.ssh_client.destination.connect_timeout)).ok
        except LazyclusterError:
            return False

    def create_tempdir(self) -> str:
        """Make a temporary directory, and return its path."""
        result = self.run_sh(f"set --\n{MAKE_WORKING_DIRECTORY}", "create_tempdir").check()
        path = result.stdout_bytes.partition(b"\0")[0].decode("utf-8", "surrogateescape")
        self._temp_dirs.append(path)
        return path

    def free_ports(self, ports: Sequence[int]) -> list[int]:
        """Return the given ports on which a server could listen.

        Raises:
            PythonNotFoundError: If there is no Python on the host to try it with.
        """
        asked = "".join(f"{port}\n" for port in ports)
        result = self.run_sh(
            exec_python_script(self._python, port_check_program()), "check ports", stdin=asked.encode()
        )
        if result.exit_code == 127:
            raise PythonNotFoundError(self.host, self._python or "python3")
        return [int(line) for line in result.check().stdout.split()]

    def clean_up(self) -> None:
        """End everything that is left of the runtime on the host, and remove its temporary directories."""
        if self._temp_dirs or self.ssh_client.is_connected:
            self.stop_marked_processes(name_them=True)
