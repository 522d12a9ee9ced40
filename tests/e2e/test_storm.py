"""The gateway dies at every labelled step of a call's path and at random times; nobody's call is lost or doubled."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import grpc
import grpc.aio
import pytest

import invariants
from e2e.gateway import Gateway
from skillcell.core.steps import Step
from skillcell.v1 import event_pb2, execution_pb2, execution_pb2_grpc
from storm import NONCE, STEPS, Storm, storm_gateway


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("store", "randoms"), [("sqlite", 8), ("postgresql", 2)])
async def test_whatever_step_the_gateway_dies_at_every_call_has_one_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], store: str, randoms: int
) -> None:
    places = [*STEPS, *["random"] * randoms]
    with storm_gateway(tmp_path, store) as (gateway, meter):
        account = await Storm(gateway, meter).run(places)
    with capsys.disabled():
        print("", store, *account.lines(), sep="\n  ")
    assert account.violations == []
    assert (account.lost, account.doubled) == (0, 0)
    assert account.kills.total() >= len(places)
    assert account.recovered > 0
    assert account.delivered >= account.records


async def events_of(gateway: Gateway, message: execution_pb2.ExecuteRequest) -> list[event_pb2.ExecutionEvent]:
    """All that a client without any memory gets, until the stream ends in whatever way."""
    seen = []
    try:
        async with gateway.channel() as channel:
            stub = execution_pb2_grpc.ExecutionServiceStub(channel)
            async for answer in stub.Execute(message, metadata=gateway.credentials):
                seen.append(answer.event)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
    return seen


@pytest.mark.parametrize("step", [Step.SETTLE_COMMITTED, Step.SETTLED, Step.TOLD], ids=lambda step: step.value)
async def test_a_death_behind_the_commit_loses_neither_the_last_event_nor_its_bytes(tmp_path: Path, step: Step) -> None:
    message = execution_pb2.ExecuteRequest(request_id=str(uuid.uuid4()))
    message.spec.skill, message.spec.entrypoint = "dev/lab", "run"
    message.spec.args.append(NONCE + "print(nonce)")
    with storm_gateway(tmp_path, "sqlite") as (gateway, meter):
        gateway.stop()
        plain = dict(gateway.settings)
        gateway.settings = {**plain, "SKILLCELL_UNSAFE_CRASH_AT": step.value}
        gateway.start()
        seen = await events_of(gateway, message)
        assert gateway.wait(30) == -9
        before = meter.bodies
        gateway.settings = plain
        gateway.start()
        again, once_more = await asyncio.gather(events_of(gateway, message), events_of(gateway, message))
        async with gateway.client() as client:
            records = [record async for record in client.usage.stream()]
            assert (await client.usage.verify()).intact
        async with asyncio.timeout(30):
            while len(set(meter.bodies)) < len(records):
                await asyncio.sleep(0.05)
        assert invariants.sink_agrees(records, meter.bodies) == []
        assert meter.bodies[: len(before)] == before
    assert again[: len(seen)] == seen
    assert again == once_more
    assert [event.sequence for event in again] == list(range(1, len(again) + 1))
    assert again[-1].completed.usage.sequence == records[0].sequence
    assert [record.execution_id for record in records] == [again[0].execution_id]
    assert b"".join(event.stdout.data for event in again).count(b"\n") == 1
