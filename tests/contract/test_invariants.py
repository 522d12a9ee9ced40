"""The invariants of usage and billing over every store; and that each checker finds what was broken on purpose.

A promise whose test can't fail proves nothing. So what keeps each of them is taken away here, in our own code or in the
rows, and the checker of `tests/invariants.py` that is satisfied by the whole thing must name what is wrong then.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import ROUND_UP, Context, Decimal, localcontext
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.core import Metric
from sqlalchemy import Connection, text

import invariants as inv
from ledger_stores import BILLER, NOON, admission, ending, settlement
from skillcell.admission.tenants import TenantStore
from skillcell.core.periods import Period
from skillcell.core.rate_plans import RateComponent, RateMeter, RatePlan
from skillcell.core.statements import Statement
from skillcell.core.tenants import Tenant
from skillcell.core.types import Counters, FaultParty, Outcome, StageTimes, UsageRecord
from skillcell.metering import prometheus, settling, totals
from skillcell.metering.billing import periods
from skillcell.metering.billing.plans import RatePlanStore
from skillcell.metering.billing.statements import Billing
from skillcell.metering.canonical import canonical
from skillcell.metering.ledger import Ledger, LedgerSettings
from skillcell.metering.prometheus import Exposition, LedgerState
from skillcell.metering.rating import payouts
from skillcell.metering.rating import rate as rating
from skillcell.metering.rating.quantities import collect
from skillcell.metering.records import LedgerSnapshot, Sums
from skillcell.metering.usage import usage_record
from skillcell.storage.database import Database

TESTS = Path(__file__).resolve().parents[1]
LONG_AGO = datetime(2025, 1, 1, tzinfo=UTC)
PLAN = RatePlan(
    "standard",
    "standard/1",
    "EUR",
    2,
    (
        RateComponent(RateMeter.CALLS, unit_amount=Decimal("0.0325"), free_allowance=Decimal(1)),
        RateComponent(RateMeter.BILLED_SECONDS, unit_amount=Decimal("0.1")),
        RateComponent(RateMeter.CPU_SECONDS, unit_amount=Decimal("0.0700000000000001")),
        RateComponent(RateMeter.MEMORY_RESERVED_GIB_SECONDS, unit_amount=Decimal("0.0166667")),
    ),
    publisher_share=Decimal("0.7"),
)


def used(run_ns: int) -> Counters:
    """By a call that computed most of the time."""
    cpu = run_ns * 10 // 11
    return Counters(cpu // 2, cpu // 3, cpu, 11_000_000, 3)


@dataclass
class World:
    """What clients, a scraper and a witness saw of one ledger."""

    database: Database
    ledger: Ledger
    admitted: list[str] = field(default_factory=list)
    scrapes: list[inv.Samples] = field(default_factory=list)
    published: dict[int, bytes] = field(default_factory=dict)

    async def call(self, *, times: int = 1, run_ns: int = 123_456_789, at: datetime = NOON, **of: Any) -> None:
        """One call, settled so often: as recovery and the spine may both do."""
        outcome = of.pop("outcome", Outcome.SUCCEEDED)
        given = admission(plan_version=PLAN.version, admitted_at=at, **of)
        self.admitted.append((await self.ledger.admit(given)).execution.admission.execution_id)
        fault = {Outcome.SUCCEEDED: FaultParty.NONE, Outcome.PLATFORM_ERROR: FaultParty.PLATFORM}
        ended = {"outcome": outcome, "fault": fault.get(outcome, FaultParty.SKILL), "ended_at": at}
        for _ in range(times):
            await self.ledger.settle(settlement(given, times=StageTimes(run_ns=run_ns), at_end=used(run_ns), **ended))

    async def scrape(self) -> None:
        families: list[Metric] = list(
            prometheus.ledger_families(await self.ledger.snapshot(), LedgerState(writable=True))
        )
        self.scrapes.append(inv.parsed(generate_latest(Exposition((families,))).decode()))  # type: ignore[arg-type]

    async def restart(self, bounds: LedgerSettings | None = None) -> None:
        """What a new process has: the store, and nothing that the one before knew."""
        self.ledger = Ledger(self.database, bounds)
        await self.scrape()

    async def records(self) -> tuple[UsageRecord, ...]:
        return await self.ledger.list_usage_records(BILLER, 0, 1000)

    async def violations(self) -> list[str]:
        """Of the invariants that a ledger alone can show."""
        records = await self.records()
        groups = [group.sums for group in await self.ledger.usage_summary(BILLER)]
        return [
            *inv.one_record_each(self.admitted, records),
            *inv.answered_sums_agree(records, groups, "the summary"),
            *inv.scrape_agrees(records, self.scrapes[-1]),
            *inv.counters_never_fall(self.scrapes),
            *(said for scrape in self.scrapes for said in inv.counters_name_no_process(scrape)),
            *inv.chain_is_whole(records, self.published),
        ]


async def lived(world: World) -> World:
    """Calls of several tenants and outcomes, settled twice at times, with scrapes and restarts between."""
    for number in range(4):
        await world.call(times=1 + number % 2, run_ns=70_000_001 + number, skill=f"s{number % 2}")
        await world.call(tenant="b", outcome=Outcome.FAILED, run_ns=number * 10**9 + 1)
        await world.scrape()
        head = await world.ledger.head()
        world.published[head.sequence] = head.hash
    await world.restart()
    await world.call(tenant="c", outcome=Outcome.PLATFORM_ERROR)
    await world.scrape()
    return world


@pytest.fixture
def world(database: Database, ledger: Ledger) -> World:
    return World(database, ledger)


async def test_all_is_well_with_a_ledger_that_lived(world: World) -> None:
    await lived(world)
    assert await world.violations() == []
    assert len(await world.records()) == len(world.admitted) == 9


# What is done to our own code, by what must be said of it then.


def without_totals(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(totals, "add", lambda *_args: None)


def totals_of_original_calls_only(patch: pytest.MonkeyPatch) -> None:
    add = totals.add

    def only_successes(connection: Connection, record: UsageRecord, *rest: Any) -> None:
        if record.outcome is Outcome.SUCCEEDED:
            add(connection, record, *rest)

    patch.setattr(totals, "add", only_successes)


def settle_without_looking(patch: pytest.MonkeyPatch) -> None:
    """No state check and no unique index: a second settlement is a second record."""
    settle = settling.settle

    def again(connection: Connection, given: Any, *rest: Any) -> UsageRecord:
        connection.execute(text("DROP INDEX IF EXISTS uq_usage_records_execution_id"))
        open_again = "UPDATE executions SET state = 'RUNNING', outcome = NULL WHERE id = :id"
        connection.execute(text(open_again), {"id": given.record.execution_id})
        return settle(connection, given, *rest)

    patch.setattr(settling, "settle", again)


def records_that_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    """One in a while is completed without its record."""
    settle = settling.settle

    def forgetful(connection: Connection, given: Any, *rest: Any) -> UsageRecord:
        if given.record.outcome is Outcome.PLATFORM_ERROR:
            return given.record  # type: ignore[no-any-return]
        return settle(connection, given, *rest)

    patch.setattr(settling, "settle", forgetful)


def counters_in_memory(patch: pytest.MonkeyPatch) -> None:
    """As most exporters do: a process counts what it settled itself."""
    settle, snapshot = Ledger.settle, Ledger.snapshot

    async def counting(self: Ledger, given: Any) -> UsageRecord:
        record = await settle(self, given)
        counted = self.__dict__.setdefault("counted", {})
        counted.setdefault(record.event_id, record)
        return record

    async def own(self: Ledger) -> LedgerSnapshot:
        whole = await snapshot(self)
        mine = self.__dict__.get("counted", {}).values()
        series = tuple(
            replace(one, sums=inv.sums_of(r for r in mine if (r.tenant, r.skill, r.outcome) == key))
            for one in whole.series
            if (key := (one.tenant, one.skill, one.outcome))
        )
        return replace(whole, series=series)

    patch.setattr(Ledger, "settle", counting)
    patch.setattr(Ledger, "snapshot", own)


def an_instance_label(patch: pytest.MonkeyPatch) -> None:
    families = prometheus.ledger_families

    def labelled(*args: Any, **options: Any) -> Iterator[Metric]:
        for family in families(*args, **options):
            for sample in family.samples:
                sample.labels["instance"] = "gateway-1"
            yield family

    patch.setattr(prometheus, "ledger_families", labelled)


def floats_that_drop_digits(patch: pytest.MonkeyPatch) -> None:
    """Sums in single precision, as a careless column type would make them."""
    import struct

    plus = totals.plus

    def lossy(left: Sums, right: Sums) -> Sums:
        exact = plus(left, right)
        return replace(exact, cpu_ns=int(struct.unpack("f", struct.pack("f", exact.cpu_ns))[0]))

    patch.setattr(totals, "plus", lossy)


BROKEN = {
    "settle without totals": (without_totals, "skillcell_calls_total"),
    "totals of some outcomes only": (totals_of_original_calls_only, "skillcell_calls_total"),
    "a record written twice": (settle_without_looking, "doubled"),
    "a record never written": (records_that_are_forgotten, "lost"),
    "counters kept in memory": (counters_in_memory, "fell from"),
    "an instance label": (an_instance_label, "has labels"),
    "sums in floats": (floats_that_drop_digits, "skillcell_cpu_seconds_total"),
}


@pytest.mark.parametrize("how", BROKEN)
async def test_a_ledger_broken_on_purpose_is_found(how: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    breaking, said = BROKEN[how]
    breaking(monkeypatch)
    await lived(world)
    found = await world.violations()
    assert [line for line in found if said in line], found


async def test_series_that_leave_other_again_are_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def with_more_room() -> list[str]:
        await world.restart(LedgerSettings(max_tenants=1, max_series=1))
        for tenant in "xyz":
            await world.call(tenant=tenant)
        await world.scrape()
        await world.restart(LedgerSettings())
        return inv.counters_never_fall(world.scrapes) + inv.scrape_agrees(await world.records(), world.scrapes[-1])

    assert await with_more_room() == []
    series = totals.series

    def by_the_bounds_of_now(connection: Connection, kind: Any) -> Any:
        own = world.ledger._settings.max_tenants == 1
        return [
            one if own else replace(one, tenant="x", publisher="tools", skill="s") for one in series(connection, kind)
        ]

    monkeypatch.setattr(totals, "series", by_the_bounds_of_now)
    assert [line for line in await with_more_room() if "_other" in line and "fell" in line]


TAMPERED = {
    "an edited row": "UPDATE usage_records SET body = (SELECT body FROM usage_records WHERE sequence = 2)"
    " WHERE sequence = 3",
    "a deleted row": "DELETE FROM usage_records WHERE sequence = 3",
    "a truncated end": "DELETE FROM usage_records WHERE sequence > 5",
    "reordered rows": "UPDATE usage_records SET sequence = CASE sequence WHEN 2 THEN 102 ELSE 2 END"
    " WHERE sequence IN (2, 4)",
}


@pytest.mark.parametrize("how", TAMPERED)
async def test_rows_that_were_touched_are_found(how: str, world: World) -> None:
    await lived(world)
    assert inv.chain_is_whole(await world.records(), world.published) == []
    await world.database.write(lambda connection: connection.execute(text(TAMPERED[how])).close())
    assert inv.chain_is_whole(await world.records(), world.published) != []
    assert not (await world.ledger.verify()).whole


def events_of(records: tuple[UsageRecord, ...]) -> list[bytes]:
    """What a sink that asks for nothing more gets, each twice."""
    data = [json.loads(canonical(record)) for record in records]
    return 2 * [json.dumps({"id": one["event_id"], "data": one}).encode() for one in data]


async def test_a_sink_that_got_less_other_or_twice_otherwise_is_found(world: World) -> None:
    await lived(world)
    records = await world.records()
    events = events_of(records)
    assert inv.sink_agrees(records, events) == []
    assert "never came" in inv.sink_agrees(records, events[1:9])[0]
    assert "other bytes" in inv.sink_agrees(records, [*events, events[0] + b" "])[0]
    assert "of no record" in inv.sink_agrees(records[1:], events)[0]
    dearer = [event.replace(b'"billed_ms": ', b'"billed_ms": 1') for event in events]
    assert "billed_ms" in inv.sink_agrees(records, dearer)[0]


BROKEN_CHILD = """
import asyncio, sys
sys.path[:0] = {path!r}
import ledger_child
from skillcell.core.records import StoredExecution
from skillcell.core.types import ExecutionState
from skillcell.metering.ledger import Ledger
from skillcell.metering.records import AdmitResult
durably, tasks = Ledger.admit, []

