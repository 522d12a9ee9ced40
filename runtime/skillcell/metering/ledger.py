"""The ledger: who was admitted, what it used, and the proof that nothing of it was changed since.

Every coroutine that writes returns after the write is durable. What a reader could get wrong: canceling an `admit` or
`settle` does not undo it, so the spine shields them; and an admitted execution stays unsettled, and found by
`unsettled`, until `settle` returned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import partial

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, delete, func, select

from skillcell.core.corrections import Correction
from skillcell.core.errors import Fault, FaultKind, invalid, not_found
from skillcell.core.records import Admission, StoredExecution
from skillcell.core.steps import Step, Steps, pass_by
from skillcell.core.types import Principal, UsageRecord
from skillcell.metering import corrections, listing, rows, settling, totals
from skillcell.metering.records import (
    AdmitResult,
    ExecutionFilter,
    ExecutionPage,
    Grouping,
    Head,
    LedgerSnapshot,
    Settlement,
    UsageFilter,
    UsageGroup,
)
from skillcell.metering.verification import Verification, Walk
from skillcell.storage.database import Database
from skillcell.storage.tables import execution_labels, executions, unsettled, usage_records

_SEES_ALL = frozenset({"biller", "operator"})
_RUNNING_DELAY_SECONDS = 0.25
_MAX_PAGE = 1000


class LedgerSettings(BaseModel):
    """Bounds of what the ledger shows in Prometheus; raising one serves only those who come later."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tenants: int = Field(default=500, ge=1, description="Tenants with series of their own; others count as _other.")
    max_series: int = Field(
        default=2000, ge=1, description="Pairs of tenant and Skill with series of their own; others count as _other."
    )


