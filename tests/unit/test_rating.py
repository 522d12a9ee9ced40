"""What is billed of records, how versions and corrections add up, and who gets what."""

from __future__ import annotations

import decimal
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from rating_examples import GIB, MIB, MS, PERIOD, calls_plan, plan_of, record, statement_of
from skillcell.core.decimals import decimal_text
from skillcell.core.errors import Fault, FaultKind
from skillcell.core.rate_plans import RateMeter, RatePlan
from skillcell.core.statements import Statement
from skillcell.core.types import Limits, Measurement, Outcome
from skillcell.metering.rating.cost import cost_of, cost_of_usage, max_cost
from skillcell.metering.rating.money import apportioned, exact, quotient, rounded
from skillcell.metering.rating.payouts import payout, shares
from skillcell.metering.rating.quantities import (
    UsageKey,
    UsageSums,
    collect,
    key_of,
    most_of,
    quantity,
    sums_of,
    tagged_key_of,
)
from skillcell.metering.rating.rate import statements


def rate(usage: dict[tuple[str, str], int], *plans: RatePlan, in_force: RatePlan | None = None) -> Statement:
    """Calls by (plan version, Skill)."""
    keyed = {
        UsageKey("acme", version, "pub", skill): UsageSums(calls=calls) for (version, skill), calls in usage.items()
    }
    (made,) = statements("acme", PERIOD, keyed, {plan.version: plan for plan in plans}, in_force)
    return made


def amounts(made: Statement) -> list[str]:
    return [str(line.amount) for line in made.lines]


# Quantities


def test_what_is_not_billable_counts_as_nothing() -> None:
    assert sums_of(record(billable=False, outcome=Outcome.PLATFORM_ERROR)) == UsageSums()


@pytest.mark.parametrize(
    ("meter", "expected"),
    [
        (RateMeter.CALLS, "1"),
        (RateMeter.BILLED_SECONDS, "0.1"),
        (RateMeter.CPU_SECONDS, "0.1"),
        (RateMeter.MEMORY_RESERVED_GIB_SECONDS, "0.0125"),
        (RateMeter.MEMORY_USED_GIB_SECONDS, "0.00625"),
        (RateMeter.MEMORY_LARGER_GIB_SECONDS, "0.0125"),
        (RateMeter.EGRESS_BYTES, "7"),
        (RateMeter.OUTPUT_BYTES, "11"),
    ],
)
def test_each_meter_counts_in_its_unit(meter: RateMeter, expected: str) -> None:
    call = record(egress_in_bytes=3, egress_out_bytes=4, output_bytes=5, artifact_bytes=6)
    assert quantity(meter, sums_of(call)) == Decimal(expected)


@pytest.mark.parametrize("measurement", [m for m in Measurement if m is not Measurement.EXACT])
def test_cpu_that_was_not_measured_exactly_is_billed_as_granted(measurement: Measurement) -> None:
    call = record(measurement=measurement, cpu_total_ns=1, milli_cpus=1500)
    assert quantity(RateMeter.CPU_SECONDS, sums_of(call)) == Decimal("0.15")


def test_the_larger_memory_is_chosen_record_by_record() -> None:
    granted, used = record(memory_limit_byte_ns=5, memory_used_byte_ns=1), record(memory_used_byte_ns=2**60)
    whole = sums_of(granted) + sums_of(used)
    assert whole.memory_larger_byte_ns == 5 + 2**60


def test_a_byte_nanosecond_is_exact_in_gib_seconds() -> None:
    """2^-30 × 10^-9 has 39 decimal places: more than the default context keeps."""
    (one,) = {quantity(RateMeter.MEMORY_RESERVED_GIB_SECONDS, UsageSums(memory_reserved_byte_ns=1))}
    assert one == Decimal(5**30).scaleb(-39)
    with exact():
        assert one * GIB * 10**9 == 1


