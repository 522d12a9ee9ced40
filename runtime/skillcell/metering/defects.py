"""What can be wrong with a ledger, and how one defect is told.

`Problem.detail` may name tenants and executions: it is for operators. Callers hear only `spoken`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from skillcell.core.errors import Fault, FaultKind


class Defect(Enum):
    """What is wrong with a row."""

    EDITED = "EDITED"
    DELETED = "DELETED"
    REORDERED = "REORDERED"
    TRUNCATED = "TRUNCATED"
    HEAD_DIFFERS = "HEAD_DIFFERS"
    WITNESS_DIFFERS = "WITNESS_DIFFERS"
    TOTALS_DIFFER = "TOTALS_DIFFER"
    RECORD_MISSING = "RECORD_MISSING"


_SPOKEN = {
    Defect.EDITED: "its content was changed",
    Defect.DELETED: "it is gone",
    Defect.REORDERED: "it does not follow the record before it",
    Defect.TRUNCATED: "it and whatever followed it are gone",
    Defect.HEAD_DIFFERS: "the ledger's head is not the last record",
    Defect.WITNESS_DIFFERS: "it is not the one whose hash was published",
    Defect.TOTALS_DIFFER: "the totals are not the sum of the records",
    Defect.RECORD_MISSING: "executions and records don't match one to one",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """`sequence` is the row, or the first missing one; 0 where no single row is meant."""

    defect: Defect
    sequence: int
    detail: str

    @property
    def spoken(self) -> str:
        """One sentence without a tenant's or an execution's name."""
        where = f"at record {self.sequence}" if self.sequence else "as a whole"
        return f"the usage ledger is broken {where}: {_SPOKEN[self.defect]} ({self.defect.value})"


def ledger_broken(problem: Problem, count: int = 1) -> Fault:
    """What a caller hears whose call is not accepted, or whose record can't be read."""
    return Fault(
        FaultKind.DATA_LOSS,
        "LEDGER_BROKEN",
        f"{problem.spoken}; no call is accepted until an operator has restored it",
        metadata={
            "sequence": str(problem.sequence),
            "defect": problem.defect.value,
            "defects": str(max(count, 1)),
        },
    )
