"""The functions that the contestants call on the host.

They travel there as source, and import nothing that they do not use: the smaller a process, the faster it forks.
"""


def answer() -> int:
    """Return an int."""
    return 42


def blob(size: int) -> bytes:
    """Return `size` bytes."""
    return b"x" * size


def read_file(path: str) -> bytes:
    """Return the contents of a file."""
    with open(path, "rb") as file:  # noqa: PTH123 - as above
        return file.read()


def successor(number: int) -> int:
    """Return the next number."""
    return number + 1


def run_true() -> int:
    """Run the command `true` as the others do: through a shell, with its output captured; return its exit status."""
    import subprocess  # noqa: PLC0415 - as above

    argv = ["/bin/sh", "-c", "true"]
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode
