"""The errors: records of facts, rendered when a reader prints them.

Every message answers four questions: which host, which hop, which command or which words of ssh, and what to try next.

The tree; `x` marks a plain class to catch the errors below it, `+` a record with fields, parentheses a further base:

* LazyclusterError
  x HostError
    + ConnectError (ValueError)
      + UnknownHostError
      + PortRefusedError
      + ConnectTimeoutError
      + HostUnreachableError
      + ConnectionThrottledError
      + UnknownHostKeyError
      + ChangedHostKeyError
      + AuthenticationError
      + SshConfigurationError
      + SshNotFoundError
    + ConnectionLostError (ConnectionError)
    + SessionRefusedError
    + LoginShellError
    + SupervisorError
    + InvalidRuntimeError (ValueError)
    + RuntimeClosedError
  x CommandError
    + CommandTimeoutError (TimeoutError)
    + OutputLimitError
    + CommandStoppedError
    + CommandFailedError
    + WorkingDirectoryError
    + TaskExecutionError
  x FunctionError
    + RemoteFunctionError
    + FunctionTimeoutError (TimeoutError)
    + FunctionNotSerializableError
    + PythonNotFoundError
    + PythonVersionMismatchError
  + RemoteTraceback
  + TransferError
    + HostFileNotFoundError (FileNotFoundError)
  + UnsafeArchiveError
  + BrokenArchiveError
  + TunnelError
    + ForwardingRefusedError
  + PortInUseError (ValueError)
  + NoPortsLeftError
  + HostsFailedError (ExceptionGroup)
  + NoRuntimesError (ValueError)
  + NoRuntimesDetectedError

RemoteTraceback is the cause of an exception that a function raised on a host, whatever that exception is.
UnsafeArchiveError and BrokenArchiveError are the causes of a TransferError. Their fields differ from its fields, so
they are not subclasses of it.
"""

from lazycluster.exceptions._text import add_host_note, error_text, indented_tail
from lazycluster.exceptions.commands import (
    CommandError,
    CommandFailedError,
    CommandStoppedError,
    CommandTimeoutError,
    OutputLimitError,
    TaskExecutionError,
    WorkingDirectoryError,
)
from lazycluster.exceptions.files import (
    BrokenArchiveError,
    HostFileNotFoundError,
    TransferError,
    UnsafeArchiveError,
    transfer_error,
)
from lazycluster.exceptions.functions import (
    FunctionError,
    FunctionNotSerializableError,
    FunctionTimeoutError,
    PythonNotFoundError,
    PythonVersionMismatchError,
    RemoteFunctionError,
    RemoteTraceback,
)
from lazycluster.exceptions.groups import HostsFailedError, NoRuntimesDetectedError, NoRuntimesError
from lazycluster.exceptions.hosts import (
    AuthenticationError,
    ChangedHostKeyError,
    ConnectError,
    ConnectionLostError,
    ConnectionThrottledError,
    ConnectTimeoutError,
    HostError,
    HostUnreachableError,
    InvalidRuntimeError,
    LoginShellError,
    PortRefusedError,
    RuntimeClosedError,
    SessionRefusedError,
    SshConfigurationError,
    SshNotFoundError,
    SupervisorError,
    UnknownHostError,
    UnknownHostKeyError,
)
from lazycluster.exceptions.root import LazyclusterError
from lazycluster.exceptions.tunnels import ForwardingRefusedError, NoPortsLeftError, PortInUseError, TunnelError

__all__ = [
    "HOST_LOST_ERRORS",
    "AuthenticationError",
    "BrokenArchiveError",
    "ChangedHostKeyError",
    "CommandError",
    "CommandFailedError",
    "CommandStoppedError",
    "CommandTimeoutError",
    "ConnectError",
    "ConnectTimeoutError",
    "ConnectionLostError",
    "ConnectionThrottledError",
    "ForwardingRefusedError",
    "FunctionError",
    "FunctionNotSerializableError",
    "FunctionTimeoutError",
    "HostError",
    "HostFileNotFoundError",
    "HostUnreachableError",
    "HostsFailedError",
    "InvalidRuntimeError",
    "LazyclusterError",
    "LoginShellError",
    "NoPortsLeftError",
    "NoRuntimesDetectedError",
    "NoRuntimesError",
    "OutputLimitError",
    "PortInUseError",
    "PortRefusedError",
    "PythonNotFoundError",
    "PythonVersionMismatchError",
    "RemoteFunctionError",
    "RemoteTraceback",
    "RuntimeClosedError",
    "SessionRefusedError",
    "SshConfigurationError",
    "SshNotFoundError",
    "SupervisorError",
    "TaskExecutionError",
    "TransferError",
    "TunnelError",
    "UnknownHostError",
    "UnknownHostKeyError",
    "UnsafeArchiveError",
    "WorkingDirectoryError",
    "add_host_note",
    "error_text",
    "indented_tail",
    "transfer_error",
]

HOST_LOST_ERRORS = (HostError, WorkingDirectoryError)
"""Errors that mean the host is unusable, whatever the task."""
