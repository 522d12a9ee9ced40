"""The worked examples that AWS Lambda, Stripe and Lago publish, rated by plans in our words."""

from __future__ import annotations

from decimal import Decimal

import pytest

from rating_examples import MIB, MS, PERIOD, calls_plan, plan_of, statement_of
from skillcell.metering.rating.quantities import UsageKey, UsageSums
from skillcell.metering.rating.rate import statements

LAMBDA = """
name: lambda
currency: USD
components:
- {meter: calls, unit_amount: 0.0000002, free_allowance: 1000000}
- {meter: memory_reserved_gib_seconds, unit_amount: PRICE, free_allowance: 400000}
"""


def lambda_usage(millions: str, memory_mib: int, run_ms: int) -> UsageSums:
    calls = int(Decimal(millions) * 1_000_000)
    return UsageSums(calls=calls, memory_reserved_byte_ns=calls * memory_mib * MIB * run_ms * MS)


@pytest.mark.parametrize(
    ("price", "used", "requests", "compute"),
    [
        ("0.0000166667", ("3", 1536, 120), "0.40", "2.33"),
        ("0.00001667", ("3", 512, 1000), "0.40", "18.34"),
        ("0.00001667", ("30", 128, 200), "5.80", "5.83"),
    ],
)
def test_aws_lambda_with_its_free_tier(price: str, used: tuple[str, int, int], requests: str, compute: str) -> None:
    """https://aws.amazon.com/lambda/pricing/ : a mobile backend of three million requests (2.73 in all), and the
    page's earlier examples 1 (18.74) and 2 (11.63)."""
    made = statement_of(plan_of(LAMBDA.replace("PRICE", price)), lambda_usage(*used))
    assert [str(line.amount) for line in made.lines] == [requests, compute]
    assert made.total == Decimal(requests) + Decimal(compute)


def test_aws_lambda_counts_the_free_tier_once_over_all_functions() -> None:
    """https://aws.amazon.com/lambda/pricing/ , earlier example 3: three functions, 63.66 + 6.30 = 69.96."""
    plan = plan_of(LAMBDA.replace("PRICE", "0.00001667"))
    functions = {"small": ("25", 128, 200), "middle": ("5", 448, 500), "large": ("2.5", 1024, 1000)}
    usage = {UsageKey("acme", plan.version, "pub", name): lambda_usage(*used) for name, used in functions.items()}
    (made,) = statements("acme", PERIOD, usage, {plan.version: plan})
    by_component = [sum(line.amount for line in made.lines if line.component == place) for place in (0, 1)]
    assert by_component == [Decimal("6.30"), Decimal("63.66")]
    assert made.total == Decimal("69.96")
    assert {line.skill for line in made.lines} == set(functions)


def test_aws_lambdas_duration_tiers_are_graduated() -> None:
    """https://aws.amazon.com/lambda/pricing/ , x86 in US East: the first 6 billion GB-seconds, the next 9, over 15."""
    tiers = """[{up_to: 6e9, unit_amount: 0.0000166667}, {up_to: 15e9, unit_amount: 0.000015},
        {unit_amount: 0.0000133334}]"""
    plan = plan_of(
        "name: x86\ncurrency: USD\ncomponents:\n- {meter: memory_reserved_gib_seconds, mode: graduated, tiers: "
        f"{tiers}}}\n"
    )
    made = statement_of(plan, UsageSums(memory_reserved_byte_ns=16 * 10**9 * 1024 * MIB * 1000 * MS))
    assert made.total == Decimal("100000.20") + Decimal("135000.00") + Decimal("13333.40")


TYPOGRAPHIC = "tiers: [{up_to: 5, unit_amount: 7}, {up_to: 10, unit_amount: 6.5}, {unit_amount: 6}]"
FIVE_TIERS = """tiers: [{up_to: 5, unit_amount: 5}, {up_to: 10, unit_amount: 4}, {up_to: 15, unit_amount: 3},
    {up_to: 20, unit_amount: 2}, {unit_amount: 1}]"""


