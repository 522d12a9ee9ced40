"""What a reconciliation says of four sources that should be one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from ledger_stores import admission, ending
from skillcell.cli import reconciliation as pure
from skillcell.core.types import StageTimes, UsageRecord
from skillcell.metering.canonical import GENESIS, canonical, chain_hash
from skillcell.metering.usage import usage_record

LONG = StageTimes(run_ns=40_000_000_000_000_001)


def chain(*given: UsageRecord) -> list[UsageRecord]:
    """As the ledger has them."""
    records: list[UsageRecord] = []
    before = GENESIS
    for sequence, record in enumerate(given, 1):
        placed = replace(record, sequence=sequence, previous_hash=before)
        before = chain_hash(before, canonical(placed))
        records.append(replace(placed, hash=before))
    return records


def used(tenant: str = "acme", skill: str = "extract", **changes: Any) -> UsageRecord:
    return usage_record(admission(tenant=tenant, skill=skill), ending(**changes))


def corrected(record: UsageRecord) -> UsageRecord:
    return replace(used(record.tenant), correction_of=record.event_id, calls=-1, billed_ms=-7, cpu_total_ns=0)


def tally(records: Iterable[UsageRecord]) -> pure.Tally:
    made = pure.Tally()
    for record in records:
        made.add(pure.key_of(record), pure.amounts_of(record), correction=bool(record.correction_of))
    return made


def event(record: UsageRecord, **changes: Any) -> str:
    """As exports write it: nanoseconds in text."""
    data = {
        name: str(value) if name.endswith("_ns") and value is not None else value
        for name, value in json.loads(canonical(record)).items()
    }
    data |= {"hash": record.hash.hex(), "previous_hash": record.previous_hash.hex(), **changes}
    return json.dumps({"specversion": "1.0", "id": record.event_id, "source": "s", "type": "t", "data": data})


def sink_of(lines: Iterable[str], records: list[UsageRecord]) -> pure.Sink:
    sink = pure.Sink()
    for line in lines:
        for one in pure.events_of(line):
            sink.take(one, len(records))
    for record in records:
        sink.match(record)
    sink.close()
    return sink


def scrape(records: Iterable[UsageRecord], rename: dict[str, str] | None = None) -> dict[tuple[str, pure.Key], float]:
    """Exact sums divided once; `rename` says under which tenant's name a tenant counts."""
    exact: dict[tuple[str, pure.Key], tuple[int, int]] = {}
    for record in records:
        tenant, publisher, skill, outcome = pure.key_of(record)
        if rename and tenant in rename:
            tenant = publisher = skill = rename[tenant]
        name = "skillcell_correction_{}" if record.correction_of else "skillcell_{}_total"
        for meter, amount in zip(pure.METERS, pure.amounts_of(record), strict=True):
            series, per = pure._SERIES[meter]
            key = name.format(series), (tenant, publisher, skill, outcome)
            exact[key] = exact.get(key, (0, per))[0] + amount, per
    return {key: amount / per for key, (amount, per) in exact.items()}


@pytest.fixture
def records() -> list[UsageRecord]:
    first = used(times=LONG)
    return chain(first, used(times=LONG), used("other", times=LONG), corrected(first), used(skill="convert"))


def test_four_that_agree_differ_in_nothing(records: list[UsageRecord]) -> None:
    ledger = tally(records)
    (usage, corrections), differences = pure.against_scrape(ledger, scrape(records))
    assert differences == []
    assert usage == pure.total(ledger.usage)
    assert usage[3] > 1 << 64
    assert corrections == pure.total(ledger.corrections) == (-1, -7, 0, *corrections[3:])
    sink = sink_of([*map(event, records), event(records[2])], records)
    assert (sink.differences, sink.duplicates, sink.received) == ([], 1, 6)
    assert list(pure.against_sink(ledger, sink.tally)) == []


def test_tenants_without_series_of_their_own_count_under_other(records: list[UsageRecord]) -> None:
    _, differences = pure.against_scrape(tally(records), scrape(records, {"other": pure.OTHER}))
    assert differences == []


def test_a_sample_off_by_the_smallest_step_is_named(records: list[UsageRecord]) -> None:
    samples = scrape(records)
    key = ("skillcell_memory_reserved_byte_seconds_total", ("other", "tools", "extract", "SUCCEEDED"))
    samples[key] = float.fromhex(samples[key].hex()) * (1 + 2**-52)
    _, (difference,) = pure.against_scrape(tally(records), samples)
    assert difference.where == "scrape"
    assert 'tenant="other",publisher="tools",skill="extract",outcome="SUCCEEDED"' in difference.what
    del samples[key]
    assert "is not there" in pure.against_scrape(tally(records), samples)[1][0].what


def test_a_sum_that_differs_is_named_and_corrections_count_in_totals(records: list[UsageRecord]) -> None:
    ledger = tally(records)
    key = ("acme", "tools", "extract", "SUCCEEDED")
    totals = {of: pure.plus(sums, (0, *ledger.corrections.get(of, (0,) * 6)[1:])) for of, sums in ledger.usage.items()}
    assert list(pure.against_totals(ledger, totals)) == []
    totals[key] = pure.plus(totals[key], (0, 1, 0, 0, 0, 0))
    (difference,) = pure.against_totals(ledger, totals)
    assert difference.what.startswith("acme/tools/extract/SUCCEEDED: billed_ms is ")


def test_events_that_a_sink_lacks_or_has_in_another_form_or_besides_are_named(records: list[UsageRecord]) -> None:
    stranger = chain(*records[:1], used())[1]
    lines = [event(records[0]), event(records[1], billed_ms=1), event(stranger), *map(event, records[3:])]
    sink = sink_of(lines, records)
    said = [difference.what for difference in sink.differences]
    assert said == [
        f"event {records[1].event_id} (record 2) was altered: it does not give its hash",
        f"event {records[2].event_id} (record 3) is missing",
        f"event {stranger.event_id} (record 2) is not in the ledger",
    ]
    assert any("billed_ms" in difference.what for difference in pure.against_sink(tally(records), sink.tally))
    twice = sink_of([*map(event, records), event(records[0], billed_ms=1)], records)
    assert [difference.what for difference in twice.differences] == [
        f"event {records[0].event_id} (record 1) came twice with different content"
    ]


def test_a_batch_is_many_events_and_newer_ones_are_left_out(records: list[UsageRecord]) -> None:
    line = "[" + ",".join(map(event, records)) + "]"
    sink = sink_of([line], records[:3])
    assert (sink.received, sink.newer, sink.differences) == (5, 2, [])
