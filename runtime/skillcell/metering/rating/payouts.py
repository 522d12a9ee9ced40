"""Who gets what of the tenants' charges: each charge is split between publisher and platform without a remainder.

A Skill's charges of the whole period, over all tenants, are added up by the share that its plan versions name, and
each sum is split once: rounding many small charges apart would favour one side. A minimum is no Skill's doing and
stays with the platform.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from skillcell.core.rate_plans import RatePlan
from skillcell.core.statements import Payout, PayoutLine, Statement
from skillcell.metering.rating.money import ZERO, apportioned, exact, rounded


@dataclass(frozen=True, slots=True)
class Shares:
    """All of one period's charges in one currency: `payouts` and `platform_fee` sum to `charged`."""

    period: str
    currency: str
    payouts: tuple[Payout, ...]
    platform_fee: Decimal
    """Fees of all Skills and the minimums."""
    charged: Decimal
    """The statements' totals together."""


@dataclass(slots=True)
class _Earned:
    by_share: dict[Decimal, Decimal]
    calls: dict[tuple[str, str], int]
    """By tenant and plan version, since each of its lines says the same."""


def shares(period: str, made: Iterable[Statement], plans: dict[str, RatePlan]) -> tuple[Shares, ...]:
    """Of all tenants' statements of one period: one for each currency, in its order. `plans` are by version."""
    by_currency: dict[str, list[Statement]] = {}
    for statement in made:
        by_currency.setdefault(statement.currency, []).append(statement)
    return tuple(_shares(period, currency, of, plans) for currency, of in sorted(by_currency.items()))


def payout(publisher: str, period: str, made: Iterable[Statement], plans: dict[str, RatePlan]) -> tuple[Payout, ...]:
    """One publisher's payouts, one for each currency; none where it earned nothing."""
    everybody = shares(period, made, plans)
    return tuple(one for of in everybody for one in of.payouts if one.publisher == publisher)


def _shares(period: str, currency: str, made: list[Statement], plans: dict[str, RatePlan]) -> Shares:
    digits = max(statement.minor_digits for statement in made)
    earned: dict[tuple[str, str], _Earned] = {}
    fee = charged = rounded(ZERO, digits)
    with exact():
        for statement in made:
            charged += statement.total
            for line in statement.lines:
                if not line.publisher:
                    fee += line.amount
                    continue
                of = earned.setdefault((line.publisher, line.skill), _Earned({}, {}))
                share = plans[line.plan_version].publisher_share
                of.by_share[share] = of.by_share.get(share, ZERO) + line.amount
                of.calls[statement.tenant, line.plan_version] = line.calls
    lines = [_line(*sold, of, digits) for sold, of in sorted(earned.items())]
    made_payouts = []
    with exact():
        fee = sum((line.platform_fee for line in lines), fee)
        for publisher in sorted({line.publisher for line in lines}):
            own = tuple(line for line in lines if line.publisher == publisher)
            total = sum((line.publisher_share for line in own), rounded(ZERO, digits))
            made_payouts.append(Payout(publisher, period, currency, own, total))
    return Shares(period, currency, tuple(made_payouts), fee, charged)


def _line(publisher: str, skill: str, earned: _Earned, digits: int) -> PayoutLine:
    charged = own = fee = rounded(ZERO, digits)
    with exact():
        for share, amount in sorted(earned.by_share.items()):
            of_publisher, of_platform = apportioned(amount, (share, 1 - share), digits)
            charged, own, fee = charged + amount, own + of_publisher, fee + of_platform
    return PayoutLine(publisher, skill, sum(earned.calls.values()), charged, own, fee)
