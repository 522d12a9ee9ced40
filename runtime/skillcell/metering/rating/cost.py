"""The cost of one call, by the code that makes statements: for its last event, and for an estimate before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal

from skillcell.core.rate_plans import RateComponent, RateMeter, RatePlan
from skillcell.core.statements import Cost, CostLine
from skillcell.core.types import Limits, UsageRecord
from skillcell.metering.rating.components import listed, marginal, most_of
from skillcell.metering.rating.money import ZERO, exact
from skillcell.metering.rating.quantities import UNITS, UsageSums, quantity, sums_of
from skillcell.metering.rating.quantities import most_of as most_of_limits


def cost_of(record: UsageRecord, plan: RatePlan, prior: Mapping[RateMeter, Decimal] | None = None) -> Cost:
    """Of one call, exactly; nothing where it isn't billable.

    With `prior`, the period's quantities before it: what the call adds to the statement, before rounding. Without: at
    list price, as if no allowance were left and each package were shared; costs of calls then don't sum to a statement.
    """
    return cost_of_usage(sums_of(record), plan, prior)


def cost_of_usage(sums: UsageSums, plan: RatePlan, prior: Mapping[RateMeter, Decimal] | None = None) -> Cost:
    """`cost_of` for usage that is added up already."""

    def price(component: RateComponent, used: Decimal) -> Decimal:
        if prior is None:
            return marginal(listed(component), ZERO, used)
        return marginal(component, prior.get(component.meter, ZERO), used)

    return _cost(sums, plan, price)


def max_cost(limits: Limits, plan: RatePlan) -> Cost:
    """The most that a call within `limits` can add to a statement, whatever came before it in the period."""
    return _cost(most_of_limits(limits), plan, most_of)


def _cost(sums: UsageSums, plan: RatePlan, price: Callable[[RateComponent, Decimal], Decimal]) -> Cost:
    with exact():
        lines = []
        for component in plan.components:
            used = quantity(component.meter, sums)
            lines.append(CostLine(component.meter, used, UNITS[component.meter], price(component, used)))
        amount = sum((line.amount for line in lines), ZERO)
    return Cost(plan.currency, amount, plan.version, tuple(lines))
