"""Admissions whose commit was never answered: they may have been kept, and their callers were told that they were not.

So they are taken back, as soon as the ledger answers again. What this process does not live to take back, the next
start settles as having never run.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog

from skillcell.core.errors import Fault

log = structlog.get_logger("skillcell.doubts")
_PAUSES = (0.05, 5.0)


class Withdrawing(Protocol):
    """The ledger. `withdraw` is durable when it returns, and may be repeated; raises Fault."""

    async def withdraw(self, execution_id: str) -> None: ...


class Doubts:
    """One for each gateway."""

    def __init__(self, ledger: Withdrawing) -> None:
        self._ledger = ledger
        self._open: dict[str, asyncio.Task[None]] = {}

    def begin(self, execution_id: str) -> None:
        """Takes it back, however long that takes."""
        self._open[execution_id] = asyncio.create_task(self._withdraw(execution_id))

    async def withdrawn(self, execution_id: str) -> bool:
        """Whether it is one of those; then it is gone when this returns."""
        task = self._open.get(execution_id)
        if task is None:
            return False
        await asyncio.wait({task})
        return True

    async def _withdraw(self, execution_id: str) -> None:
        pause, longest = _PAUSES
        while True:
            try:
                await self._ledger.withdraw(execution_id)
                break
            except Fault as fault:
                log.warning("withdraw_waits", execution_id=execution_id, reason=fault.reason)
                await asyncio.sleep(pause)
                pause = min(pause * 2, longest)
        del self._open[execution_id]
