"""What tests and demonstrations need: a private sshd on loopback, and a relay that plays a slow or broken network."""

from __future__ import annotations

from lazycluster.testing.local_sshd import LocalSshd, LocalSshdError, SshdNotFoundError, write_config
from lazycluster.testing.relay import Relay

__all__ = ["LocalSshd", "LocalSshdError", "Relay", "SshdNotFoundError", "write_config"]
