"""The warm pool: how deep it should be is arithmetic over arrivals; what it hands out is whole and handed out once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from plans import plan as a_plan
from scripted_driver import FURNISHING, ScriptedDriver
from scripted_sandbox import ScriptedAgent
from skillcell.agent import frames
from skillcell.core.clock import SystemClock
from skillcell.core.errors import unavailable
from skillcell.sandbox.driver import SandboxSpec
from skillcell.scheduler.making import Maker, Ready
from skillcell.scheduler.pool import WarmPool
from skillcell.scheduler.pool_plan import Demand, Idle, PoolSettings, plan, targets

SETTINGS = PoolSettings(idle_most=8, idle_most_of_kind=6)


def demand_of(times: Iterable[float], refill_seconds: float = 0.1) -> Demand:
    demand = Demand(refill_seconds=refill_seconds)
    for time in times:
        demand.arrived(time)
    return demand


def test_a_kind_that_was_asked_for_once_is_not_worth_a_sandbox() -> None:
    assert demand_of([10.0]).wanted(10.1, SETTINGS) == 0


def test_a_steady_caller_gets_one_ahead() -> None:
    demand = demand_of(n * 0.5 for n in range(40))
    assert {demand.wanted(20 + wait, SETTINGS) for wait in (0, 1, 30, 100)} == {1}


def test_a_burst_leaves_the_pool_as_deep_as_it_was_wide_and_the_depth_fades() -> None:
    demand = demand_of([*(n * 0.5 for n in range(10)), *(100 + n * 0.01 for n in range(5))])
    depths = [demand.wanted(100.05 + wait, SETTINGS) for wait in (0, 15, 30, 60, 90)]
    assert depths[0] == 5
    assert depths == sorted(depths, reverse=True)
    assert depths[-1] == 1


def test_more_than_the_bound_is_never_wanted() -> None:
    assert demand_of(n * 0.001 for n in range(500)).wanted(0.5, SETTINGS) == SETTINGS.idle_most_of_kind


def test_a_day_s_wave_is_followed_up_and_down() -> None:
    """Calls a second by the hour, as a service for one time zone sees them."""
    hours = [1, 1, 1, 2, 4, 8, 16, 20, 20, 16, 8, 4, 2, 1]
    demand, now, depths = Demand(refill_seconds=0.1), 0.0, []
    rng = random.Random(7)
    for rate in hours:
        end = now + 300
        while now < end:
            now += rng.expovariate(rate)
            demand.arrived(now)
        depths.append(demand.wanted(now, SETTINGS))
    top = depths.index(max(depths))
    assert 5 <= top <= 10
    assert depths[0] < depths[top] > depths[-1]


def test_what_nobody_asks_for_any_more_costs_nothing() -> None:
    demand = demand_of(n * 0.1 for n in range(50))
    assert demand.wanted(5 + SETTINGS.keep_seconds - 1, SETTINGS) == 1
    assert demand.wanted(5.1 + SETTINGS.keep_seconds, SETTINGS) == 0


def test_everyone_gets_a_first_before_anyone_gets_a_second_and_the_latest_come_first() -> None:
    few = replace_settings(idle_most=3)
    demands = {name: demand_of([at + n * 0.01 for n in range(4)]) for at, name in enumerate("abcd")}
    assert targets(demands, 4.0, few) == {"d": 1, "c": 1, "b": 1, "a": 0}
    assert sum(targets(demands, 4.0, SETTINGS).values()) == SETTINGS.idle_most


def replace_settings(**changes: float) -> PoolSettings:
    return SETTINGS.model_copy(update=changes)


def test_what_lacks_is_made_less_what_is_being_made() -> None:
    demands = {"a": demand_of([n * 0.01 for n in range(4)])}
    assert plan(demands, [Idle("1", "a", 0.0)], {"a": 1}, 0.1, SETTINGS).make == ("a", "a")


def test_the_aged_and_the_superfluous_go_oldest_first() -> None:
    demands = {"a": demand_of([1000 + n * 0.01 for n in range(2)])}
    idle = [Idle(str(n), "a", 990.0 + n) for n in range(4)] + [Idle("old", "a", 0.0), Idle("other", "b", 999.0)]
    moves = plan(demands, idle, {}, 1000.1, SETTINGS)
    assert moves.make == ()
    assert set(moves.discard) == {"0", "1", "old", "other"}
    assert moves.discard.index("old") < moves.discard.index("1")


class Heard:
    """Counts what the pool says."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.changed = asyncio.Event()

    def taken(self, warm: bool) -> None:
        self._add("warm" if warm else "cold")

    def refilled(self, seconds: float) -> None:
        self._add("refilled")

    def discarded(self, reason: str) -> None:
        self._add(reason)

    def _add(self, what: str) -> None:
        self.counts[what] += 1
        self.changed.set()

    async def until(self, what: str, count: int = 1) -> None:
        async with asyncio.timeout(5):
            while self.counts[what] < count:
                self.changed.clear()
                await self.changed.wait()


