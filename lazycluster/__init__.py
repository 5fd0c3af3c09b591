"""Run work on other machines over nothing but the system's own OpenSSH client.

Its names are imported when they are first used, so that importing the package alone costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lazycluster.callers import Caller
    from lazycluster.connection import Connection
    from lazycluster.exceptions import (
        AuthenticationError,
        BrokenArchiveError,
        ChangedHostKeyError,
        CommandError,
        CommandFailedError,
        CommandStoppedError,
        CommandTimeoutError,
        ConnectError,
        ConnectionLostError,
        ConnectionThrottledError,
        ConnectTimeoutError,
        ForwardingRefusedError,
        FunctionError,
        FunctionNotSerializableError,
        FunctionTimeoutError,
        HostError,
        HostFileNotFoundError,
        HostsFailedError,
        HostUnreachableError,
        InvalidRuntimeError,
        LazyclusterError,
        LoginShellError,
        NoPortsLeftError,
        NoRuntimesDetectedError,
        NoRuntimesError,
        OutputLimitError,
        PortInUseError,
        PortRefusedError,
        PythonNotFoundError,
        PythonVersionMismatchError,
        RemoteFunctionError,
        RemoteTraceback,
        RuntimeClosedError,
        SessionRefusedError,
        SshConfigurationError,
        SshNotFoundError,
        SupervisorError,
        TaskExecutionError,
        TransferError,
        TunnelError,
        UnknownHostError,
        UnknownHostKeyError,
        UnsafeArchiveError,
        WorkingDirectoryError,
    )
    from lazycluster.gpus import Gpu, MigDevice
    from lazycluster.group_callers import GroupCaller
    from lazycluster.groups import RuntimeGroup
    from lazycluster.hardware import HostInfo
    from lazycluster.managed import ManagedProcess
    from lazycluster.manager import RuntimeManager
    from lazycluster.options import CallOutput, ConnectionOptions, ManagerOptions, RuntimeOptions
    from lazycluster.remote_process import RemoteProcess
    from lazycluster.results import CommandResult, Error, OnError, StepResult, Stream, Value
    from lazycluster.runtimes import Runtime
    from lazycluster.steps import GetFile, RunCommand, RunFunction, SendFile, Step
    from lazycluster.tasks import RuntimeTask

    __version__: str

__all__ = [
    "AuthenticationError",
    "BrokenArchiveError",
    "CallOutput",
    "Caller",
    "ChangedHostKeyError",
    "CommandError",
    "CommandFailedError",
    "CommandResult",
    "CommandStoppedError",
    "CommandTimeoutError",
    "ConnectError",
    "ConnectTimeoutError",
    "Connection",
    "ConnectionLostError",
    "ConnectionOptions",
    "ConnectionThrottledError",
    "Error",
    "ForwardingRefusedError",
    "FunctionError",
    "FunctionNotSerializableError",
    "FunctionTimeoutError",
    "GetFile",
    "Gpu",
    "GroupCaller",
    "HostError",
    "HostFileNotFoundError",
    "HostInfo",
    "HostUnreachableError",
    "HostsFailedError",
    "InvalidRuntimeError",
    "LazyclusterError",
    "LoginShellError",
    "ManagedProcess",
    "ManagerOptions",
    "MigDevice",
    "NoPortsLeftError",
    "NoRuntimesDetectedError",
    "NoRuntimesError",
    "OnError",
    "OutputLimitError",
    "PortInUseError",
    "PortRefusedError",
    "PythonNotFoundError",
    "PythonVersionMismatchError",
    "RemoteFunctionError",
    "RemoteProcess",
    "RemoteTraceback",
    "RunCommand",
    "RunFunction",
    "Runtime",
    "RuntimeClosedError",
    "RuntimeGroup",
    "RuntimeManager",
    "RuntimeOptions",
    "RuntimeTask",
    "SendFile",
    "SessionRefusedError",
    "SshConfigurationError",
    "SshNotFoundError",
    "Step",
    "StepResult",
    "Stream",
    "SupervisorError",
    "TaskExecutionError",
    "TransferError",
    "TunnelError",
    "UnknownHostError",
    "UnknownHostKeyError",
    "UnsafeArchiveError",
    "Value",
    "WorkingDirectoryError",
]

_LAZY_IMPORTS = {
    "Caller": "callers",
    "Connection": "connection",
    "GroupCaller": "group_callers",
    "Runtime": "runtimes",
    "RuntimeGroup": "groups",
    "RuntimeManager": "manager",
    "RuntimeTask": "tasks",
    "CommandResult": "results",
    "Error": "results",
    "OnError": "results",
    "Stream": "results",
    "Value": "results",
    "StepResult": "results",
    "Step": "steps",
    "GetFile": "steps",
    "RunCommand": "steps",
    "RunFunction": "steps",
    "SendFile": "steps",
    "CallOutput": "options",
    "ConnectionOptions": "options",
    "ManagerOptions": "options",
    "RuntimeOptions": "options",
    "Gpu": "gpus",
    "MigDevice": "gpus",
    "HostInfo": "hardware",
    "ManagedProcess": "managed",
    "RemoteProcess": "remote_process",
}
"""The modules of the names; all other names are errors, from `exceptions`."""


def __getattr__(name: str) -> object:
    """Import a name of this package when it is first used (PEP 562)."""
    value: object
    if name == "__version__":
        value = importlib.import_module("importlib.metadata").version(__name__)
    elif name in __all__:
        value = getattr(importlib.import_module(f"{__name__}.{_LAZY_IMPORTS.get(name, 'exceptions')}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the names of the package, also those that were not used yet."""
    return sorted({*globals(), *__all__, "__version__"})