async def later(self, admission):
    await asyncio.sleep(60)
    await durably(self, admission)

async def admit(self, admission):
    tasks.append(asyncio.create_task(later(self, admission)))
    return AdmitResult(StoredExecution(admission, ExecutionState.QUEUED), created=True)

if sys.argv[2] == "broken":
    Ledger.admit = admit
asyncio.run(ledger_child.admits(sys.argv[1]))
"""


@pytest.mark.parametrize("how", ["durable", "broken"])
async def test_an_admission_that_is_answered_before_its_commit_is_found(how: str, url: str, tmp_path: Path) -> None:
    """kill -9 as soon as a process has told of two admissions: those that it told of must be there."""
    program = BROKEN_CHILD.format(path=[str(TESTS)])
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent / 'runtime'}:{TESTS}"}
    with subprocess.Popen(
        [sys.executable, "-c", program, url, how], stdout=subprocess.PIPE, env=environment, text=True
    ) as child:
        assert child.stdout is not None
        said = [await asyncio.to_thread(child.stdout.readline) for _ in range(2)]
        child.kill()
        said += child.stdout.read().splitlines()
    told = [json.loads(line)["admitted"] for line in said if line.strip()]
    async with await Database.open(url) as database:
        world = World(database, Ledger(database), admitted=told)
        for left in await world.ledger.unsettled():  # as the next start does
            await world.ledger.settle(settlement(left.admission, outcome=Outcome.NEVER_RAN, fault=FaultParty.PLATFORM))
        found = inv.one_record_each(told, [r for r in await world.records() if r.execution_id in told])
    assert len(told) >= 2
    assert bool(found) == (how == "broken"), found
    assert all("lost" in line for line in found)


# Rating and closed periods.


def statement_of(records: Any) -> tuple[Statement, ...]:
    return rating.statements("acme", "2026-03", collect(records), {PLAN.version: PLAN}, PLAN)


def line_by_line(of: Any) -> tuple[Statement, ...]:
    """Broken: each record is rated and rounded alone, then added up."""
    parts = [statement_of([record])[0] for record in of]
    lines = tuple(line for part in parts for line in part.lines)
    return (replace(parts[0], lines=lines, total=sum((line.amount for line in lines), Decimal(0))),)


def in_floats(of: Any) -> tuple[Statement, ...]:
    """Broken: floats are added up in the order in which they come, and cut off to cents."""
    (made,) = statement_of(of)
    amount = 0.0
    for record in of:
        amount += record.cpu_total_ns / 1e9 * 7e9 + 0.1
    line = replace(made.lines[0], amount=Decimal(repr(amount)))
    return (replace(made, lines=(line, *made.lines[1:])),)


@pytest.fixture
def rated() -> tuple[UsageRecord, ...]:
    of = admission(plan_version=PLAN.version)
    return tuple(
        usage_record(of, ending(event_id=str(number), times=StageTimes(run_ns=n), at_end=used(n)))
        for number, n in enumerate(range(31_000_001, 400_000_000, 31_000_001))
    )


def test_rating_is_exact_and_knows_no_order(rated: tuple[UsageRecord, ...]) -> None:
    assert inv.rating_ignores_order(statement_of, rated) == []
    (made,) = statement_of(rated)
    assert inv.lines_are_exact(rated, PLAN, made) == []
    (split,) = payouts.shares("2026-03", [made], {PLAN.version: PLAN})
    assert inv.shares_sum_up(split, [made]) == []
    assert made.total > 0
    assert split.payouts[0].total > 0


def test_rating_by_each_record_or_in_floats_is_found(rated: tuple[UsageRecord, ...]) -> None:
    assert inv.lines_are_exact(rated, PLAN, line_by_line(rated)[0]) != []
    assert inv.lines_are_exact(rated, PLAN, in_floats(rated)[0]) != []
    assert inv.rating_ignores_order(in_floats, rated) != []


def test_shares_that_are_rounded_apart_are_found(
    rated: tuple[UsageRecord, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def apart(total: Decimal, weights: Any, digits: int) -> tuple[Decimal, ...]:
        with localcontext(Context()):
            cent = Decimal(1).scaleb(-digits)
            return tuple((total * weight).quantize(cent, rounding=ROUND_UP) for weight in weights)

    (made,) = statement_of(rated)
    monkeypatch.setattr(payouts, "apportioned", apart)
    (split,) = payouts.shares("2026-03", [made], {PLAN.version: PLAN})
    assert inv.shares_sum_up(split, [made]) != []


def periods_that_stay_open(patch: pytest.MonkeyPatch) -> None:
    """Broken: what was closed is rated anew with whatever came since."""
    patch.setattr(periods, "closed_periods", lambda _connection: ())


def intact(_patch: pytest.MonkeyPatch) -> None:
    """Nothing is broken."""


@pytest.mark.parametrize("breaking", [intact, periods_that_stay_open])
async def test_a_closed_period_that_is_computed_again_is_found(
    breaking: Callable[[pytest.MonkeyPatch], None], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await RatePlanStore(world.database).create(replace(PLAN, version=""), LONG_AGO)
    await TenantStore(world.database).create(Tenant("acme", rate_plan="standard"), LONG_AGO)
    billing, march = Billing(world.database), Period(2026, 3)

    async def answers() -> dict[str, object]:
        return {
            "the statement": (await billing.statement("acme", march)).statement,
            "the payout": (await billing.payout("tools", march)).payout,
        }

    await world.call(run_ns=5 * 10**9)
    await billing.close(BILLER, march, NOON + timedelta(days=40))
    before = await answers()
    breaking(monkeypatch)
    await world.call(run_ns=7 * 10**9)  # it ended in March too, and is settled when March was closed
    assert bool(inv.closed_is_unchanged(before, await answers())) == (breaking is not intact)
