"""A gateway that plays a script: real sockets, real protos, real status details, no sandboxes.

For what a real gateway does only by accident: streams that break at a chosen event, refusals of every kind, events of a
newer version. What it is told to send is in its attributes; what it was sent is in `seen`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import grpc
import grpc.aio

from skillcell import wire
from skillcell.api.edge import SEND
from skillcell.api.status import code_of, trailers_of
from skillcell.core import events, skills, types
from skillcell.core.errors import Fault, invalid
from skillcell.v1 import execution_pb2 as ex
from skillcell.v1 import execution_pb2_grpc, registry_pb2_grpc, usage_pb2_grpc
from skillcell.v1 import registry_pb2 as rg
from skillcell.v1 import usage_pb2 as us

NOW = datetime(2026, 11, 22, 10, 20, 30, tzinfo=UTC)
EXECUTION = "exe_1"
KEY = "sk_test"
DIGEST = "sha256:" + "ab" * 32


def usage_record(**changes: Any) -> types.UsageRecord:
    record: dict[str, Any] = {
        "event_id": "evt_1",
        "execution_id": EXECUTION,
        "tenant": "dev",
        "publisher": "acme",
        "skill": "tool",
        "version": "1.0.0",
        "digest": DIGEST,
        "entrypoint": "scripts/run.py",
        "isolation": types.Isolation.STANDARD,
        "driver": "oci",
        "warm": False,
        "outcome": types.Outcome.SUCCEEDED,
        "fault": types.FaultParty.NONE,
        "billable": True,
        "started_at": NOW,
        "ended_at": NOW,
        "admitted_at": NOW,
        "times": types.StageTimes(queue_ns=1_000_000, startup_ns=25_000_000, run_ns=40_400_000),
        "billed_ms": 41,
        "cpu_total_ns": 31_000_000,
        "memory_peak_bytes": 9 << 20,
        "memory_limit_bytes": 256 << 20,
        "memory_limit_byte_ns": (256 << 20) * 40_400_000,
        "pids_peak": 2,
        "sequence": 7,
    }
    return types.UsageRecord(**{**record, **changes})


def completed(outcome: types.Outcome = types.Outcome.SUCCEEDED, **changes: Any) -> events.Completed:
    fault = types.FaultParty.NONE if outcome is types.Outcome.SUCCEEDED else types.FaultParty.SKILL
    value: dict[str, Any] = {
        "outcome": outcome,
        "fault": fault,
        "billable": True,
        "retryable": False,
        "usage": usage_record(outcome=outcome, fault=fault),
        "exit_code": 0,
    }
    return events.Completed(**{**value, **changes})


def started() -> events.Started:
    return events.Started("sbx_1", True, "oci", types.Isolation.STANDARD, types.Limits(), types.StageTimes())


def ordinary_call() -> list[events.Event]:
    return [
        started(),
        events.Stdout(b"hello\n"),
        events.Stderr(b"\xffwarn\n"),
        events.Log("info", "working", {"n": 1}),
        events.Progress(0.5, "half"),
        events.Output(b'{"answer": 42}'),
        events.Artifact("out/report.txt", 6, ARTIFACT_SHA256, "text/plain"),
        completed(),
    ]


ARTIFACT = b"report"
ARTIFACT_SHA256 = "845e91831319e89c4d656bdb80c278ac09a7230d61e5dfd2e1b1fbb436ac8917"


def skill_version(version: str = "1.0.0", **changes: Any) -> skills.SkillVersion:
    entrypoint = skills.Entrypoint("scripts/run.py", "Runs", interpreter=skills.Interpreter.PYTHON)
    value: dict[str, Any] = {
        "publisher": "acme",
        "name": "tool",
        "version": version,
        "digest": DIGEST,
        "spec": skills.SkillSpec("tool", "Does things", (entrypoint,), default_entrypoint="scripts/run.py"),
        "package_digest": "",
        "created_at": NOW,
        "size_bytes": 123,
        "file_count": 2,
    }
    return skills.SkillVersion(**{**value, **changes})


class ScriptedGateway:
    """Attributes are the script; one instance serves one test."""

    def __init__(self) -> None:
        self.address = ""
        self.events: list[events.Event] = ordinary_call()
        self.break_after: list[int] = []
        """Sequences after which one stream each breaks; 0 breaks before anything was sent."""
        self.break_with: list[grpc.StatusCode] = []
        self.fault: Fault | None = None
        """Refuses everything but health."""
        self.hold_at = 0
        """The sequence before which the stream waits for a cancel; 0 for none."""
        self.skip_sequence = 0
        """One event that is never sent."""
        self.extra_kind = False
        """Sends an event of an unknown kind first."""
        self.artifact_breaks = 0
        self.findings: tuple[skills.Finding, ...] = ()
        self.seen: list[Any] = []
        self.metadata: dict[str, str] = {}
        self.archive = b""
        self.uploads: dict[str, bytes] = {}
        """By digest; what is in it needs no bytes."""
        self.upload_bound = 1 << 30
        """One upload that passes it is refused in mid-stream."""
        self.upload_breaks = 0
        """How many uploads find no gateway."""
        self.canceled = asyncio.Event()
        self.reached_hold = asyncio.Event()
        self.cancel_seen = asyncio.Event()
        self.cancel_hangs = False

    async def enter(self, request: Any, context: Any) -> None:
        self.metadata = dict(context.invocation_metadata())
        self.seen.append(request)
        if self.fault is not None:
            await context.abort(code_of(self.fault), self.fault.message, trailers_of(self.fault))

    def requests(self, kind: type[Any]) -> list[Any]:
        return [request for request in self.seen if isinstance(request, kind)]

    async def play(self, context: Any, after: int) -> AsyncIterator[Any]:
        breaks = self.break_after.pop(0) if self.break_after else -1
        status = self.break_with.pop(0) if breaks >= 0 and self.break_with else grpc.StatusCode.UNAVAILABLE
        offsets, script = wire.Offsets(), list(self.events)
        for number, event in enumerate(script, start=1):
            if breaks == number - 1:
                await context.abort(status, "scripted break")
            if self.hold_at == number and not self.canceled.is_set():
                self.reached_hold.set()
                await self.canceled.wait()
                yield self._message(completed(types.Outcome.CANCELED, exit_code=None), number, offsets)
                return
            message = self._message(event, number, offsets)
            if number > after and number != self.skip_sequence:
                yield message

    def _message(self, event: events.Event, number: int, offsets: wire.Offsets) -> Any:
        message = wire.event_to_proto(event, number, NOW, EXECUTION, offsets=offsets)
        if self.extra_kind and number == 1:
            message.ClearField("kind")
        return message

    def execution(self) -> ex.Execution:
        last = self.events[-1]
        message = ex.Execution(
            id=EXECUTION,
            tenant="dev",
            skill="acme/tool",
            version="1.0.0",
            digest=DIGEST,
            entrypoint="scripts/run.py",
            state=ex.EXECUTION_STATE_COMPLETED,
            create_time=wire.times.instant_to_proto(NOW),
            start_time=wire.times.instant_to_proto(NOW),
            end_time=wire.times.instant_to_proto(NOW),
            last_sequence=len(self.events),
            labels={"team": "a"},
            limits=wire.limits_to_proto(types.Limits()),
            isolation=1,
        )
        if isinstance(last, events.Completed):
            message.completed.CopyFrom(wire.completed_to_proto(last))
        return message


class _Executions(execution_pb2_grpc.ExecutionServiceServicer):
    def __init__(self, script: ScriptedGateway) -> None:
        self.script = script

    async def Execute(self, request: Any, context: Any) -> Any:
        await self.script.enter(request, context)
        if not (self.script.break_after and self.script.break_after[0] == 0):
            await context.send_initial_metadata((("skillcell-execution-id", EXECUTION),))
        async for message in self.script.play(context, 0):
            yield ex.ExecuteResponse(event=message)

    async def WatchExecution(self, request: Any, context: Any) -> Any:
        await self.script.enter(request, context)
        async for message in self.script.play(context, request.after_sequence):
            yield ex.WatchExecutionResponse(event=message)

    async def StartExecution(self, request: Any, context: Any) -> Any:
        await self.script.enter(request, context)
        return ex.StartExecutionResponse(execution=self.script.execution())

    async def GetExecution(self, request: Any, context: Any) -> Any:
        await self.script.enter(request, context)
        return ex.GetExecutionResponse(execution=self.script.execution())

    async def ListExecutions(self, request: Any, context: Any) -> Any:
        await self.script.enter(request, context)
        return ex.ListExecutionsResponse(executions=[self.script.execution()])

    async def CancelExecution(self, request: Any, context: Any) -> Any:
        await self.script.enter(request, context)
        self.script.cancel_seen.set()
        if self.script.cancel_hangs:
            await asyncio.Event().wait()
        self.script.canceled.set()
        return ex.CancelExecutionResponse(execution=self.script.execution())

    async def GetArtifact(self, request: Any, context: Any) -> Any:
        await self.script.enter(request, context)
        for offset in range(request.offset, len(ARTIFACT), 2):
            yield ex.GetArtifactResponse(offset=offset, data=ARTIFACT[offset : offset + 2])
            if self.script.artifact_breaks:
                self.script.artifact_breaks -= 1
                await context.abort(grpc.StatusCode.UNAVAILABLE, "scripted break")

    async def UploadInput(self, requests: Any, context: Any) -> Any:
        script, data, header = self.script, bytearray(), None
        async for request in requests:
            if header is None:
                header = request.header
                await script.enter(header, context)
                if script.upload_breaks:
                    script.upload_breaks -= 1
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "scripted break")
                if header.digest in script.uploads:
                    return self._uploaded(header.digest)
                if header.size_bytes > script.upload_bound:
                    await self._too_large(context)
                await context.send_initial_metadata((SEND,))
            data += request.chunk
            if len(data) > script.upload_bound:
                await self._too_large(context)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        script.uploads[digest] = bytes(data)
        return self._uploaded(digest)

    async def _too_large(self, context: Any) -> None:
        fault = invalid("chunk", "is too much")
        await context.abort(code_of(fault), fault.message, trailers_of(fault))

    def _uploaded(self, digest: str) -> Any:
        size, expires = len(self.script.uploads[digest]), wire.times.instant_to_proto(NOW)
        return ex.UploadInputResponse(digest=digest, size_bytes=size, expire_time=expires)

    async def EstimateExecution(self, request: Any, context: Any) -> Any:
        await self.script.enter(request, context)
        return ex.EstimateExecutionResponse(
            version="1.0.0", digest=DIGEST, entrypoint="scripts/run.py", isolation=1,
            limits=wire.limits_to_proto(types.Limits()),
            reservations=[ex.Reservation(quota="concurrent", amount=1, available=True)],
        )  # fmt: skip


class _Registry(registry_pb2_grpc.RegistryServiceServicer):
    def __init__(self, script: ScriptedGateway) -> None:
        self.script = script

    async def _receive(self, requests: Any, context: Any) -> None:
        chunks: list[bytes] = []
        async for request in requests:
            if request.HasField("header"):
                await self.script.enter(request.header, context)
                await context.send_initial_metadata((SEND,))
            else:
                chunks.append(request.chunk)
        self.script.archive = b"".join(chunks)

    async def PublishSkill(self, requests: Any, context: Any) -> Any:
        await self._receive(requests, context)
        version = skill_version(findings=self.script.findings)
        return rg.PublishSkillResponse(version=wire.skill_version_to_proto(version), created=True)

    async def ValidateSkill(self, requests: Any, context: Any) -> Any:
        await self._receive(requests, context)
        valid = all(finding.severity is not skills.Severity.ERROR for finding in self.script.findings)
        return rg.ValidateSkillResponse(
            valid=valid,
            findings=[wire.finding_to_proto(finding) for finding in self.script.findings],
            version=wire.skill_version_to_proto(skill_version()) if valid else None,
        )

    def _skill(self) -> Any:
        return rg.GetSkillResponse().skill.__class__(
            publisher="acme", name="tool", description="Does things", latest_version="1.0.0",
            aliases={"stable": "1.0.0"}, visibility=3, callable=True,
            create_time=wire.times.instant_to_proto(NOW), update_time=wire.times.instant_to_proto(NOW),
        )  # fmt: skip

    async def GetSkill(self, request: Any, context: Any) -> Any:
        await self.script.enter(request, context)
        return rg.GetSkillResponse(skill=self._skill(), version=wire.skill_version_to_proto(skill_version()))

    async def ListSkills(self, request: Any, context: Any) -> Any:
        await self.script.enter(request, context)
        return rg.ListSkillsResponse(skills=[self._skill()])

    async def SearchSkills(self, request: Any, context: Any) -> Any:
        await self.script.enter(request, context)
        return rg.SearchSkillsResponse(matches=[rg.SkillMatch(skill=self._skill(), score=1)])

    async def ListSkillVersions(self, request: Any, context: Any) -> Any:
        await self.script.enter(request, context)
        return rg.ListSkillVersionsResponse(versions=[wire.skill_version_to_proto(skill_version())])

    async def SetAlias(self, request: Any, context: Any) -> Any:
        await self.script.enter(request, context)
        return rg.SetAliasResponse(skill=self._skill())

    async def YankSkillVersion(self, request: Any, context: Any) -> Any:
        await self.script.enter(request, context)
        state = skills.VersionState.PUBLISHED if request.undo else skills.VersionState.YANKED
        version = skill_version(state=state, state_reason=request.reason)
        return rg.YankSkillVersionResponse(version=wire.skill_version_to_proto(version))

    async def DownloadSkill(self, request: Any, context: Any) -> Any:
        await self.script.enter(request, context)
        header = rg.DownloadSkillHeader(
            version="1.0.0", digest=DIGEST, size_bytes=len(ARTIFACT), sha256=bytes.fromhex(ARTIFACT_SHA256)
        )
        yield rg.DownloadSkillResponse(header=header, data=ARTIFACT[:3])
        yield rg.DownloadSkillResponse(offset=3, data=ARTIFACT[3:])


class _Usage(usage_pb2_grpc.UsageServiceServicer):
    def __init__(self, script: ScriptedGateway) -> None:
        self.script = script

    async def ListUsageRecords(self, request: Any, context: Any) -> Any:
        await self.script.enter(request, context)
        return us.ListUsageRecordsResponse(records=[wire.usage_to_proto(usage_record())])

    async def StreamUsageRecords(self, request: Any, context: Any) -> Any:
        await self.script.enter(request, context)
        yield us.StreamUsageRecordsResponse(record=wire.usage_to_proto(usage_record()))

    async def GetUsageSummary(self, request: Any, context: Any) -> Any:
        await self.script.enter(request, context)
        totals = us.UsageTotals(calls=3, billable_calls=2, billed_ms=82, memory_limit_byte_ns=str(1 << 70))
        last = bool(request.page_token)
        return us.GetUsageSummaryResponse(
            groups=[us.UsageGroup(skill="acme/tool", outcome=1, labels={"team": "b" if last else "a"}, totals=totals)],
            next_page_token="" if last else "more",
            as_of_sequence=9,
        )

    async def VerifyLedger(self, request: Any, context: Any) -> Any:
        await self.script.enter(request, context)
        return us.VerifyLedgerResponse(
            intact=False,
            records_checked=9,
            defects=[us.LedgerDefect(kind=us.LedgerDefect.KIND_EDITED, sequence=4, detail="hash differs")],
            head=us.LedgerHead(sequence=9, hash=b"\x01" * 32),
        )


@asynccontextmanager
async def scripted_gateway(address: str = "127.0.0.1:0") -> AsyncIterator[ScriptedGateway]:
    """A served script; its address is set."""
    script = ScriptedGateway()
    server = grpc.aio.server(options=(("grpc.max_receive_message_length", 64 << 20),))
    execution_pb2_grpc.add_ExecutionServiceServicer_to_server(_Executions(script), server)  # type: ignore[no-untyped-call]
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(_Registry(script), server)  # type: ignore[no-untyped-call]
    usage_pb2_grpc.add_UsageServiceServicer_to_server(_Usage(script), server)  # type: ignore[no-untyped-call]
    script.address = f"127.0.0.1:{server.add_insecure_port(address)}"
    await server.start()
    try:
        yield script
    finally:
        await server.stop(0)
