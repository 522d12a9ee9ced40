"""The gate: never over capacity, first in first out, and nothing is lost to calls that give up."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillcell.core.errors import Fault, FaultKind
from skillcell.core.types import Limits
from skillcell.scheduler.capacity import Capacity, CapacityGate

CAPACITY = Capacity(memory_bytes=100, milli_cpus=1000, queue_length=50)


def limits(memory: int, milli_cpus: int = 1) -> Limits:
    return Limits(memory_bytes=memory, milli_cpus=milli_cpus)


async def ignore(_position: int) -> None: ...


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def holding(gate: CapacityGate, of: Limits, log: list[str], name: str) -> tuple[asyncio.Task[None], asyncio.Event]:
    done = asyncio.Event()

    async def hold() -> None:
        async with gate.held(of, ignore):
            log.append(name)
            await done.wait()

    return asyncio.create_task(hold()), done


async def test_a_call_that_does_not_fit_waits_and_is_told_its_position() -> None:
    gate, log, positions = CapacityGate(CAPACITY), [], []
    first, leave = holding(gate, limits(60), log, "first")
    await turns()

    async def queued(position: int) -> None:
        positions.append(position)

    async def second() -> None:
        async with gate.held(limits(60), queued):
            log.append("second")

    waiting = [asyncio.create_task(second()) for _ in range(2)]
    await turns()
    assert (log, positions, gate.waiting) == (["first"], [1, 2], 2)
    leave.set()
    await asyncio.gather(first, *waiting)
    assert (log, gate.waiting) == (["first", "second", "second"], 0)


async def test_a_small_call_does_not_overtake_a_large_one_that_waits() -> None:
    gate, log = CapacityGate(CAPACITY), []
    first, leave_first = holding(gate, limits(60), log, "first")
    await turns()
    large, leave_large = holding(gate, limits(100), log, "large")
    await turns()
    small, leave_small = holding(gate, limits(1), log, "small")
    await turns()
    assert log == ["first"]
    for leave in (leave_first, leave_large, leave_small):
        leave.set()
    await asyncio.gather(first, large, small)
    assert log == ["first", "large", "small"]


async def test_a_large_call_that_gives_up_lets_the_small_ones_behind_it_in() -> None:
    gate, log = CapacityGate(CAPACITY), []
    first, leave = holding(gate, limits(60), log, "first")
    await turns()
    large, _ = holding(gate, limits(100), log, "large")
    await turns()
    small, leave_small = holding(gate, limits(40), log, "small")
    await turns()
    large.cancel()
    await turns()
    assert log == ["first", "small"]
    leave.set()
    leave_small.set()
    await asyncio.gather(first, small)


@pytest.mark.parametrize("cancel_first", [True, False])
async def test_a_call_canceled_in_the_turn_in_which_its_room_comes_free_loses_no_room(cancel_first: bool) -> None:
    gate, log = CapacityGate(CAPACITY), []
    released = asyncio.Event()

    async def first() -> None:
        async with gate.held(limits(100), ignore):
            await released.wait()
            if cancel_first:
                waiting.cancel()
        if not cancel_first:
            waiting.cancel()

    holder = asyncio.create_task(first())
    await turns()
    waiting, _ = holding(gate, limits(100), log, "waiting")
    await turns()
    behind, leave = holding(gate, limits(100), log, "behind")
    await turns()
    released.set()
    await asyncio.gather(holder)
    await asyncio.gather(waiting, return_exceptions=True)
    assert waiting.cancelled()
    await turns()
    assert log == ["behind"]
    leave.set()
    await behind
    async with gate.held(limits(100, 1000), ignore):
        assert gate.waiting == 0


async def test_a_call_whose_queued_event_fails_leaves_the_queue() -> None:
    gate, log = CapacityGate(CAPACITY), []
    first, leave = holding(gate, limits(100), log, "first")
    await turns()

    async def broken(_position: int) -> None:
        raise ValueError

    with pytest.raises(ValueError):
        async with gate.held(limits(1), broken):
            pass
    assert gate.waiting == 0
    leave.set()
    await first


async def test_a_call_that_fails_gives_its_room_back() -> None:
    gate = CapacityGate(CAPACITY)
    for _ in range(3):
        with pytest.raises(ValueError):
            async with gate.held(limits(100, 1000), ignore):
                raise ValueError


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 100), st.integers(1, 1000), st.integers(0, 9)), min_size=1, max_size=25),
    seed=st.integers(0, 1 << 30),
)
def test_any_mix_of_calls_and_cancels_stays_within_capacity_and_leaks_nothing(
    sizes: list[tuple[int, int, int]], seed: int
) -> None:
    async def scenario() -> None:
        chance = random.Random(seed)
        gate = CapacityGate(CAPACITY)
        inside: dict[int, Limits] = {}

        async def call(number: int, of: Limits, stay: int) -> None:
            async with gate.held(of, ignore):
                inside[number] = of
                try:
                    assert sum(one.memory_bytes for one in inside.values()) <= CAPACITY.memory_bytes
                    assert sum(one.milli_cpus for one in inside.values()) <= CAPACITY.milli_cpus
                    await turns(stay)
                finally:
                    del inside[number]

        tasks = []
        for number, (memory, milli_cpus, stay) in enumerate(sizes):
            tasks.append(asyncio.create_task(call(number, limits(memory, milli_cpus), stay)))
            await turns(chance.randrange(3))
            if chance.random() < 0.4:
                chance.choice(tasks).cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert result is None or isinstance(result, asyncio.CancelledError), result
        assert gate.waiting == 0
        async with gate.held(limits(100, 1000), ignore):
            pass

    asyncio.run(asyncio.wait_for(scenario(), 10))


@pytest.mark.parametrize(
    ("of", "field", "most"), [(limits(101), "memory_bytes", "100"), (limits(1, 1001), "milli_cpus", "1000")]
)
def test_what_can_never_fit_is_refused_with_the_limit(of: Limits, field: str, most: str) -> None:
    with pytest.raises(Fault) as fault:
        CapacityGate(CAPACITY).check(of)
    assert fault.value.kind is FaultKind.INVALID_ARGUMENT
    assert fault.value.violations[0].field == f"limits.{field}"
    assert fault.value.metadata["limit"] == most


@pytest.mark.parametrize("length", [0, 2])
async def test_a_full_queue_refuses_and_says_when_to_come_back(length: int) -> None:
    gate, log = CapacityGate(Capacity(100, 1000, queue_length=length)), []
    gate.check(limits(100))
    calls = [holding(gate, limits(100), log, "call") for _ in range(length + 1)]
    await turns()
    with pytest.raises(Fault) as fault:
        gate.check(limits(100))
    assert fault.value.kind is FaultKind.RESOURCE_EXHAUSTED
    assert (fault.value.quotas[0].limit, fault.value.quotas[0].used) == (length, length)
    assert fault.value.retry_after is not None
    for task, leave in calls:
        leave.set()
        await task


def test_the_machine_keeps_a_reserve() -> None:
    whole = Capacity.of_machine(reserve=0.0)
    kept = Capacity.of_machine(reserve=0.5)
    assert 0 < kept.memory_bytes <= whole.memory_bytes / 2
    assert kept.milli_cpus == whole.milli_cpus
