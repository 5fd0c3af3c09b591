"""Why a host does not work, or works badly, step by step, and what to do about it."""

from lazycluster._doctor.examination import examine
from lazycluster._doctor.findings import Finding, Verdict

__all__ = ["Finding", "Verdict", "examine"]
