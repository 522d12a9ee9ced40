"""Walks the whole ledger and says which row is wrong, and how.

Found are: an edited row (its hash does not follow from its bytes, or a filter column differs), a deleted row (a gap),
reordered rows (a row's own sequence or previous hash differs), a truncated end (the kept head, or a witness
published elsewhere, knows more than is there), totals that are not the sum of the records, and a completed execution
without its record. Whoever can write everything, the head included, can only be caught by a witness.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from sqlalchemy import Connection, Row, exists, select

from skillcell.core.types import ExecutionState
from skillcell.metering import rows
from skillcell.metering.canonical import GENESIS, chain_hash, parse
from skillcell.metering.records import Head, Sums
from skillcell.metering.settling import head
from skillcell.metering.totals import kind_of, plus, sums_of
from skillcell.storage.tables import executions, original, totals, usage_records

CHUNK = 1000
_MOST_PROBLEMS = 100


class Defect(Enum):
    """What is wrong with a row."""

    EDITED = "EDITED"
    DELETED = "DELETED"
    REORDERED = "REORDERED"
    TRUNCATED = "TRUNCATED"
    TOTALS_DIFFER = "TOTALS_DIFFER"
    RECORD_MISSING = "RECORD_MISSING"


@dataclass(frozen=True, slots=True)
class Problem:
    """`sequence` is the row, or the first missing one; 0 where no single row is meant."""

    defect: Defect
    sequence: int
    detail: str


@dataclass(frozen=True, slots=True)
class Verification:
    """`records` were read up to `head`; the ledger is whole when there are no problems (at most 100 are listed)."""

    records: int
    head: Head
    problems: tuple[Problem, ...]

    @property
    def whole(self) -> bool:
        return not self.problems


@dataclass(slots=True)
class Walk:
    """Where a verification stands; it goes by chunks, so that it never holds a reader for long."""

    witness: Head | None = None
    records: int = 0
    sequence: int = 0
    hash: bytes = GENESIS
    problems: list[Problem] = field(default_factory=list)
    sums: dict[tuple[str, str, str, str, str], Sums] = field(default_factory=dict)

    def advance(self, connection: Connection) -> bool:
        """Reads and checks the next records; False at the end."""
        query = select(usage_records).where(usage_records.c.sequence > self.sequence)
        found = connection.execute(query.order_by(usage_records.c.sequence).limit(CHUNK)).all()
        for row in found:
            self._check(row)
            self.records += 1
            self.sequence, self.hash = row.sequence, row.hash
            if self.witness is not None and row.sequence == self.witness.sequence and row.hash != self.witness.hash:
                self._report(Defect.EDITED, row.sequence, "its hash is not the one that was published")
        return bool(found)

    def _check(self, row: Row[Any]) -> None:
        if row.sequence != self.sequence + 1:
            self._report(Defect.DELETED, self.sequence + 1, f"the next record is {row.sequence}")
        elif row.previous_hash != self.hash:
            self._report(Defect.REORDERED, row.sequence, "it does not continue the record before it")
        if chain_hash(row.previous_hash, row.body) != row.hash:
            self._report(Defect.EDITED, row.sequence, "its bytes do not give its hash")
            return
        try:
            record = parse(row.body)
        except (ValueError, KeyError, TypeError) as error:
            self._report(Defect.EDITED, row.sequence, f"its bytes can't be read: {type(error).__name__}")
            return
        if record.sequence != row.sequence:
            self._report(Defect.REORDERED, row.sequence, f"it was written as record {record.sequence}")
            return
        stored = row._mapping
        for name, value in rows.record_values(record, row.body).items():
            if name not in ("hash", "previous_hash") and stored[name] != value:
                self._report(Defect.EDITED, row.sequence, f"column {name} is not what its bytes say")
        key = (record.tenant, record.publisher, record.skill, record.outcome.value, kind_of(record).value)
        self.sums[key] = plus(self.sums.get(key, Sums()), sums_of(record))

    def finish(self, connection: Connection) -> Verification:
        """Reads what was settled since the last chunk, then compares head, totals and executions, all of one moment."""
        while self.advance(connection):
            pass
        kept = head(connection)
        if kept.sequence > self.sequence or (kept.sequence == self.sequence and kept.hash != self.hash):
            self._report(Defect.TRUNCATED, self.sequence + 1, f"the head is at record {kept.sequence}")
        elif kept.sequence < self.sequence:
            self._report(Defect.EDITED, kept.sequence, f"the head is behind record {self.sequence}")
        if self.witness is not None and self.witness.sequence > self.sequence:
            self._report(
                Defect.TRUNCATED, self.sequence + 1, f"record {self.witness.sequence} was published and is gone"
            )
        self._compare_totals(connection)
        self._find_missing(connection)
        return Verification(self.records, Head(self.sequence, self.hash), tuple(self.problems))

    def _compare_totals(self, connection: Connection) -> None:
        stored = {
            (row.tenant, row.publisher, row.skill, row.outcome, row.kind): Sums(
                row.calls,
                row.billed_ms,
                row.cpu_ns,
                row.memory_reserved_byte_ns,
                row.egress_bytes,
                row.output_bytes,
            )
            for row in connection.execute(select(totals))
        }
        for key in sorted(stored.keys() | self.sums.keys()):
            if stored.get(key) != self.sums.get(key):
                self._report(Defect.TOTALS_DIFFER, 0, f"of {'/'.join(key)}")

    def _find_missing(self, connection: Connection) -> None:
        recorded = exists().where(usage_records.c.execution_id == executions.c.id, original)
        completed = executions.c.state == ExecutionState.COMPLETED.value
        query = select(executions.c.id).where(completed, ~recorded).limit(_MOST_PROBLEMS)
        for execution_id in connection.execute(query).scalars():
            self._report(Defect.RECORD_MISSING, 0, f"of execution {execution_id}")

    def _report(self, defect: Defect, sequence: int, detail: str) -> None:
        if len(self.problems) < _MOST_PROBLEMS:
            self.problems.append(Problem(defect, sequence, detail))