@pytest.mark.parametrize(
    ("mode", "tiers", "totals"),
    [
        ("volume", TYPOGRAPHIC, {1: "7", 5: "35", 6: "39", 20: "120", 25: "150"}),
        ("graduated", TYPOGRAPHIC, {1: "7", 5: "35", 6: "41.5", 20: "127.5", 25: "157.5"}),
        ("volume", FIVE_TIERS, {1: "5", 5: "25", 6: "24", 20: "40", 25: "25"}),
        ("graduated", FIVE_TIERS, {1: "5", 5: "25", 6: "29", 20: "70", 25: "75"}),
    ],
)
def test_stripe_tiers(mode: str, tiers: str, totals: dict[int, str]) -> None:
    """https://docs.stripe.com/subscriptions/pricing-models/tiered-pricing (Typographic's fonts), and the tables of
    its predecessor https://stripe.com/docs/billing/subscriptions/tiers ."""
    plan = calls_plan(f"mode: {mode}, {tiers}")
    assert {used: statement_of(plan, UsageSums(calls=used)).total for used in totals} == {
        used: Decimal(total) for used, total in totals.items()
    }


def test_stripe_fixed_fee_and_overage_as_a_tiers_flat_amount() -> None:
    """https://docs.stripe.com/subscriptions/pricing-models/usage-based-pricing : Hypernian Pro, 200 USD with 100,000
    tokens, 0.001 USD for each one above. A tier of ours falls due with its first unit: at no usage there is no fee."""
    plan = calls_plan(
        "mode: graduated, tiers: [{up_to: 100000, unit_amount: 0, flat_amount: 200}, {unit_amount: 0.001}]"
    )
    totals = {used: str(statement_of(plan, UsageSums(calls=used)).total) for used in (0, 1, 100_000, 150_000)}
    assert totals == {0: "0.00", 1: "200.00", 100_000: "200.00", 150_000: "250.00"}


@pytest.mark.parametrize(
    ("component", "totals"),
    [
        (
            """mode: graduated, tiers: [{up_to: 100, unit_amount: 1}, {up_to: 200, unit_amount: 0.5},
            {unit_amount: 0.1}]""",
            {100: "100", 200: "150", 300: "160"},
        ),
        (
            "mode: graduated, tiers: [{up_to: 10, unit_amount: 10, flat_amount: 2}, {unit_amount: 5, flat_amount: 3}]",
            {0: "0", 1: "12", 10: "102", 11: "110", 12: "115"},
        ),
        (
            """mode: volume, tiers: [{up_to: 10000, unit_amount: 0.0010, flat_amount: 10},
            {up_to: 50000, unit_amount: 0.0008, flat_amount: 10},
            {up_to: 100000, unit_amount: 0.0006, flat_amount: 10}, {unit_amount: 0.0004, flat_amount: 10}]""",
            {65_000: "49"},
        ),
        (
            """mode: volume, tiers: [{up_to: 100, unit_amount: 2, flat_amount: 10}, {up_to: 200, unit_amount: 1},
            {unit_amount: 0.5, flat_amount: 50}]""",
            {0: "0", 1: "12", 100: "210", 101: "101", 200: "200", 300: "200"},
        ),
        ("mode: package, unit_amount: 5, package_size: 100, free_allowance: 100", {100: "0", 201: "10"}),
        ("mode: package, unit_amount: 100, package_size: 10", {121: "1300"}),
        ("mode: package, unit_amount: 100, package_size: 10, free_allowance: 10", {121: "1200"}),
    ],
    ids=["graduated", "graduated, flat fees", "volume", "volume, flat fees", "package", "packages", "packages, free"],
)
def test_lago_charge_models(component: str, totals: dict[int, str]) -> None:
    """https://getlago.com/docs/guide/plans/charges/charge-models/{graduated,volume,package}.md , and the examples by
    which Lago itself is tested: getlago/lago-api, spec/services/charges/charge_models/."""
    plan = calls_plan(component)
    assert {used: statement_of(plan, UsageSums(calls=used)).total for used in totals} == {
        used: Decimal(total) for used, total in totals.items()
    }


def test_a_currency_without_minor_units_is_billed_in_whole_ones() -> None:
    """Chargebee's example of rounding by currency: 4.4556 × 10.625 is 47.34 USD and 47 JPY.
    https://www.chargebee.com/docs/2.0/site-configuration/articles-and-faq/what-is-the-rounding-logic-for-line-item-amounts.html"""
    totals = []
    for currency in ("USD", "JPY"):
        plan = plan_of(f"name: p\ncurrency: {currency}\ncomponents: [{{meter: billed_seconds, unit_amount: 4.4556}}]")
        totals.append(str(statement_of(plan, UsageSums(billed_ms=10_625)).total))
    assert totals == ["47.34", "47"]