def test_a_correction_that_takes_a_call_back_leaves_nothing_to_bill() -> None:
    call = record(egress_in_bytes=3, output_bytes=5, measurement=Measurement.EXACT)
    back = replace(
        call,
        correction_of=call.event_id,
        calls=-1,
        billed_ms=-call.billed_ms,
        cpu_total_ns=-call.cpu_total_ns,
        memory_limit_byte_ns=-call.memory_limit_byte_ns,
        memory_used_byte_ns=-call.memory_used_byte_ns,
        egress_in_bytes=-3,
        output_bytes=-5,
    )
    assert sums_of(call) + sums_of(back) == UsageSums()


def test_a_corrections_cpu_counts_as_it_is_however_the_call_was_measured() -> None:
    back = record(correction_of="e", cpu_total_ns=-40 * MS, measurement=Measurement.LOWER_BOUND)
    assert quantity(RateMeter.CPU_SECONDS, sums_of(back)) == Decimal("-0.04")


@pytest.mark.parametrize(
    ("reserved", "used", "larger"),
    [(-100, -40, -100), (-40, -100, -100), (0, -7, 0), (-5, 0, -5), (3, -4, 3), (2, 9, 9)],
)
def test_what_a_correction_does_to_the_larger_memory(reserved: int, used: int, larger: int) -> None:
    back = record(correction_of="e", memory_limit_byte_ns=reserved, memory_used_byte_ns=used)
    assert sums_of(back).memory_larger_byte_ns == larger


def test_only_a_correction_of_an_earlier_month_is_one_to_an_export() -> None:
    within = record(correction_of="e")
    later = record(correction_of="e", admitted_at=datetime(2026, 10, 31, 23, tzinfo=UTC))
    assert [key_of(one).correction for one in (record(), within, later)] == [False, False, True]


def test_labels_are_told_apart_only_where_they_are_asked_for() -> None:
    calls = [record(labels={"b": "2", "a": "1"}), record(labels={"a": "1", "b": "2"}), record()]
    assert len(collect(calls, key=key_of)) == 1
    assert {key.tags for key in collect(calls, key=tagged_key_of)} == {'{"a": "1", "b": "2"}', ""}


# Versions, names, currencies


def test_a_new_version_goes_on_where_the_one_before_stopped() -> None:
    first = calls_plan("mode: graduated, free_allowance: 100, tiers: [{up_to: 10, unit_amount: 3}, {unit_amount: 1}]")
    second = replace(
        calls_plan("mode: graduated, free_allowance: 100, tiers: [{up_to: 10, unit_amount: 30}, {unit_amount: 10}]"),
        version="p/2",
    )
    made = rate({("p/1", "tool"): 105, ("p/2", "tool"): 10}, first, second)
    assert amounts(made) == ["15.00", "200.00"]  # 5 at 3; then 5 at 30 and 5 at 10


def test_versions_follow_each_other_by_number_and_not_as_text_or_as_they_come() -> None:
    plans = [calls_plan(f"unit_amount: {price}, free_allowance: 10", number) for price, number in ((1, 9), (5, 10))]
    made = rate({("p/10", "tool"): 10, ("p/9", "tool"): 10}, *plans)
    assert amounts(made) == ["0.00", "50.00"]


def test_a_package_that_an_earlier_version_began_is_not_charged_again() -> None:
    plans = [calls_plan("mode: package, unit_amount: 5, package_size: 100", number) for number in (1, 2)]
    assert amounts(rate({("p/1", "tool"): 150, ("p/2", "tool"): 50}, *plans)) == ["10.00", "0.00"]


def test_a_meter_that_an_earlier_version_did_not_price_has_used_no_allowance() -> None:
    without = plan_of("name: p\ncurrency: USD\ncomponents: [{meter: egress_bytes, unit_amount: 1}]", 1)
    with_calls = calls_plan("unit_amount: 1, free_allowance: 10", 2)
    assert rate({("p/1", "tool"): 10, ("p/2", "tool"): 10}, without, with_calls).total == 0


def test_a_plan_of_another_name_is_another_contract() -> None:
    plans = [calls_plan("unit_amount: 1, free_allowance: 10", name=name) for name in ("a", "b")]
    assert rate({("a/1", "tool"): 10, ("b/1", "tool"): 10}, *plans).total == 0


