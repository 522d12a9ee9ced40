"""A sandbox for one call, from where it comes to its end: out of the warm pool, else made for the call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from skillcell.core.clock import Clock
from skillcell.core.completion import to_completion
from skillcell.core.plan import Plan
from skillcell.sandbox.driver import Driver, PackageMount, Sandbox, SandboxSpec
from skillcell.sandbox.framing import FrameReader
from skillcell.sandbox.images import Image
from skillcell.scheduler.capacity import CapacityGate, OnQueued
from skillcell.scheduler.making import Maker
from skillcell.scheduler.pool import WarmPool

Images = Callable[[str], Awaitable[Image]]
"""Reference to image; raises Fault when it is not there."""
Mounts = Callable[[Plan], tuple[PackageMount, ...]]
AgentCommand = Callable[[Image], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Lease:
    """A sandbox whose agent waits for a job, and how it was had."""

    sandbox: Sandbox
    reader: FrameReader
    warm: bool
    driver: str
    image_env: Mapping[str, str]
    queue_ns: int
    startup_ns: int


@dataclass(frozen=True, slots=True)
class Furnishing:
    """What a plan's sandbox is made of."""

    images: Images
    mounts: Mounts
    agent_command: AgentCommand

    async def spec(self, plan: Plan) -> tuple[SandboxSpec, Image]:
        """The kind of sandbox that a plan needs; whoever makes one gives it its id. Raises Fault."""
        image = await self.images(plan.version.spec.image)
        spec = SandboxSpec(
            sandbox_id="",
            image=image,
            isolation=plan.isolation,
            limits=plan.limits,
            mounts=self.mounts(plan),
            command=self.agent_command(image),
        )
        return spec, image


class Leases:
    """Finds sandboxes for plans and sees to it that each is destroyed."""

    def __init__(
        self, driver: Driver, gate: CapacityGate, maker: Maker, pool: WarmPool, clock: Clock, *, furnishing: Furnishing
    ) -> None:
        self._driver = driver
        self._gate = gate
        self._maker = maker
        self._pool = pool
        self._clock = clock
        self._furnishing = furnishing

    async def check(self, plan: Plan) -> None:
        """Refuse before there is a record what can't be had now: no engine, no such image, no room. Raises Fault."""
        self._gate.check(plan.limits)
        await self._furnishing.images(plan.version.spec.image)
        await self._driver.ready()

    @asynccontextmanager
    async def lease(self, plan: Plan, on_queued: OnQueued, *, cold: bool = False) -> AsyncIterator[Lease]:
        """A ready sandbox; destroyed on every way out. Raises Fault when none can be had.

        `cold`: one made now, not one that waited.
        """
        began = self._clock.monotonic_ns()
        async with self._gate.held(plan.limits, on_queued):
            queued = self._clock.monotonic_ns()
            spec, image = await self._furnishing.spec(plan)
            ready = None if cold else await self._pool.take(spec)
            warm = ready is not None
            names = [ready.sandbox.sandbox_id] if ready is not None else []
            try:
                if ready is None:
                    ready = await self._maker.make(spec, names.append)
                yield Lease(
                    sandbox=ready.sandbox,
                    reader=ready.reader,
                    warm=warm,
                    driver=self._driver.name,
                    image_env=image.env,
                    queue_ns=queued - began,
                    startup_ns=self._clock.monotonic_ns() - queued,
                )
            finally:
                for name in names:
                    await to_completion(self._maker.destroy(name))
