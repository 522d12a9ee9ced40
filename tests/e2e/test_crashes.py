"""A gateway that dies in mid-call, one that is told to stop under load, and an engine that goes and comes back."""

from __future__ import annotations

import asyncio
import signal
import uuid
from collections.abc import Iterator
from contextlib import aclosing

import pytest

import invariants as inv
from docker_daemon import Daemon, own_daemon
from e2e.conftest import Fresh
from e2e.lab import gone, run, spec, until
from e2e.test_request_ids import settled
from skillcell.client import RetryPolicy, SkillcellError, Unavailable
from skillcell.core import events
from skillcell.core.events import Started, Stdout
from skillcell.core.types import CancelReason, ExecutionState, FaultParty, Outcome

SLEEPER = "import time; print('up', flush=True); time.sleep(60)"
SPINNER = "print('up', flush=True)\nwhile True: pass"


async def test_a_killed_gateway_leaves_one_unbilled_record_and_no_sandbox(
    driver: str, docker_host: str, fresh: Fresh
) -> None:
    gateway = fresh(driver, docker_host)
    name = str(uuid.uuid4())
    async with gateway.client() as client:
        before = await run(client, "print(1)")
        stream = client.execute("dev/lab", request_id=name, **spec(SPINNER))
        seen = await until(stream, Stdout)
        sandbox = next(event.kind.sandbox_id for event in seen if isinstance(event.kind, Started))
        running = [pid for pid in gateway.processes() if pid != gateway.pid]
        assert running
        gateway.kill()
        with pytest.raises(SkillcellError):
            await anext(stream)
    async with asyncio.timeout(5):  # no gateway is there to end it: it ends with its channel
        while gateway.processes():
            await asyncio.sleep(0.02)
    gateway.start()
    async with gateway.client() as client:
        execution = await settled(client, seen[0].execution_id)
        assert execution.completed is not None
        completed = execution.completed
        assert (completed.outcome, completed.fault) == (Outcome.PLATFORM_ERROR, FaultParty.PLATFORM)
        assert (completed.billable, completed.usage.billed_ms, completed.retryable) == (False, 0, True)
        records = [record async for record in client.usage.stream()]
        assert [record.execution_id for record in records] == [before.execution_id, execution.id]
        replayed = [event async for event in client.execute("dev/lab", request_id=name, **spec(SPINNER))]
        assert replayed[: len(seen)] == seen
        assert [event.sequence for event in replayed] == list(range(1, len(replayed) + 1))
        assert replayed[-1].kind == completed
        assert (await client.usage.verify()).intact
        assert (await run(client, "print(2)")).ok
    assert not [line for line in gateway.leftovers() if sandbox in line]
    assert all(gone(pid) for pid in running)


async def test_a_stop_under_load_settles_every_call(fresh: Fresh) -> None:
    gateway = fresh(drain_seconds="2")
    async with gateway.client(retry=RetryPolicy(before_admission=0, reattach_seconds=0)) as client:
        quick = "import time; print('up', flush=True); time.sleep(1.5)"
        short = [client.execute("dev/lab", **spec(quick)) for _ in range(3)]
        long = [client.execute("dev/lab", **spec(SLEEPER)) for _ in range(3)]
        begun = await asyncio.gather(*(until(stream, Stdout) for stream in (*short, *long)))
        gateway.signal(signal.SIGTERM)
        rests = await asyncio.gather(*(_rest(stream) for stream in (*short, *long)))
        with pytest.raises(Unavailable):
            await run(client, "print(1)")
    assert await asyncio.to_thread(gateway.wait, 60) == 0
    assert gateway.leftovers() == []
    ends = [rest[-1].kind for rest in rests]
    assert all(isinstance(end, events.Completed) for end in ends)
    assert [end.outcome for end in ends] == [Outcome.SUCCEEDED] * 3 + [Outcome.CANCELED] * 3
    assert {end.canceled_by for end in ends[3:]} == {CancelReason.DRAIN}
    assert not any(end.billable for end in ends[3:])
    gateway.start()
    async with gateway.client() as client:
        records = [record async for record in client.usage.stream()]
        assert {record.execution_id for record in records} == {seen[0].execution_id for seen in begun}
        assert len(records) == 6
        assert (await client.usage.verify()).intact