class Ledger:
    """Over one `Database`, which stays its owner's to close."""

    def __init__(self, database: Database, settings: LedgerSettings | None = None, steps: Steps = pass_by) -> None:
        self._database = database
        self._steps = steps
        self._settings = settings or LedgerSettings()
        self._snapshot: LedgerSnapshot | None = None

    @property
    def writable(self) -> bool:
        """Whether the last write was kept. `probe` finds out anew."""
        return self._database.writable

    async def probe(self) -> bool:
        """Whether a write would be kept now."""
        return await self._database.probe()

    async def check(self) -> Head:
        """Quick look at start: the last record must be the head. DATA_LOSS `LEDGER_BROKEN` naming the row."""

        def look(connection: Connection) -> tuple[Head, Head]:
            columns = usage_records.c
            last = select(columns.sequence, columns.hash).order_by(columns.sequence.desc()).limit(1)
            row = connection.execute(last).one_or_none()
            kept = settling.head(connection)
            return kept, Head(row.sequence, row.hash) if row else Head(0, kept.hash)

        kept, last = await self._database.read(look)
        if kept != last:
            raise Fault(
                FaultKind.DATA_LOSS,
                "LEDGER_BROKEN",
                f"the ledger's head is record {kept.sequence}, but its last record is {last.sequence}; no call is "
                "accepted until an operator has looked at it",
                metadata={"head": str(kept.sequence), "last": str(last.sequence)},
            )
        return kept

    async def admit(self, admission: Admission) -> AdmitResult:
        """Keeps an admission, durably. The same request_id and hash gives the execution it had before.

        ALREADY_EXISTS `REQUEST_ID_REUSED` for another hash; UNAVAILABLE `LEDGER_UNAVAILABLE` when nothing can be kept.
        """

        def work(connection: Connection) -> AdmitResult:
            admitted = settling.admit(connection, admission)
            self._steps(Step.ADMIT_WRITTEN)
            return admitted

        return await self._database.write(work, partial(self._steps, Step.ADMIT_COMMITTED))

    async def find_request(self, tenant: str, request_id: str, request_hash: bytes) -> str | None:
        """The execution that this request had before, None when it is new. ALREADY_EXISTS for another hash."""
        return await self._database.read(
            lambda connection: settling.find_request(connection, tenant, request_id, request_hash)
        )

    def mark_running(self, execution_id: str, sandbox_id: str, started_at: datetime) -> None:
        """Notes that a call runs, for whoever lists executions. Not durable, and written only for calls that last.

        It bills nothing and recovery does not need it, so it must not cost the hot path an fsync.
        """
        work = partial(settling.mark_running, execution_id=execution_id, sandbox_id=sandbox_id, started_at=started_at)
        self._database.defer(execution_id, work, _RUNNING_DELAY_SECONDS)

    async def settle(self, settlement: Settlement) -> UsageRecord:
        """Ends an execution in one durable transaction and returns its record with sequence and hashes.

        A second settlement of the same execution changes nothing and returns the first record.
        """
        self._database.withdraw(settlement.record.execution_id)

        def work(connection: Connection) -> UsageRecord:
            record = settling.settle(connection, settlement, self._settings)
            self._steps(Step.SETTLE_WRITTEN)
            return record

        return await self._database.write(work, partial(self._steps, Step.SETTLE_COMMITTED))

    async def record_correction(self, actor: Principal, correction: Correction, now: datetime) -> UsageRecord:
        """Writes differences to a call's record behind the head; the same request_id gives what it made before.

        NOT_FOUND `USAGE_RECORD_NOT_FOUND`, ALREADY_EXISTS `REQUEST_ID_REUSED`, INVALID_ARGUMENT for what is not left.
        """
        work = partial(
            corrections.record_correction, actor=actor, correction=correction, now=now, bounds=self._settings
        )
        return await self._database.write(work)

    async def unsettled(self, instance_id: str | None = None) -> tuple[StoredExecution, ...]:
        """What was admitted and has not ended, oldest first; of one gateway, or of all."""
        return await self._database.read(partial(listing.unsettled, instance_id=instance_id))

    async def snapshot(self) -> LedgerSnapshot:
        """What Prometheus shows, all of one moment. It holds every call whose settlement has returned."""
        before = self._snapshot
        open_executions = select(func.count()).select_from(executions).where(unsettled)

        def look(connection: Connection) -> LedgerSnapshot:
            unsettled = connection.execute(open_executions).scalar_one()
            head = settling.head(connection)
            # Totals change with the head alone, so an idle ledger costs a scrape two small queries.
            if before is not None and before.head == head:
                return replace(before, unsettled=unsettled)
            used, corrected = (totals.series(connection, kind) for kind in totals.Kind)
            return LedgerSnapshot(head, unsettled, used, corrected)

        self._snapshot = await self._database.read(look)
        return self._snapshot

    async def get_execution(self, principal: Principal, execution_id: str) -> StoredExecution:
        """NOT_FOUND when there is none, or it isn't the caller's."""
        tenant = principal.tenant
        found = await self._database.read(lambda connection: listing.find_execution(connection, tenant, execution_id))
        if found is None:
            raise not_found("execution", execution_id)
        return found

    async def execution_of(self, principal: Principal, request_id: str) -> str:
        """The execution that a request of this tenant has; NOT_FOUND when there is none."""
        query = select(executions.c.id).where(
            executions.c.tenant == principal.tenant, executions.c.request_id == request_id
        )
        found = await self._database.read(lambda connection: connection.execute(query).scalar_one_or_none())
        if found is None:
            raise not_found("execution", f"of request {request_id}")
        return str(found)

    async def get_record(self, principal: Principal, execution_id: str) -> UsageRecord:
        """The record of a settled execution; NOT_FOUND when there is none, or it isn't the caller's."""
        found = await self._database.read(lambda connection: rows.record_of(connection, execution_id))
        if found is None or _scope(principal) not in (None, found.tenant):
            raise not_found("usage_record", execution_id)
        return found

    async def list_executions(
        self, principal: Principal, wanted: ExecutionFilter | None = None, page_size: int = 50, page_token: str = ""
    ) -> ExecutionPage:
        """The caller's own, newest first. INVALID_ARGUMENT for a token of another question. At most 1000 a page."""
        size = _page_size(page_size)
        chosen = wanted or ExecutionFilter()
        return await self._database.read(
            lambda connection: listing.page_of_executions(connection, principal.tenant, chosen, size, page_token)
        )

    async def list_usage_records(
        self, principal: Principal, after_sequence: int = 0, limit: int = 100, wanted: UsageFilter | None = None
    ) -> tuple[UsageRecord, ...]:
        """In the chain's order; a biller or operator sees all tenants', others their own. At most 1000 at once."""
        if not 0 <= after_sequence < 1 << 63:
            raise invalid("after_sequence", f"is {after_sequence}; it must be 0 or a sequence that was received")
        tenant, size = _scope(principal), _page_size(limit)
        return await self._database.read(
            lambda connection: listing.records_after(connection, tenant, after_sequence, size, wanted)
        )

    async def usage_summary(self, principal: Principal, grouping: Grouping | None = None) -> tuple[UsageGroup, ...]:
        """Sums in integers; a biller or operator sees all tenants', others their own."""
        groups, _ = await self.usage_summary_as_of(principal, grouping or Grouping(), 0)
        return groups

    async def usage_summary_as_of(
        self, principal: Principal, grouping: Grouping, as_of_sequence: int
    ) -> tuple[tuple[UsageGroup, ...], int]:
        """The same over the records up to one, and which that was: the head where 0 is given."""
        tenant = _scope(principal)

        def look(connection: Connection) -> tuple[tuple[UsageGroup, ...], int]:
            last = as_of_sequence or settling.head(connection).sequence
            return listing.summary(connection, tenant, replace(grouping, as_of_sequence=last)), last

        return await self._database.read(look)

    async def erase_labels(self, execution_ids: tuple[str, ...]) -> int:
        """Erases labels for good and returns how many; the chain does not notice."""
        query = delete(execution_labels).where(execution_labels.c.execution_id.in_(execution_ids))
        return await self._database.write(lambda connection: connection.execute(query).rowcount)

    async def head(self) -> Head:
        """The end of the chain; publish it where this ledger can't reach, and it witnesses."""
        return await self._database.read(settling.head)

    async def verify(self, witness: Head | None = None, progress: Callable[[int], None] | None = None) -> Verification:
        """Checks every record, the head, the totals and the executions; `progress` hears how many were read."""
        walk = Walk(witness)
        while await self._database.read(walk.advance):
            if progress is not None:
                progress(walk.records)
        return await self._database.read(walk.finish)


def _scope(principal: Principal) -> str | None:
    return None if principal.roles & _SEES_ALL else principal.tenant


def _page_size(size: int) -> int:
    if size < 0:
        raise invalid("page_size", f"is {size}; it must be at least 0")
    return min(size or 50, _MAX_PAGE)
