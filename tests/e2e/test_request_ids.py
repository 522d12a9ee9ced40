"""A request id makes a call happen once, whoever asks how often; a lost client can come back for all of it."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import aclosing
from dataclasses import replace

import grpc
import pytest

from e2e.conftest import Fresh
from e2e.gateway import Gateway
from e2e.lab import SMALL, run, spec, until
from skillcell.client import AlreadyExists, CallResult, Execution, OutOfRange, SkillcellClient
from skillcell.core import events
from skillcell.core.events import Stdout
from skillcell.core.types import CancelReason, ExecutionState, OnDisconnect, Outcome
from skillcell.v1 import execution_pb2, execution_pb2_grpc

TALKER = "import time\nfor n in range(5):\n  print(n, flush=True)\n  time.sleep(0.1)"


async def test_the_same_request_twice_at_once_is_one_execution_and_one_record(oci_client: SkillcellClient) -> None:
    request = str(uuid.uuid4())
    results: list[CallResult] = await asyncio.gather(
        *(run(oci_client, TALKER, request_id=request, labels={"a": "1", "b": "2"}) for _ in range(4))
    )
    assert len({result.execution_id for result in results}) == 1
    assert {result.stdout for result in results} == {b"0\n1\n2\n3\n4\n"}
    assert len((await oci_client.usage.records(execution_id=results[0].execution_id)).items) == 1


async def test_another_request_under_the_same_id_is_refused(oci_client: SkillcellClient) -> None:
    request = str(uuid.uuid4())
    await run(oci_client, "print(1)", request_id=request)
    with pytest.raises(AlreadyExists) as raised:
        await run(oci_client, "print(2)", request_id=request)
    assert raised.value.reason == "REQUEST_ID_REUSED"


async def test_a_request_id_is_the_same_in_capital_letters(oci_client: SkillcellClient) -> None:
    request = str(uuid.uuid4())
    once = await run(oci_client, "print(1)", request_id=request)
    again = await run(oci_client, "print(1)", request_id=request.upper())
    assert again.execution_id == once.execution_id
    assert (await oci_client.get(request_id=request.upper())).id == once.execution_id


async def test_what_is_typed_after_a_broken_stream_is_read_once(oci: Gateway) -> None:
    def start() -> execution_pb2.ExecuteInteractiveRequest:
        message = execution_pb2.ExecuteInteractiveRequest()
        message.start.request_id, message.start.spec.skill, message.start.spec.entrypoint = request, "dev/lab", "run"
        message.start.spec.args.append("import os\nwhile d := os.read(0, 99): os.write(1, d)\nprint('|')")
        return message

    def typed(offset: int, data: bytes, *, end: bool = False) -> execution_pb2.ExecuteInteractiveRequest:
        return execution_pb2.ExecuteInteractiveRequest(
            stdin=execution_pb2.StdinChunk(offset=offset, data=data, end=end)
        )

    request, said = str(uuid.uuid4()), b""
    async with oci.channel() as breaking:
        call = execution_pb2_grpc.ExecutionServiceStub(breaking).ExecuteInteractive(metadata=oci.credentials)
        await call.write(start())
        await call.write(typed(0, b"0123456789"))
        while said != b"0123456789":
            answer = await call.read()
            said, execution_id = said + answer.event.stdout.data, answer.event.execution_id
    async with oci.client() as client:
        await asyncio.sleep(0.5)  # longer than it takes until closed requests end standard input
        assert (await client.get(execution_id)).state is ExecutionState.RUNNING
    async with oci.channel() as channel:
        call = execution_pb2_grpc.ExecutionServiceStub(channel).ExecuteInteractive(metadata=oci.credentials)
        await call.write(start())
        for message in (typed(5, b"56789abc"), typed(10, b"abcd"), typed(14, b"", end=True)):
            await call.write(message)
        await call.done_writing()
        said = b""
        while (answer := await call.read()) is not grpc.aio.EOF:
            said += answer.event.stdout.data
    assert said == b"0123456789abcd|\n"


async def test_executions_of_one_version_are_listed_alone(oci: Gateway, oci_client: SkillcellClient) -> None:
    ran = (await run(oci_client, "print(1)")).execution_id
    digest = (await oci_client.get(ran)).digest
    async with oci.channel() as channel:
        stub = execution_pb2_grpc.ExecutionServiceStub(channel)
        found = {}
        for chosen in ("1.0.0", "9.9.9", digest, "sha256:" + "0" * 64):
            message = execution_pb2.ListExecutionsRequest()
            message.filter.skill = f"dev/lab@{chosen}"
            answer = await stub.ListExecutions(message, metadata=oci.credentials)
            found[chosen] = {execution.id for execution in answer.executions}
    assert ran in found["1.0.0"] & found[digest]
    assert not found["9.9.9"] | found["sha256:" + "0" * 64]


async def test_a_retry_after_the_end_gets_the_same_bytes(oci: Gateway, oci_client: SkillcellClient) -> None:
    request = str(uuid.uuid4())
    message = execution_pb2.ExecuteRequest(request_id=request)
    message.spec.skill = "dev/lab"
    message.spec.entrypoint = "run"
    message.spec.args.append(TALKER)
    async with oci.channel() as channel:
        stub = execution_pb2_grpc.ExecutionServiceStub(channel)
        first = [answer.event async for answer in stub.Execute(message, metadata=oci.credentials)]
        again = [answer.event async for answer in stub.Execute(message, metadata=oci.credentials)]
        watch = execution_pb2.WatchExecutionRequest(execution_id=first[0].execution_id, after_sequence=3)
        rest = [answer.event async for answer in stub.WatchExecution(watch, metadata=oci.credentials)]
    assert [event.SerializeToString() for event in again] == [event.SerializeToString() for event in first]
    assert rest == first[3:]
    assert len((await oci_client.usage.records(execution_id=first[0].execution_id)).items) == 1


async def test_a_watcher_gets_the_rest_of_a_running_call_without_a_gap(oci_client: SkillcellClient) -> None:
    async with aclosing(oci_client.execute("dev/lab", **spec(TALKER))) as stream:
        seen = await until(stream, Stdout)
        rest = [event async for event in oci_client.watch(seen[0].execution_id, after_sequence=seen[-1].sequence)]
        own = seen + [event async for event in stream]
    assert seen + rest == own
    assert [event.sequence for event in own] == list(range(1, len(own) + 1))


SLEEPER = "import time; print('up', flush=True); time.sleep(60)"


async def test_a_detached_call_outlives_its_client(oci: Gateway, oci_client: SkillcellClient) -> None:
    code = "import time; print('up', flush=True); time.sleep(0.5); print('done')"
    async with oci.client() as leaving:
        stream = leaving.execute("dev/lab", on_disconnect=OnDisconnect.DETACH, **spec(code))
        seen = await until(stream, Stdout)
    execution = await settled(oci_client, seen[0].execution_id)
    assert execution.completed is not None
    assert execution.completed.outcome is Outcome.SUCCEEDED


async def test_a_call_with_a_request_id_waits_for_its_client(fresh: Fresh) -> None:
    gateway = fresh(reconnect_seconds="1.5")
    async with gateway.client() as client:
        back = await _lose(gateway, SLEEPER)
        assert (await client.get(back)).state is ExecutionState.RUNNING
        async with aclosing(client.watch(back)) as stream:  # in time: the wait is over, the call goes on
            await until(stream, Stdout)
            await asyncio.sleep(2)
            assert (await client.get(back)).state is ExecutionState.RUNNING
            await client.cancel(back)
        lost = await _lose(gateway, SLEEPER)
        execution = await settled(client, lost)
    assert execution.completed is not None
    completed = execution.completed
    assert (completed.outcome, completed.canceled_by) == (Outcome.CANCELED, CancelReason.DISCONNECT)
    assert completed.usage.billed_ms >= 1000


async def test_a_call_without_a_request_id_ends_with_its_client(oci: Gateway, oci_client: SkillcellClient) -> None:
    lost = await _lose(oci, SLEEPER, request_id="")
    execution = await settled(oci_client, lost)
    assert execution.completed is not None
    assert execution.completed.outcome is Outcome.CANCELED


async def test_a_deadline_is_told_from_a_client_that_goes_away(oci: Gateway, oci_client: SkillcellClient) -> None:
    async def times_out() -> str:
        message = execution_pb2.ExecuteRequest(request_id=str(uuid.uuid4()))
        message.spec.skill, message.spec.entrypoint = "dev/lab", "run"
        message.spec.args.append(SLEEPER)
        call = execution_pb2_grpc.ExecutionServiceStub(channel).Execute(
            message,
            metadata=oci.credentials,
            timeout=2.001,  # 2.01 on the wire
        )
        found = dict(await call.initial_metadata())["skillcell-execution-id"]
        with pytest.raises(grpc.aio.AioRpcError):
            [answer async for answer in call]
        return str(found)

    async with oci.channel() as channel:
        found = await asyncio.gather(*(times_out() for _ in range(4)))
    ended = [(await settled(oci_client, execution_id)).completed for execution_id in found]
    assert {completed.canceled_by for completed in ended if completed} == {CancelReason.DEADLINE}


@pytest.mark.parametrize("round_", range(3))
async def test_a_client_that_leaves_while_it_is_written_to_has_left(
    oci: Gateway, oci_client: SkillcellClient, round_: int
) -> None:
    lost = await _lose(oci, "while True: print('x' * 4000)", request_id="")
    execution = await settled(oci_client, lost)
    assert execution.completed is not None
    assert (execution.completed.outcome, execution.completed.canceled_by) == (Outcome.CANCELED, CancelReason.CLIENT)


async def test_a_client_that_leaves_while_it_is_admitted_has_left(oci: Gateway, oci_client: SkillcellClient) -> None:
    message = execution_pb2.ExecuteRequest()
    message.spec.skill, message.spec.entrypoint = "dev/lab", "run"
    message.spec.args.append(SLEEPER)
    async with oci.channel() as channel:
        stub = execution_pb2_grpc.ExecutionServiceStub(channel)
        for number in range(40):  # from before the request is read to after the call was admitted
            call = stub.Execute(message, metadata=oci.credentials)
            await asyncio.sleep(number / 2000)
            call.cancel()
    async with asyncio.timeout(30):
        while (await oci_client.list(states=[ExecutionState.QUEUED, ExecutionState.RUNNING])).items:
            await asyncio.sleep(0.05)


async def _lose(gateway: Gateway, code: str, request_id: str | None = None) -> str:
    """A call whose connection is gone after its first output. Over the stub: the client would cancel explicitly."""
    message = execution_pb2.ExecuteRequest(request_id=str(uuid.uuid4()) if request_id is None else request_id)
    message.spec.skill = "dev/lab"
    message.spec.entrypoint = "run"
    message.spec.args.append(code)
    async with gateway.channel() as channel:
        call = execution_pb2_grpc.ExecutionServiceStub(channel).Execute(message, metadata=gateway.credentials)
        async for answer in call:
            if answer.event.HasField("stdout"):
                call.cancel()
                return str(answer.event.execution_id)
    raise AssertionError("the call ended before it said anything")


async def settled(client: SkillcellClient, execution_id: str) -> Execution:
    """As it stands once it has ended. Asks: to watch would count as its client's return."""
    async with asyncio.timeout(30):
        while (execution := await client.get(execution_id)).state is not ExecutionState.COMPLETED:
            await asyncio.sleep(0.05)
    return execution


