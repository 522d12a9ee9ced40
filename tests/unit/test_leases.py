"""Every sandbox that is made is destroyed, by its lease or by the reaper, and its room is free only then."""

from __future__ import annotations

import asyncio

import pytest

from plans import plan
from scripted_driver import FURNISHING, ScriptedDriver, greet
from scripted_sandbox import ScriptedSandbox
from skillcell.core.clock import SystemClock
from skillcell.core.errors import Fault, FaultKind, unavailable
from skillcell.scheduler import making
from skillcell.scheduler.capacity import Capacity, CapacityGate
from skillcell.scheduler.leases import Leases
from skillcell.scheduler.making import Maker
from skillcell.scheduler.pool import WarmPool
from skillcell.scheduler.pool_plan import PoolSettings
from skillcell.scheduler.reaper import Reaper

PLAN = plan()
ROOM = Capacity(PLAN.limits.memory_bytes, PLAN.limits.milli_cpus)


async def ignore(_position: int) -> None: ...


class Deaf:
    """Hears nothing."""

    def taken(self, warm: bool) -> None: ...

    def refilled(self, seconds: float) -> None: ...

    def discarded(self, reason: str) -> None: ...


def leases_of(driver: ScriptedDriver) -> tuple[Leases, Maker]:
    maker = Maker(driver, SystemClock())
    pool = WarmPool(maker, SystemClock(), PoolSettings(idle_most=0), Deaf(), hands=1, may_refill=lambda: True)
    return Leases(driver, CapacityGate(ROOM), maker, pool, SystemClock(), furnishing=FURNISHING), maker


async def test_a_lease_is_a_greeted_sandbox_that_is_gone_afterwards() -> None:
    driver = ScriptedDriver()
    leases, maker = leases_of(driver)
    async with leases.lease(PLAN, ignore) as lease:
        assert maker.live == {lease.sandbox.sandbox_id} == set(driver.existing)
        assert (lease.driver, lease.warm) == ("scripted", False)
        assert lease.startup_ns > 0
    assert (maker.live, driver.existing) == (frozenset(), {})


async def test_a_sandbox_that_does_not_greet_is_destroyed_and_told_as_unavailable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(making, "_HELLO_SECONDS", 0.02)
    driver = ScriptedDriver(lambda agent: agent.stall())
    leases, maker = leases_of(driver)
    with pytest.raises(Fault) as fault:
        async with leases.lease(PLAN, ignore):
            raise AssertionError
    assert fault.value.kind is FaultKind.UNAVAILABLE
    assert (maker.live, driver.existing) == (frozenset(), {})


async def test_a_sandbox_that_could_not_be_made_is_destroyed_all_the_same() -> None:
    driver = ScriptedDriver()
    driver.creating = unavailable("DRIVER_UNAVAILABLE", "half made")
    with pytest.raises(Fault, match="half made"):
        async with leases_of(driver)[0].lease(PLAN, ignore):
            raise AssertionError
    assert driver.tries == 1


async def test_the_room_of_a_call_is_free_only_when_its_sandbox_is_gone_however_often_it_is_canceled() -> None:
    driver = ScriptedDriver()
    leases, _ = leases_of(driver)
    running = asyncio.Event()

    async def call() -> None:
        async with leases.lease(PLAN, ignore):
            running.set()
            await asyncio.Event().wait()

    first = asyncio.create_task(call())
    await running.wait()
    running.clear()
    second = asyncio.create_task(call())
    driver.may_destroy.clear()
    first.cancel()
    await driver.destroying.wait()
    for _ in range(5):
        first.cancel()
        await asyncio.sleep(0)
    entered, left = running.is_set(), first.done()
    driver.may_destroy.set()
    await running.wait()
    assert (entered, left) == (False, False)
    second.cancel()
    results = await asyncio.gather(first, second, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    assert driver.existing == {}


async def left(driver: ScriptedDriver, *names: str) -> None:
    for name in names:
        driver.existing[name] = ScriptedSandbox(greet, name)


async def test_the_reaper_takes_what_is_unowned_twice_and_leaves_what_is_owned() -> None:
    driver = ScriptedDriver()
    await left(driver, "sbx_a", "sbx_b", "sbx_owned")
    reaper = Reaper(driver, lambda: {"sbx_owned"})
    assert await reaper.sweep() == 0
    await left(driver, "sbx_new")
    assert await reaper.sweep() == 2
    assert set(driver.existing) == {"sbx_owned", "sbx_new"}
    assert await reaper.sweep() == 1
    await driver.existing["sbx_owned"].gone()


async def test_at_start_the_reaper_takes_all_at_once() -> None:
    driver = ScriptedDriver()
    await left(driver, "sbx_a", "sbx_b")
    assert await Reaper(driver, lambda: ()).sweep(at_once=True) == 2
    assert driver.existing == {}


async def test_a_sandbox_that_won_t_go_does_not_keep_the_others() -> None:
    driver = ScriptedDriver()
    await left(driver, "sbx_a", "sbx_b", "sbx_c")
    driver.stubborn = {"sbx_a"}
    reaper = Reaper(driver, lambda: ())
    assert await reaper.sweep(at_once=True) == 2
    assert set(driver.existing) == {"sbx_a"}
    driver.stubborn.clear()
    assert await reaper.sweep() == 1
