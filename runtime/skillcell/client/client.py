"""`SkillcellClient`: calls as methods with the domain's types; what else a gateway serves lies in attributes.

Two things a reader could get wrong. A call is sent with a `request_id` of its own unless one is given, so that a broken
connection can be taken up; leaving its events early therefore cancels it explicitly. And an outcome is never raised:
look at `CallResult.outcome`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

from skillcell.client import convert
from skillcell.client.admin import AdminCalls
from skillcell.client.billing import BillingCalls
from skillcell.client.channel import Tls, ask, credentials_metadata, known_values, open_channel
from skillcell.client.collect import collect
from skillcell.client.convert import time_range
from skillcell.client.download import chunks, save
from skillcell.client.errors import Canceled, DeadlineExceeded, SkillcellError
from skillcell.client.inputs import resolved
from skillcell.client.reattach import Reattaching, RetryPolicy
from skillcell.client.registry import RegistryCalls
from skillcell.client.sinks import SinkCalls
from skillcell.client.types import CallOptions, CallResult, Estimate, Event, Execution, Page, Uploaded
from skillcell.client.uploads import OnProgress, Source, Uploads
from skillcell.client.usage import UsageCalls
from skillcell.core.events import Artifact
from skillcell.core.types import ExecutionState, OnDisconnect, Outcome
from skillcell.v1 import execution_pb2, execution_pb2_grpc, spec_pb2
from skillcell.wire import spec_to_proto
from skillcell.wire.enums import EXECUTION_STATE, ON_DISCONNECT, OUTCOME

_CANCEL_SECONDS = 5.0
_RETRY = RetryPolicy()
OnUpload = Callable[[str, int, int], None]
"""Called with the name of what is sent ahead, the bytes sent so far and the bytes in all (0: not known)."""


class SkillcellClient:
    """A connection to one gateway, for as many calls at once as wanted. Methods raise SkillcellError."""

    def __init__(
        self,
        address: str,
        *,
        api_key: str = "",
        tls: Tls | None = None,
        retry: RetryPolicy = _RETRY,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """`metadata` goes with every RPC, as `traceparent`."""
        self._channel = open_channel(address, tls)
        self._metadata = (*credentials_metadata(api_key), *(metadata or {}).items())
        self._retry = retry
        self._executions = execution_pb2_grpc.ExecutionServiceStub(self._channel)
        self._uploads = Uploads(self._executions, self._metadata)
        self.registry = RegistryCalls(self._channel, self._metadata)
        self.usage = UsageCalls(self._channel, self._metadata)
        self.billing = BillingCalls(self._channel, self._metadata)
        self.admin = AdminCalls(self._channel, self._metadata)
        self.sinks = SinkCalls(self._channel, self._metadata)
        self.publish = self.registry.publish
        self.validate = self.registry.validate

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection and every RPC on it."""
        await self._channel.close()

    async def execute(
        self,
        skill: str,
        *,
        request_id: str | None = None,
        on_disconnect: OnDisconnect = OnDisconnect.CANCEL,
        deadline_seconds: float | None = None,
        on_admitted: Callable[[str], None] | None = None,
        on_upload: OnUpload | None = None,
        **options: Unpack[CallOptions],
    ) -> AsyncGenerator[Event, None]:
        """Runs one call; events come while it runs, the last one is `Completed`.

        `request_id` is a UUID; None makes one, "" sends none and gives up re-attaching. After `deadline_seconds` the
        gateway cancels the call. What is too large for a message is sent ahead; `on_upload` hears of that by name
        (`input`, `stdin`, or the file's). `on_admitted` gets the execution's id, before any event. Leaving early (use
        `contextlib.aclosing`) cancels the call too, unless `on_disconnect` is DETACH.
        """
        identity = str(uuid.uuid4()) if request_id is None else request_id
        request = execution_pb2.ExecuteRequest(
            request_id=identity,
            spec=await self._spec(skill, options, on_upload),
            on_disconnect=ON_DISCONNECT.to_wire(on_disconnect),
        )
        stream = Reattaching(
            self._watch_rpc,
            self._retry,
            execute=lambda: self._executions.Execute(request, metadata=self._metadata, timeout=deadline_seconds),
            repeatable=bool(identity),
            on_admitted=on_admitted,
        )
        left = on_disconnect is OnDisconnect.CANCEL
        try:
            async with aclosing(stream.events()) as events:
                async for event in events:
                    yield event
        except (DeadlineExceeded, Canceled):
            left = left and deadline_seconds is None  # else the gateway has the deadline too, and ends the call by it
            raise
        finally:
            if stream.execution_id and not stream.completed and left:
                with suppress(SkillcellError):
                    await asyncio.shield(self._cancel(stream.execution_id, "the client left", _CANCEL_SECONDS))

    async def call(
        self,
        skill: str,
        *,
        request_id: str | None = None,
        deadline_seconds: float | None = None,
        **options: Unpack[CallOptions],
    ) -> CallResult:
        """Runs one call and collects it. How it ended is in the result, never raised."""
        events = self.execute(skill, request_id=request_id, deadline_seconds=deadline_seconds, **options)
        async with aclosing(events) as stream:
            return await collect(stream)

    async def start(
        self,
        skill: str,
        *,
        request_id: str | None = None,
        on_upload: OnUpload | None = None,
        **options: Unpack[CallOptions],
    ) -> Execution:
        """Admits a call and returns at once; it runs on without this client. Follow it with `watch`."""
        request = execution_pb2.StartExecutionRequest(
            request_id=str(uuid.uuid4()) if request_id is None else request_id,
            spec=await self._spec(skill, options, on_upload),
        )
        answer = await ask(self._executions.StartExecution(request, metadata=self._metadata))
        with known_values():
            return convert.execution(answer.execution)

    async def get(self, execution_id: str = "", *, request_id: str = "") -> Execution:
        """One execution, by its id or by the request id it was sent with."""
        request = execution_pb2.GetExecutionRequest()
        if execution_id:
            request.execution_id = execution_id
        else:
            request.request_id = request_id
        answer = await ask(self._executions.GetExecution(request, metadata=self._metadata))
        with known_values():
            return convert.execution(answer.execution)

    async def list(
        self,
        *,
        states: Sequence[ExecutionState] = (),
        outcomes: Sequence[Outcome] = (),
        skill: str = "",
        labels: Mapping[str, str] | None = None,
        after: datetime | None = None,
        before: datetime | None = None,
        page_size: int = 0,
        page_token: str = "",
    ) -> Page[Execution]:
        """The tenant's executions, newest first; `after` and `before` are about when they were admitted."""
        request = execution_pb2.ListExecutionsRequest(
            filter=execution_pb2.ExecutionFilter(
                states=[EXECUTION_STATE.to_wire(state) for state in states],
                outcomes=[OUTCOME.to_wire(outcome) for outcome in outcomes],
                skill=skill,
                labels=labels or {},
                time=time_range(after, before),
            ),
            page_size=page_size,
            page_token=page_token,
        )
        answer = await ask(self._executions.ListExecutions(request, metadata=self._metadata))
        with known_values():
            return Page(tuple(convert.execution(item) for item in answer.executions), answer.next_page_token)

    async def watch(self, execution_id: str, *, after_sequence: int = 0) -> AsyncGenerator[Event, None]:
        """Every event after a sequence once and in order, until the call has ended. Leaving it cancels nothing."""
        stream = Reattaching(self._watch_rpc, self._retry, execution_id=execution_id, after_sequence=after_sequence)
        async with aclosing(stream.events()) as events:
            async for event in events:
                yield event

    async def cancel(self, execution_id: str, *, reason: str = "") -> Execution:
        """Ends a call and returns when it is settled; one that has ended stays as it is."""
        return await self._cancel(execution_id, reason, None)

    async def estimate(self, skill: str, **options: Unpack[CallOptions]) -> Estimate:
        """What a call would be given and the most it can cost; nothing is run or recorded."""
        request = execution_pb2.EstimateExecutionRequest(spec=await self._spec(skill, options, None))
        answer = await ask(self._executions.EstimateExecution(request, metadata=self._metadata))
        with known_values():
            return convert.estimate(answer)

    async def get_artifact(self, execution_id: str, name: str, *, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """The bytes of one artifact from `offset` on."""
        answers = chunks(
            lambda at: self._executions.GetArtifact(
                execution_pb2.GetArtifactRequest(execution_id=execution_id, name=name, offset=at),
                metadata=self._metadata,
            ),
            offset,
        )
        async with aclosing(answers) as stream:
            async for answer in stream:
                if answer.data:
                    yield answer.data

    async def save_artifact(self, execution_id: str, artifact: Artifact, path: Path) -> None:
        """One artifact as a file, checked against its hash. The caller decides whether `path` is a safe place."""
        async with aclosing(self.get_artifact(execution_id, artifact.name)) as data:
            await save(data, path, sha256=bytes.fromhex(artifact.sha256))

    async def upload(self, source: Source, *, on_progress: OnProgress | None = None) -> Uploaded:
        """Sends bytes, a local file or a stream ahead, for `input_upload`, `stdin_upload` and `InputFile.upload` of any
        number of calls. Bytes that the gateway has already are not sent again.
        """
        return await self._uploads.send(source, on_progress)

    async def _spec(self, skill: str, options: CallOptions, on_upload: OnUpload | None) -> spec_pb2.ExecutionSpec:
        async def upload(name: str, source: Source) -> str:
            done = await self._uploads.send(source, None if on_upload is None else partial(on_upload, name))
            return done.digest

        return spec_to_proto(convert.new_request(skill, await resolved(options, upload)))

    def _watch_rpc(self, execution_id: str, after_sequence: int) -> Any:
        request = execution_pb2.WatchExecutionRequest(execution_id=execution_id, after_sequence=after_sequence)
        return self._executions.WatchExecution(request, metadata=self._metadata)

    async def _cancel(self, execution_id: str, reason: str, timeout: float | None) -> Execution:
        request = execution_pb2.CancelExecutionRequest(execution_id=execution_id, reason=reason)
        call = self._executions.CancelExecution(request, metadata=self._metadata, timeout=timeout)
        answer = await ask(call)
        with known_values():
            return convert.execution(answer.execution)