async def test_events_that_are_no_longer_kept_are_said_to_have_expired(fresh: Fresh) -> None:
    gateway, request = fresh(events_kept_seconds="1"), str(uuid.uuid4())
    async with gateway.client() as client:
        result = await run(client, "print(1)", request_id=request)
        last = (await client.get(result.execution_id)).last_sequence
        async with asyncio.timeout(30):
            while list((gateway.data / "events").iterdir()):
                await asyncio.sleep(0.1)
        with pytest.raises(OutOfRange) as raised:
            [event async for event in client.watch(result.execution_id)]
        assert raised.value.reason == "EXPIRED"
        assert raised.value.metadata["first_sequence"] == str(last)
        kept = [event.kind async for event in client.watch(result.execution_id, after_sequence=last - 1)]
        assert kept == [result.completed]
        with pytest.raises(OutOfRange, match="no longer kept"):
            await run(client, "print(1)", request_id=request)
        assert (await client.get(request_id=request)).completed == result.completed
        assert len((await client.usage.records(execution_id=result.execution_id)).items) == 1


async def test_another_tenants_execution_does_not_exist(oci: Gateway) -> None:
    async with oci.channel() as channel:
        stub = execution_pb2_grpc.ExecutionServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.GetExecution(
                execution_pb2.GetExecutionRequest(execution_id="exe_nobody"), metadata=oci.credentials
            )
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


async def test_limits_are_part_of_the_request(oci_client: SkillcellClient) -> None:
    request = str(uuid.uuid4())
    await run(oci_client, "print(1)", request_id=request)
    with pytest.raises(AlreadyExists):
        await run(oci_client, "print(1)", request_id=request, limits=replace(SMALL, pids=20))


async def test_events_of_a_call_name_its_execution(oci_client: SkillcellClient) -> None:
    stream = oci_client.execute("dev/lab", **spec("print(1)"))
    seen = [event async for event in stream]
    assert {event.execution_id for event in seen} == {seen[0].execution_id}
    assert isinstance(seen[-1].kind, events.Completed)
