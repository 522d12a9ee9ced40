"""A process that settles calls and delivers them to a sink until it is killed; run by tests, never imported."""

from __future__ import annotations

import asyncio
import os
import sys

from prometheus_client import CollectorRegistry

from ledger_stores import admission, settlement
from skillcell.core.clock import SystemClock
from skillcell.core.steps import crash_at
from skillcell.exporting import exporting
from skillcell.logs import configure_logging
from skillcell.metering.ledger import Ledger
from skillcell.storage.database import Database


async def storm(url: str, sinks: str, where: str, calls: int) -> None:
    """Settles so many calls while it delivers, saying `begun` after the first; then goes on delivering."""
    configure_logging()
    registry = CollectorRegistry()
    async with (
        await Database.open(url) as database,
        exporting(sinks, database, SystemClock(), registry, owner="one", steps=crash_at(where)),
    ):
        ledger = Ledger(database)
        for number in range(calls):
            if number == 1:
                os.write(1, b"begun\n")
            given = admission(labels={"team": "red"})
            await ledger.admit(given)
            await ledger.settle(settlement(given))
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(storm(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