@asynccontextmanager
async def pool_of(
    driver: ScriptedDriver, settings: PoolSettings = SETTINGS, may_refill: Callable[[], bool] = lambda: True
) -> AsyncIterator[tuple[WarmPool, Maker, Heard, SandboxSpec]]:
    heard, maker = Heard(), Maker(driver, SystemClock())
    pool = WarmPool(maker, SystemClock(), settings, heard, hands=2, may_refill=may_refill)
    spec, _ = await FURNISHING.spec(a_plan())
    async with pool.running():
        yield pool, maker, heard, spec


async def settled(pool: WarmPool, depth: int) -> None:
    async with asyncio.timeout(5):
        while pool.idle != depth:
            await asyncio.sleep(0)


async def heat(pool: WarmPool, spec: SandboxSpec) -> None:
    """Asks so often that the kind is worth keeping."""
    assert await pool.take(spec) is None
    assert await pool.take(spec) is None


async def test_what_is_asked_for_twice_waits_for_the_third_and_is_handed_out_once() -> None:
    driver = ScriptedDriver()
    async with pool_of(driver) as (pool, maker, heard, spec):
        await heat(pool, spec)
        await heard.until("refilled", 2)
        await settled(pool, 2)
        taken = [await pool.take(spec) for _ in range(3)]
        names = [ready.sandbox.sandbox_id for ready in taken if isinstance(ready, Ready)]
        assert len(set(names)) == len(names) == 2
        assert set(names) <= maker.live
        for name in names:
            await maker.destroy(name)
    assert (driver.existing, maker.live) == ({}, frozenset())


async def test_another_kind_is_never_served_by_it() -> None:
    async with pool_of(ScriptedDriver()) as (pool, _, heard, spec):
        await heat(pool, spec)
        await heard.until("refilled")
        for other in (
            replace(spec, limits=replace(spec.limits, memory_bytes=spec.limits.memory_bytes + 1)),
            replace(spec, command=("other",)),
            replace(spec, image=replace(spec.image, digest="sha256:" + "d" * 64)),
        ):
            assert await pool.take(other) is None


@pytest.mark.parametrize("last_words", [None, b"noise"])
async def test_one_that_dies_or_speaks_while_it_waits_is_replaced_and_not_handed_out(last_words: bytes | None) -> None:
    may_end = asyncio.Event()

    async def mortal(agent: ScriptedAgent) -> None:
        await agent.send(frames.HELLO, {"protocol": frames.PROTOCOL})
        await may_end.wait()
        if last_words is not None:
            await agent.send(frames.STDOUT, last_words)

    driver = ScriptedDriver(mortal)
    async with pool_of(driver) as (pool, _, heard, spec):
        await heat(pool, spec)
        await heard.until("refilled", 2)
        may_end.set()
        await heard.until("died", 2)
        assert await pool.take(spec) is None
    assert driver.existing == {}


async def test_a_refill_that_fails_is_no_ones_error_and_not_tried_again_at_once() -> None:
    driver = ScriptedDriver()
    driver.creating = unavailable("DRIVER_UNAVAILABLE", "the engine is gone")
    async with pool_of(driver) as (pool, maker, heard, spec):
        await heat(pool, spec)
        await heard.until("failed")
        assert await pool.take(spec) is None
        assert maker.live == frozenset()
        assert heard.counts["failed"] <= 2


async def test_nothing_is_made_while_calls_wait_for_room() -> None:
    async with pool_of(ScriptedDriver(), may_refill=lambda: False) as (pool, _, heard, spec):
        await heat(pool, spec)
        for _ in range(20):
            await asyncio.sleep(0)
        assert (pool.idle, heard.counts["refilled"]) == (0, 0)


async def test_a_pool_of_size_none_keeps_none() -> None:
    async with pool_of(ScriptedDriver(), PoolSettings(idle_most=0)) as (pool, _, heard, spec):
        await heat(pool, spec)
        assert (await pool.take(spec), heard.counts) == (None, Counter())


async def test_a_taker_that_is_canceled_leaves_nothing() -> None:
    driver = ScriptedDriver()
    async with pool_of(driver) as (pool, maker, heard, spec):
        await heat(pool, spec)
        await heard.until("refilled", 2)
        await settled(pool, 2)
        taking = asyncio.create_task(pool.take(spec))
        await asyncio.sleep(0)
        taking.cancel()
        result = (await asyncio.gather(taking, return_exceptions=True))[0]
        if isinstance(result, Ready):
            await maker.destroy(result.sandbox.sandbox_id)
    assert (driver.existing, maker.live) == ({}, frozenset())
