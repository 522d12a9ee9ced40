"""What holds for any usage and any plan: order and batches change nothing, and no unit of money appears or is lost."""

from __future__ import annotations

import random
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from rating_examples import MS, PERIOD, record
from skillcell.core.rate_plans import RateComponent, RateMeter, RatePlan, RateTier, TierMode
from skillcell.core.types import Measurement, StageTimes, UsageRecord
from skillcell.metering.rating.components import amount_of, marginal, most_of
from skillcell.metering.rating.focus import FocusSource, billed_sum, focus_rows
from skillcell.metering.rating.money import apportioned, exact, rounded
from skillcell.metering.rating.payouts import shares
from skillcell.metering.rating.plan_document import plan_document, plan_from_document
from skillcell.metering.rating.quantities import UsageSums, collect, key_of, quantity, sums_of, tagged_key_of
from skillcell.metering.rating.rate import statements

prices = st.decimals(min_value=0, max_value=100, places=9)
sizes = st.decimals(min_value=Decimal("0.001"), max_value=1000, places=3)
allowances = st.just(Decimal(0)) | sizes
used = st.decimals(min_value=0, max_value=5000, places=6)


@st.composite
def tier_lists(draw: st.DrawFn) -> tuple[RateTier, ...]:
    ends = sorted(draw(st.sets(sizes, max_size=4)))
    return tuple(RateTier(end, draw(prices), draw(allowances)) for end in [*ends, None])


@st.composite
def components(draw: st.DrawFn, modes: tuple[TierMode, ...] = tuple(TierMode)) -> RateComponent:
    meter, mode, free = draw(st.sampled_from(RateMeter)), draw(st.sampled_from(modes)), draw(allowances)
    if mode in (TierMode.GRADUATED, TierMode.VOLUME):
        return RateComponent(meter, mode, free_allowance=free, tiers=draw(tier_lists()))
    size = draw(sizes) if mode is TierMode.PACKAGE else Decimal(0)
    return RateComponent(meter, mode, draw(prices), free, package_size=size)


@st.composite
def plans(draw: st.DrawFn, version: int = 1, digits: int | None = None) -> RatePlan:
    priced = draw(st.lists(components(), min_size=1, max_size=4))
    places = draw(st.integers(0, 4)) if digits is None else digits
    share = draw(st.decimals(min_value=0, max_value=1, places=4))
    minimum = draw(st.sampled_from([Decimal(0), Decimal(7)]))
    return RatePlan("p", f"p/{version}", "EUR", places, tuple(priced), minimum, share)


