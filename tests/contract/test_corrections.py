"""Corrections put a record right without touching it, on every store."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from ledger_stores import ACME, BILLER, NOON, admission, settlement
from skillcell.core.corrections import Correction, UsageDelta
from skillcell.core.errors import Fault, FaultKind
from skillcell.core.types import StageTimes, UsageRecord
from skillcell.metering.canonical import canonical, chain_hash
from skillcell.metering.ledger import Ledger
from skillcell.metering.records import Grouping, Sums, UsageFilter
from skillcell.metering.totals import plus
from skillcell.metering.verification import Defect
from skillcell.storage.database import Database

LATER = NOON + timedelta(days=40)


async def call(ledger: Ledger, **changes: Any) -> UsageRecord:
    given = admission(labels={"team": "red"})
    await ledger.admit(given)
    return await ledger.settle(settlement(given, **changes))


def correction(of: UsageRecord, request_id: str = "", reason: str = "measured twice", **delta: int) -> Correction:
    return Correction(of.event_id, UsageDelta(**delta), reason, request_id)


async def refused(ledger: Ledger, given: Correction) -> Fault:
    head = await ledger.head()
    with pytest.raises(Fault) as caught:
        await ledger.record_correction(BILLER, given, LATER)
    assert await ledger.head() == head
    return caught.value


async def test_a_correction_is_a_chained_record_of_differences(ledger: Ledger) -> None:
    original = await call(ledger)
    made = await ledger.record_correction(BILLER, correction(original, billed_ms=-5, calls=-1), LATER)
    assert (made.sequence, made.previous_hash) == (2, original.hash)
    assert made.hash == chain_hash(original.hash, canonical(made))
    assert (made.correction_of, made.execution_id, made.ended_at) == (original.event_id, original.execution_id, LATER)
    assert made.event_id != original.event_id
    assert (made.billed_ms, made.calls, made.cpu_total_ns, made.output_bytes) == (-5, -1, 0, 0)
    assert (made.tenant, made.skill, made.plan_version, made.outcome) == (
        original.tenant,
        original.skill,
        original.plan_version,
        original.outcome,
    )
    assert (made.times, made.memory_peak_bytes, made.memory_limit_bytes, made.input_bytes) == (StageTimes(), 0, 0, 0)
    assert b"red" not in canonical(made)
    assert await ledger.list_usage_records(BILLER) == (original, made)
    assert await ledger.get_record(ACME, original.execution_id) == original
    of_call = UsageFilter(execution_id=original.execution_id)
    assert await ledger.list_usage_records(ACME, wanted=of_call) == (original, made)
    assert (await ledger.verify()).whole


async def test_counters_keep_what_was_used_and_corrections_stand_beside_them(ledger: Ledger) -> None:
    original = await call(ledger)
    used = (await ledger.snapshot()).series
    for delta in ({"billed_ms": -5}, {"cpu_total_ns": -1000, "egress_in_bytes": -2}, {"billed_ms": 2}):
        await ledger.record_correction(BILLER, correction(original, **delta), LATER)
    snapshot = await ledger.snapshot()
    assert snapshot.series == used
    assert [(series.tenant, series.skill, series.sums) for series in snapshot.corrections] == [
        ("acme", "extract", Sums(billed_ms=-3, cpu_ns=-1000, egress_bytes=-2))
    ]
    (whole,) = await ledger.usage_summary(BILLER)
    total = plus(used[0].sums, snapshot.corrections[0].sums)
    assert whole.sums == total
    assert whole.sums.calls == 1
    (later,) = await ledger.usage_summary(BILLER, Grouping(since=LATER))
    assert (later.sums.calls, later.billable_calls, later.sums.billed_ms) == (0, 0, -3)


async def test_the_totals_of_corrections_are_verified_too(ledger: Ledger, database: Database) -> None:
    original = await call(ledger)
    await ledger.record_correction(BILLER, correction(original, billed_ms=-5), LATER)
    edit = text("UPDATE totals SET billed_ms = '-4' WHERE kind = 'CORRECTION'")
    if database._engines.writer.dialect.name == "postgresql":
        edit = text("UPDATE totals SET billed_ms = -4 WHERE kind = 'CORRECTION'")
    await database.write(lambda connection: connection.execute(edit).close())
    found = await ledger.verify()
    assert [problem.defect for problem in found.problems] == [Defect.TOTALS_DIFFER]
    assert found.problems[0].detail == "of acme/tools/extract/SUCCEEDED/CORRECTION: billed_ms is -4 instead of -5"


async def test_the_same_request_makes_one_correction_however_often_it_comes(ledger: Ledger) -> None:
    original = await call(ledger)
    given = correction(original, str(uuid.uuid4()), billed_ms=-5)
    made = await asyncio.gather(*[ledger.record_correction(BILLER, given, LATER) for _ in range(10)])
    assert len({record.event_id for record in made}) == 1
    assert (await ledger.head()).sequence == 2
    for other in (
        correction(original, given.request_id, billed_ms=-6),
        correction(original, given.request_id, "another reason", billed_ms=-5),
    ):
        fault = await refused(ledger, other)
        assert (fault.kind, fault.reason) == (FaultKind.ALREADY_EXISTS, "REQUEST_ID_REUSED")
        assert fault.metadata["event_id"] == made[0].event_id
    again = correction(original, "", billed_ms=-5)
    first, second = [await ledger.record_correction(BILLER, again, LATER) for _ in range(2)]
    assert first.event_id != second.event_id


async def test_no_more_is_taken_back_than_is_left(ledger: Ledger) -> None:
    original = await call(ledger)
    assert (original.billed_ms, original.egress_in_bytes) == (71, 5)
    await ledger.record_correction(BILLER, correction(original, billed_ms=-70, calls=-1), LATER)
    fault = await refused(ledger, correction(original, billed_ms=-2, egress_in_bytes=-6, calls=-1))
    assert {violation.field: violation.description for violation in fault.violations} == {
        "delta.billed_ms": "is -2; only 1 is left to take back",
        "delta.egress_in_bytes": "is -6; only 5 is left to take back",
        "delta.calls": "is -1; only 0 is left to take back",
    }
    await ledger.record_correction(BILLER, correction(original, billed_ms=-1, calls=1), LATER)
    fault = await refused(ledger, correction(original, calls=1))
    assert fault.violations[0].description == "is 1; the call is charged already"
    byte_ns = original.memory_limit_byte_ns
    assert byte_ns > 1 << 53
    await ledger.record_correction(BILLER, correction(original, memory_limit_byte_ns=-byte_ns), LATER)
    assert (await refused(ledger, correction(original, memory_limit_byte_ns=-1))).kind is FaultKind.INVALID_ARGUMENT


async def test_concurrent_corrections_can_not_take_the_same_back_twice(ledger: Ledger) -> None:
    original = await call(ledger)
    results = await asyncio.gather(
        *[ledger.record_correction(BILLER, correction(original, billed_ms=-71), LATER) for _ in range(5)],
        return_exceptions=True,
    )
    assert sorted(type(result).__name__ for result in results) == ["Fault"] * 4 + ["UsageRecord"]


async def test_what_can_not_be_corrected_is_refused_with_the_reason(ledger: Ledger) -> None:
    original = await call(ledger)
    made = await ledger.record_correction(BILLER, correction(original, billed_ms=-1), LATER)
    unknown = await refused(ledger, Correction("evt_unknown", UsageDelta(billed_ms=-1), "x"))
    assert (unknown.kind, unknown.reason) == (FaultKind.NOT_FOUND, "USAGE_RECORD_NOT_FOUND")
    twice = await refused(ledger, correction(made, billed_ms=1))
    assert twice.violations[0].field == "event_id"
    assert original.event_id in twice.message
    assert (await refused(ledger, correction(original))).violations[0].field == "delta"
    large = await refused(ledger, correction(original, cpu_total_ns=10**17))
    assert "the limit of one correction is" in large.message
