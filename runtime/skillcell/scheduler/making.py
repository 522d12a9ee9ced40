"""Making one sandbox whose agent waits for a job, and ending it: what a cold start and the pool's refill share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from skillcell.agent.frames import FrameError
from skillcell.core.clock import Clock
from skillcell.core.errors import Fault, unavailable
from skillcell.core.ids import sandbox_id
from skillcell.sandbox.driver import Driver, Sandbox, SandboxSpec
from skillcell.sandbox.framing import FrameReader
from skillcell.sandbox.supervisor import await_hello

log = structlog.get_logger("skillcell.making")
_HELLO_SECONDS = 30.0
_DESTROY_TRIES = 5


@dataclass(frozen=True, slots=True)
class Ready:
    """A sandbox whose agent has said hello."""

    sandbox: Sandbox
    reader: FrameReader
    made_ns: int
    """When, on the gateway's monotonic clock."""
    startup_ns: int


class Maker:
    """Over one driver. What it makes is listed in `live` until it is destroyed: the reaper must leave that alone."""

    def __init__(self, driver: Driver, clock: Clock) -> None:
        self._driver = driver
        self._clock = clock
        self._live: set[str] = set()

    @property
    def live(self) -> frozenset[str]:
        """Ids of what is being made, in use, or being destroyed."""
        return frozenset(self._live)

    async def make(self, spec: SandboxSpec, name: Callable[[str], None] | None = None) -> Ready:
        """A sandbox of that kind under a new id, which `name` hears first. Raises Fault.

        Whoever calls destroys what was named, whatever comes of it.
        """
        began = self._clock.monotonic_ns()
        spec = replace(spec, sandbox_id=sandbox_id())
        self._live.add(spec.sandbox_id)
        if name is not None:
            name(spec.sandbox_id)
        sandbox = await self._driver.create(spec)
        reader = FrameReader(sandbox.channel)
        try:
            await await_hello(reader, _HELLO_SECONDS)
        except (FrameError, ConnectionError) as error:
            raise unavailable("DRIVER_UNAVAILABLE", f"the sandbox did not become ready: {error}") from error
        now = self._clock.monotonic_ns()
        return Ready(sandbox, reader, now, now - began)

    async def destroy(self, name: str) -> None:
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
