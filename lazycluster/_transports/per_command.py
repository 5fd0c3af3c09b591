"""The transport that runs each command in a session of its own, through one master."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO

from lazycluster._functions import session_call
from lazycluster._functions.function_call import FunctionCall
from lazycluster._functions.python_finder import exec_python_script
from lazycluster._model.command import Command
from lazycluster._model.running_command import Conversation
from lazycluster._model.watch import UNWATCHED, Watch
from lazycluster._remote.ports import port_check_program
from lazycluster._ssh.host_scripts import MAKE_WORKING_DIRECTORY, build_probe_script
from lazycluster._ssh.shell import quote_path
from lazycluster._transports.ssh_transport import SshTransport, check_result, directory_error
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
        if working_dir is None:
            self._temp_dirs.append(made)
        return made, parse_probe_output(facts.decode(errors="replace"))

    def communicate(self, command: Command, conversation: Conversation, watch: Watch = UNWATCHED) -> int:
        """Run a command in a session of its own; see `CommandRunner.communicate()`."""
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
        result = check_result(self.host, self.run_sh(f"set --\n{MAKE_WORKING_DIRECTORY}", "create_tempdir"))
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
        return [int(line) for line in check_result(self.host, result).stdout.split()]

    def clean_up(self) -> None:
        """End everything that is left of the runtime on the host, and remove its temporary directories."""
        if self._temp_dirs or self.ssh_client.is_connected:
            self.stop_marked_processes(name_them=True)