async def _rest(stream: object) -> list[object]:
    return [event async for event in stream]  # type: ignore[attr-defined]


async def test_the_start_after_a_crash_recovers_many_calls_at_once(fresh: Fresh) -> None:
    gateway = fresh()
    async with gateway.client() as client:
        streams = [client.execute("dev/lab", **spec(SLEEPER)) for _ in range(8)]
        begun = await asyncio.gather(*(until(stream, Stdout) for stream in streams))
        gateway.kill()
        await asyncio.gather(*(stream.aclose() for stream in streams))
    gateway.start()
    async with gateway.client() as client:
        records = [record async for record in client.usage.stream()]
        assert sorted(record.execution_id for record in records) == sorted(seen[0].execution_id for seen in begun)
        assert {record.outcome for record in records} == {Outcome.PLATFORM_ERROR}
        assert (await client.usage.verify()).intact
        page = await client.list(states=[ExecutionState.QUEUED, ExecutionState.RUNNING])
        assert page.items == ()


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with own_daemon() as daemon:
        yield daemon


@pytest.mark.timeout(240)
async def test_a_gone_engine_is_unavailable_and_calls_work_again_when_it_is_back(daemon: Daemon, fresh: Fresh) -> None:
    gateway = fresh("docker", daemon.host)
    async with gateway.client() as client:
        assert (await run(client, "print(1)")).ok
        async with aclosing(client.execute("dev/lab", **spec(SLEEPER))) as stream:
            await until(stream, Stdout)
            daemon.crash()
            ended = [event async for event in stream][-1].kind
        assert isinstance(ended, events.Completed)
        assert (ended.outcome, ended.fault) == (Outcome.PLATFORM_ERROR, FaultParty.PLATFORM)
        assert (ended.billable, ended.retryable) == (False, True)
        count = len((await client.list()).items)
        with pytest.raises(Unavailable) as raised:
            await run(client, "print(2)")
        assert raised.value.reason == "DRIVER_UNAVAILABLE"
        assert len((await client.list()).items) == count
        await daemon.start()
        async with asyncio.timeout(60):
            while True:
                try:
                    result = await run(client, "print(3)")
                    break
                except Unavailable:
                    await asyncio.sleep(0.2)
        assert (result.ok, result.stdout) == (True, b"3\n")
        async with asyncio.timeout(60):  # the reaper takes what the engine's death left
            while gateway.containers():
                await asyncio.sleep(0.2)
        stream = client.execute("dev/lab", **spec(SPINNER))
        seen = await until(stream, Stdout)
        daemon.crash()
        gateway.kill()
        await stream.aclose()
    await asyncio.to_thread(gateway.start, ready=False)
    async with gateway.client() as client:  # it serves what needs no engine, and settles nothing that may still run
        assert "Docker Engine does not answer" in (await asyncio.to_thread(gateway.not_ready))[0]
        with pytest.raises(Unavailable) as raised:
            await run(client, "print(4)")
        assert raised.value.reason == "DRIVER_UNAVAILABLE"
        assert (await client.get(seen[0].execution_id)).completed is None
        await daemon.start()
        await gateway.until_ready()
        completed = (await client.get(seen[0].execution_id)).completed
        assert completed is not None
        assert (completed.outcome, completed.billable) == (Outcome.PLATFORM_ERROR, False)
        assert completed.usage.cpu_total_ns > 0
        assert (await run(client, "print(4)")).stdout == b"4\n"
        assert (await client.usage.verify()).intact
        records = [record async for record in client.usage.stream()]
        assert inv.one_record_each({item.id for item in (await client.list()).items}, records) == []
