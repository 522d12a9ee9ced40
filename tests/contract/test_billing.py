"""Plans, periods and statements over a real ledger, on every store."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from ledger_stores import BILLER, NOON, admission, settlement
from skillcell.admission.tenants import TenantStore
from skillcell.core.corrections import Correction, UsageDelta
from skillcell.core.errors import Fault, FaultKind
from skillcell.core.periods import Period
from skillcell.core.rate_plans import RateComponent, RateMeter, RatePlan, RateTier, TierMode
from skillcell.core.tenants import Tenant
from skillcell.core.types import Counters, FaultParty, Measurement, Outcome, StageTimes, UsageRecord
from skillcell.metering.billing.assignments import Assignments
from skillcell.metering.billing.plans import RatePlanStore
from skillcell.metering.billing.statements import BilledStatement, Billing
from skillcell.metering.billing.usage import usage_sums
from skillcell.metering.ledger import Ledger
from skillcell.metering.rating.quantities import UsageKey, UsageSums, collect, key_of
from skillcell.metering.rating.rate import statements
from skillcell.storage.database import Database

PLAN = RatePlan(
    "standard",
    "",
    "EUR",
    2,
    (
        RateComponent(RateMeter.CALLS, unit_amount=Decimal("0.25"), free_allowance=Decimal(1)),
        RateComponent(
            RateMeter.BILLED_SECONDS,
            TierMode.GRADUATED,
            tiers=(RateTier(Decimal("0.1"), Decimal(3)), RateTier(None, Decimal(1))),
        ),
        RateComponent(RateMeter.CPU_SECONDS, unit_amount=Decimal(2)),
        RateComponent(RateMeter.MEMORY_LARGER_GIB_SECONDS, unit_amount=Decimal(7)),
        RateComponent(RateMeter.OUTPUT_BYTES, unit_amount=Decimal("0.01")),
    ),
    minimum_amount=Decimal("0.10"),
    publisher_share=Decimal("0.7"),
)
MARCH, APRIL, MAY = Period(2026, 3), Period(2026, 4), Period(2026, 5)
IN_APRIL, IN_MAY = datetime(2026, 4, 2, tzinfo=UTC), datetime(2026, 5, 2, tzinfo=UTC)
LONG_AGO = datetime(2025, 1, 1, tzinfo=UTC)


class FixedClock:
    """Monotonic time that a test moves."""

    def __init__(self) -> None:
        self.ns = 0

    def monotonic_ns(self) -> int:
        return self.ns

    def now(self) -> datetime:
        return NOON


@pytest.fixture
async def plans(database: Database) -> RatePlanStore:
    return RatePlanStore(database)


@pytest.fixture
async def tenants(database: Database) -> TenantStore:
    return TenantStore(database)


@pytest.fixture
async def billing(database: Database, plans: RatePlanStore, tenants: TenantStore) -> Billing:
    """With a plan that rates acme."""
    await plans.create(PLAN, LONG_AGO)
    await tenants.create(Tenant("acme", rate_plan="standard"), LONG_AGO)
    return Billing(database)


async def call(ledger: Ledger, at: datetime = NOON, plan: str = "standard/1", **changes: Any) -> UsageRecord:
    """One settled call that ended at a time; changes go to its admission or its end."""
    of = {name: changes.pop(name) for name in ("tenant", "publisher", "skill") if name in changes}
    given = admission(plan_version=plan, admitted_at=at, **of)
    await ledger.admit(given)
    return await ledger.settle(settlement(given, started_at=at, ended_at=at, **changes))


async def rated(ledger: Ledger, tenant: str, in_force: RatePlan | None, *plans: RatePlan) -> Any:
    """What rating itself makes of every record of the ledger."""
    records = await ledger.list_usage_records(BILLER, 0, 1000)
    return statements(tenant, "2026-03", collect(records), {plan.version: plan for plan in plans}, in_force)


async def test_the_same_plan_again_is_the_version_that_exists(plans: RatePlanStore) -> None:
    first = await plans.create(PLAN, NOON)
    assert (first.plan.version, first.plan.created_at) == ("standard/1", NOON)
    again = await plans.create(replace(PLAN, minimum_amount=Decimal("0.1")), NOON + timedelta(days=1))
    assert again == first
    dearer = replace(PLAN, minimum_amount=Decimal(1))
    assert (await plans.create(dearer, NOON + timedelta(days=2))).plan.version == "standard/2"
    assert (await plans.create(replace(PLAN, name="other"), NOON)).plan.version == "other/1"
    assert await plans.get("standard/1") == first.plan
    listed = (await plans.list("standard")).plans
    assert [(stored.plan.version, stored.current) for stored in listed] == [("standard/2", True), ("standard/1", False)]
    back = await plans.create(PLAN, NOON + timedelta(days=3))
    assert (back.plan.version, back.plan.created_at) == ("standard/1", NOON)
    assert [stored.current for stored in (await plans.list("standard")).plans] == [False, True]


async def test_one_version_comes_of_many_that_make_the_same_plan_at_once(plans: RatePlanStore) -> None:
    made = await asyncio.gather(*[plans.create(PLAN, NOON) for _ in range(20)])
    assert {stored.plan.version for stored in made} == {"standard/1"}


async def test_plans_come_by_page_newest_first(plans: RatePlanStore) -> None:
    for number in range(5):
        await plans.create(replace(PLAN, name=f"plan-{number}"), NOON + timedelta(seconds=number // 2))
    seen: list[str] = []
    token = ""
    while True:
        page = await plans.list(page_size=2, page_token=token)
        seen += [stored.plan.name for stored in page.plans]
        token = page.next_page_token
        if not token:
            break
    assert seen == ["plan-4", "plan-3", "plan-2", "plan-1", "plan-0"]
    first = await plans.list(page_size=2)
    with pytest.raises(Fault) as caught:
        await plans.list("plan-1", page_token=first.next_page_token)
    assert caught.value.reason == "PAGE_TOKEN_INVALID"


@pytest.mark.parametrize("version", ["standard/2", "standard", "standard/x", "other/1", "/1", "standard/1/1"])
async def test_a_version_that_is_not_there_is_not_found(plans: RatePlanStore, version: str) -> None:
    await plans.create(PLAN, NOON)
    with pytest.raises(Fault) as caught:
        await plans.get(version)
    assert (caught.value.kind, caught.value.reason) == (FaultKind.NOT_FOUND, "RATE_PLAN_NOT_FOUND")


async def test_a_tenant_is_made_once_and_changed_by_who_has_read_it(plans: RatePlanStore, tenants: TenantStore) -> None:
    await plans.create(PLAN, NOON)
    made = await tenants.create(Tenant("acme", "Acme", ("tools", "acme"), "standard"), NOON)
    assert (made.publishers, made.created_at, made.suspended) == (("acme", "tools"), NOON, False)
    assert await tenants.create(Tenant("acme", "Acme", ("acme", "tools"), "standard"), IN_MAY) == made
    changed = await tenants.update(replace(made, display_name="Acme Ltd", publishers=("acme",)))
    assert (changed.display_name, changed.publishers, changed.rate_plan) == ("Acme Ltd", ("acme",), "standard")
    assert changed.etag != made.etag
    assert await tenants.update(changed) == changed
    refusals = {
        "RESOURCE_EXISTS": tenants.create(Tenant("acme", "Another"), NOON),
        "ETAG_MISMATCH": tenants.update(replace(made, display_name="x")),
        "TENANT_NOT_FOUND": tenants.update(Tenant("nobody")),
        "RATE_PLAN_NOT_FOUND": tenants.update(replace(changed, rate_plan="gold")),
    }
    for reason, refused in refusals.items():
        with pytest.raises(Fault) as caught:
            await refused
        assert caught.value.reason == reason
    await tenants.create(Tenant("other", publishers=("tools",)), NOON)
    with pytest.raises(Fault, match="belongs to another tenant") as caught:
        await tenants.update(replace(changed, etag="", publishers=("tools",)))
    assert (caught.value.reason, caught.value.resource) == ("RESOURCE_EXISTS", ("publisher", "tools"))
    assert await tenants.get("acme") == changed
    assert (await tenants.update(replace(changed, etag="", display_name="Acme"))).display_name == "Acme"


async def test_tenants_come_by_page_in_the_order_of_their_ids(tenants: TenantStore) -> None:
    for name in ("b", "a-1", "a1", "c", "a"):
        await tenants.create(Tenant(name), NOON)
    first = await tenants.list(page_size=3)
    second = await tenants.list(page_size=3, page_token=first.next_page_token)
    assert [tenant.id for page in (first, second) for tenant in page.tenants] == ["a", "a-1", "a1", "b", "c"]
    assert second.next_page_token == ""
    with pytest.raises(Fault) as caught:
        await tenants.list(page_token="x")
    assert caught.value.reason == "PAGE_TOKEN_INVALID"


async def test_the_plan_of_the_next_call_is_known_without_asking_and_a_change_counts_at_once(
    database: Database, plans: RatePlanStore, tenants: TenantStore
) -> None:
    clock = FixedClock()
    here, elsewhere = (Assignments(database, "basic", clock) for _ in range(2))
    await tenants.create(Tenant("acme"), NOON)
    assert await here.plan_for("acme") is None
    basic = (await plans.create(replace(PLAN, name="basic"), NOON)).plan
    here.forget()
    assert await here.plan_for("acme") == basic
    assert await here.plan_for("unheard-of") == basic
    standard = (await plans.create(PLAN, NOON)).plan
    assert await elsewhere.plan_for("acme") == basic
    await tenants.update(Tenant("acme", rate_plan="standard"))
    here.forget()
    assert await here.plan_for("acme") == standard
    assert await elsewhere.plan_for("acme") == basic
    clock.ns += 2_000_000_001
    assert await elsewhere.plan_for("acme") == standard


async def test_a_statement_is_what_rating_makes_of_the_records(ledger: Ledger, billing: Billing) -> None:
    for number in range(5):
        counters = Counters(cpu_total_ns=number * 1_000_003, memory_peak_bytes=number << 20)
        await call(ledger, skill=f"skill-{number % 2}", at_end=counters, times=StageTimes(run_ns=number * 77_000_001))
    sampled = Counters(cpu_total_ns=5, measurement=Measurement.SAMPLED)
    await call(ledger, at_end=sampled)
    await call(ledger, outcome=Outcome.PLATFORM_ERROR, fault=FaultParty.PLATFORM)
    await call(ledger, plan="")
    await call(ledger, tenant="other")
    plan = replace(PLAN, version="standard/1")
    (expected,) = await rated(ledger, "acme", plan, plan)
    made = await billing.statement("acme", MARCH)
    assert made == BilledStatement(expected, True, 9, ("EUR",))
    assert sum(line.amount for line in made.statement.lines) == made.statement.total > 0
    assert sum(line.calls for line in made.statement.lines if line.component == 0) == 6


async def test_usage_adds_up_in_the_store_as_rating_adds_it_up(ledger: Ledger, database: Database) -> None:
    first = await call(ledger, times=StageTimes(run_ns=40_000_000_000_000_001))
    await call(ledger, tenant="other", skill="y", outcome=Outcome.FAILED, fault=FaultParty.SKILL)
    await call(ledger, outcome=Outcome.NEVER_RAN, fault=FaultParty.PLATFORM)
    back = UsageDelta(billed_ms=-7, cpu_total_ns=-3, memory_limit_byte_ns=-11, memory_used_byte_ns=-13, calls=-1)
    await ledger.record_correction(BILLER, Correction(first.event_id, back, "x"), NOON + timedelta(days=1))
    earlier = await call(ledger, LONG_AGO)
    await ledger.record_correction(BILLER, Correction(earlier.event_id, back, "x"), NOON)
    listed = await ledger.list_usage_records(BILLER, 0, 1000)
    records = [one for one in listed if one.ended_at >= MARCH.start]
    span = await database.read(lambda connection: Billing(database)._look(connection, MARCH, None).span)

    async def stored(**options: bool) -> dict[UsageKey, UsageSums]:
        return await database.read(lambda connection: usage_sums(connection, span, **options))

    finest = {key: sums for key, sums in collect(records, key=key_of).items() if sums != UsageSums()}
    assert {key.correction for key in finest} == {False, True}
    assert await stored(fine=True) == finest
    coarse: dict[UsageKey, UsageSums] = {}
    for key, sums in finest.items():
        coarse[key.coarse()] = coarse.get(key.coarse(), UsageSums()) + sums
    assert await stored() == coarse


async def test_a_minimum_is_due_though_nothing_was_called_from_the_month_a_tenant_came(
    ledger: Ledger, billing: Billing, tenants: TenantStore
) -> None:
    await tenants.create(Tenant("late", rate_plan="standard"), IN_APRIL)
    assert (await billing.statement("late", APRIL)).statement.total == Decimal("0.10")
    for tenant, reason in (("late", "RATE_PLAN_NOT_FOUND"), ("nobody", "TENANT_NOT_FOUND")):
        with pytest.raises(Fault) as caught:
            await billing.statement(tenant, MARCH)
        assert (caught.value.kind, caught.value.reason) == (FaultKind.NOT_FOUND, reason)


async def test_the_default_plan_rates_who_has_none_and_a_closed_month_keeps_it(
    database: Database, plans: RatePlanStore, tenants: TenantStore
) -> None:
    await plans.create(PLAN, LONG_AGO)
    await tenants.create(Tenant("acme"), LONG_AGO)
    unset, default = Billing(database), Billing(database, "standard")
    with pytest.raises(Fault) as caught:
        await unset.statement("acme", MARCH)
    assert caught.value.reason == "RATE_PLAN_NOT_FOUND"
    await default.close(BILLER, MARCH, IN_APRIL)
    for billing in (default, unset):
        assert (await billing.statement("acme", MARCH)).statement.total == Decimal("0.10")


async def test_plans_of_two_currencies_in_one_month_are_two_statements(
    ledger: Ledger, billing: Billing, plans: RatePlanStore
) -> None:
    await plans.create(replace(PLAN, name="dollars", currency="USD"), LONG_AGO)
    await call(ledger)
    await call(ledger, plan="dollars/1")
    with pytest.raises(Fault) as caught:
        await billing.statement("acme", MARCH)
    assert caught.value.violations[0].field == "currency"
    made = [await billing.statement("acme", MARCH, currency) for currency in ("EUR", "USD")]
    assert [one.statement.currency for one in made] == ["EUR", "USD"]
    assert all(one.currencies == ("EUR", "USD") for one in made)
    with pytest.raises(Fault, match="is GBP"):
        await billing.statement("acme", MARCH, "GBP")
    assert {(await billing.payout("tools", MARCH, currency)).payout.currency for currency in ("EUR", "USD")} == {
        "EUR",
        "USD",
    }


async def test_payouts_and_fees_are_what_tenants_pay_for_skills(
    ledger: Ledger, billing: Billing, tenants: TenantStore
) -> None:
    await tenants.create(Tenant("other", rate_plan="standard"), LONG_AGO)
    for tenant in ("acme", "other"):
        for publisher in ("tools", "maps"):
            for skill in ("a", "b"):
                await call(ledger, tenant=tenant, publisher=publisher, skill=skill)
    made = [await billing.statement(tenant, MARCH) for tenant in ("acme", "other")]
    payouts = [await billing.payout(publisher, MARCH) for publisher in ("tools", "maps")]
    lines = [line for one in payouts for line in one.payout.lines]
    assert all(line.publisher_share + line.platform_fee == line.charged for line in lines)
    assert sum(line.charged for line in lines) == sum(one.statement.total for one in made)
    assert [sum(line.publisher_share for line in one.payout.lines) for one in payouts] == [
        one.payout.total for one in payouts
    ]
    assert [line.calls for line in lines] == [2, 2, 2, 2]
    with pytest.raises(Fault) as caught:
        await billing.payout("nobody", MARCH)
    assert caught.value.reason == "RATE_PLAN_NOT_FOUND"


async def test_a_closed_period_never_changes_whatever_comes_after(
    ledger: Ledger, billing: Billing, plans: RatePlanStore, tenants: TenantStore
) -> None:
    first = await call(ledger)
    await call(ledger, IN_APRIL)
    closed = await billing.close(BILLER, MARCH, IN_APRIL)
    assert (closed.last_sequence, closed.closed_at) == (1, IN_APRIL)
    march = await billing.statement("acme", MARCH), await billing.payout("tools", MARCH)
    assert (march[0].open, march[0].as_of_sequence) == (False, 1)
    april = (await billing.statement("acme", APRIL)).statement

    late = await call(ledger, NOON + timedelta(days=1))
    await call(ledger, LONG_AGO)
    await ledger.record_correction(BILLER, Correction(first.event_id, UsageDelta(billed_ms=-71), "x"), IN_APRIL)
    await plans.create(replace(PLAN, minimum_amount=Decimal(50)), IN_APRIL)
    await tenants.update(Tenant("acme", rate_plan=""))
    assert (await billing.statement("acme", MARCH), await billing.payout("tools", MARCH)) == march
    assert await billing.close(BILLER, MARCH, IN_MAY) == closed

    charged = (await billing.statement("acme", APRIL)).statement
    assert charged.total > april.total
    assert sum(line.calls for line in charged.lines if line.component == 0) == 3
    (seconds,) = [line for line in charged.lines if line.component == 1]
    assert seconds.quantity == Decimal(3 * late.billed_ms - 71) / 1000
    with pytest.raises(Fault) as caught:
        await billing.statement("acme", MAY)
    assert caught.value.reason == "RATE_PLAN_NOT_FOUND"

    closed = await billing.close(BILLER, APRIL, IN_MAY)
    assert closed.last_sequence == 5
    kept = await billing.statement("acme", APRIL)
    assert (kept.statement.lines, kept.open) == (charged.lines, False)
    for ended_at in (NOON, IN_APRIL, LONG_AGO, IN_MAY):
        await call(ledger, ended_at)
    assert (await billing.statement("acme", MARCH), await billing.statement("acme", APRIL)) == (march[0], kept)
    may = (await billing.statement("acme", MAY)).statement
    assert sum(line.calls for line in may.lines if line.component == 0) == 4
    assert [str(one.period) for one in await billing.closed_periods()] == ["2026-03", "2026-04"]


async def test_every_record_is_billed_in_exactly_one_period(ledger: Ledger, billing: Billing) -> None:
    february = Period(2026, 2)
    ends = [february.start, NOON, IN_APRIL, IN_MAY, NOON, IN_APRIL, february.start]
    for period in (None, february, MARCH, APRIL):
        if period is not None:
            await billing.close(BILLER, period, IN_MAY)
        await asyncio.gather(*[call(ledger, at) for at in ends])
    made = [await billing.statement("acme", period) for period in (february, MARCH, APRIL, MAY)]
    billed = [sum(line.calls for line in one.statement.lines if line.component == 0) for one in made]
    assert billed == [2, 2 + 4, 2 + 2 + 6, 3 + 7]
    assert sum(billed) == (await ledger.head()).sequence == 28
    assert [one.open for one in made] == [False, False, False, True]


async def test_what_can_not_be_closed_says_why(ledger: Ledger, billing: Billing) -> None:
    await call(ledger)
    for period, now, why in (
        (MARCH, NOON, "is not over before 2026-04-01T00:00:00Z"),
        (APRIL, IN_MAY, "2026-03 has usage and is still open"),
    ):
        with pytest.raises(Fault, match=why) as caught:
            await billing.close(BILLER, period, now)
        assert (caught.value.kind, caught.value.reason) == (FaultKind.FAILED_PRECONDITION, "WRONG_STATE")
    assert await billing.closed_periods() == ()
    await billing.close(BILLER, MARCH, IN_APRIL)
    await call(ledger, NOON)
    with pytest.raises(Fault, match="2026-04 has usage and is still open"):
        await billing.close(BILLER, MAY, IN_MAY + timedelta(days=60))
    assert (await billing.close(BILLER, Period(2026, 1), IN_MAY)).last_sequence == 0


async def test_periods_that_were_closed_at_once_are_closed_once(ledger: Ledger, billing: Billing) -> None:
    await call(ledger)
    closed = await asyncio.gather(
        *[billing.close(BILLER, MARCH, IN_APRIL + timedelta(seconds=number)) for number in range(10)]
    )
    assert len(set(closed)) == 1
