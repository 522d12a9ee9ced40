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
from pg_proxy import proxy
from skillcell.client import AlreadyExists, SkillcellError, Unavailable
from skillcell.core.events import Completed, Started, Stdout
from skillcell.core.types import ExecutionState, FaultParty, Outcome

SPINNER = "print('up', flush=True)\nwhile True: pass"
ADMIT, WITHDRAW, SETTLE = b"INSERT INTO executions", b"DELETE FROM executions", b"INSERT INTO usage_records"
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


async def test_a_commit_whose_answer_is_lost_bills_nothing_twice(cluster: PostgreSQL, fresh: Fresh) -> None:
    async with proxy(cluster.new_url()) as between:
        gateway = await asyncio.to_thread(fresh, database=between.url)
        async with gateway.client() as client:
            results = []
            for cuts in ([ADMIT], [ADMIT, WITHDRAW]):
                name, between.cuts = str(uuid.uuid4()), list(cuts)
                with pytest.raises(Unavailable) as raised:
                    await run(client, "print(1)", request_id=name)
                assert raised.value.reason == "STORE_UNAVAILABLE"
                results.append(await run(client, "print(1)", request_id=name))
            for _ in range(2):
                stream = client.execute("dev/lab", **spec("print(1)"))
                await until(stream, Started)
                between.cuts = [SETTLE]
                results.append([event async for event in stream][-1].kind.usage)
            assert (between.cuts, between.cut) == ([], 5)
            assert len(gateway.logged("settle_waits")) == 2
            assert {result.outcome for result in results} == {Outcome.SUCCEEDED}
            records = [record async for record in client.usage.stream()]
            assert [record.execution_id for record in records] == [result.execution_id for result in results]
            assert [item.id for item in (await client.list()).items] == [r.execution_id for r in reversed(records)]
            assert (await client.usage.verify()).intact
            assert await asyncio.to_thread(calls, gateway) == 4
        await asyncio.to_thread(gateway.stop)


async def test_a_server_that_goes_is_waited_for(cluster: PostgreSQL, fresh: Fresh) -> None:
    gateway = await asyncio.to_thread(fresh, database=cluster.new_url())
    async with gateway.client() as client:
        stream = client.execute("dev/lab", **spec("print('up', flush=True); sys.stdin.read(); print('down')"))
        seen = await until(stream, Stdout)
        await asyncio.to_thread(cluster.stop)
        try:
            assert "the ledger can't be written" in await asyncio.to_thread(gateway.not_ready)
            with pytest.raises(Unavailable) as raised:
                await run(client, "print(1)")
            assert raised.value.reason == "STORE_UNAVAILABLE"
            async with asyncio.timeout(30):
                while not gateway.logged("settle_waits"):
                    await asyncio.sleep(0.05)
        finally:
            await asyncio.to_thread(cluster.start)
        rest = [event async for event in stream]
        assert isinstance(rest[-1].kind, Completed)
        assert rest[-1].kind.outcome is Outcome.SUCCEEDED
        await gateway.until_ready()
        assert (await run(client, "print(2)")).ok
        assert len([record async for record in client.usage.stream()]) == 2
    await asyncio.to_thread(gateway.stop)
    await asyncio.to_thread(cluster.stop)
    try:
        await asyncio.to_thread(gateway.start, ready=False)
        async with gateway.client() as client:
            with pytest.raises(Unavailable) as raised:
                await run(client, "print(3)")
            assert raised.value.reason == "STORE_UNAVAILABLE"
            assert await asyncio.to_thread(gateway.not_ready)
    finally:
        await asyncio.to_thread(cluster.start)
    await gateway.until_ready()
    async with gateway.client() as client:
        assert (await run(client, "print(3)")).ok
        records = [record async for record in client.usage.stream()]
        assert [record.sequence for record in records] == [1, 2, 3]
        assert records[0].execution_id == seen[0].execution_id
        assert (await client.usage.verify()).intact
