"""What every store must keep of running calls, and when it must keep no more."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import func, select

from ledger_stores import NOON, admission, settlement
from skillcell.core.records import Admission, Checkpoint
from skillcell.core.types import Counters, Limits, Measurement
from skillcell.metering.ledger import Ledger
from skillcell.metering.reservations import Reserved
from skillcell.storage.database import Database
from skillcell.storage.tables_running import running


def checkpoint(of: Admission) -> Checkpoint:
    return Checkpoint(
        execution_id=of.execution_id,
        sandbox_id="sbx_1",
        boot_id=of.boot_id,
        started_at=NOON,
        began_ns=1 << 60,
        seen_ns=(1 << 60) + 1_000_000_007,
        queue_ns=1,
        startup_ns=2,
        deliver_ns=3,
        output_bytes=1 << 40,
        at_lease=Counters(1, 2, 3, 4, 5),
        latest=Counters(10, 20, 30, 40, 50, 6, Measurement.SAMPLED),
    )


async def rows(database: Database) -> int:
    return await database.read(
        lambda connection: connection.execute(select(func.count()).select_from(running)).scalar_one()
    )


async def test_the_last_batch_of_all_running_calls_is_kept(ledger: Ledger, database: Database) -> None:
    ours, others = [admission() for _ in range(3)], admission(instance_id="gateway-2")
    for given in (*ours, others):
        await ledger.admit(given)
    ledger.checkpoint([checkpoint(given) for given in (*ours, others)])
    assert await ledger.probe()
    before = database.commits
    later = [replace(checkpoint(given), seen_ns=(1 << 60) + 2_000_000_007, output_bytes=7) for given in ours[:2]]
    ledger.checkpoint(later)
    assert await ledger.probe()
    assert database.commits - before <= 2
    kept = await ledger.checkpoints("gateway-1")
    assert kept == {one.execution_id: one for one in (*later, checkpoint(ours[2]))}
    assert kept[ours[0].execution_id].run_ns == 2_000_000_007
    assert list(await ledger.checkpoints("gateway-2")) == [others.execution_id]


async def test_a_settlement_erases_it_and_a_batch_that_comes_late_does_not_bring_it_back(
    ledger: Ledger, database: Database
) -> None:
    ended, lasting = admission(), admission()
    for given in (ended, lasting):
        await ledger.admit(given)
    batch = [checkpoint(ended), checkpoint(lasting)]
    ledger.checkpoint(batch)
    assert await ledger.probe()
    assert await rows(database) == 2
    await ledger.settle(settlement(ended))
    assert list(await ledger.checkpoints("gateway-1")) == [lasting.execution_id]
    ledger.checkpoint(batch)
    assert await ledger.probe()
    assert await rows(database) == 1
    await ledger.settle(settlement(lasting))
    assert await rows(database) == 0


async def test_a_settlement_that_is_undone_keeps_it(ledger: Ledger, database: Database) -> None:
    given = admission()
    await ledger.admit(given)
    ledger.checkpoint([checkpoint(given)])
    assert await ledger.probe()

    def fails(_: object) -> bytes:
        raise ZeroDivisionError

    try:
        await ledger.settle(replace(settlement(given), last_event=fails))
    except ZeroDivisionError:
        pass
    assert list(await ledger.checkpoints("gateway-1")) == [given.execution_id]


async def test_what_is_reserved_is_what_unsettled_calls_were_granted(ledger: Ledger) -> None:
    small, large = Limits(memory_bytes=1 << 20, milli_cpus=100, cpu_ns=7), Limits(memory_bytes=1 << 30, milli_cpus=900)
    ours, more, others = admission(limits=small), admission(limits=large), admission(tenant="other", limits=large)
    for given in (ours, more, others):
        await ledger.admit(given)
    assert await ledger.reserved("acme") == Reserved(2, (1 << 20) + (1 << 30), 1000, 7 + large.cpu_ns)
    assert (await ledger.snapshot()).open == Reserved(3, (1 << 20) + (2 << 30), 1900, 7 + 2 * large.cpu_ns)
    await ledger.settle(settlement(more))
    assert await ledger.reserved("acme") == Reserved(1, 1 << 20, 100, 7)
    await ledger.settle(settlement(ours))
    assert await ledger.reserved("acme") == Reserved()
    assert (await ledger.snapshot()).open.calls == 1
