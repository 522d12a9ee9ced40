"""Calls that come again find a sandbox that waits: a fresh one each, like any other, and none is ever owed."""

from __future__ import annotations

import asyncio
import os
import signal

from e2e.conftest import Fresh
from e2e.gateway import Gateway
from e2e.lab import run
from skillcell.client import CallResult, SkillcellClient

IDLE = ("skillcell_pool_idle_sandboxes", ())


def sandbox_of(result: CallResult) -> str:
    assert result.started is not None
    return result.started.sandbox_id


async def filled(gateway: Gateway, depth: int) -> None:
    async with asyncio.timeout(20):
        while (await asyncio.to_thread(gateway.samples))[IDLE] < depth:
            await asyncio.sleep(0.02)


async def test_what_comes_again_is_warm_and_each_call_has_a_sandbox_of_its_own(fresh: Fresh) -> None:
    gateway = fresh()
    async with gateway.client() as client:
        cold = await run(client, "print(1)")
        results = [cold, await run(client, "print(2)")]
        for number in range(3):
            await filled(gateway, 1)
            results.append(await run(client, f"import os; print(os.listdir('/workspace'), {number})"))
        await _check(client, results)
        await filled(gateway, 1)
        for pid in [pid for pid in gateway.processes() if ".skillcell" in gateway.processes().get(pid, "")]:
            os.kill(pid, signal.SIGKILL)  # whatever waits is dead now
        assert (await run(client, "print(3)")).stdout == b"3\n"
        assert (await client.usage.verify()).intact


async def _check(client: SkillcellClient, results: list[CallResult]) -> None:
    assert [result.usage.warm for result in results] == [False, False, True, True, True]
    assert len({sandbox_of(result) for result in results}) == len(results)
    assert all(result.ok for result in results)
    cold, warm = results[0].usage, results[-1].usage
    assert warm.times.startup_ns < cold.times.startup_ns
    assert warm.cpu_total_ns < 200_000_000  # of the call, not of what was done before it
    assert warm.memory_peak_bytes <= warm.memory_limit_bytes
