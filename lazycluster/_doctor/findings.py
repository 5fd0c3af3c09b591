"""The findings of an examination, and the checks that are skipped after the failure of another."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence

import attrs

from lazycluster._ssh.messages import clean_line
from lazycluster.exceptions import ConnectError, LazyclusterError

_MAX_QUOTE_LENGTH = 120


class Verdict(enum.Enum):
    """How a check went."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


def _remove_control_characters(text: str) -> str:
    return "\n".join(filter(None, map(clean_line, text.splitlines())))


@attrs.frozen
class Finding:
    """The finding of one check, and the advice, which is empty if nothing is to be done."""

    check: str
    verdict: Verdict
    found: str = attrs.field(converter=_remove_control_characters)
    advice: str = attrs.field(default="", converter=_remove_control_characters)

    def to_dict(self) -> dict[str, str]:
        """Return the finding as plain words, for JSON."""
        return {"check": self.check, "verdict": self.verdict.value, "found": self.found, "advice": self.advice}


def ok(check: str, found: str) -> Finding:
    """Return the finding of a check that went well."""
    return Finding(check, Verdict.OK, found)


def warning(check: str, found: str, advice: str) -> Finding:
    """Return the finding that something works badly, or not always."""
    return Finding(check, Verdict.WARNING, found, advice)


def failed(check: str, found: str, advice: str) -> Finding:
    """Return the finding that something does not work."""
    return Finding(check, Verdict.FAILED, found, advice)


def skipped(check: str, reason: str) -> Finding:
    """Return the finding of a check that was not made, with the reason."""
    return Finding(check, Verdict.SKIPPED, reason)


def failed_from_error(check: str, error: LazyclusterError) -> Finding:
    """Return an error of the library as a finding; the remedy of a `ConnectError` is the advice."""
    if isinstance(error, ConnectError):
        return failed(check, error.fault, error.remedy)
    host = getattr(error, "host", "")
    return failed(check, str(error).removeprefix(f"{host}: "), f"Try it by hand: `ssh -v {host} true`.")


def quote_output(text: str) -> str:
    """Return the output of a program on one line, in quotes, and shortened."""
    line = text.strip()
    return repr(line if len(line) <= _MAX_QUOTE_LENGTH else f"{line[: _MAX_QUOTE_LENGTH - 3]}...")


class CheckRunner:
    """Runs the checks of an examination, and skips those that need a check that has failed."""

    def __init__(self) -> None:
        """Begin without any failed check."""
        self._root_causes: dict[str, str] = {}

    def run(self, check: str, perform: Callable[[], Finding], *, needs: Sequence[str] = ()) -> Finding:
        """Return the finding of a check; it is skipped if a check that it needs has failed."""
        cause = next((self._root_causes[need] for need in needs if need in self._root_causes), None)
        if cause is not None:
            self._root_causes[check] = cause
            return skipped(check, f"cannot be checked before this is mended: {cause}")
        try:
            finding = perform()
        except LazyclusterError as error:
            finding = failed_from_error(check, error)
        except OSError as error:
            finding = failed(
                check, f"on this machine: {error}", "Is its disk full, or has it run out of files to open?"
            )
        if finding.verdict is Verdict.FAILED:
            self._root_causes[check] = check
        return finding

    def has_failed(self, check: str) -> bool:
        """Return whether a check has failed, or was skipped because of one that has."""
        return check in self._root_causes
