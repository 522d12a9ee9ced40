"""A real gateway and a real sink, and deaths of both: the sink, without its duplicates, is the ledger."""

from __future__ import annotations

import asyncio
import json
import subprocess
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow.parquet
import pytest

from e2e.conftest import Fresh
from e2e.gateway import SKILLCELL, Gateway
from e2e.lab import run
from received import received
from sink import Sink, sink
from skillcell.client import FailedPrecondition, NotFound, SkillcellError
from skillcell.core.sinks import HoldCause, ResumeChoice, SinkState

KEY = "Bearer s3cret-of-the-sink"


@pytest.fixture
def meter(tmp_path: Path) -> Iterator[Sink]:
    (tmp_path / "sink").mkdir()
    with sink(tmp_path / "sink") as made:
        made.tell(key=KEY)
        yield made


def setting(meter: Sink) -> str:
    return json.dumps([
        {"name": "meter", "url": meter.url, "headers": {"Authorization": KEY}, "poll_seconds": 0.05,
         "back_off_seconds": 0.05, "back_off_max_seconds": 0.1}
    ])  # fmt: skip


def metric(gateway: Gateway, name: str) -> float:
    return gateway.samples()[f"skillcell_export_{name}", (("sink", "meter"),)]


async def delivered(gateway: Gateway, count: int) -> None:
    """Waits until the gateway says that the sink has so many records."""
    async with asyncio.timeout(30):
        while await asyncio.to_thread(metric, gateway, "last_sequence") < count:
            await asyncio.sleep(0.05)


async def test_deaths_of_gateway_and_sink_lose_nothing_and_double_nothing(
    fresh: Fresh, meter: Sink, database: str
) -> None:
    settings = {"sinks": setting(meter), "database": database}
    gateway = fresh(**settings)
    async with gateway.client() as client:
        assert (await run(client, "print(1)", labels={"team": "red"})).ok
    await delivered(gateway, 1)
    first = meter.bodies
    # Dies right after the sink's 2xx, before the cursor moved: the same bytes come again.
    gateway.settings = {**gateway.settings, "SKILLCELL_UNSAFE_CRASH_AT": "export-accepted"}
    await asyncio.to_thread(gateway.stop)
    await asyncio.to_thread(gateway.start)
    async with gateway.client() as client:
        try:
            await run(client, "print(2)", labels={"team": "red"})
        except SkillcellError:
            pass  # it may die before the last event is sent
        assert await asyncio.to_thread(gateway.wait, 30) == -9
    assert meter.bodies[:1] == first
    assert len(meter.bodies) == 2
    gateway.settings = {name: value for name, value in gateway.settings.items() if "CRASH" not in name}
    await asyncio.to_thread(gateway.start)
    await delivered(gateway, 2)
    # The sink is down: calls go on, the gateway is ready, and everything arrives when it is back.
    meter.kill()
    async with gateway.client() as client:
        assert (await run(client, "print(3)")).ok
        with urllib.request.urlopen(f"{gateway.metrics}/readyz", timeout=10) as answer:
            assert answer.status == 200
        assert await asyncio.to_thread(metric, gateway, "lag_records") == 1
        meter.start()
        await delivered(gateway, 3)
        records = [record async for record in client.usage.stream()]
    got = received(meter.bodies)
    assert (got.events, got.missing) == (len(records), ())
    assert got.duplicates >= 1
    assert [json.loads(body)["id"] for body in dict.fromkeys(meter.bodies)] == [record.event_id for record in records]
    assert await asyncio.to_thread(metric, gateway, "held") == 0
    assert KEY not in gateway.log
    assert "s3cret" not in gateway.log
    assert b"red" not in b"".join(meter.bodies)


