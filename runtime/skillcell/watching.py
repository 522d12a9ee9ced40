"""Listening to calls, live or after the fact; ending them early; and what becomes of one whose client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

from skillcell.core.errors import Fault, FaultKind, unavailable
from skillcell.core.records import StoredExecution
from skillcell.core.types import CancelReason, ExecutionState, OnDisconnect, Principal
from skillcell.live import Execution, LiveExecutions
from skillcell.metering.ledger import Ledger
from skillcell.sandbox.live_input import LiveInput
from skillcell.storage.spool import Expired, Spool


class Watching:
    """Over the live calls of this process, and what is kept of those that ended."""

    def __init__(
        self, live: LiveExecutions, ledger: Ledger, kept_spool: Callable[[str], Spool], reconnect_seconds: float
    ) -> None:
        self._live = live
        self._ledger = ledger
        self._kept_spool = kept_spool
        self._reconnect_seconds = reconnect_seconds
        self._graces: dict[str, asyncio.Task[None]] = {}

    async def watch(self, principal: Principal, execution_id: str, after: int = 0) -> AsyncGenerator[bytes]:
        """Every encoded event after `after`, live or kept. Raises Fault NOT_FOUND, or OUT_OF_RANGE when expired."""
        execution = self._live.find(principal, execution_id)
        records = execution.spool.read(after) if execution is not None else self._kept(principal, execution_id, after)
        grace = self._graces.pop(execution_id, None) if execution is not None else None
        if grace is not None:
            grace.cancel()
        try:
            # Closed here and now: left to the garbage collector it would still count as attached in `reader_left`.
            async with aclosing(records):
                async for _, record in records:
                    yield record
            if execution is not None and execution.unkept:
                yield execution.unkept
        except Expired as expired:
            raise _expired(execution_id, expired.first) from expired

    async def reader_left(self, principal: Principal, execution_id: str, reason: CancelReason) -> None:
        """A reader went away before the end. If it was the last one, the call is canceled, waits for it to come back,
        or goes on, as its caller chose.
        """
        execution = self._live.find(principal, execution_id)
        if execution is None or execution.spool.attached:
            return
        request = execution.plan.request
        if request.on_disconnect is OnDisconnect.DETACH:
            await execution.spool.expect_reader(False)
        elif request.request_id and reason is not CancelReason.DEADLINE:
            self._graces[execution_id] = asyncio.create_task(self._cancel_later(execution))
        else:
            execution.canceled.cancel(reason)

    def live_input(self, principal: Principal, execution_id: str) -> LiveInput | None:
        """Where stdin and signals of a live, interactive call go."""
        execution = self._live.find(principal, execution_id)
        return execution.live_input if execution is not None else None

    async def cancel(self, principal: Principal, execution_id: str, detail: str = "") -> None:
        """Ends a call and returns when it is settled; no effect on one that has ended. Raises Fault NOT_FOUND."""
        execution = self._live.find(principal, execution_id)
        if execution is None:
            await self._ledger.get_execution(principal, execution_id)
            return
        execution.canceled.cancel(CancelReason.CLIENT, detail)
        await execution.over.wait()

    def refreshed(self, stored: StoredExecution) -> StoredExecution:
        """A stored execution with what this process knows better: the store hears of a start a moment late."""
        execution = self._live.get(stored.admission.execution_id)
        if execution is None or stored.state is ExecutionState.COMPLETED:
            return stored
        return replace(
            stored,
            state=execution.state,
            started_at=execution.started_at,
            last_event_sequence=execution.spool.last_sequence,
        )

    async def _cancel_later(self, execution: Execution) -> None:
        try:
            await asyncio.sleep(self._reconnect_seconds)
            if not execution.spool.attached:
                execution.canceled.cancel(CancelReason.DISCONNECT)
        finally:
            self._graces.pop(execution.id, None)

    async def _kept(self, principal: Principal, execution_id: str, after: int) -> AsyncGenerator[tuple[int, bytes]]:
        """What the spool still has of a call that has ended, and its last event, which the ledger has as well: a crash
        between the two loses none.
        """
        stored = await self._ledger.get_execution(principal, execution_id)
        if stored.state is not ExecutionState.COMPLETED:
            raise unavailable("WRONG_STATE", f"execution {execution_id} is carried out by another gateway")
        spool, last = self._kept_spool(execution_id), stored.last_event_sequence
        try:
            if after < spool.last_sequence:
                async with aclosing(spool.read(after)) as records:
                    async for sequence, record in records:
                        yield sequence, record
                        after = sequence
            if after + 1 < last:
                raise Expired(last)
            if after < last:
                yield last, stored.completed_event
        finally:
            spool.release()


def _expired(execution_id: str, first: int) -> Fault:
    message = (
        f"events of {execution_id} before {first} are no longer kept; read from after_sequence {first - 1}, or take "
        "outcome and usage from GetExecution"
    )
    return Fault(FaultKind.OUT_OF_RANGE, "EXPIRED", message, metadata={"first_sequence": str(first)})