def test_each_currency_has_a_statement_of_its_own() -> None:
    plans = {f"{name}/1": calls_plan("unit_amount: 1", name=name, currency=name.upper()) for name in ("eur", "usd")}
    usage = {UsageKey("acme", version, "pub", "tool"): UsageSums(calls=3) for version in plans}
    made = statements("acme", PERIOD, usage, plans)
    assert [(one.currency, one.total) for one in made] == [("EUR", 3), ("USD", 3)]


def test_calls_without_a_plan_cost_nothing_and_an_unknown_plan_is_said() -> None:
    assert statements("acme", PERIOD, {UsageKey("acme", "", "pub", "tool"): UsageSums(calls=1)}, {}) == ()
    with pytest.raises(Fault) as missing:
        statements("acme", PERIOD, {UsageKey("acme", "gone/1", "pub", "tool"): UsageSums(calls=1)}, {})
    assert (missing.value.kind, missing.value.reason) == (FaultKind.NOT_FOUND, "RATE_PLAN_NOT_FOUND")


def test_other_tenants_usage_is_left_alone() -> None:
    plan = calls_plan("unit_amount: 1")
    usage = {UsageKey(tenant, "p/1", "pub", "tool"): UsageSums(calls=1) for tenant in ("acme", "zeta")}
    assert statements("acme", PERIOD, usage, {"p/1": plan})[0].total == 1


def test_several_components_may_price_one_meter() -> None:
    plan = plan_of(
        "name: p\ncurrency: USD\ncomponents: [{meter: calls, unit_amount: 1}, "
        "{meter: calls, unit_amount: 10, free_allowance: 2}]"
    )
    assert amounts(statement_of(plan, UsageSums(calls=3))) == ["3.00", "10.00"]


# Minimum charges


def test_the_minimum_is_a_line_of_its_own_for_the_difference() -> None:
    plan = calls_plan("unit_amount: 1.25", more="minimum_amount: 10")
    made = statement_of(plan, UsageSums(calls=3))
    assert [(line.meter, line.skill, line.amount) for line in made.lines] == [
        (RateMeter.CALLS, "tool", Decimal("3.75")),
        (None, "", Decimal("6.25")),
    ]
    assert made.total == 10
    assert len(statement_of(plan, UsageSums(calls=8)).lines) == 1


def test_the_minimum_of_the_plan_in_force_is_due_without_a_call() -> None:
    plan = calls_plan("unit_amount: 1", more="minimum_amount: 10")
    (made,) = statements("acme", PERIOD, {}, {}, plan)
    assert made.total == 10


def test_a_tenant_that_changed_its_plan_pays_one_minimum() -> None:
    low, high = (
        calls_plan("unit_amount: 1", name=name, more=f"minimum_amount: {m}") for name, m in (("a", 5), ("b", 9))
    )
    usage = {("a/1", "tool"): 1, ("b/1", "tool"): 1}
    assert rate(usage, low, high, in_force=low).total == 5
    assert rate(usage, low, high).total == 9


# Corrections


@pytest.mark.parametrize(
    "component",
    [
        "unit_amount: 0.333",
        "mode: package, unit_amount: 5, package_size: 3",
        "mode: volume, tiers: [{up_to: 2, unit_amount: 1, flat_amount: 4}, {unit_amount: 0.5}]",
        "mode: graduated, free_allowance: 1, tiers: [{up_to: 2, unit_amount: 1, flat_amount: 4}, {unit_amount: 0.5}]",
    ],
)
def test_less_than_nothing_is_credited_as_the_same_usage_is_charged(component: str) -> None:
    plan = calls_plan(component)
    for calls in range(1, 8):
        assert statement_of(plan, UsageSums(calls=-calls)).total == -statement_of(plan, UsageSums(calls=calls)).total


def test_a_credit_is_rounded_as_its_mirror_image() -> None:
    assert [rounded(Decimal(text), 2) for text in ("0.005", "-0.005", "0.0049")] == [
        Decimal("0.01"),
        Decimal("-0.01"),
        Decimal("0.00"),
    ]


# Splitting