async def test_an_operator_sees_holds_resumes_and_redrives(fresh: Fresh, meter: Sink) -> None:
    gateway = fresh(sinks=setting(meter))
    async with gateway.client() as client:
        meter.tell(refuse=[2])
        for number in range(3):
            assert (await run(client, f"print({number})")).ok
        await delivered(gateway, 3)
        (letter,) = (await client.sinks.dead_letters("meter")).items
        assert (letter.sequence, letter.status, meter.sequences) == (2, 400, [1, 3])
        assert await asyncio.to_thread(metric, gateway, "dead_letters") == 1
        meter.tell(key="another")
        assert await client.sinks.redrive("meter") == 1
        async with asyncio.timeout(20):
            while (held := (await client.sinks.list())[0]).state is not SinkState.HELD:
                await asyncio.sleep(0.05)
        assert held.hold_cause is HoldCause.SINK_REFUSED
        assert await asyncio.to_thread(metric, gateway, "held") == 1
        assert (await run(client, "print('goes on')")).ok
        with pytest.raises(FailedPrecondition) as refused:
            await client.sinks.resume("meter", ResumeChoice.RESEND)
        assert (refused.value.reason, held.hold_reason in refused.value.message) == ("WRONG_STATE", True)
        meter.tell(key=KEY)
        resumed = await client.sinks.resume("meter")
        assert (resumed.sink.state, resumed.from_sequence) == (SinkState.RUNNING, 0)
        await delivered(gateway, 4)
        assert (await client.sinks.dead_letters("meter")).items == ()
        with pytest.raises(NotFound) as missing:
            await client.sinks.resume("nobody")
        assert missing.value.reason == "SINK_NOT_FOUND"
    assert meter.sequences == [1, 3, 2, 4]
    assert letter.body in meter.bodies


def skillcell(gateway: Gateway, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        [SKILLCELL, "--server", gateway.address, "--api-key", gateway.key, *arguments],
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done


async def test_the_command_line_exports_files_and_steers_sinks(fresh: Fresh, meter: Sink, tmp_path: Path) -> None:
    gateway = fresh(sinks=setting(meter))
    async with gateway.client() as client:
        meter.tell(refuse=[2])
        for number in range(3):
            assert (await run(client, f"print({number})", labels={"team": "red"})).ok
        await delivered(gateway, 3)
        records = [record async for record in client.usage.stream()]
    ask = partial(asyncio.to_thread, skillcell, gateway, "billing")
    lines = [json.loads(line) for line in (await ask("export")).stdout.splitlines()]
    assert [line["hash"] for line in lines] == [record.hash.hex() for record in records]
    assert [line["labels"] for line in lines] == [{"team": "red"}] * 3
    rest = await ask("export", "--after-sequence", "1", "--tenant", "dev", "--period", f"{records[0].ended_at:%Y-%m}")
    assert [json.loads(line)["sequence"] for line in rest.stdout.splitlines()] == [2, 3]
    assert rest.stderr == b"2 records; go on with --after-sequence 3\n"
    assert (await ask("export", "--period", "2001-01")).stdout == b""
    file = tmp_path / "usage.parquet"
    await ask("export", "--format", "parquet", "--out", str(file))
    assert pyarrow.parquet.read_table(file).column("event_id").to_pylist() == [record.event_id for record in records]
    events = (await ask("export", "--format", "cloudevents")).stdout.splitlines()
    (letter,) = json.loads((await ask("sink", "dead-letters", "meter", "--json")).stdout)
    assert (letter["sequence"], letter["event"]) == (2, json.loads(events[1]))
    assert meter.bodies == [events[0], events[2]]
    meter.tell()
    assert (await ask("sink", "redrive", "meter", "2")).stdout == b"1 wait to be sent again\n"
    async with asyncio.timeout(20):
        while len(meter.bodies) < 3:
            await asyncio.sleep(0.05)
    assert meter.bodies[2] == events[1]
    assert b"running" in (await ask("sink", "list")).stdout
    assert b"/skillcell/ledgers/" in (await ask("sink", "show", "meter")).stdout
    assert b"was not found" in (await ask("sink", "discard", "meter", "2", code=1)).stderr
    assert b"is not held" in (await ask("sink", "resume", "meter", code=1)).stderr
    assert b"Parquet needs a file" in (await ask("export", "--format", "parquet", code=2)).stderr
