"""Every sandbox that is made is destroyed, by its lease or by the reaper, and its room is free only then."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from plans import plan
from scripted_sandbox import ScriptedAgent, ScriptedSandbox
from skillcell.agent import frames
from skillcell.core.clock import SystemClock
from skillcell.core.errors import Fault, FaultKind, unavailable
from skillcell.core.types import Isolation
from skillcell.sandbox.driver import Found, Guarantee, SandboxSpec
from skillcell.sandbox.images import Image
from skillcell.scheduler import leases as leases_module
from skillcell.scheduler.capacity import Capacity, CapacityGate
from skillcell.scheduler.leases import Leases
from skillcell.scheduler.reaper import Reaper

PLAN = plan()
ROOM = Capacity(PLAN.limits.memory_bytes, PLAN.limits.milli_cpus)


async def ignore(_position: int) -> None: ...


async def greet(agent: ScriptedAgent) -> None:
    await agent.send(frames.HELLO, {"protocol": frames.PROTOCOL})
    await agent.stall()


class ScriptedDriver:
    """Makes scripted sandboxes; `stubborn` ones refuse to go, and making or ending may be held up."""

    name = "scripted"

    def __init__(self, script: object = greet) -> None:
        self._script = script
        self.existing: dict[str, ScriptedSandbox] = {}
        self.stubborn: set[str] = set()
        self.creating: BaseException | None = None
        self.may_destroy = asyncio.Event()
        self.may_destroy.set()
        self.destroying = asyncio.Event()
        self.tries = 0

    def guarantees(self, isolation: Isolation) -> frozenset[Guarantee]:
        return frozenset()

    async def ready(self) -> None: ...

    async def create(self, spec: SandboxSpec) -> ScriptedSandbox:
        if self.creating is not None:
            raise self.creating
        sandbox = ScriptedSandbox(self._script, spec.sandbox_id)  # type: ignore[arg-type]
        self.existing[spec.sandbox_id] = sandbox
        return sandbox

    async def destroy(self, sandbox_id: str) -> None:
        self.tries += 1
        self.destroying.set()
        await self.may_destroy.wait()
        if sandbox_id in self.stubborn:
            raise unavailable("DRIVER_UNAVAILABLE", "it won't go")
        sandbox = self.existing.pop(sandbox_id, None)
        if sandbox is not None:
            await sandbox.gone()

    async def list(self) -> Sequence[Found]:
        return [Found(name, None) for name in self.existing]


def leases_of(driver: ScriptedDriver) -> Leases:
    async def images(_reference: str) -> Image:
        return Image("shell", "sha256:" + "c" * 64, None, "amd64", {"A": "1"})

    return Leases(
        driver,
        CapacityGate(ROOM),
        SystemClock(),
        images=images,
        mounts=lambda _: (),
        agent_command=lambda _: ("agent",),
    )


async def test_a_lease_is_a_greeted_sandbox_that_is_gone_afterwards() -> None:
    driver = ScriptedDriver()
    leases = leases_of(driver)
    async with leases.lease(PLAN, ignore) as lease:
        assert leases.live == {lease.sandbox.sandbox_id} == set(driver.existing)
        assert (lease.driver, lease.warm) == ("scripted", False)
        assert lease.startup_ns > 0
    assert (leases.live, driver.existing) == (frozenset(), {})


async def test_a_sandbox_that_does_not_greet_is_destroyed_and_told_as_unavailable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leases_module, "_HELLO_SECONDS", 0.02)
    driver = ScriptedDriver(lambda agent: agent.stall())
    leases = leases_of(driver)
    with pytest.raises(Fault) as fault:
        async with leases.lease(PLAN, ignore):
            raise AssertionError
    assert fault.value.kind is FaultKind.UNAVAILABLE
    assert (leases.live, driver.existing) == (frozenset(), {})


async def test_a_sandbox_that_could_not_be_made_is_destroyed_all_the_same() -> None:
    driver = ScriptedDriver()
    driver.creating = unavailable("DRIVER_UNAVAILABLE", "half made")
    with pytest.raises(Fault, match="half made"):
        async with leases_of(driver).lease(PLAN, ignore):
            raise AssertionError
    assert driver.tries == 1


async def test_the_room_of_a_call_is_free_only_when_its_sandbox_is_gone_however_often_it_is_canceled() -> None:
    driver = ScriptedDriver()
    leases = leases_of(driver)
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
