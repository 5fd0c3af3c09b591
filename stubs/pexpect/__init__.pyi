from collections.abc import Mapping, Sequence

class ExceptionPexpect(Exception): ...  # noqa: N818 - the names are those of pexpect
class EOF(ExceptionPexpect): ...
class TIMEOUT(ExceptionPexpect): ...

class _PtyProcess:
    delayafterclose: float

class spawn:  # noqa: N801 - as above
    pid: int
    child_fd: int
    exitstatus: int | None
    signalstatus: int | None
    delaybeforesend: float | None
    delayafterclose: float
    before: str
    ptyproc: _PtyProcess

    # With an encoding it reads and writes text. Without one it would use bytes, which lazycluster does not need.
    def __init__(
        self,
        command: str,
        args: Sequence[str] = ...,
        *,
        timeout: float | None = ...,
        cwd: str | None = ...,
        env: Mapping[str, str] | None = ...,
        ignore_sighup: bool = ...,
        encoding: str,
        dimensions: tuple[int, int] | None = ...,
    ) -> None: ...
    def send(self, s: str) -> int: ...
    def expect(self, pattern: str | type[ExceptionPexpect], timeout: float = ...) -> int: ...
    def sendline(self, s: str = ...) -> int: ...
    def waitnoecho(self, timeout: float = ...) -> bool: ...
    def getecho(self) -> bool: ...
    def isalive(self) -> bool: ...
    def wait(self) -> int | None: ...
    def close(self, force: bool = ...) -> None: ...