@st.composite
def usage_records(draw: st.DrawFn) -> UsageRecord:
    run_ns = draw(st.integers(0, 100_000 * MS))
    memory = draw(st.integers(0, 2**34))
    correction = draw(st.sampled_from(["", "", "", "e"]))
    sign = draw(st.sampled_from([1, -1])) if correction else 1
    return record(
        tenant=draw(st.sampled_from(["acme", "zeta"])),
        publisher=draw(st.sampled_from(["ann", "bob"])),
        skill=draw(st.sampled_from(["one", "two"])),
        version=draw(st.sampled_from(["1.0.0", "2.0.0"])),
        plan_version=draw(st.sampled_from(["p/1", "p/2", ""])),
        billable=draw(st.sampled_from([True, True, False])),
        correction_of=correction,
        calls=sign,
        times=StageTimes(run_ns=run_ns),
        billed_ms=sign * -(-run_ns // MS),
        cpu_total_ns=sign * draw(st.integers(0, 10**12)),
        measurement=draw(st.sampled_from(Measurement)),
        memory_limit_byte_ns=sign * memory * run_ns,
        memory_used_byte_ns=sign * draw(st.integers(0, 2**34)) * run_ns,
        egress_in_bytes=sign * draw(st.integers(0, 2**40)),
        output_bytes=sign * draw(st.integers(0, 2**40)),
        labels=draw(st.sampled_from([{}, {"team": "a"}, {"team": "b"}])),
    )


both_versions = st.tuples(plans(version=1, digits=2), plans(version=2, digits=2)).map(
    lambda pair: {plan.version: plan for plan in pair}
)


@given(both_versions, st.lists(usage_records(), max_size=12), st.randoms(use_true_random=False))
def test_neither_order_nor_batches_of_records_change_a_statement(
    plans: dict[str, RatePlan], records: list[UsageRecord], shuffle: random.Random
) -> None:
    expected = statements("acme", PERIOD, collect(records), plans)
    mixed = shuffle.sample(records, len(records))
    cut = shuffle.randint(0, len(mixed))
    in_batches = collect(mixed[cut:], collect(mixed[:cut], key=tagged_key_of), key=tagged_key_of)
    assert statements("acme", PERIOD, in_batches, plans) == expected
    assert statements("acme", PERIOD, dict(reversed(in_batches.items())), plans) == expected


@given(both_versions, st.lists(usage_records(), max_size=12))
def test_lines_sum_to_the_total_shares_to_the_charges_and_focus_rows_to_both(
    plans: dict[str, RatePlan], records: list[UsageRecord]
) -> None:
    usage = collect(records, key=key_of)
    made = [one for tenant in ("acme", "zeta") for one in statements(tenant, PERIOD, usage, plans, plans["p/2"])]
    with exact():
        for statement in made:
            assert sum(line.amount for line in statement.lines) == statement.total
            assert all(rounded(line.amount, 2) == line.amount for line in statement.lines)
            assert statement.total >= 7 or not plans["p/2"].minimum_amount
        (split,) = shares(PERIOD, made, plans)
        assert sum(paid.total for paid in split.payouts) + split.platform_fee == split.charged
        assert split.charged == sum(statement.total for statement in made)
        for paid in split.payouts:
            assert sum(line.publisher_share for line in paid.lines) == paid.total
            assert all(line.publisher_share + line.platform_fee == line.charged for line in paid.lines)
        assert billed_sum(focus_rows(made, usage, plans, FocusSource())) == split.charged


@given(both_versions, st.lists(usage_records(), min_size=1, max_size=8))
def test_taking_everything_back_leaves_nothing_to_pay(plans: dict[str, RatePlan], records: list[UsageRecord]) -> None:
    calls = [replace(one, measurement=Measurement.EXACT) for one in records if not one.correction_of]
    back = [
        replace(
            one,
            correction_of="e",
            calls=-one.calls,
            billed_ms=-one.billed_ms,
            cpu_total_ns=-one.cpu_total_ns,
            memory_limit_byte_ns=-one.memory_limit_byte_ns,
            memory_used_byte_ns=-one.memory_used_byte_ns,
            egress_in_bytes=-one.egress_in_bytes,
            output_bytes=-one.output_bytes,
        )
        for one in calls
    ]
    without_minimum = {version: replace(plan, minimum_amount=Decimal(0)) for version, plan in plans.items()}
    for statement in statements("acme", PERIOD, collect(calls + back), without_minimum):
        assert statement.total == 0


@given(components((TierMode.FLAT, TierMode.GRADUATED, TierMode.PACKAGE)), used, used)
def test_more_usage_never_costs_less(component: RateComponent, one: Decimal, more: Decimal) -> None:
    with exact():
        assert amount_of(component, one + more) >= amount_of(component, one)


@given(components(), used)
def test_nothing_costs_nothing_and_less_than_nothing_mirrors_usage(component: RateComponent, quantity: Decimal) -> None:
    with exact():
        assert amount_of(component, Decimal(0)) == 0
        assert amount_of(component, -quantity) == -amount_of(component, quantity)


@given(components((TierMode.GRADUATED,)), used)
def test_graduated_is_the_sum_over_tiers(component: RateComponent, quantity: Decimal) -> None:
    """Told a second time, in fractions: each tier charges for what of the quantity lies in it, once it is reached."""
    counted = max(Fraction(quantity) - Fraction(component.free_allowance), Fraction(0))
    total, lower = Fraction(0), Fraction(0)
    for tier in component.tiers:
        upper = Fraction(tier.up_to) if tier.up_to is not None else counted
        inside = max(min(counted, upper) - lower, Fraction(0))
        total += inside * Fraction(tier.unit_amount) + (Fraction(tier.flat_amount) if inside else 0)
        lower = upper
    with exact():
        assert Fraction(amount_of(component, quantity)) == total


@given(components(), st.lists(used, max_size=6))
def test_what_parts_add_is_what_the_whole_costs(component: RateComponent, parts: list[Decimal]) -> None:
    with exact():
        prior = total = Decimal(0)
        for part in parts:
            total += marginal(component, prior, part)
            prior += part
        assert total == amount_of(component, prior)


@settings(max_examples=300)
@given(components(), used, used)
def test_the_most_is_never_exceeded_whatever_came_before(
    component: RateComponent, prior: Decimal, quantity: Decimal
) -> None:
    without_allowance = replace(component, free_allowance=Decimal(0))
    with exact():
        assert marginal(without_allowance, prior, quantity) <= most_of(component, quantity)


@given(
    st.integers(-(10**12), 10**12),
    st.lists(st.decimals(min_value=0, max_value=10**6, places=6), min_size=1, max_size=8),
    st.integers(0, 9),
)
def test_a_split_sums_to_the_whole_and_each_part_is_within_a_unit(
    units: int, weights: list[Decimal], digits: int
) -> None:
    total = Decimal(units).scaleb(-digits)
    whole = sum(map(Fraction, weights))
    if not whole:
        return
    parts = apportioned(total, weights, digits)
    with exact():
        assert sum(parts) == total
    for part, weight in zip(parts, weights, strict=True):
        assert abs(Fraction(part) - Fraction(total) * Fraction(weight) / whole) < Fraction(1, 10**digits)


@given(st.lists(usage_records(), max_size=8))
def test_quantities_of_a_sum_are_sums_of_quantities(records: list[UsageRecord]) -> None:
    whole = sum(map(sums_of, records), UsageSums())
    with exact():
        for meter in RateMeter:
            assert quantity(meter, whole) == sum(quantity(meter, sums_of(one)) for one in records)


@given(plans())
def test_any_plan_survives_being_written_as_a_document(plan: RatePlan) -> None:
    share_kept = replace(plan, version="", minimum_amount=Decimal(0))
    assert plan_from_document(plan_document(share_kept)) == share_kept
