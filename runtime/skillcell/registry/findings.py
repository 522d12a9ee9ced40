"""Collects what is seen while a package is read, so that a publisher learns everything at once.

Strict and lenient differ in one place: a *deviation* (something the specification forbids but a person understands) is
an error when strict and a recorded warning when lenient. An error is an error in both.
"""

from __future__ import annotations

from skillcell.core.errors import Fault, FaultKind, FieldViolation
from skillcell.core.skills import Finding, Severity

MAX_FINDINGS = 200
"""Further findings are counted, not kept: a hostile package must not make a response of any size."""
_MAX_MESSAGE = 600


class Report:
    """Findings in the order they were made."""

    def __init__(self, *, lenient: bool) -> None:
        self.lenient = lenient
        self._findings: list[Finding] = []
        self._dropped = 0
        self._errors = 0

    def error(self, code: str, message: str, path: str = "", line: int = 0, column: int = 0) -> None:
        """Something that can't be published, by whatever mode."""
        self._add(Severity.ERROR, code, message, path, line, column)

    def deviation(self, code: str, message: str, path: str = "", line: int = 0, column: int = 0) -> None:
        """Against the rules yet understood: an error when strict, a warning when lenient."""
        self._add(Severity.WARNING if self.lenient else Severity.ERROR, code, message, path, line, column)

    def warning(self, code: str, message: str, path: str = "", line: int = 0, column: int = 0) -> None:
        self._add(Severity.WARNING, code, message, path, line, column)

    def note(self, code: str, message: str, path: str = "", line: int = 0, column: int = 0) -> None:
        self._add(Severity.NOTE, code, message, path, line, column)

    def _add(self, severity: Severity, code: str, message: str, path: str, *at: int) -> None:
        self._errors += severity is Severity.ERROR
        room = MAX_FINDINGS if severity is not Severity.ERROR else 2 * MAX_FINDINGS
        if len(self._findings) >= room:
            self._dropped += 1
        else:
            self._findings.append(Finding(severity, code, shown(message, _MAX_MESSAGE), path, *at))

    @property
    def failed(self) -> bool:
        """Whether any error was found, kept or not."""
        return self._errors > 0

    @property
    def findings(self) -> tuple[Finding, ...]:
        if not self._dropped:
            return tuple(self._findings)
        rest = Finding(Severity.NOTE, "findings-dropped", f"{self._dropped} further findings are not shown")
        return (*self._findings, rest)


def shown(text: str, limit: int = 200) -> str:
    """Stranger's text made safe to show: control characters escaped, cut to `limit` characters."""
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[: limit + 1])
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


def position(finding: Finding) -> str:
    """`path:line:column`, as far as known."""
    parts = [finding.path or "package"]
    if finding.line:
        parts.append(str(finding.line))
        if finding.column:
            parts.append(str(finding.column))
    return ":".join(parts)


def refusal(findings: tuple[Finding, ...]) -> Fault:
    """INVALID_ARGUMENT `SKILL_INVALID` with every error as a violation `path:line:column`."""
    errors = [finding for finding in findings if finding.severity is Severity.ERROR]
    first = f"{position(errors[0])}: {errors[0].message}" if errors else "unknown"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return Fault(
        FaultKind.INVALID_ARGUMENT,
        "SKILL_INVALID",
        f"the Skill can't be published: {first}{more}",
        violations=tuple(FieldViolation(position(f), f"{f.message} [{f.code}]") for f in errors),
        metadata={"errors": str(len(errors))},
    )
