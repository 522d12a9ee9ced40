"""What usage costs: one call's cost, a tenant's statement, a publisher's payout. Made by `metering/rating`."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from skillcell.core.rate_plans import RateMeter


@dataclass(frozen=True, slots=True)
class CostLine:
    """What one component of a plan asks for one call; not rounded."""

    meter: RateMeter
    quantity: Decimal
    unit: str
    """As `Core-Seconds`."""
    amount: Decimal


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one call; its lines sum to `amount`. Not rounded: that happens once, on the statement."""

    currency: str
    amount: Decimal
    plan_version: str
    lines: tuple[CostLine, ...]


@dataclass(frozen=True, slots=True)
class StatementLine:
    """One component of one plan version, for one Skill; or, without a meter, the difference to a minimum."""

    plan_version: str
    component: int
    """Its place in the plan; -1: the minimum."""
    meter: RateMeter | None
    unit: str
    quantity: Decimal
    amount: Decimal
    """In minor units. The component's amount for all Skills is rounded once and split without a remainder."""
    unrounded: Decimal
    """The same before rounding, to 18 places: to be shown, not to be added."""
    publisher: str = ""
    skill: str = ""
    """Name without the publisher; both are empty on a line for the tenant as a whole."""
    calls: int = 0
    """Billable calls of the Skill under this plan version, the same on each of its lines."""


@dataclass(frozen=True, slots=True)
class Statement:
    """A tenant's charges for one billing period in one currency; the lines sum to `total`."""

    tenant: str
    period: str
    """`2026-11`, UTC."""
    currency: str
    minor_digits: int
    lines: tuple[StatementLine, ...]
    total: Decimal


@dataclass(frozen=True, slots=True)
class PayoutLine:
    """What one Skill brought in. `publisher_share` and `platform_fee` sum to `charged`."""

    publisher: str
    skill: str
    calls: int
    charged: Decimal
    publisher_share: Decimal
    platform_fee: Decimal


@dataclass(frozen=True, slots=True)
class Payout:
    """A publisher's part of one billing period's charges in one currency."""

    publisher: str
    period: str
    currency: str
    lines: tuple[PayoutLine, ...]
    total: Decimal
    """The publisher's shares together."""
