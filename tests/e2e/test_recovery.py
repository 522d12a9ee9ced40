"""What the start after a crash makes of calls that were running: all of their usage that can be proven, no more."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from e2e.conftest import Fresh
from e2e.gateway import Gateway
from e2e.lab import gone, spec, until
from e2e.test_request_ids import settled
from skillcell.core.events import Started, Stdout
from skillcell.core.records import Checkpoint
from skillcell.core.types import FaultParty, Measurement, Outcome
from skillcell.metering import checkpoints
from skillcell.storage.engines import make_engines

SPINNER = "print('up', flush=True)\nwhile True: pass"


def kept_checkpoints(gateway: Gateway, url: str) -> Mapping[str, Checkpoint]:
    """Straight from the store, whether or not a gateway serves it."""
    engines = make_engines(url or f"sqlite:///{gateway.data}/skillcell.db", 1)
    try:
        with engines.reader.begin() as connection:
            return checkpoints.of_instance(connection, gateway.instance)
    finally:
        engines.dispose()


def cgroups_of(gateway: Gateway, sandbox: str) -> list[Path]:
    return [path for path in gateway.cgroups() if sandbox in path.name]


def cpu_ns(directories: list[Path]) -> int:
    """What the kernel counted for a sandbox, whichever hierarchy counts it."""
    exact = [path for directory in directories if (path := directory / "cpuacct.usage").exists()]
    if exact:
        return int(exact[0].read_text())
    (stat,) = (path for directory in directories if (path := directory / "cpu.stat").exists())
    return int(stat.read_text().split()[1]) * 1000


async def test_a_crash_loses_no_usage_that_the_kernel_or_a_checkpoint_still_knows(
    driver: str, docker_host: str, database: str, fresh: Fresh
) -> None:
    gateway = await asyncio.to_thread(fresh, driver, docker_host, database=database)
    async with gateway.client() as client:
        streams = [client.execute("dev/lab", **spec(SPINNER)) for _ in range(2)]
        begun = await asyncio.gather(*(until(stream, Stdout) for stream in streams))
        left, lost = (seen[0].execution_id for seen in begun)
        sandboxes = [event.kind.sandbox_id for seen in begun for event in seen if isinstance(event.kind, Started)]
        async with asyncio.timeout(30):
            while len(noted := kept_checkpoints(gateway, database)) < 2:
                await asyncio.sleep(0.1)
        assert {checkpoint.sandbox_id for checkpoint in noted.values()} == set(sandboxes)
        running = [pid for pid in gateway.processes() if pid != gateway.pid]
        gateway.kill()
        await asyncio.gather(*(stream.aclose() for stream in streams))
    async with asyncio.timeout(10):
        while not all(gone(pid) for pid in running):
            await asyncio.sleep(0.02)
    noted = kept_checkpoints(gateway, database)
    used_ns = cpu_ns(cgroups_of(gateway, sandboxes[0]))
    async with asyncio.timeout(10):
        while directories := cgroups_of(gateway, sandboxes[1]):  # as a machine that lost its power would have lost it
            for directory in sorted(directories, key=lambda path: -len(path.parts)):
                with suppress(OSError):  # a Docker Engine is at it too
                    below = sorted((path for path in directory.rglob("*") if path.is_dir()), reverse=True)
                    for path in (*below, directory):
                        os.rmdir(path)
            await asyncio.sleep(0.02)
    await asyncio.to_thread(gateway.start)
    async with gateway.client() as client:
        for execution_id in (left, lost):
            completed = (await settled(client, execution_id)).completed
            assert completed is not None
            assert (completed.outcome, completed.fault) == (Outcome.PLATFORM_ERROR, FaultParty.PLATFORM)
            usage, checkpoint = completed.usage, noted[execution_id]
            assert (usage.billable, usage.billed_ms, usage.measurement) == (False, 0, Measurement.LOWER_BOUND)
            seen_ns = checkpoint.latest.cpu_total_ns - checkpoint.at_lease.cpu_total_ns
            assert seen_ns > 0
            if execution_id == left:
                assert seen_ns <= usage.cpu_total_ns == used_ns - checkpoint.at_lease.cpu_total_ns
                assert usage.memory_peak_bytes >= checkpoint.latest.memory_peak_bytes > 0
            else:
                assert usage.cpu_total_ns == seen_ns
                assert usage.memory_peak_bytes == checkpoint.latest.memory_peak_bytes
            assert usage.times.run_ns == checkpoint.run_ns > 0
            assert usage.times.startup_ns == checkpoint.startup_ns > 0
            assert usage.output_bytes == len("up\n")
            assert usage.started_at == checkpoint.started_at
        assert (await client.usage.verify()).intact
    assert kept_checkpoints(gateway, database) == {}
    assert not [line for line in gateway.leftovers() if any(sandbox in line for sandbox in sandboxes)]
