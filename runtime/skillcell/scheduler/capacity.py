"""What this machine can hold at once: a first-in, first-out gate over memory and CPU.

Memory that is granted never sums past what the machine has less a reserve; CPU may be granted several times over,
because a core that is shared only slows its users, and the kernel shares it by quota.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from skillcell.core.errors import Fault, FaultKind, QuotaViolation, invalid
from skillcell.core.types import Limits

OnQueued = Callable[[int], Awaitable[None]]
"""Told the position, from 1, once, when a call has to wait."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much may be granted at once."""

    memory_bytes: int
    milli_cpus: int
    queue_length: int = 1000
    """How many calls may wait, all tenants together."""

    @classmethod
    def of_machine(
        cls,
        *,
        reserve: float = 0.15,
        cpu_overcommit: float = 8.0,
        queue_length: int = 1000,
        set_aside_bytes: int = 0,
    ) -> Capacity:
        """This machine's memory less `reserve` (a fraction), and its cores times `cpu_overcommit`.

        Besides the reserve, memory is set aside for sandboxes that wait.
        """
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        cores = len(os.sched_getaffinity(0))
        return cls(int(memory * (1 - reserve)) - set_aside_bytes, int(cores * 1000 * cpu_overcommit), queue_length)


@dataclass(slots=True)
class _Waiter:
    limits: Limits
    turn: asyncio.Future[None]


class CapacityGate:
    """Lets calls in while there is room. `held` is an `async with`: what it took is given back on every way out."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self._memory = 0
        self._milli_cpus = 0
        self._waiting: deque[_Waiter] = deque()

    @property
    def waiting(self) -> int:
        """How many calls wait now."""
        return len(self._waiting)

    def check(self, limits: Limits) -> None:
        """Refuse what can never fit, or finds the queue full, before there is a record. Raises Fault."""
        if limits.memory_bytes > self._capacity.memory_bytes or limits.milli_cpus > self._capacity.milli_cpus:
            name, asked, most = (
                ("memory_bytes", limits.memory_bytes, self._capacity.memory_bytes)
                if limits.memory_bytes > self._capacity.memory_bytes
                else ("milli_cpus", limits.milli_cpus, self._capacity.milli_cpus)
            )
            raise invalid(
                f"limits.{name}",
                f"is {asked}; this machine grants at most {most}",
                reason="LIMIT_ABOVE_POLICY",
                limit=str(most),
            )
        if (self._waiting or not self._fits(limits)) and len(self._waiting) >= self._capacity.queue_length:
            raise Fault(
                FaultKind.RESOURCE_EXHAUSTED,
                "QUEUE_FULL",
                f"{len(self._waiting)} calls wait already, the limit is {self._capacity.queue_length}",
                quotas=(QuotaViolation("queue_length", self._capacity.queue_length, len(self._waiting)),),
                retry_after=timedelta(seconds=1),
            )

    @asynccontextmanager
    async def held(self, limits: Limits, on_queued: OnQueued) -> AsyncIterator[None]:
        """Waits for room for `limits`, holds it, and gives it back."""
        if self._waiting or not self._fits(limits):
            await self._wait(limits, on_queued)
        else:
            self._take(limits)
        try:
            yield
        finally:
            self._memory -= limits.memory_bytes
            self._milli_cpus -= limits.milli_cpus
            self._let_in()

    async def _wait(self, limits: Limits, on_queued: OnQueued) -> None:
        waiter = _Waiter(limits, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        try:
            await on_queued(len(self._waiting))
            await waiter.turn
        except BaseException:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            elif not waiter.turn.cancelled():
                self._memory -= limits.memory_bytes
                self._milli_cpus -= limits.milli_cpus
            self._let_in()
            raise

    def _let_in(self) -> None:
        while self._waiting:
            waiter = self._waiting[0]
            if waiter.turn.cancelled():  # its call was canceled in this turn of the loop and has not run since
                self._waiting.popleft()
                continue
            if not self._fits(waiter.limits):
                return
            self._waiting.popleft()
            self._take(waiter.limits)
            waiter.turn.set_result(None)

    def _fits(self, limits: Limits) -> bool:
        return (
            self._memory + limits.memory_bytes <= self._capacity.memory_bytes
            and self._milli_cpus + limits.milli_cpus <= self._capacity.milli_cpus
        )

    def _take(self, limits: Limits) -> None:
        self._memory += limits.memory_bytes
        self._milli_cpus += limits.milli_cpus
