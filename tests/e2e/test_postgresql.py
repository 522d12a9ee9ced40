"""A gateway whose store is PostgreSQL keeps what one on SQLite does."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from e2e.conftest import Fresh
from e2e.gateway import Gateway
from e2e.lab import run, spec, until
from e2e.test_request_ids import settled
from ledger_stores import PostgreSQL
from skillcell.client import AlreadyExists, SkillcellError
from skillcell.core.events import Stdout
from skillcell.core.types import ExecutionState, FaultParty, Outcome

SPINNER = "print('up', flush=True)\nwhile True: pass"
PASSWORD = "s3cret-of-the-store"


def calls(gateway: Gateway) -> float:
    """What Prometheus is shown."""
    return sum(value for (name, _), value in gateway.samples().items() if name == "skillcell_calls_total")


async def test_calls_survive_restarts_and_a_crash_and_are_billed_once(cluster: PostgreSQL, fresh: Fresh) -> None:
    url = cluster.new_url().replace("postgres@", f"postgres:{PASSWORD}@")
    gateway = fresh(database=url)
    assert not (gateway.data / "skillcell.db").exists()
    name, lost = str(uuid.uuid4()), str(uuid.uuid4())
    async with gateway.client() as client:
        first = await run(client, "print('once')", request_id=name, labels={"team": "a"})
        assert (first.ok, first.stdout) == (True, b"once\n")
    await asyncio.to_thread(gateway.stop)
    await asyncio.to_thread(gateway.start)
    async with gateway.client() as client:
        again = await run(client, "print('once')", request_id=name, labels={"team": "a"})
        assert (again.execution_id, again.stdout, again.usage) == (first.execution_id, first.stdout, first.usage)
        with pytest.raises(AlreadyExists):
            await run(client, "print('twice')", request_id=name)
        stream = client.execute("dev/lab", request_id=lost, **spec(SPINNER))
        seen = await until(stream, Stdout)
        gateway.kill()
        with pytest.raises(SkillcellError):
            await anext(stream)
    await asyncio.to_thread(gateway.start)
    async with gateway.client() as client:
        execution = await settled(client, seen[0].execution_id)
        assert execution.completed is not None
        assert (execution.completed.outcome, execution.completed.fault) == (Outcome.PLATFORM_ERROR, FaultParty.PLATFORM)
        assert not execution.completed.billable
        replayed = [event async for event in client.execute("dev/lab", request_id=lost, **spec(SPINNER))]
        assert replayed[: len(seen)] == seen
        assert (await client.list(states=[ExecutionState.QUEUED, ExecutionState.RUNNING])).items == ()
        listed = await client.list(labels={"team": "a"})
        assert [item.id for item in listed.items] == [first.execution_id]
        records = [record async for record in client.usage.stream()]
        assert [record.execution_id for record in records] == [first.execution_id, execution.id]
        verified = await client.usage.verify()
        assert verified.intact, verified
        assert calls(gateway) == len(records)
    assert PASSWORD not in gateway.log
    assert PASSWORD not in " ".join(gateway.processes().values())


async def test_two_gateways_share_one_store_and_keep_one_chain(cluster: PostgreSQL, fresh: Fresh) -> None:
    url = cluster.new_url()
    one, two = fresh(database=url), fresh(database=url)
    async with one.client() as first, two.client() as second:
        results = await asyncio.gather(*(run(client, f"print({n})") for n in range(8) for client in (first, second)))
        assert {result.outcome for result in results} == {Outcome.SUCCEEDED}, results
        records = [record async for record in first.usage.stream()]
        assert [record.sequence for record in records] == list(range(1, 17))
        assert {record.execution_id for record in records} == {result.execution_id for result in results}
        for client in (first, second):
            assert (await client.usage.verify()).intact
    assert calls(one) == calls(two) == 16
