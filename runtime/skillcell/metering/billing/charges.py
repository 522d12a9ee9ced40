"""A billing period's charges as FOCUS rows, tenant by tenant: exact parts of the statements that tenants get.

What a reader could get wrong: each tenant is read at a moment of its own. For a closed period that is no difference,
since its statements never change; of an open one it is a preview anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from sqlalchemy import Connection, select

from skillcell.core.periods import Period, Span, span_of
from skillcell.metering.billing import periods, plans
from skillcell.metering.billing.usage import usage_sums
from skillcell.metering.rating.focus import FocusSource, focus_rows
from skillcell.metering.rating.rate import statements
from skillcell.storage.database import Database
from skillcell.storage.tables import tenants

Row = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Charges:
    """Of one tenant; `open`: they can still change."""

    rows: tuple[Row, ...]
    open: bool


class ChargeExport:
    """Over one store. `default_plan` names the plan of tenants without one."""

    def __init__(self, database: Database, default_plan: str = "") -> None:
        self._database = database
        self._default_plan = default_plan

    async def tenants(self, period: Period) -> tuple[str, ...]:
        """Whoever has charges in a period, by name."""
        return await self._database.read(partial(self._tenants, period=period))

    async def charges(self, tenant: str, period: Period, source: FocusSource) -> Charges:
        """None for a tenant that no plan rates. The names of accounts and whether it is invoiced come from here."""
        return await self._database.read(partial(self._charges, tenant=tenant, period=period, source=source))

    def _tenants(self, connection: Connection, period: Period) -> tuple[str, ...]:
        span = span_of(period, periods.closed_periods(connection))
        used = {key.tenant for key in usage_sums(connection, span) if key.plan_version}
        return tuple(sorted(used | set(self._in_force(connection, span, period))))

    def _charges(self, connection: Connection, tenant: str, period: Period, source: FocusSource) -> Charges:
        span = span_of(period, periods.closed_periods(connection))
        usage = usage_sums(connection, span, tenant, fine=True)
        in_force = self._in_force(connection, span, period).get(tenant, "")
        versions = sorted({key.plan_version for key in usage if key.plan_version} | ({in_force} - {""}))
        known = plans.load(connection, versions)
        made = statements(tenant, str(period), usage, known, known.get(in_force))
        name = connection.execute(select(tenants.c.display_name).where(tenants.c.name == tenant)).scalar_one_or_none()
        names = {tenant: str(name)} if name else {}
        chosen = replace(source, account_names=names, invoiced=not span.open)
        return Charges(tuple(focus_rows(made, usage, known, chosen)), span.open)

    def _in_force(self, connection: Connection, span: Span, period: Period) -> dict[str, str]:
        """By tenant, the plan version whose minimum is due."""
        if span.open:
            return plans.plans_in_force(connection, self._default_plan, period.end)
        return periods.plans_at_close(connection, period)
