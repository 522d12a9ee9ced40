"""Sandboxes that wait for a call of their kind, so that it need not wait for one.

Each serves one call and is destroyed with it; nothing of a caller is in it before it is taken. What a reader could get
wrong: the pool never owes anybody a sandbox. An empty pool, an engine that is gone, one that died while it waited: the
call is a cold start, never an error.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from skillcell.core.clock import Clock
from skillcell.core.completion import to_completion
from skillcell.core.errors import Fault
from skillcell.core.types import SECOND_NS
from skillcell.sandbox.driver import SandboxSpec
from skillcell.scheduler.making import Maker, Ready
from skillcell.scheduler.pool_plan import Demand, Idle, PoolSettings, plan

log = structlog.get_logger("skillcell.pool")
_LOOK_SECONDS = 5.0
"""How often it is looked at though nothing happened: age and demand run on by themselves."""
_PAUSES = (1.0, 60.0)
"""Seconds: the first and the longest pause after a refill that failed."""


class PoolObserver(Protocol):
    """Hears what becomes of the pool's sandboxes, for metrics; must not raise."""

    def taken(self, warm: bool) -> None:
        """A call wanted one, and there was one or was not."""
        ...

    def refilled(self, seconds: float) -> None: ...

    def discarded(self, reason: str) -> None:
        """`surplus` (aged or no longer wanted), `died`, or `failed` (never became ready)."""
        ...


@dataclass(frozen=True, slots=True)
class _Waiting:
    ready: Ready
    kind: Hashable
    watch: asyncio.Task[Any]
    """Ends when the agent says something or goes away: neither is what a healthy one does."""


def kind_of(spec: SandboxSpec) -> Hashable:
    """All that two sandboxes must have in common for one to serve in place of the other."""
    return spec.image.digest, spec.isolation, spec.limits, spec.mounts, spec.command


class WarmPool:
    """Run it with `running`; `take` works at any time."""

    def __init__(
        self,
        maker: Maker,
        clock: Clock,
        settings: PoolSettings,
        observer: PoolObserver,
        *,
        hands: int,
        may_refill: Callable[[], bool],
    ) -> None:
        """`hands`: how many are made at once; `may_refill`: whether there is room, asked before each."""
        self._maker = maker
        self._clock = clock
        self._settings = settings
        self._observer = observer
        self._hands = hands
        self._may_refill = may_refill
        self._demands: dict[Hashable, Demand] = {}
        self._specs: dict[Hashable, SandboxSpec] = {}
        self._idle: dict[str, _Waiting] = {}
        self._making: Counter[Hashable] = Counter()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._changed = asyncio.Event()
        self._running = False
        self._rest_until, self._rest = 0.0, 0.0

    @property
    def idle(self) -> int:
        """How many wait now."""
        return len(self._idle)

    @property
    def oldest_seconds(self) -> float:
        """How long the oldest of them has waited; 0 when there is none."""
        oldest = min((waiting.ready.made_ns for waiting in self._idle.values()), default=None)
        return 0.0 if oldest is None else self._now() - oldest / SECOND_NS

    async def take(self, spec: SandboxSpec) -> Ready | None:
        """One of this kind, now its taker's to destroy; None where there is none. Counts as demand either way."""
        if not self._settings.idle_most:
            return None
        kind = kind_of(spec)
        self._demands.setdefault(kind, Demand()).arrived(self._now())
        self._specs[kind] = spec
        ready = await self._healthy(kind)
        self._observer.taken(ready is not None)
        self._changed.set()
        return ready

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keeps the pool filled until the block ends; then every one of it is destroyed."""
        self._running = True
        keeping = asyncio.create_task(self._keep())
        try:
            yield
        finally:
            self._running = False
            keeping.cancel()
            with suppress(asyncio.CancelledError):
                await keeping
            for task in tuple(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.gather(*(self._discard(name, "surplus") for name in tuple(self._idle)))

    async def _healthy(self, kind: Hashable) -> Ready | None:
        """The one that waited longest: it is the surest to have warmed up."""
        for name, waiting in tuple(self._idle.items()):
            if waiting.kind != kind or self._idle.pop(name, None) is None:
                continue
            waiting.watch.cancel()
            try:
                await asyncio.wait({waiting.watch})
            except asyncio.CancelledError:
                self._spawn(to_completion(self._maker.destroy(name)))
                raise
            if waiting.watch.cancelled():
                return waiting.ready
            self._spawn(self._end(name, "died"))
        return None

    async def _keep(self) -> None:
        while True:
            self._changed.clear()
            self._move()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._changed.wait()

    def _move(self) -> None:
        now = self._now()
        forgotten = [kind for kind, demand in self._demands.items() if now - demand.last > self._settings.keep_seconds]
        for kind in forgotten:
            del self._demands[kind], self._specs[kind]
        idle = [Idle(name, waiting.kind, waiting.ready.made_ns / SECOND_NS) for name, waiting in self._idle.items()]
        moves = plan(self._demands, idle, self._making, now, self._settings)
        for name in moves.discard:
            self._spawn(self._discard(name, "surplus"))
        if now < self._rest_until or not self._may_refill():
            return
        for kind in moves.make[: max(0, self._hands - self._making.total())]:
            self._making[kind] += 1
            self._spawn(self._refill(kind, self._specs[kind]))

    async def _refill(self, kind: Hashable, spec: SandboxSpec) -> None:
        named: list[str] = []
        try:
            ready = await self._maker.make(spec, named.append)
        except BaseException as error:
            for name in named:
                await to_completion(self._maker.destroy(name))
            if not isinstance(error, Fault):
                raise
            self._rest = min(max(self._rest * 2, _PAUSES[0]), _PAUSES[1])
            self._rest_until = self._now() + self._rest
            log.warning("pool_refill_failed", reason=error.reason, why=error.message, pause_seconds=self._rest)
            self._observer.discarded("failed")
            return
        finally:
            self._making[kind] -= 1
            self._changed.set()
        self._rest = 0.0
        seconds = ready.startup_ns / SECOND_NS
        self._observer.refilled(seconds)
        if kind in self._demands:
            self._demands[kind].refilled(seconds)
        name = ready.sandbox.sandbox_id
        watch = asyncio.create_task(self._watch(name, ready))
        self._idle[name] = _Waiting(ready, kind, watch)

    async def _watch(self, name: str, ready: Ready) -> None:
        """Ends with one that can't be used any more."""
        with suppress(Exception):  # whatever it was: the sandbox is not what it was made to be
            await ready.reader.next()
        if self._idle.pop(name, None) is not None:
            self._spawn(self._end(name, "died"))

    async def _discard(self, name: str, reason: str) -> None:
        waiting = self._idle.pop(name, None)
        if waiting is not None:
            waiting.watch.cancel()
            await self._end(name, reason)

    async def _end(self, name: str, reason: str) -> None:
        await to_completion(self._maker.destroy(name))
        self._observer.discarded(reason)
        self._changed.set()

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _now(self) -> float:
        return self._clock.monotonic_ns() / SECOND_NS
