"""What a pre-flight check says: findings with a severity, a measured value, a threshold and a way to mend it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Severity = Literal["ok", "note", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("ok", "note", "warning", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that a check measured.

    check: the name of the check, a heading of docs/doctor.md; where: the task, cell, teacher or model; measured: what
    was found, in words and numbers; threshold: from where on it is a finding; fix: how to mend it, empty for `ok`.
    """

    severity: Severity
    check: str
    where: str
    measured: str
    threshold: str = ""
    fix: str = ""

    @property
    def text(self) -> str:
        """The finding in one line."""
        limit = f" ({self.threshold})" if self.threshold else ""
        return f"{self.severity}: {self.check}: {self.where}: {self.measured}{limit}" + (
            f"; {self.fix}" if self.fix else ""
        )


def graded(
    value: float, *, check: str, where: str, measured: str, fix: str, note: float | None, warning: float, unit: str
) -> Finding:
    """The finding of a share: a warning above `warning`, a note above `note` (None: never), `ok` otherwise."""
    if value > warning:
        told = f"warning above {_percent(warning)} {unit}"
        return Finding(severity="warning", check=check, where=where, measured=measured, threshold=told, fix=fix)
    if note is not None and value > note:
        told = f"note above {_percent(note)} {unit}"
        return Finding(severity="note", check=check, where=where, measured=measured, threshold=told, fix=fix)
    return Finding(severity="ok", check=check, where=where, measured=measured)


def share(count: int, of: int) -> str:
    """A count out of a count, with its share in percent."""
    return f"{count:,} of {of:,} ({_percent(count / of if of else 0.0)})"


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def worst(findings: Sequence[Finding]) -> Severity:
    """The gravest severity, `ok` where there is none."""
    return max((finding.severity for finding in findings), key=SEVERITIES.index, default="ok")
