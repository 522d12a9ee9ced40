"""A sandbox for one call, from its making to its end.

Today every lease is a cold start: a fresh container made for the call. What comes out is the same as from a warm
pool, so that the spine does not know the difference.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from skillcell.agent.frames import FrameError
from skillcell.core.clock import Clock
from skillcell.core.completion import to_completion
from skillcell.core.errors import Fault, unavailable
from skillcell.core.ids import sandbox_id
from skillcell.core.plan import Plan
from skillcell.sandbox.driver import Driver, PackageMount, Sandbox, SandboxSpec
from skillcell.sandbox.framing import FrameReader
from skillcell.sandbox.images import Image
from skillcell.sandbox.supervisor import await_hello
from skillcell.scheduler.capacity import CapacityGate, OnQueued

_HELLO_SECONDS = 30.0
_DESTROY_TRIES = 5

Images = Callable[[str], Awaitable[Image]]
"""Reference to image; raises Fault when it is not there."""
Mounts = Callable[[Plan], tuple[PackageMount, ...]]
AgentCommand = Callable[[Image], tuple[str, ...]]

log = structlog.get_logger("skillcell.leases")


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


class Leases:
    """Makes sandboxes for plans and sees to it that each is destroyed."""

    def __init__(
        self,
        driver: Driver,
        gate: CapacityGate,
        clock: Clock,
        *,
        images: Images,
        mounts: Mounts,
        agent_command: AgentCommand,
    ) -> None:
        self._driver = driver
        self._gate = gate
        self._clock = clock
        self._images = images
        self._mounts = mounts
        self._agent_command = agent_command
        self._live: set[str] = set()

    @property
    def live(self) -> frozenset[str]:
        """Ids of sandboxes that a call owns now: what the reaper must leave alone."""
        return frozenset(self._live)

    async def check(self, plan: Plan) -> None:
        """Refuse before there is a record what can't be had now: no engine, no such image, no room. Raises Fault."""
        self._gate.check(plan.limits)
        await self._images(plan.version.spec.image)
        await self._driver.ready()

    @asynccontextmanager
    async def lease(self, plan: Plan, on_queued: OnQueued) -> AsyncIterator[Lease]:
        """A ready sandbox; destroyed on every way out. Raises Fault when none can be had."""
        began = self._clock.monotonic_ns()
        async with self._gate.held(plan.limits, on_queued):
            queued = self._clock.monotonic_ns()
            name = sandbox_id()
            self._live.add(name)
            try:
                image = await self._images(plan.version.spec.image)
                sandbox = await self._driver.create(self._spec(name, plan, image))
                reader = FrameReader(sandbox.channel)
                try:
                    await await_hello(reader, _HELLO_SECONDS)
                except (FrameError, ConnectionError) as error:
                    raise unavailable("DRIVER_UNAVAILABLE", f"the sandbox did not become ready: {error}") from error
                ready = self._clock.monotonic_ns()
                yield Lease(
                    sandbox=sandbox,
                    reader=reader,
                    warm=False,
                    driver=self._driver.name,
                    image_env=image.env,
                    queue_ns=queued - began,
                    startup_ns=ready - queued,
                )
            finally:
                await to_completion(self._destroy(name))

    def _spec(self, name: str, plan: Plan, image: Image) -> SandboxSpec:
        return SandboxSpec(
            sandbox_id=name,
            image=image,
            isolation=plan.isolation,
            limits=plan.limits,
            mounts=self._mounts(plan),
            command=self._agent_command(image),
        )

    async def _destroy(self, name: str) -> None:
        """Tries for a while; what is left then is the reaper's, because the id is no longer live."""
        try:
            for attempt in range(_DESTROY_TRIES):
                try:
                    await self._driver.destroy(name)
                    return
                except Fault as fault:
                    log.warning("sandbox_destroy_failed", sandbox_id=name, attempt=attempt, reason=fault.reason)
                    await asyncio.sleep(0.1 * 2**attempt)
        finally:
            self._live.discard(name)
