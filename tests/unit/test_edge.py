"""What every RPC passes, seen from a real client of a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2 as details_pb
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from skillcell.api.auth import ApiKeys, hash_key
from skillcell.api.edge import Edge, caller, validate
from skillcell.core.errors import Fault, FaultKind, FieldViolation, not_found
from skillcell.core.types import Principal
from skillcell.v1 import execution_pb2 as pb
from skillcell.v1 import execution_pb2_grpc as pb_grpc
from skillcell.v1 import usage_pb2

ALICE = Principal("alice", roles=frozenset({"caller"}))
BOB = Principal("bob", roles=frozenset({"caller"}))
CLERK = Principal("clerk", roles=frozenset({"biller"}))
KEYS = {hash_key("alice-key"): ALICE, hash_key("bob-key"): BOB, hash_key("clerk-key"): CLERK}
AS_ALICE = (("authorization", "Bearer alice-key"),)
GET = pb.GetExecutionRequest(execution_id="exe_1")
WATCH = pb.WatchExecutionRequest(execution_id="exe_1")
CHUNK = pb.UploadInputRequest(chunk=b"x")

Behaviour = Callable[..., Any]


class Service(pb_grpc.ExecutionServiceServicer):
    """One method of each kind, doing what the test says; the rest is not served."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour

    async def GetExecution(self, request: Any, context: Any) -> Any:
        return await self._behaviour(request, context)

    async def WatchExecution(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for response in self._behaviour(request, context):
            yield response

    async def UploadInput(self, request: Any, context: Any) -> Any:
        return await self._behaviour(request, context)

    async def ExecuteInteractive(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for response in self._behaviour(request, context):
            yield response


@asynccontextmanager
async def serving(behaviour: Behaviour) -> AsyncIterator[Any]:
    server = grpc.aio.server(interceptors=(Edge(ApiKeys(KEYS)),))
    pb_grpc.add_ExecutionServiceServicer_to_server(Service(behaviour), server)  # type: ignore[no-untyped-call]
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    await checks.set("", health_pb2.HealthCheckResponse.SERVING)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub: Any = pb_grpc.ExecutionServiceStub(channel)
            stub.channel = channel
            yield stub
    finally:
        await server.stop(None)


def status_of(error: grpc.aio.AioRpcError) -> Status:
    metadata = dict(error.trailing_metadata() or ())
    return Status.FromString(metadata["grpc-status-details-bin"])  # type: ignore[arg-type]


async def told(call: Any) -> tuple[grpc.StatusCode, str, details_pb.ErrorInfo]:
    """The status a client sees, its message and its ErrorInfo."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    info = details_pb.ErrorInfo()
    status = status_of(error.value)
    assert (status.code, status.message) == (error.value.code().value[0], error.value.details())
    assert any(packed.Unpack(info) for packed in status.details)
    return error.value.code(), error.value.details() or "", info


async def drained(call: Any) -> list[Any]:
    return [response async for response in call]


async def empty(_request: Any, _context: Any) -> pb.GetExecutionResponse:
    return pb.GetExecutionResponse()


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ((), "CREDENTIALS_MISSING"),
        ((("authorization", ""),), "CREDENTIALS_MISSING"),
        ((("authorization", "Bearer wrong"),), "CREDENTIALS_INVALID"),
        ((("authorization", "Bearer "),), "CREDENTIALS_INVALID"),
        ((("authorization", "alice-key"),), "CREDENTIALS_INVALID"),
        ((("authorization", "Basic alice-key"),), "CREDENTIALS_INVALID"),
        ((("authorization-bin", b"Bearer alice-key"),), "CREDENTIALS_MISSING"),
    ],
)
async def test_a_call_without_good_credentials_reaches_no_service(metadata: Any, reason: str) -> None:
    async def unreachable(_request: Any, _context: Any) -> Any:
        raise AssertionError

    async with serving(unreachable) as stub:
        for call in (stub.GetExecution(GET, metadata=metadata), drained(stub.WatchExecution(WATCH, metadata=metadata))):
            code, _, info = await told(call)
            assert (code, info.reason, info.domain) == (grpc.StatusCode.UNAUTHENTICATED, reason, "skillcell")


async def test_a_role_that_does_not_fit_is_refused_by_name() -> None:
    async with serving(empty) as stub:
        code, message, info = await told(stub.GetExecution(GET, metadata=(("authorization", "Bearer clerk-key"),)))
        assert (code, info.reason) == (grpc.StatusCode.PERMISSION_DENIED, "ROLE_REQUIRED")
        assert "'caller'" in message


async def test_each_call_sees_its_own_caller_also_when_they_run_together() -> None:
    both = asyncio.Barrier(2)

    async def whoami(_request: Any, _context: Any) -> Any:
        before = caller().tenant
        await both.wait()
        return pb.GetExecutionResponse(execution=pb.Execution(id=before + caller().tenant))

    async with serving(whoami) as stub:
        answers = await asyncio.gather(
            *(stub.GetExecution(GET, metadata=(("authorization", f"bearer  {who}-key"),)) for who in ("alice", "bob"))
        )
        assert [answer.execution.id for answer in answers] == ["alicealice", "bobbob"]


async def test_binary_metadata_beside_the_credentials_does_no_harm() -> None:
    async with serving(empty) as stub:
        await stub.GetExecution(GET, metadata=(*AS_ALICE, ("trace-bin", b"\x00\xff"), ("x", "y")))


async def test_health_needs_no_credentials() -> None:
    async with serving(empty) as stub:
        answer = await health_pb2_grpc.HealthStub(stub.channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_an_invalid_message_is_refused_with_every_field() -> None:
    async with serving(empty) as stub:
        bad = pb.GetArtifactRequest(execution_id="no/id", name="")
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await drained(stub.GetArtifact(bad, metadata=AS_ALICE))
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        status = status_of(error.value)
        request = details_pb.BadRequest()
        assert any(packed.Unpack(request) for packed in status.details)
        assert [violation.field for violation in request.field_violations] == ["execution_id", "name"]


async def test_a_field_is_named_by_its_path_with_index_and_key() -> None:
    bad = pb.ExecuteRequest()
    bad.spec.args.extend(["fine", "x\0y"])
    bad.spec.env["1bad"] = "x"
    bad.spec.env["GOOD"] = "s3cret\0"
    bad.spec.priority = 1000
    with pytest.raises(Fault) as fault:
        validate(bad)
    assert {"spec.args[1]", "spec.env[1bad]"} <= {violation.field for violation in fault.value.violations}
    assert fault.value.kind is FaultKind.INVALID_ARGUMENT
    told = {violation.field: violation.description for violation in fault.value.violations}
    assert told["spec.priority"].endswith("less than or equal to 100; it is 1000")
    assert "s3cret" not in fault.value.message + "".join(told.values())


def test_a_rule_about_a_message_as_a_whole_is_told_too() -> None:
    bad = usage_pb2.VerifyLedgerRequest(from_sequence=5, to_sequence=4)
    with pytest.raises(Fault, match=r"^to_sequence must not be before from_sequence$"):
        validate(bad)


@pytest.mark.parametrize("kind", ["stream_unary", "stream_stream"])
async def test_every_message_of_a_stream_is_checked(kind: str) -> None:
    seen = []

    async def unary(requests: Any, _context: Any) -> Any:
        async for request in requests:
            seen.append(request)
        return pb.UploadInputResponse()

    async def stream(requests: Any, _context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            seen.append(request)
            yield pb.ExecuteInteractiveResponse()

    async with serving(unary if kind == "stream_unary" else stream) as stub:
        if kind == "stream_unary":
            call = stub.UploadInput(iter([CHUNK, CHUNK, pb.UploadInputRequest()]), metadata=AS_ALICE)
        else:
            good = pb.ExecuteInteractiveRequest(stdin=pb.StdinChunk(data=b"x"))
            call = drained(
                stub.ExecuteInteractive(iter([good, good, pb.ExecuteInteractiveRequest()]), metadata=AS_ALICE)
            )
        code, _, info = await told(call)
        assert (code, info.reason, len(seen)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", 2)


async def test_a_fault_becomes_its_status_whichever_the_kind_of_call() -> None:
    async def unary(_request: Any, _context: Any) -> Any:
        raise not_found("execution", "exe_1")

    async def stream(_request: Any, _context: Any) -> AsyncIterator[Any]:
        yield pb.WatchExecutionResponse()
        raise not_found("execution", "exe_1")

    async with serving(unary) as stub:
        code, message, info = await told(stub.GetExecution(GET, metadata=AS_ALICE))
        assert (code, info.reason) == (grpc.StatusCode.NOT_FOUND, "EXECUTION_NOT_FOUND")
        assert message == "execution 'exe_1' was not found"
    async with serving(stream) as stub:
        got = []

        async def watch() -> None:
            async for response in stub.WatchExecution(WATCH, metadata=AS_ALICE):
                got.append(response)

        code, _, info = await told(watch())
        assert (code, info.reason, len(got)) == (grpc.StatusCode.NOT_FOUND, "EXECUTION_NOT_FOUND", 1)


async def test_what_is_no_fault_is_told_as_internal_without_its_words() -> None:
    async def unary(_request: Any, _context: Any) -> Any:
        raise ValueError("the secret is s3cret at /srv/data")

    async def stream(_request: Any, _context: Any) -> AsyncIterator[Any]:
        yield pb.WatchExecutionResponse()
        raise KeyError("s3cret")

    async with serving(unary) as stub:
        code, message, info = await told(stub.GetExecution(GET, metadata=AS_ALICE))
        assert (code, info.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
        assert "s3cret" not in message
    async with serving(stream) as stub:
        code, message, _ = await told(drained(stub.WatchExecution(WATCH, metadata=AS_ALICE)))
        assert code is grpc.StatusCode.INTERNAL
        assert "s3cret" not in message


async def test_a_method_that_is_not_served_says_so() -> None:
    async with serving(empty) as stub:
        spec = pb.EstimateExecutionRequest()
        spec.spec.skill = "acme/tool"
        start = pb.ExecuteRequest()
        start.spec.skill = "acme/tool"
        for call in (
            stub.EstimateExecution(spec, metadata=AS_ALICE),
            drained(stub.Execute(start, metadata=AS_ALICE)),
        ):
            code, message, info = await told(call)
            assert (code, info.reason) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_SERVED")
            assert "ExecutionService" in message


async def test_a_service_may_end_its_call_itself() -> None:
    async def own(_request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.DATA_LOSS, "mine")

    async with serving(own) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.GetExecution(GET, metadata=AS_ALICE)
        assert (error.value.code(), error.value.details()) == (grpc.StatusCode.DATA_LOSS, "mine")


async def test_responses_that_are_bytes_already_go_out_as_they_are() -> None:
    ready = pb.WatchExecutionResponse()
    ready.event.sequence = 7

    async def stream(_request: Any, _context: Any) -> AsyncIterator[Any]:
        yield ready.SerializeToString()
        yield ready

    async with serving(stream) as stub:
        assert await drained(stub.WatchExecution(WATCH, metadata=AS_ALICE)) == [ready, ready]


@pytest.mark.parametrize("how", ["cancel", "deadline", "cancel before the first response"])
async def test_a_client_that_goes_ends_a_streaming_handler_at_once(how: str) -> None:
    ended, running = asyncio.Event(), asyncio.Event()

    async def stream(_request: Any, _context: Any) -> AsyncIterator[Any]:
        try:
            if "first" not in how:
                yield pb.WatchExecutionResponse()
            running.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with serving(stream) as stub:
        call = stub.WatchExecution(WATCH, metadata=AS_ALICE, timeout=0.2 if how == "deadline" else None)
        if "first" not in how:
            await call.read()
        await running.wait()
        if how != "deadline":
            call.cancel()
        await asyncio.wait_for(ended.wait(), 5)


async def test_a_client_that_goes_while_a_response_waits_to_be_taken_ends_the_handler() -> None:
    ended = asyncio.Event()
    large = pb.WatchExecutionResponse()
    large.event.stdout.data = bytes(1 << 20)
    sent = 0

    async def stream(_request: Any, _context: Any) -> AsyncIterator[Any]:
        nonlocal sent
        try:
            while True:
                yield large
                sent += 1
        finally:
            ended.set()

    async with serving(stream) as stub:
        call = stub.WatchExecution(WATCH, metadata=AS_ALICE)
        await call.read()
        call.cancel()
        await asyncio.wait_for(ended.wait(), 5)
        assert sent < 100


async def test_a_client_that_goes_ends_a_unary_handler_and_its_request_stream() -> None:
    ended, running = asyncio.Event(), asyncio.Event()

    async def unary(_request: Any, _context: Any) -> Any:
        try:
            running.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with serving(unary) as stub:
        call = stub.GetExecution(GET, metadata=AS_ALICE)
        await running.wait()
        call.cancel()
        await asyncio.wait_for(ended.wait(), 5)

    ended.clear()
    running.clear()

    async def upload(requests: Any, _context: Any) -> Any:
        try:
            async for _ in requests:
                running.set()
        finally:
            ended.set()

    async with serving(upload) as stub:
        call = stub.UploadInput(metadata=AS_ALICE)
        await call.write(CHUNK)
        await running.wait()
        call.cancel()
        await asyncio.wait_for(ended.wait(), 5)


async def test_the_longest_fault_arrives_as_what_it_is() -> None:
    worst = Fault(
        FaultKind.INVALID_ARGUMENT,
        "INPUT_INVALID",
        "щ" * 5000,
        violations=tuple(FieldViolation("щ" * 500, "щ" * 1000) for _ in range(500)),
        resource=("skill", "щ" * 500),
        metadata={"value": "щ" * 500},
    )

    async def unary(_request: Any, _context: Any) -> Any:
        raise worst

    async with serving(unary) as stub:
        code, message, info = await told(stub.GetExecution(GET, metadata=AS_ALICE))
        assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INPUT_INVALID")
        assert message
        assert set(message) == {"щ"}
