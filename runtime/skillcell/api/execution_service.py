"""ExecutionService: thin; what it decides is only what gRPC forces on it.

A call belongs to the executor, not to the RPC that started it: `Execute` is `StartExecution` and `WatchExecution` in
one, and when its client goes the executor decides what becomes of the call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Any

import grpc.aio

from skillcell.api.edge import caller
from skillcell.api.uploading import upload_input
from skillcell.core.completion import to_completion
from skillcell.core.errors import Fault, FaultKind, invalid
from skillcell.core.records import StoredExecution
from skillcell.core.steps import Step, Steps, pass_by
from skillcell.core.types import CancelReason, ExecutionRequest, OnDisconnect, Principal
from skillcell.execution import Executor
from skillcell.metering.ledger import Ledger
from skillcell.metering.rating.cost import max_cost
from skillcell.metering.records import ExecutionFilter
from skillcell.sandbox.live_input import LiveInput
from skillcell.storage.artifacts import ArtifactStore
from skillcell.storage.uploads import UploadStore
from skillcell.v1 import execution_pb2 as pb
from skillcell.v1 import execution_pb2_grpc
from skillcell.watching import Watching
from skillcell.wire.billing import cost_to_proto
from skillcell.wire.enums import EXECUTION_STATE, ISOLATION, ON_DISCONNECT, OUTCOME
from skillcell.wire.events import artifact_to_proto
from skillcell.wire.executions import execution_to_proto
from skillcell.wire.limits import limits_to_proto
from skillcell.wire.requests import request_id_from_proto, spec_from_proto
from skillcell.wire.times import range_from_proto

Context = grpc.aio.ServicerContext[Any, Any]
EXECUTION_ID = "skillcell-execution-id"
_CHUNK_BYTES = 256 * 1024
_NEAR_SECONDS = 1.0
"""What a request may have been on its way, on a machine that is busy."""
_HALF_CLOSED_SECONDS = 0.2
"""How long a stream of requests has been over before that ends standard input; `StdinChunk.end` does so at once."""


class ExecutionService(execution_pb2_grpc.ExecutionServiceServicer):
    """Calls and their events."""

    def __init__(
        self,
        executor: Executor,
        watching: Watching,
        ledger: Ledger,
        artifacts: ArtifactStore,
        kept: timedelta,
        *,
        uploads: UploadStore,
        steps: Steps = pass_by,
    ) -> None:
        self._executor = executor
        self._watching = watching
        self._ledger = ledger
        self._artifacts = artifacts
        self._kept = kept
        self._uploads = uploads
        self._steps = steps

    async def Execute(self, request: pb.ExecuteRequest, context: Context) -> AsyncIterator[bytes]:  # type: ignore[override]
        principal = caller()
        domain = spec_from_proto(request.spec, request.request_id, request.on_disconnect)
        execution_id = await self._start(principal, domain, context)
        async with aclosing(self._follow(principal, execution_id, context)) as responses:
            async for response in responses:
                yield response

    async def ExecuteInteractive(  # type: ignore[override]
        self, requests: AsyncIterator[pb.ExecuteInteractiveRequest], context: Context
    ) -> AsyncIterator[bytes]:
        principal = caller()
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("part") != "start":
            raise _order("the first message must be start")
        start = first.start
        if (given := start.spec.WhichOneof("standard_input")) is not None:
            raise invalid(f"start.spec.{given}", "standard input comes live here; send it in stdin messages")
        domain = spec_from_proto(start.spec, start.request_id, start.on_disconnect)
        execution_id = await self._start(principal, domain, context, LiveInput())
        feeding = asyncio.create_task(_feed(requests, self._watching.live_input(principal, execution_id)))
        try:
            async with aclosing(self._follow(principal, execution_id, context, feeding)) as responses:
                async for response in responses:
                    yield response
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)

    async def StartExecution(self, request: pb.StartExecutionRequest, context: Context) -> pb.StartExecutionResponse:
        principal = caller()
        domain = spec_from_proto(request.spec, request.request_id, ON_DISCONNECT.to_wire(OnDisconnect.DETACH))
        execution_id = await self._executor.start(principal, domain, attached=False)
        return pb.StartExecutionResponse(execution=await self._execution(execution_id))

    async def GetExecution(self, request: pb.GetExecutionRequest, context: Context) -> pb.GetExecutionResponse:
        execution_id = request.execution_id
        if request.WhichOneof("key") == "request_id":
            execution_id = await self._ledger.execution_of(caller(), request_id_from_proto(request.request_id))
        return pb.GetExecutionResponse(execution=await self._execution(execution_id))

    async def ListExecutions(self, request: pb.ListExecutionsRequest, context: Context) -> pb.ListExecutionsResponse:
        page = await self._ledger.list_executions(
            caller(), _filter(request.filter), request.page_size, request.page_token
        )
        return pb.ListExecutionsResponse(
            executions=[execution_to_proto(self._now(stored)) for stored in page.executions],
            next_page_token=page.next_page_token,
        )

    async def WatchExecution(  # type: ignore[override]
        self, request: pb.WatchExecutionRequest, context: Context
    ) -> AsyncIterator[bytes]:
        principal = caller()
        watching = self._watching.watch(principal, request.execution_id, request.after_sequence)
        finished = False
        try:
            async with aclosing(watching) as records:
                async for record in records:
                    yield as_response(record)
            finished = True
        finally:
            if not finished:
                await asyncio.shield(
                    self._watching.reader_left(principal, request.execution_id, CancelReason.DISCONNECT)
                )

    async def CancelExecution(self, request: pb.CancelExecutionRequest, context: Context) -> pb.CancelExecutionResponse:
        await self._watching.cancel(caller(), request.execution_id, request.reason)
        return pb.CancelExecutionResponse(execution=await self._execution(request.execution_id))

    async def GetArtifact(
        self, request: pb.GetArtifactRequest, context: Context
    ) -> AsyncIterator[pb.GetArtifactResponse]:
        await self._ledger.get_execution(caller(), request.execution_id)
        artifact, chunks = await self._artifacts.read(request.execution_id, request.name, request.offset)
        if request.offset > artifact.size_bytes:
            message = f"offset: is {request.offset}; the artifact has {artifact.size_bytes} bytes"
            size = {"size_bytes": str(artifact.size_bytes)}
            raise Fault(FaultKind.OUT_OF_RANGE, "POSITION_OUT_OF_RANGE", message, metadata=size)
        left = request.length or artifact.size_bytes - request.offset
        offset = request.offset
        first = pb.GetArtifactResponse(artifact=artifact_to_proto(artifact), offset=offset)
        async with aclosing(chunks) as data:
            async for chunk in data:
                first.data = chunk[:left]
                yield first
                offset, left = offset + len(first.data), left - len(first.data)
                first = pb.GetArtifactResponse(offset=offset)
                if left <= 0:
                    return
        if first.HasField("artifact"):
            yield first

    async def UploadInput(
        self, requests: AsyncIterator[pb.UploadInputRequest], context: Context
    ) -> pb.UploadInputResponse:
        return await upload_input(self._uploads, caller(), requests, context)

    async def EstimateExecution(
        self, request: pb.EstimateExecutionRequest, context: Context
    ) -> pb.EstimateExecutionResponse:
        plan = await self._executor.plan(caller(), spec_from_proto(request.spec))
        cost = max_cost(plan.limits, plan.rate_plan) if plan.rate_plan is not None else None
        return pb.EstimateExecutionResponse(
            max_cost=cost_to_proto(cost) if cost is not None else None,
            version=plan.version.version,
            digest=plan.version.digest,
            entrypoint=plan.entrypoint.name,
            limits=limits_to_proto(plan.limits),
            isolation=ISOLATION.to_wire(plan.isolation),
            reservations=[
                pb.Reservation(quota="memory", amount=plan.limits.memory_bytes, available=True),
                pb.Reservation(quota="cpu", amount=plan.limits.milli_cpus, available=True),
            ],
        )

    async def _start(
        self, principal: Principal, request: ExecutionRequest, context: Context, live_input: LiveInput | None = None
    ) -> str:
        """Admits a call that is followed at once; a client that goes away in between has left it too."""
        made: list[str] = []
        granted = context.time_remaining()
        try:
            return await self._executor.start(
                principal, request, attached=True, live_input=live_input, on_admitted=made.append
            )
        except asyncio.CancelledError:
            for execution_id in made:
                await to_completion(self._watching.reader_left(principal, execution_id, _why_gone(context, granted)))
            raise

    async def _follow(
        self,
        principal: Principal,
        execution_id: str,
        context: Context,
        feeding: asyncio.Task[None] | None = None,
    ) -> AsyncGenerator[bytes]:
        """Every event of a call to its end. What goes wrong with what is fed to it ends the stream, as a client's
        leaving does.
        """
        finished, granted = False, context.time_remaining()
        try:
            await context.send_initial_metadata(((EXECUTION_ID, execution_id),))
            self._steps(Step.METADATA_SENT)
            async with aclosing(self._watching.watch(principal, execution_id)) as records:
                while (record := await _next_or_fault(records, feeding)) is not None:
                    yield as_response(record)
            finished = True
        finally:
            if not finished:
                await asyncio.shield(self._watching.reader_left(principal, execution_id, _why_gone(context, granted)))

    async def _execution(self, execution_id: str) -> pb.Execution:
        principal = caller()
        stored = self._now(await self._ledger.get_execution(principal, execution_id))
        artifacts = await self._artifacts.list(execution_id)
        expires: datetime | None = stored.ended_at + self._kept if stored.ended_at else None
        return execution_to_proto(stored, artifacts=artifacts, expires_at=expires)

    def _now(self, stored: StoredExecution) -> StoredExecution:
        """The store hears of a start a moment late; a live call knows better."""
        return self._watching.refreshed(stored)


def as_response(record: bytes) -> bytes:
    """An encoded ExecutionEvent as the bytes of ExecuteResponse or WatchExecutionResponse, whose field 1 it is."""
    length, prefix = len(record), bytearray(b"\x0a")
    while length > 127:
        prefix.append(length & 127 | 128)
        length >>= 7
    prefix.append(length)
    return bytes(prefix) + record


async def _next_or_fault(records: AsyncGenerator[bytes], feeding: asyncio.Task[None] | None) -> bytes | None:
    """The next record, None at the end. Raises what `feeding` raised, while waiting."""
    if feeding is None:
        return await anext(records, None)
    following = asyncio.ensure_future(anext(records, None))
    try:
        await asyncio.wait({following, feeding}, return_when=asyncio.FIRST_COMPLETED)
        if feeding.done() and not feeding.cancelled() and (error := feeding.exception()) is not None:
            raise error
        return await following
    finally:
        if not following.done():
            following.cancel()
            await asyncio.wait({following})


async def _feed(requests: AsyncIterator[pb.ExecuteInteractiveRequest], live_input: LiveInput | None) -> None:
    """What the client sends, to the call; without effect where that is not interactive or has ended."""
    async for request in requests:
        part = request.WhichOneof("part")
        if part == "start":
            raise _order("start came twice")
        if live_input is None:
            continue
        if part == "stdin":
            await live_input.feed(request.stdin.offset, request.stdin.data, end=request.stdin.end)
        else:
            await live_input.signal(request.signal)
    if live_input is not None:
        # gRPC tells a stream that broke as it tells one that its client closed, and cancels the broken one's RPC a
        # moment later: what the client has still to send, once it is back, must not find its standard input ended.
        await asyncio.sleep(_HALF_CLOSED_SECONDS)
        await live_input.end()


def _order(message: str) -> Fault:
    return Fault(FaultKind.INVALID_ARGUMENT, "STREAM_ORDER", message)


def _why_gone(context: Context, granted: float | None) -> CancelReason:
    """`granted`: seconds to its deadline when the client came, None where it has none.

    A client's own clock ends its call first, by the way that the request took and by what gRPC rounds a timeout up to
    on the wire (1 %): what is that near to the deadline is the deadline.
    """
    remaining = context.time_remaining()
    if remaining is None or granted is None or remaining > _NEAR_SECONDS + granted / 50:
        return CancelReason.CLIENT
    return CancelReason.DEADLINE


def _filter(message: pb.ExecutionFilter) -> ExecutionFilter:
    publisher, _, rest = message.skill.partition("/")
    skill, _, chosen = rest.partition("@")
    since, until = range_from_proto(message.time, "filter.time")
    for name in ("session_id", "parent_id"):
        if getattr(message, name):
            raise Fault(FaultKind.UNIMPLEMENTED, "NOT_SERVED", f"filter.{name} is not served by this gateway")
    return ExecutionFilter(
        states=tuple(EXECUTION_STATE.from_wire(state) for state in message.states),
        outcomes=tuple(OUTCOME.from_wire(outcome) for outcome in message.outcomes),
        publisher=publisher,
        skill=skill,
        version="" if ":" in chosen else chosen,
        digest=chosen if ":" in chosen else "",
        labels=dict(message.labels),
        since=since,
        until=until,
    )