def test_a_rounded_line_is_split_over_skills_without_a_remainder() -> None:
    plan = calls_plan("unit_amount: 0.01")
    made = rate({("p/1", skill): 1 for skill in "abc"}, calls_plan("unit_amount: 0.0034"))
    assert amounts(made) == ["0.01", "0.00", "0.00"]  # 0.0102 is a cent, and equal shares go by name
    assert amounts(rate({("p/1", "a"): 1, ("p/1", "b"): 2}, plan)) == ["0.01", "0.02"]


@pytest.mark.parametrize(
    ("total", "weights", "parts"),
    [
        ("1.00", "1 1 1", "0.34 0.33 0.33"),
        ("-1.00", "1 1 1", "-0.34 -0.33 -0.33"),
        ("0.02", "0.5 0.3 0.2", "0.01 0.01 0.00"),
        ("0.00", "1 -1", "0.00 0.00"),
        ("6.00", "10 -4", "10.00 -4.00"),
        ("6.00", "-10 4", "10.00 -4.00"),
        ("5.00", "0 1 0", "0.00 5.00 0.00"),
    ],
)
def test_largest_remainders(total: str, weights: str, parts: str) -> None:
    found = apportioned(Decimal(total), [Decimal(text) for text in weights.split()], 2)
    assert [str(part) for part in found] == parts.split()


def test_an_amount_can_not_be_split_by_nothing_nor_into_less_than_a_unit() -> None:
    with pytest.raises(ValueError, match="sum to 0"):
        apportioned(Decimal("0.01"), [Decimal(1), Decimal(-1)], 2)
    with pytest.raises(decimal.Inexact):
        apportioned(Decimal("0.001"), [Decimal(1)], 2)


# Payouts


def test_charges_are_shared_out_without_a_remainder_and_minimums_stay_with_the_platform() -> None:
    plan = calls_plan("unit_amount: 0.01", more="publisher_share: 0.7\nminimum_amount: 1")
    plans = {plan.version: plan}
    used = {("acme", "ann", "one"): 1, ("acme", "bob", "two"): 5, ("zeta", "ann", "one"): 4}
    usage = {
        UsageKey(tenant, plan.version, publisher, skill): UsageSums(calls=calls)
        for (tenant, publisher, skill), calls in used.items()
    }
    made = [one for tenant in ("acme", "zeta") for one in statements(tenant, PERIOD, usage, plans, plan)]
    (split,) = shares(PERIOD, made, plans)
    assert split.charged == Decimal("2.00")
    ann, bob = split.payouts
    assert (ann.publisher, str(ann.total)) == ("ann", "0.04")  # 0.035 of five calls over two tenants, split once
    assert (bob.publisher, str(bob.total)) == ("bob", "0.04")
    assert [(line.skill, line.calls, str(line.charged)) for line in ann.lines] == [("one", 5, "0.05")]
    assert ann.total + bob.total + split.platform_fee == split.charged
    assert payout("ann", PERIOD, made, plans) == (ann,)
    assert payout("nobody", PERIOD, made, plans) == ()


def test_calls_are_counted_once_though_each_component_has_a_line() -> None:
    plan = plan_of(
        "name: p\ncurrency: USD\npublisher_share: 1\ncomponents: [{meter: calls, unit_amount: 1}, "
        "{meter: billed_seconds, unit_amount: 1}]"
    )
    made = statements("acme", PERIOD, collect([record(), record()]), {"p/1": plan})
    (paid,) = payout("pub", PERIOD, made, {"p/1": plan})
    assert (paid.lines[0].calls, str(paid.total)) == (2, "2.20")


# One call


def test_the_cost_of_a_call_is_exact_and_its_lines_sum_to_it() -> None:
    plan = plan_of(
        "name: p\ncurrency: USD\ncomponents: [{meter: calls, unit_amount: 0.0000002, free_allowance: 5}, "
        "{meter: memory_reserved_gib_seconds, unit_amount: 0.0000166667}]"
    )
    cost = cost_of(record(), plan)
    assert decimal_text(cost.amount) == "0.00000040833375"
    assert (cost.currency, cost.plan_version) == ("USD", "p/1")
    with exact():
        assert sum(line.amount for line in cost.lines) == cost.amount
    assert cost_of(record(billable=False), plan).amount == 0


