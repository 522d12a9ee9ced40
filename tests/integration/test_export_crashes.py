"""Deaths of the gateway's side and of the sink, at every step of a delivery and at random times: the sink, without
its duplicates, is the ledger."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from ledger_stores import BILLER
from received import received
from sink import Sink, sink
from skillcell.core.clock import SystemClock
from skillcell.core.steps import ExportStep
from skillcell.core.types import UsageRecord
from skillcell.exporting import exporting
from skillcell.metering.ledger import Ledger
from skillcell.metering.totals import sums_of
from skillcell.storage.database import Database

CHILD = str(Path(__file__).parents[1] / "export_child.py")
CALLS = 40


@pytest.fixture
def meter(tmp_path: Path) -> Iterator[Sink]:
    (tmp_path / "sink").mkdir()
    with sink(tmp_path / "sink") as made:
        yield made


def setting(meter: Sink, mode: str) -> str:
    return json.dumps([
        {"name": "meter", "url": meter.url, "mode": mode, "batch_events": 7, "poll_seconds": 0.01,
         "back_off_seconds": 0.01, "back_off_max_seconds": 0.05}
    ])  # fmt: skip


def child(url: str, sinks: str, where: str = "", calls: int = CALLS) -> subprocess.Popen[bytes]:
    command = [sys.executable, CHILD, url, sinks, where, str(calls)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL if where else subprocess.PIPE, stderr=subprocess.DEVNULL)


async def reconciled(url: str, sinks: str, meter: Sink, *, duplicates: bool = False) -> None:
    """Delivers what is left; then the sink, without duplicates, must be the ledger, in order and in sums."""
    async with await Database.open(url) as database:
        ledger = Ledger(database)
        head = (await ledger.head()).sequence
        async with exporting(sinks, database, SystemClock(), CollectorRegistry(), owner="one") as made:
            async with asyncio.timeout(30):
                while (await made.statuses())[0].last_sequence < head:
                    await asyncio.sleep(0.01)
        records: list[UsageRecord] = []
        while len(records) < head:
            records += await ledger.list_usage_records(BILLER, len(records), 1000)
    got = received(meter.bodies)
    assert (got.events, got.missing, got.last_sequence) == (len(records), (), head)
    assert got.duplicates or not duplicates
    (sums,) = got.sums.values()
    assert sums.cpu_ns == sum(sums_of(record).cpu_ns for record in records)
    assert sums.calls == len(records)
    first_seen = list(dict.fromkeys(meter.sequences))
    assert first_seen == list(range(1, head + 1))


@pytest.mark.parametrize("mode", ["batch", "structured"])
@pytest.mark.parametrize("step", list(ExportStep))
async def test_a_death_at_each_step_of_a_delivery_loses_nothing_and_doubles_nothing(
    step: ExportStep, mode: str, meter: Sink, tmp_path: Path
) -> None:
    url, sinks = f"sqlite:///{tmp_path}/ledger.db", setting(meter, mode)
    dying = child(url, sinks, f"{step.value}:2")
    assert dying.wait(30) == -9
    await reconciled(url, sinks, meter, duplicates=step is ExportStep.ACCEPTED)


async def test_deaths_at_random_times_on_both_sides_lose_nothing_and_double_nothing(
    meter: Sink, tmp_path: Path
) -> None:
    url, sinks = f"sqlite:///{tmp_path}/ledger.db", setting(meter, "batch")
    chance = random.Random(7)
    for turn in range(6):
        with child(url, sinks, calls=100_000) as dying:
            assert dying.stdout is not None
            assert await asyncio.to_thread(dying.stdout.readline) == b"begun\n"
            await asyncio.sleep(chance.random() * 0.5)
            if turn % 2:
                meter.kill()
                await asyncio.sleep(chance.random() * 0.1)
            dying.kill()
        if turn % 2:
            meter.start()
    await reconciled(url, sinks, meter)
