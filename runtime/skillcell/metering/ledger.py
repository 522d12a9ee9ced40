"""The ledger: who was admitted, what it used, and the proof that nothing of it was changed since.

Every coroutine that writes returns after the write is durable. What a reader could get wrong: canceling an `admit` or
`settle` does not undo it, so the spine shields them; and an admitted execution stays unsettled, and found by
`unsettled`, until `settle` returned.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, delete, select

from skillcell.core.corrections import Correction
from skillcell.core.errors import invalid, not_found
from skillcell.core.records import Admission, Checkpoint, StoredExecution
from skillcell.core.steps import Step, Steps, pass_by
from skillcell.core.types import Principal, UsageRecord
from skillcell.metering import checkpoints, corrections, listing, reservations, rows, settling, totals
from skillcell.metering.defects import Defect, Problem, ledger_broken
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
from skillcell.metering.reservations import Reserved
from skillcell.metering.soundness import Soundness
from skillcell.metering.verification import Span, Verification, Walk, against_witness
from skillcell.storage.database import Database
from skillcell.storage.tables import execution_labels, executions

_SEES_ALL = frozenset({"biller", "operator"})
_RUNNING_DELAY_SECONDS = 0.25
_CHECKPOINTS = "checkpoints"
_MAX_PAGE = 1000
_ALL = Span()


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
        self._soundness = Soundness(database)
        self._verifying = asyncio.Lock()

    @property
    def writable(self) -> bool:
        """Whether the last write was kept. `probe` finds out anew."""
        return self._database.writable

    async def probe(self) -> bool:
        """Whether a write would be kept now."""
        return await self._database.probe()

    @property
    def soundness(self) -> Soundness:
        """What is known to be wrong with it."""
        return self._soundness

    async def check(self) -> Head:
        """Quick look: what was found before, and whether the last record is the head. What is wrong goes to
        `soundness`, which refuses new calls from then on; reads and the end of running calls go on."""
        await self._soundness.refresh()
        kept, last = await self._database.read(settling.ends)
        problem = settling.end_problem(kept, last)
        if problem is not None:
            await self._soundness.found((problem,), "a look at the ends")
        return kept

    async def admit(self, admission: Admission) -> AdmitResult:
        """Keeps an admission, durably. The same request_id and hash gives the execution it had before.

        ALREADY_EXISTS `REQUEST_ID_REUSED` for another hash; UNAVAILABLE `LEDGER_UNAVAILABLE` when nothing can be kept;
        DATA_LOSS `LEDGER_BROKEN` while a record is known to be changed or gone.
        """
        self._soundness.refuse_if_broken()

        def work(connection: Connection) -> AdmitResult:
            admitted = settling.admit(connection, admission)
            self._steps(Step.ADMIT_WRITTEN)
            return admitted

        return await self._database.write(work, partial(self._steps, Step.ADMIT_COMMITTED))

    async def withdraw(self, execution_id: str) -> None:
        """Takes an admission back that nobody was told of: an `admit` that failed may have been kept. Idempotent; no
        effect on one that has run.
        """
        await self._database.write(partial(settling.withdraw, execution_id=execution_id))

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

    def checkpoint(self, batch: Sequence[Checkpoint]) -> None:
        """Notes what running calls have used so far, all in one write soon. Not durable by itself, and no more than a
        later batch of this process; of calls that are settled meanwhile nothing is kept.
        """
        self._database.defer(_CHECKPOINTS, partial(checkpoints.keep, batch=batch), 0)

    async def checkpoints(self, instance_id: str) -> Mapping[str, Checkpoint]:
        """The last of each execution of a gateway that has not ended, by execution."""
        return await self._database.read(partial(checkpoints.of_instance, instance_id=instance_id))

    async def settle(self, settlement: Settlement) -> UsageRecord:
        """Ends an execution in one durable transaction and returns its record with sequence and hashes.

        A second settlement of the same execution changes nothing and returns the first record.
        """
        self._database.withdraw(settlement.record.execution_id)
        broken: list[Problem] = []

        def work(connection: Connection) -> UsageRecord:
            record = settling.settle(connection, settlement, self._settings, broken.append)
            self._steps(Step.SETTLE_WRITTEN)
            return record

        record = await self._database.write(work, partial(self._steps, Step.SETTLE_COMMITTED))
        await self._soundness.found(broken, "a settlement")
        return record

    async def record_correction(self, actor: Principal, correction: Correction, now: datetime) -> UsageRecord:
        """Writes differences to a call's record behind the head; the same request_id gives what it made before.

        NOT_FOUND `USAGE_RECORD_NOT_FOUND`, ALREADY_EXISTS `REQUEST_ID_REUSED`, INVALID_ARGUMENT for what is not left;
        DATA_LOSS `LEDGER_BROKEN` while a record is known to be changed or gone.
        """
        self._soundness.refuse_if_broken()
        work = partial(
            corrections.record_correction, actor=actor, correction=correction, now=now, bounds=self._settings
        )
        return await self._database.write(work)

    async def unsettled(self, instance_id: str | None = None) -> tuple[StoredExecution, ...]:
        """What was admitted and has not ended, oldest first; of one gateway, or of all."""
        return await self._database.read(partial(listing.unsettled, instance_id=instance_id))

    async def reserved(self, tenant: str) -> Reserved:
        """What a tenant's calls keep reserved until they are settled."""
        found = await self._database.read(partial(reservations.reserved, tenant=tenant))
        return found.get(tenant, Reserved())

    async def snapshot(self) -> LedgerSnapshot:
        """What Prometheus shows, all of one moment. It holds every call whose settlement has returned.

        DATA_LOSS `LEDGER_BROKEN` where somebody left in the totals what is no number.
        """
        before = self._snapshot

        def look(connection: Connection) -> LedgerSnapshot:
            held = reservations.total(reservations.reserved(connection).values())
            head = settling.head(connection)
            # Totals change with the head alone, so an idle ledger costs a scrape two small queries.
            if before is not None and before.head == head:
                return replace(before, open=held)
            used, corrected = (totals.series(connection, kind) for kind in totals.Kind)
            return LedgerSnapshot(head, held, used, corrected)

        try:
            self._snapshot = await self._database.read(look)
        except ValueError as error:
            raise ledger_broken(Problem(Defect.TOTALS_DIFFER, 0, "they can't be read")) from error
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
        """In the chain's order. At most 1000 at once.

        A biller or operator sees all tenants', a publisher who asks for its own Skills those without labels, anyone
        else its own.
        """
        if not 0 <= after_sequence < 1 << 63:
            raise invalid("after_sequence", f"is {after_sequence}; it must be 0 or a sequence that was received")
        size, where = _page_size(limit), wanted or UsageFilter()
        tenant = _scope(principal)
        strangers = _as_publisher(principal, where)
        if strangers:
            tenant = None
            _no_labels("filter.labels", where.labels)
        found = await self._database.read(
            lambda connection: listing.records_after(connection, tenant, after_sequence, size, where)
        )
        return tuple(replace(record, labels={}) for record in found) if strangers else found

    async def usage_summary(self, principal: Principal, grouping: Grouping | None = None) -> tuple[UsageGroup, ...]:
        """Sums in integers, of the records that `list_usage_records` would show."""
        groups, _ = await self.usage_summary_as_of(principal, grouping or Grouping(), 0)
        return groups

    async def usage_summary_as_of(
        self, principal: Principal, grouping: Grouping, as_of_sequence: int
    ) -> tuple[tuple[UsageGroup, ...], int]:
        """The same over the records up to one, and which that was: the head where 0 is given."""
        tenant = _scope(principal)
        if _as_publisher(principal, grouping.where):
            tenant = None
            _no_labels("filter.labels", grouping.where.labels)
            _no_labels("group_by_labels", grouping.labels)

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

    async def verify(
        self,
        witness: Head | None = None,
        progress: Callable[[int], None] | None = None,
        span: Span = _ALL,
        by: str = "a verification",
    ) -> Verification:
        """Checks records, and of the whole ledger head, totals and executions too; `progress` hears how many were read.

        What it finds stops new calls, and a whole ledger without a defect lets them in again. A witness only tells:
        it may be wrong itself. OUT_OF_RANGE for a span that the ledger does not reach.
        """
        walk = Walk(span, witness)
        await self._database.read(walk.begin)
        async with self._verifying:
            return await self.examine(walk, by, progress or _deaf)

    async def examine(self, walk: Walk, by: str, progress: Callable[[int], Awaitable[None] | None]) -> Verification:
        """Carries a walk to the end of the ledger; one that went there before goes on from where it stood."""
        known = self._soundness.problems
        steps = (walk.advance, walk.close, walk.match) if walk.thorough else (walk.advance, walk.close)
        for step in steps:
            more = True
            while more:
                more = bool(await self._database.read(step))
                heard = progress(walk.records)
                if heard is not None:
                    await heard
        result = walk.result()
        await self.compare(self._soundness.published)
        if walk.thorough:
            await self._soundness.conclude(result, by, known)
        else:
            await self._soundness.found(result.own, by)
            if walk.span.whole and not result.own:
                self._soundness.whole_up_to(result.head)
        return replace(result, claimed=(*self._soundness.claimed, *result.claimed))

    async def resume(self, walk: Walk) -> None:
        """Makes a walk that found nothing ready to go on."""
        await self._database.read(walk.resume)

    async def compare(self, published: Head | None) -> None:
        """Looks whether the ledger still holds a head that was published; what it says stops new calls."""
        problem = None
        if published is not None:
            problem = await self._database.read(partial(against_witness, witness=published))
        self._soundness.claim(published, problem)


def _scope(principal: Principal) -> str | None:
    return None if principal.roles & _SEES_ALL else principal.tenant


def _as_publisher(principal: Principal, wanted: UsageFilter) -> bool:
    """Whether somebody asks for calls of its own Skills, whoever made them."""
    if principal.roles & _SEES_ALL or "publisher" not in principal.roles or wanted.tenant:
        return False
    return bool(wanted.publisher) and wanted.publisher in principal.publishers


def _no_labels(field: str, labels: Collection[str]) -> None:
    if labels:
        raise invalid(field, "labels are their callers' own; name your tenant in filter.tenant to ask for yours")


def _page_size(size: int) -> int:
    if size < 0:
        raise invalid("page_size", f"is {size}; it must be at least 0")
    return min(size or 50, _MAX_PAGE)


def _deaf(_: int) -> None:
    """Nobody wants to hear how far a verification is."""
