"""Statements of tenants and payouts of publishers, rated anew from the ledger each time they are asked for.

A closed period's answer never changes, because nothing that it is made of does: the records up to the period's last
one, the plan versions that they pinned, and the plans that were in force when it was closed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Protocol, TypeVar

from sqlalchemy import Connection, select

from skillcell.core.errors import invalid, not_found
from skillcell.core.periods import ClosedPeriod, Period, Span, span_of
from skillcell.core.rate_plans import RatePlan
from skillcell.core.statements import Payout, Statement
from skillcell.core.types import Principal
from skillcell.metering import settling
from skillcell.metering.billing import periods, plans
from skillcell.metering.billing.usage import usage_sums
from skillcell.metering.rating.payouts import payout
from skillcell.metering.rating.quantities import UsageKey, UsageSums
from skillcell.metering.rating.rate import statements
from skillcell.storage.database import Database
from skillcell.storage.tables import tenants

_NO_PLAN = "No plan rates this tenant; an operator makes one and assigns it"


class InOneCurrency(Protocol):
    """A statement or a payout."""

    @property
    def currency(self) -> str: ...


Made = TypeVar("Made", bound=InOneCurrency)


@dataclass(frozen=True, slots=True)
class BilledStatement:
    """`open`: it can still change. `currencies`: all that the tenant has a statement in for this period."""

    statement: Statement
    open: bool
    as_of_sequence: int
    currencies: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BilledPayout:
    """As `BilledStatement`."""

    payout: Payout
    open: bool
    currencies: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Look:
    """What one moment of the store says of a period."""

    span: Span
    usage: dict[UsageKey, UsageSums]
    plans: dict[str, RatePlan]
    in_force: RatePlan | None
    as_of_sequence: int


class Billing:
    """Over one store. `default_plan` names the plan of tenants without one."""

    def __init__(self, database: Database, default_plan: str = "") -> None:
        self._database = database
        self._default_plan = default_plan

    async def statement(self, tenant: str, period: Period, currency: str = "") -> BilledStatement:
        """NOT_FOUND `TENANT_NOT_FOUND`, `RATE_PLAN_NOT_FOUND` where nothing is rated; INVALID_ARGUMENT `currency`."""
        look = await self._database.read(partial(self._look, period=period, tenant=tenant))
        made = statements(tenant, str(period), look.usage, look.plans, look.in_force)
        if not made:
            raise not_found("rate_plan", tenant, _NO_PLAN)
        chosen = _in(currency, made)
        return BilledStatement(chosen, look.span.open, look.as_of_sequence, tuple(one.currency for one in made))

    async def payout(self, publisher: str, period: Period, currency: str = "") -> BilledPayout:
        """NOT_FOUND `RATE_PLAN_NOT_FOUND` where nothing of the publisher's was rated; INVALID_ARGUMENT `currency`."""
        look = await self._database.read(partial(self._look, period=period, tenant=None))
        # A tier counts all that a tenant used, so whoever used one of its Skills is rated as a whole.
        by_tenant: dict[str, dict[UsageKey, UsageSums]] = {}
        for key, sums in look.usage.items():
            by_tenant.setdefault(key.tenant, {})[key] = sums
        charged = [
            statement
            for tenant, usage in sorted(by_tenant.items())
            if any(key.publisher == publisher and key.plan_version for key in usage)
            for statement in statements(tenant, str(period), usage, look.plans, None)
        ]
        made = payout(publisher, str(period), charged, look.plans)
        if not made:
            raise not_found("rate_plan", publisher, f"no call of its Skills was rated in {period}")
        return BilledPayout(_in(currency, made), look.span.open, tuple(one.currency for one in made))

    async def close(self, actor: Principal, period: Period, now: datetime) -> ClosedPeriod:
        """See `periods.close`."""
        work = partial(periods.close, period=period, now=now, actor=actor.key_id, default_plan=self._default_plan)
        return await self._database.write(work)

    async def closed_periods(self) -> tuple[ClosedPeriod, ...]:
        """In the order of time."""
        return await self._database.read(periods.closed_periods)

    def _look(self, connection: Connection, period: Period, tenant: str | None) -> _Look:
        span = span_of(period, periods.closed_periods(connection))
        in_force = self._in_force(connection, span, period, tenant) if tenant is not None else ""
        usage = usage_sums(connection, span, tenant)
        versions = sorted({key.plan_version for key in usage if key.plan_version} | ({in_force} - {""}))
        known = plans.load(connection, versions)
        last = settling.head(connection).sequence if span.last_sequence is None else span.last_sequence
        return _Look(span, usage, known, known.get(in_force), last)

    def _in_force(self, connection: Connection, span: Span, period: Period, tenant: str) -> str:
        """The plan version whose minimum is due."""
        created = select(tenants.c.created_at).where(tenants.c.name == tenant)
        since = connection.execute(created).scalar_one_or_none()
        if since is None:
            raise not_found("tenant", tenant)
        if not span.open:
            return periods.plan_at_close(connection, period, tenant)
        return plans.current_version(connection, tenant, self._default_plan) if since < period.end else ""


def _in(currency: str, made: Sequence[Made]) -> Made:
    """The one in a currency; without one, the only one."""
    if not currency and len(made) == 1:
        return made[0]
    for one in made:
        if one.currency == currency:
            return one
    raise invalid("currency", f"{f'is {currency}; ' if currency else ''}give one of {_list(made)}")


def _list(made: Iterable[InOneCurrency]) -> str:
    return ", ".join(one.currency for one in made)
