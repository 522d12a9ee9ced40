"""From a tenant's usage of one billing period to its statement; pure, and the same whatever the order of the records.

How a line comes about: the quantities of all Skills under one plan version are added up, priced as one, rounded once
(half away from zero, as invoices of Stripe and Lago are), and the rounded amount is split over the Skills by quantity.

A plan's versions follow each other by number, whatever order their calls came in: allowance, tiers and begun packages
of a version go on where the versions before it stopped. A plan of another name is another contract: its quantities
start from nothing. The minimum is the tenant's, so it is charged once: that of the plan in force, else the highest
minimum among the newest versions that rated something.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from skillcell.core.errors import not_found
from skillcell.core.rate_plans import RateMeter, RatePlan, version_number
from skillcell.core.statements import Statement, StatementLine
from skillcell.metering.rating.components import marginal
from skillcell.metering.rating.money import ZERO, apportioned, exact, quotient, rounded
from skillcell.metering.rating.quantities import UNITS, UsageKey, UsageSums, quantity

Sold = tuple[str, str]
"""Publisher, Skill."""


@dataclass(slots=True)
class _PlanUsage:
    """One plan version's usage by Skill."""

    plan: RatePlan
    by_skill: dict[Sold, UsageSums] = field(default_factory=dict)


def statements(
    tenant: str,
    period: str,
    usage: Mapping[UsageKey, UsageSums],
    plans: Mapping[str, RatePlan],
    in_force: RatePlan | None = None,
) -> tuple[Statement, ...]:
    """One for each currency that the tenant's plans have, which is one unless it changed to a plan of another.

    `usage` may hold other tenants', and finer keys than needed; usage without a plan version costs nothing. `plans` are
    by version. `in_force` is the tenant's plan at the end of the period: its minimum is due even if nothing was called.
    Raises NOT_FOUND for a plan version that isn't in `plans`.
    """
    by_version = _by_version(tenant, usage, plans)
    rated = [part.plan for part in by_version]
    currencies = sorted({plan.currency for plan in rated} | ({in_force.currency} if in_force else set()))
    made = []
    for currency in currencies:
        parts = [part for part in by_version if part.plan.currency == currency]
        lines = list(_lines(parts))
        with exact():
            charged = sum((line.amount for line in lines), ZERO)
        digits = max(
            [part.plan.minor_digits for part in parts]
            + ([in_force.minor_digits] if in_force and in_force.currency == currency else [])
        )
        due = _minimum(in_force, [part.plan for part in parts], currency)
        if due is not None and (minimum := _minimum_line(due, charged, digits)) is not None:
            lines.append(minimum)
        with exact():
            total = rounded(sum((line.amount for line in lines), ZERO), digits)
        made.append(Statement(tenant, period, currency, digits, tuple(lines), total))
    return tuple(made)


def _by_version(tenant: str, usage: Mapping[UsageKey, UsageSums], plans: Mapping[str, RatePlan]) -> list[_PlanUsage]:
    """In the order of plan name and version number."""
    found: dict[str, _PlanUsage] = {}
    for key, sums in usage.items():
        if key.tenant != tenant or not key.plan_version:
            continue
        if key.plan_version not in plans:
            raise not_found("rate_plan", key.plan_version)
        part = found.setdefault(key.plan_version, _PlanUsage(plans[key.plan_version]))
        sold = (key.publisher, key.skill)
        part.by_skill[sold] = part.by_skill.get(sold, UsageSums()) + sums
    return sorted(found.values(), key=lambda part: (part.plan.name, version_number(part.plan.version)))


def _lines(parts: Iterable[_PlanUsage]) -> Iterable[StatementLine]:
    prior: dict[tuple[str, RateMeter], Decimal] = {}
    for part in parts:
        quantities: dict[RateMeter, dict[Sold, Decimal]] = {
            meter: {sold: quantity(meter, sums) for sold, sums in sorted(part.by_skill.items())}
            for meter in {component.meter for component in part.plan.components}
        }
        for place, component in enumerate(part.plan.components):
            used = quantities[component.meter]
            before = prior.get((part.plan.name, component.meter), ZERO)
            with exact():
                amount = marginal(component, before, sum(used.values(), ZERO))
            yield from _split(part, place, used, amount)
        for meter, used in quantities.items():
            with exact():
                before = prior.get((part.plan.name, meter), ZERO)
                prior[part.plan.name, meter] = before + sum(used.values(), ZERO)


def _split(part: _PlanUsage, place: int, used: Mapping[Sold, Decimal], amount: Decimal) -> Iterable[StatementLine]:
    """One component's amount over the Skills that it was charged for."""
    plan, digits = part.plan, part.plan.minor_digits
    meter = plan.components[place].meter
    with exact():
        whole = sum(used.values(), ZERO)
    amounts = apportioned(rounded(amount, digits), list(used.values()), digits)
    for (sold, of_skill), share in zip(used.items(), amounts, strict=True):
        if not of_skill:
            continue
        with exact():
            product = amount * of_skill
        yield StatementLine(
            plan_version=plan.version,
            component=place,
            meter=meter,
            unit=UNITS[meter],
            quantity=of_skill,
            amount=share,
            unrounded=quotient(product, whole) if whole else ZERO,
            publisher=sold[0],
            skill=sold[1],
            calls=part.by_skill[sold].calls,
        )


def _minimum(in_force: RatePlan | None, rated: list[RatePlan], currency: str) -> RatePlan | None:
    """The plan whose minimum is due."""
    if in_force is not None:
        return in_force if in_force.currency == currency else None
    newest = {plan.name: plan for plan in rated}  # sorted by version, so the last one stands
    return max(newest.values(), key=lambda plan: (plan.minimum_amount, plan.name), default=None)


def _minimum_line(plan: RatePlan, charged: Decimal, digits: int) -> StatementLine | None:
    with exact():
        missing = rounded(plan.minimum_amount, digits) - charged
    if missing <= 0 or not plan.minimum_amount:
        return None
    return StatementLine(
        plan_version=plan.version,
        component=-1,
        meter=None,
        unit="",
        quantity=Decimal(1),
        amount=rounded(missing, digits),
        unrounded=missing,
    )
