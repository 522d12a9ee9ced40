"""What must be done before calls are admitted, and is tried until it can be.

A gateway serves from the first moment: what can be read is read, the rest answers UNAVAILABLE, and readiness says what
it waits for. So a machine whose database or engine comes up after it, or never went down with it, needs nobody's hand.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

import structlog

from skillcell.core.errors import Fault, FaultKind, unavailable
from skillcell.core.plan import Plan
from skillcell.core.types import ExecutionRequest, Principal
from skillcell.execution import Planner

log = structlog.get_logger("skillcell.startup")
_PAUSES = (0.2, 5.0)
_HOPELESS = frozenset({FaultKind.FAILED_PRECONDITION, FaultKind.INVALID_ARGUMENT, FaultKind.DATA_LOSS})


@dataclass(frozen=True, slots=True)
class Stage:
    """One thing to do, once, after those before it."""

    name: str
    work: Callable[[], Awaitable[object]]
    waits: bool = True
    """Whether it is worth waiting for; else whatever fails at the first try ends the start."""


class Startup:
    """`await begin(…)`, then `run` in a task of its own until it is `done`."""

    def __init__(self) -> None:
        self._left: list[Stage] = []
        self._fault: Fault | None = None
        self._over = asyncio.Event()
        self.results: dict[str, object] = {}
        """By stage, of those that are over."""

    @property
    def done(self) -> bool:
        return self._over.is_set()

    @property
    def waits_for(self) -> str:
        """Why it is not done, fit for anybody's eyes; empty when it is."""
        if self.done:
            return ""
        return self._fault.message if self._fault is not None else "what an earlier gateway left is being settled"

    @property
    def reason(self) -> str:
        """The same as a fault's reason."""
        return self._fault.reason if self._fault is not None else "DRIVER_UNAVAILABLE"

    async def then(self, work: Callable[[], Awaitable[None]]) -> None:
        """Does what must not be done before all is done."""
        await self.wait()
        await work()

    async def wait(self) -> None:
        """Returns when all is done."""
        await self._over.wait()

    async def begin(self, *stages: Stage) -> None:
        """The first try. Raises Fault where waiting would not help."""
        self._left = list(stages)
        try:
            await self._advance()
        except Fault as fault:
            if fault.kind in _HOPELESS or not self._left[0].waits:
                raise
            log.warning("startup_waits", stage=self._left[0].name, reason=fault.reason, why=fault.message)

    async def run(self) -> None:
        """Tries until all is done; whatever fails now may be mended while we serve."""
        pause, longest = _PAUSES
        while not self.done:
            await asyncio.sleep(pause)
            pause, before = min(pause * 2, longest), self._fault
            try:
                await self._advance()
            except Fault as fault:
                if before is None or fault.message != before.message:
                    log.warning("startup_waits", stage=self._left[0].name, reason=fault.reason, why=fault.message)
            except Exception:
                log.exception("startup_failed", stage=self._left[0].name)

    async def _advance(self) -> None:
        try:
            while self._left:
                stage = self._left[0]
                self.results[stage.name] = await stage.work()
                del self._left[0]
        except Fault as fault:
            self._fault = fault
            raise
        self._fault = None
        self._over.set()


@dataclass(frozen=True, slots=True)
class StartedPlanner:
    """Plans nothing before the start is done, so that nothing is admitted among what is still to be settled."""

    planner: Planner
    startup: Startup

    async def plan(self, principal: Principal, request: ExecutionRequest) -> Plan:
        if not self.startup.done:
            reason = self.startup.reason
            raise unavailable(reason, f"this gateway is starting: {self.startup.waits_for}", timedelta(seconds=1))
        return await self.planner.plan(principal, request)
