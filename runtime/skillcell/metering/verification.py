"""Walks the ledger and says which row is wrong, and how.

Found are: an edited row (its hash does not follow from its bytes, or a filter column differs), a deleted row (a gap),
reordered rows (a row's own sequence or previous hash differs), a truncated end (the kept head, or a witness
published elsewhere, knows more than is there), totals that are not the sum of the records, and a completed execution
without its record. Whoever can write everything, the head included, can only be caught by a witness.

What a reader could get wrong: a row that somebody edited can hold anything, so nothing read here is trusted to have its
type. And a walk can go on where it stood: `resume` it, and it checks what came since, and the totals of all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, Select, select

from skillcell.core.errors import Fault, FaultKind
from skillcell.core.types import ExecutionState
from skillcell.metering import rows
from skillcell.metering.canonical import GENESIS, chain_hash, parse
from skillcell.metering.defects import Defect, Problem
from skillcell.metering.records import Head, Sums
from skillcell.metering.settling import ends, head
from skillcell.metering.totals import kind_of, plus, sums_of
from skillcell.storage.tables import executions, original, totals, usage_records

CHUNK = 500
_EXECUTIONS = 2000
MOST_PROBLEMS = 100
_UNREADABLE = (ValueError, TypeError, KeyError, ArithmeticError, AttributeError)
"""What a value of a wrong type raises, wherever it is first touched."""


@dataclass(frozen=True, slots=True)
class Span:
    """Which records to check: both ends included, `last` 0 for the head. Totals are those of the whole ledger alone."""

    first: int = 1
    last: int = 0

    @property
    def whole(self) -> bool:
        return self.first <= 1 and not self.last


@dataclass(frozen=True, slots=True)
class Verification:
    """`records` were read up to `head`; the ledger is whole when there are no problems.

    `found` counts those of the ledger alone, of which `own` are the first hundred; `claimed` is what a witness says.
    """

    records: int
    head: Head
    own: tuple[Problem, ...]
    claimed: tuple[Problem, ...] = ()
    found: int = 0

    @property
    def problems(self) -> tuple[Problem, ...]:
        return (*self.claimed, *self.own)

    @property
    def whole(self) -> bool:
        return not self.problems


@dataclass(slots=True)
class Walk:
    """Where a verification stands; it goes by chunks, so that it never holds a reader for long."""

    span: Span = Span()
    witness: Head | None = None
    records: int = 0
    sequence: int = 0
    hash: bytes | None = GENESIS
    """None where the row before could not be read: then nothing can be said of what follows it."""
    problems: list[Problem] = field(default_factory=list)
    claimed: list[Problem] = field(default_factory=list)
    """By the witness."""
    found: int = 0
    sums: dict[tuple[str, ...], Sums] = field(default_factory=dict)
    """As many as there are rows of totals."""
    execution_id: str = ""
    resumed: bool = False

    @property
    def thorough(self) -> bool:
        """Whether it goes over everything, so that finding nothing means that nothing is wrong."""
        return self.span.whole and not self.resumed

    def begin(self, connection: Connection) -> None:
        """Goes to the first record. OUT_OF_RANGE when the ledger does not reach that far."""
        kept, last = ends(connection)
        reach = max(kept.sequence, last.sequence)
        for name, wanted in (("from_sequence", self.span.first), ("to_sequence", self.span.last)):
            if wanted > max(reach, 1):
                raise Fault(
                    FaultKind.OUT_OF_RANGE,
                    "POSITION_OUT_OF_RANGE",
                    f"{name} is {wanted}; the ledger's records are 1 to {reach}",
                    metadata={"field": name, "first": "1", "last": str(reach)},
                )
        if self.span.first > 1:
            self.sequence = self.span.first - 1
            self.hash = _hash_at(connection, self.sequence)

    def resume(self, connection: Connection) -> None:
        """Goes on after a walk that found nothing; what was checked last must still be there."""
        self.problems, self.claimed, self.found, self.resumed = [], [], 0, True
        if self.sequence and (stored := _hash_at(connection, self.sequence)) != self.hash:
            defect = Defect.TRUNCATED if stored is None else Defect.EDITED
            self._report(defect, self.sequence, "its hash is not the one that was verified before")

    def advance(self, connection: Connection) -> bool:
        """Reads and checks the next records; False at the end."""
        query = select(usage_records).where(usage_records.c.sequence > self.sequence)
        if self.span.last:
            query = query.where(usage_records.c.sequence <= self.span.last)
        read = 0
        for sequence, row in _rows(connection, query.order_by(usage_records.c.sequence).limit(CHUNK)):
            if row is None:
                self._follow(sequence)
                self._report(Defect.EDITED, sequence, "its columns can't be read")
                self.hash = None
            else:
                self._check(row)
                self.hash = row.hash
            self.sequence = sequence
            self.records += 1
            read += 1
        return read == CHUNK

    def _follow(self, sequence: int) -> bool:
        if sequence == self.sequence + 1:
            return True
        self._report(Defect.DELETED, self.sequence + 1, f"the next record is {sequence}")
        return False

    def _check(self, row: Row[Any]) -> None:
        if self._follow(row.sequence) and self.hash is not None and row.previous_hash != self.hash:
            self._report(Defect.REORDERED, row.sequence, "it does not continue the record before it")
        try:
            if chain_hash(row.previous_hash, row.body) != row.hash:
                self._report(Defect.EDITED, row.sequence, "its bytes do not give its hash")
                return
            record = parse(row.body)
        except _UNREADABLE as error:
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

    def close(self, connection: Connection) -> None:
        """Reads what was settled since the last chunk, then compares head, witness and totals, all of one moment."""
        while self.advance(connection):
            pass
        if self.span.last and self.sequence < self.span.last:
            self._report(Defect.DELETED, self.sequence + 1, f"no record up to {self.span.last} follows")
        if not self.span.last:
            self._compare_head(head(connection))
        if self.witness is not None:
            problem = against_witness(connection, self.witness)
            self.claimed += [problem] if problem is not None else []
        if self.span.whole:
            self._compare_totals(connection)

    def _compare_head(self, kept: Head) -> None:
        if kept.sequence > self.sequence:
            self._report(Defect.TRUNCATED, self.sequence + 1, f"the head is at record {kept.sequence}")
        elif kept.sequence < self.sequence:
            self._report(Defect.HEAD_DIFFERS, kept.sequence, f"the head is behind record {self.sequence}")
        elif self.hash is not None and kept.hash != self.hash:
            self._report(Defect.HEAD_DIFFERS, kept.sequence, "the head's hash is not the last record's")

    def _compare_totals(self, connection: Connection) -> None:
        try:
            stored: dict[tuple[str, ...], Sums] = {
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
        except _UNREADABLE:
            self._report(Defect.TOTALS_DIFFER, 0, "they can't be read")
            return
        for key in sorted(stored.keys() | self.sums.keys(), key=str):
            if stored.get(key) != self.sums.get(key):
                name = "/".join(str(part) for part in key)
                self._report(Defect.TOTALS_DIFFER, 0, f"of {name}: {_difference(stored.get(key), self.sums.get(key))}")

    def match(self, connection: Connection) -> bool:
        """Compares the next executions with their records, one to one; False at the end."""
        columns = executions.c
        joined = executions.outerjoin(usage_records, (usage_records.c.execution_id == columns.id) & original)
        query = select(columns.id, columns.state, usage_records.c.sequence).select_from(joined)
        found = connection.execute(
            query.where(columns.id > self.execution_id).order_by(columns.id).limit(_EXECUTIONS)
        ).all()
        for execution_id, state, sequence in found:
            completed = state == ExecutionState.COMPLETED.value
            if completed and sequence is None:
                self._report(Defect.RECORD_MISSING, 0, f"of execution {execution_id}")
            elif sequence is not None and not completed:
                self._report(Defect.RECORD_MISSING, sequence, f"its execution {execution_id} is {state}")
        if found:
            self.execution_id = found[-1].id
        return len(found) == _EXECUTIONS

    def result(self) -> Verification:
        head = Head(self.sequence, self.hash or bytes(32))
        return Verification(self.records, head, tuple(self.problems), tuple(self.claimed), self.found)

    def _report(self, defect: Defect, sequence: int, detail: str) -> None:
        self.found += 1
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(Problem(defect, sequence, detail))


def against_witness(connection: Connection, witness: Head) -> Problem | None:
    """What a head that was published says of the ledger. The chain behind it is implied: each hash covers the last."""
    if not witness.sequence:
        return None
    stored = _hash_at(connection, witness.sequence)
    if stored is None:
        _, last = ends(connection)
        detail = f"record {witness.sequence} was published and is gone"
        return Problem(Defect.TRUNCATED, min(last.sequence + 1, witness.sequence), detail)
    if stored != witness.hash:
        return Problem(Defect.WITNESS_DIFFERS, witness.sequence, "its hash is not the one that was published")
    return None


def _difference(stored: Sums | None, summed: Sums | None) -> str:
    if stored is None or summed is None:
        return "no row" if stored is None else "a row without records"
    pairs = zip(asdict(stored).items(), asdict(summed).values(), strict=True)
    return ", ".join(f"{name} is {value} instead of {right}" for (name, value), right in pairs if value != right)


def _hash_at(connection: Connection, sequence: int) -> bytes | None:
    return connection.execute(
        select(usage_records.c.hash).where(usage_records.c.sequence == sequence)
    ).scalar_one_or_none()


def _rows(connection: Connection, query: Select[Any]) -> Iterator[tuple[int, Row[Any] | None]]:
    """The rows of a query with their sequences; None for one whose columns hold no value of their type."""
    try:
        yield from [(row.sequence, row) for row in connection.execute(query)]
    except _UNREADABLE:
        for sequence in connection.execute(query.with_only_columns(usage_records.c.sequence)).scalars().all():
            try:
                found = connection.execute(select(usage_records).where(usage_records.c.sequence == sequence)).one()
            except _UNREADABLE:
                yield sequence, None
            else:
                yield sequence, found
