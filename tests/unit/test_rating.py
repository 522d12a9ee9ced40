"""Statements by the published worked examples of the systems whose words the plans use."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from skillcell.core.errors import Fault, FaultKind
from skillcell.core.rate_plans import RateMeter, RatePlan
from skillcell.core.statements import Statement
from skillcell.core.types import FaultParty, Isolation, Limits, Measurement, Outcome, StageTimes, UsageRecord
from skillcell.metering.rating.components import amount_of
from skillcell.metering.rating.cost import cost_of, max_cost
from skillcell.metering.rating.money import exact
from skillcell.metering.rating.payouts import payout, shares
from skillcell.metering.rating.plan_document import read_plan
from skillcell.metering.rating.quantities import UsageKey, UsageSums, collect, quantity, sums_of
from skillcell.metering.rating.rate import statements

MIB, GIB = 1 << 20, 1 << 30
MS = 1_000_000
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
LAMBDA = """
name: lambda
currency: USD
components:
- {meter: calls, unit_amount: 0.0000002, free_allowance: 1000000}
- {meter: memory_reserved_gib_seconds, unit_amount: 0.0000166667, free_allowance: 400000}
"""


def plan_of(text: str, version: int = 1) -> RatePlan:
    plan = read_plan(text.encode())
    return replace(plan, version=f"{plan.name}/{version}")


def record(**given: object) -> UsageRecord:
    """A billable call of `acme`'s: 100 ms of one core in 128 MiB."""
    values: dict[str, object] = {
        "event_id": "e",
        "execution_id": "x",
        "tenant": "acme",
        "publisher": "pub",
        "skill": "tool",
        "version": "1.0.0",
        "digest": "sha256:" + "0" * 64,
        "entrypoint": "main",
        "isolation": Isolation.STANDARD,
        "driver": "oci",
        "warm": True,
        "outcome": Outcome.SUCCEEDED,
        "fault": FaultParty.NONE,
        "billable": True,
        "started_at": NOW,
        "ended_at": NOW,
        "admitted_at": NOW,
        "times": StageTimes(run_ns=100 * MS),
        "billed_ms": 100,
        "cpu_total_ns": 100 * MS,
        "milli_cpus": 1000,
        "memory_limit_bytes": 128 * MIB,
        "memory_limit_byte_ns": 128 * MIB * 100 * MS,
        "memory_used_byte_ns": 64 * MIB * 100 * MS,
        "plan_version": "lambda/1",
    }
    return UsageRecord(**(values | given))  # type: ignore[arg-type]


def usage_of(plan: RatePlan, sums: UsageSums, skill: str = "tool") -> dict[UsageKey, UsageSums]:
    return {UsageKey("acme", plan.version, "pub", skill): sums}


def statement_of(plan: RatePlan, sums: UsageSums) -> Statement:
    (made,) = statements("acme", "2026-11", usage_of(plan, sums), {plan.version: plan}, plan)
    return made


@pytest.mark.parametrize(
    ("memory_mib", "millions", "run_ms", "compute", "requests"),
    [
        (1536, 3, 120, "2.33", "0.40"),
        (512, 3, 1000, "18.33", "0.40"),
    ],
)
def test_lambdas_published_examples(memory_mib: int, millions: int, run_ms: int, compute: str, requests: str) -> None:
    calls = millions * 1_000_000
    sums = UsageSums(calls=calls, memory_reserved_byte_ns=calls * memory_mib * MIB * run_ms * MS)
    made = statement_of(plan_of(LAMBDA), sums)
    assert [str(line.amount) for line in made.lines] == [requests, compute]
    assert made.total == Decimal(compute) + Decimal(requests)


def test_bad_plan_names_the_place() -> None:
    with pytest.raises(Fault) as refused:
        read_plan(LAMBDA.replace("0.0000002", "-1").encode())
    assert refused.value.kind is FaultKind.INVALID_ARGUMENT
    assert refused.value.violations[0].field == "components[0].unit_amount"


def test_more_to_come() -> None:
    plan = plan_of(LAMBDA + "publisher_share: 0.7\nminimum_amount: 5\n")
    records = [record(event_id=str(n)) for n in range(3)]
    records.append(record(measurement=Measurement.SAMPLED, cpu_total_ns=1))
    usage = collect(records)
    assert quantity(RateMeter.CPU_SECONDS, next(iter(usage.values()))) == Decimal("0.4")
    made = statements("acme", "2026-11", usage, {plan.version: plan}, plan)
    assert made[0].total == Decimal("5.00")
    (split,) = shares("2026-11", made, {plan.version: plan})
    assert split.charged == split.platform_fee == 5
    assert payout("pub", "2026-11", made, {plan.version: plan})[0].total == 0
    cost = cost_of(record(), plan)
    assert cost.amount == Decimal("0.0000002") + Decimal("0.0125") * Decimal("0.0000166667")
    assert max_cost(Limits(), plan).amount > cost.amount
    assert sums_of(record(billable=False)) == UsageSums()
    with exact():
        assert amount_of(plan.components[0], Decimal(0)) == 0
