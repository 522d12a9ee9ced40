"""A call's cancel button, held by whoever may end it early."""

from __future__ import annotations

import asyncio

from skillcell.core.types import CancelReason


class Canceled:
    """A call's cancel button: pressed once, the first reason stands."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.reason: CancelReason | None = None
        self.detail = ""
        """Whoever canceled, in their own words."""

    def cancel(self, reason: CancelReason, detail: str = "") -> None:
        if self.reason is None:
            self.reason, self.detail = reason, detail
            self._event.set()

    async def wait(self) -> CancelReason:
        await self._event.wait()
        assert self.reason is not None
        return self.reason
