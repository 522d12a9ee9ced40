"""Removes what no execution owns: at start what an earlier process left, later what a failed destroy left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

import structlog

from skillcell.core.errors import Fault
from skillcell.sandbox.driver import Driver

log = structlog.get_logger("skillcell.reaper")


class Reaper:
    """`owned` tells which sandboxes live calls have; everything else of this driver goes."""

    def __init__(self, driver: Driver, owned: Callable[[], Collection[str]]) -> None:
        self._driver = driver
        self._owned = owned
        self._suspects: frozenset[str] = frozenset()

    async def sweep(self, *, at_once: bool = False) -> int:
        """Destroys the unowned, and returns how many. Something must be unowned twice in a row, unless `at_once`:
        a sandbox that is being made is listed before its call owns it only for a moment. One that won't go does not
        keep the others; it stays a suspect.
        """
        found = {item.sandbox_id for item in await self._driver.list()}
        unowned = found - set(self._owned())
        doomed = unowned if at_once else unowned & self._suspects
        reaped = set()
        for sandbox_id in sorted(doomed):
            try:
                await self._driver.destroy(sandbox_id)
            except Fault as fault:
                log.warning("sandbox_reap_failed", sandbox_id=sandbox_id, reason=fault.reason, message=fault.message)
            else:
                log.info("sandbox_reaped", sandbox_id=sandbox_id)
                reaped.add(sandbox_id)
        self._suspects = frozenset(unowned - reaped)
        return len(reaped)

    async def run(self, every_seconds: float) -> None:
        """Sweeps for ever; an engine that is gone is waited for."""
        while True:
            await asyncio.sleep(every_seconds)
            try:
                await self.sweep()
            except Fault as fault:
                log.warning("reaper_waits", reason=fault.reason, message=fault.message)
