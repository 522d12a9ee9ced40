"""Which plan rates a tenant's next call, from memory.

Every call asks, so the store is asked once in a while only: a change made by this process counts at once (`forget`),
one made by another gateway of the same store within `_KEPT_NS`.
"""

from __future__ import annotations

from collections import OrderedDict

from skillcell.core.clock import Clock
from skillcell.core.rate_plans import RatePlan
from skillcell.core.types import SECOND_NS
from skillcell.metering.billing import plans
from skillcell.storage.database import Database

_KEPT_NS = 2 * SECOND_NS
_MOST_TENANTS = 10_000


class Assignments:
    """Over one store. `default_plan` names the plan of tenants without one; empty: they are not rated."""

    def __init__(self, database: Database, default_plan: str, clock: Clock) -> None:
        self._database = database
        self._default_plan = default_plan
        self._clock = clock
        self._known: OrderedDict[str, tuple[RatePlan | None, int]] = OrderedDict()
        self._versions: dict[str, RatePlan] = {}
        self._changes = 0

    async def plan_for(self, tenant: str) -> RatePlan | None:
        """None where no plan rates it. Raises Fault when the store can't be asked."""
        known = self._known.get(tenant)
        if known is not None and self._clock.monotonic_ns() < known[1]:
            return known[0]
        changes = self._changes
        plan = await self._ask(tenant)
        # What was read before a change must not be kept behind it.
        if changes == self._changes:
            self._known[tenant] = (plan, self._clock.monotonic_ns() + _KEPT_NS)
            self._known.move_to_end(tenant)
            if len(self._known) > _MOST_TENANTS:
                self._known.popitem(last=False)
        return plan

    def forget(self) -> None:
        """Asks the store again at every tenant's next call."""
        self._changes += 1
        self._known.clear()

    async def _ask(self, tenant: str) -> RatePlan | None:
        version = await self._database.read(
            lambda connection: plans.current_version(connection, tenant, self._default_plan)
        )
        if not version:
            return None
        if version not in self._versions:
            found = await self._database.read(lambda connection: plans.load(connection, [version]))
            self._versions = {**self._versions, **found} if len(self._versions) < _MOST_TENANTS else found
        return self._versions.get(version)
