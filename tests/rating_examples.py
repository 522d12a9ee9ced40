"""Plans, records and usage for the tests of rating."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from skillcell.core.rate_plans import RatePlan
from skillcell.core.statements import Statement
from skillcell.core.types import FaultParty, Isolation, Outcome, StageTimes, UsageRecord
from skillcell.metering.rating.plan_document import read_plan
from skillcell.metering.rating.quantities import UsageKey, UsageSums
from skillcell.metering.rating.rate import statements

MIB, GIB, MS = 1 << 20, 1 << 30, 1_000_000
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
PERIOD = "2026-11"


def plan_of(text: str, version: int = 1) -> RatePlan:
    """The plan of a document, as a version."""
    plan = read_plan(text.encode())
    return replace(plan, version=f"{plan.name}/{version}")


def calls_plan(component: str, version: int = 1, name: str = "p", more: str = "", currency: str = "USD") -> RatePlan:
    """A plan whose only component prices calls; `component` is the rest of it."""
    components = f"components: [{{meter: calls, {component}}}]"
    return plan_of(f"name: {name}\ncurrency: {currency}\n{components}\n{more}\n", version)


def statement_of(plan: RatePlan, sums: UsageSums) -> Statement:
    """Of a tenant that used one Skill."""
    usage = {UsageKey("acme", plan.version, "pub", "tool"): sums}
    (made,) = statements("acme", PERIOD, usage, {plan.version: plan}, plan)
    return made


def record(**given: object) -> UsageRecord:
    """A billable call of `acme`'s: 100 ms of one core in 128 MiB, half of it used."""
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
        "plan_version": "p/1",
    }
    return UsageRecord(**(values | given))  # type: ignore[arg-type]
