"""Ledger = totals = what Prometheus shows, whatever was called."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger_stores import BILLER, admission, settlement
from skillcell.core.types import FaultParty, Outcome, StageTimes
from skillcell.metering.ledger import Ledger, LedgerSettings
from skillcell.metering.records import Sums
from skillcell.metering.totals import plus, sums_of
from skillcell.storage.database import Database

CALLS = st.tuples(
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from(["x", "y"]),
    st.sampled_from([Outcome.SUCCEEDED, Outcome.TIMED_OUT, Outcome.PLATFORM_ERROR]),
    st.integers(0, 10**18),
    st.booleans(),
)


async def settle_all(ledger: Ledger, calls: list[tuple[str, str, Outcome, int, bool]]) -> Sums:
    """Makes the calls at once, some settled twice; what they used, added up here."""

    async def settle(tenant: str, skill: str, outcome: Outcome, run_ns: int, twice: bool) -> Sums:
        of = admission(tenant=tenant, skill=skill)
        await ledger.admit(of)
        fault = FaultParty.PLATFORM if outcome is Outcome.PLATFORM_ERROR else FaultParty.NONE
        end = settlement(of, outcome=outcome, fault=fault, times=StageTimes(run_ns=run_ns))
        settled = [await ledger.settle(end) for _ in range(1 + twice)]
        return sums_of(settled[-1])

    total = Sums()
    for sums in await asyncio.gather(*[settle(*one) for one in calls]):
        total = plus(total, sums)
    return total


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=st.lists(CALLS, max_size=25))
def test_records_totals_series_and_summary_agree_after_any_calls(
    tmp_path: Path, calls: list[tuple[str, str, Outcome, int, bool]]
) -> None:
    async def run() -> None:
        async with await Database.open(f"sqlite:///{tmp_path}/{uuid.uuid4()}.db") as database:
            ledger = Ledger(database, LedgerSettings(max_tenants=2, max_series=2))
            expected = await settle_all(ledger, calls)
            shown = Sums()
            for series in (await ledger.snapshot()).series:
                shown = plus(shown, series.sums)
            groups = await ledger.usage_summary(BILLER)
            assert shown == expected
            assert (groups[0].sums if groups else Sums()) == expected
            assert (await ledger.verify()).whole

    asyncio.run(run())