def test_the_cost_with_what_came_before_is_what_the_call_adds_to_the_statement() -> None:
    plan = calls_plan("mode: graduated, free_allowance: 1, tiers: [{up_to: 2, unit_amount: 3}, {unit_amount: 1}]")
    one = UsageSums(calls=1)
    added = [cost_of_usage(one, plan, {RateMeter.CALLS: Decimal(before)}).amount for before in range(5)]
    assert added == [0, 3, 3, 1, 1]
    assert sum(added) == statement_of(plan, UsageSums(calls=5)).total


def test_alone_a_call_costs_its_part_of_a_package_and_at_most_a_whole_one() -> None:
    plan = calls_plan("mode: package, unit_amount: 5, package_size: 1000, free_allowance: 10")
    assert cost_of(record(), plan).amount == Decimal("0.005")
    assert max_cost(Limits(), plan).amount == 5


def test_the_most_that_a_call_can_cost_uses_up_every_limit() -> None:
    limits = Limits(wall_ns=10_000 * MS, cpu_ns=4_000 * MS, milli_cpus=500, memory_bytes=512 * MIB)
    most = most_of(limits)
    assert quantity(RateMeter.BILLED_SECONDS, most) == 10
    # As granted, should it not be measured exactly; and what half a core does until a call is stopped for its CPU time.
    assert quantity(RateMeter.CPU_SECONDS, most) == Decimal("5.125")
    assert quantity(RateMeter.MEMORY_LARGER_GIB_SECONDS, most) == 5
    assert most.egress_bytes == limits.egress_bytes
    assert most.output_bytes == limits.output_bytes + limits.artifact_bytes


def test_the_most_counts_the_dearest_tier_and_what_it_begins() -> None:
    dear = calls_plan("mode: graduated, tiers: [{up_to: 5, unit_amount: 1}, {unit_amount: 2, flat_amount: 7}]")
    assert max_cost(Limits(), dear).amount == 9
    jump = calls_plan("mode: volume, tiers: [{up_to: 5, unit_amount: 1}, {unit_amount: 2}]")
    assert max_cost(Limits(), jump).amount == 7  # the sixth call: 12 for all, 5 of them paid


# Arithmetic


def test_the_threads_own_context_changes_nothing() -> None:
    plan = calls_plan("mode: graduated, tiers: [{up_to: 5, unit_amount: 0.123456789}, {unit_amount: 0.1}]")
    expected = statement_of(plan, UsageSums(calls=10**12))
    with decimal.localcontext(decimal.Context(prec=3, rounding=decimal.ROUND_DOWN)):
        assert statement_of(plan, UsageSums(calls=10**12)) == expected


def test_a_result_that_can_not_be_exact_is_an_error() -> None:
    with exact(), pytest.raises(decimal.Inexact):
        Decimal(1) / Decimal(3)
    assert quotient(Decimal(2), Decimal(3), 4) == Decimal("0.6667")


def test_the_largest_usage_and_dearest_price_are_rated_exactly() -> None:
    price = Decimal("9" * 18 + "." + "9" * 18)
    plan = plan_of(
        "name: p\ncurrency: USD\nminor_digits: 9\n"
        f"components: [{{meter: memory_used_gib_seconds, unit_amount: {price}}}]"
    )
    used = UsageSums(memory_used_byte_ns=2**200 - 1)
    cost = cost_of_usage(used, plan)
    with exact():
        assert cost.amount == quantity(RateMeter.MEMORY_USED_GIB_SECONDS, used) * price
    assert statement_of(plan, used).total == rounded(cost.amount, 9)


@pytest.mark.parametrize(
    ("value", "text"), [("1E+3", "1000"), ("0.000123000", "0.000123"), ("-0.0", "0"), ("0", "0"), ("-1.50", "-1.5")]
)
def test_decimals_are_written_without_exponents(value: str, text: str) -> None:
    assert decimal_text(Decimal(value)) == text
