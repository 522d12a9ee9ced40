"""What differs where the sandbox's kernel is a process of the host's: it may end as a whole, and its clocks are its
own.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

from contract.driver_contract import LIMITS, Cgroups, DriverContract, Make
from contract.sandbox_probe import inside
from skillcell.core.types import Isolation
from skillcell.sandbox.driver import Guarantee

STORM = """
if os.fork() == 0:
    for number in range(1, 32):
        try:
            signal.signal(number, signal.SIG_IGN)
        except OSError:
            pass
    os.setsid()
    while True:
        try:
            os.fork()
        except OSError:
            pass
time.sleep(0.3)
result = 0
"""


class GvisorContract(DriverContract):
    """The driver contract for runsc."""

    isolation = Isolation.GVISOR

    async def test_running_out_of_memory_is_counted(self, make: Make, declared: frozenset[Guarantee]) -> None:
        """The sandbox ends as a whole: its kernel is one process of the host's."""
        sandbox = await make()
        code = b"held = bytearray(1 << 30); result = 0"
        await sandbox.channel.write(len(code).to_bytes(4) + code)
        assert await sandbox.channel.read(1) == b""
        await sandbox.kill()
        counters = await sandbox.counters()
        assert counters.oom_kills >= 1
        assert LIMITS.memory_bytes * 0.9 <= counters.memory_peak_bytes <= LIMITS.memory_bytes

    async def test_cpu_time_is_exact(self, make: Make, declared: frozenset[Guarantee], cgroups: Cgroups) -> None:
        """Its own clocks are not the host's: the host's account of each thread is what the counters must equal."""
        sandbox = await make()
        await inside(sandbox, "result = 0")
        cgroup = cgroups.open(sandbox.sandbox_id)
        assert cgroup is not None
        before = _thread_times(cgroup.pids())
        counted = (await sandbox.counters()).cpu_total_ns
        code = """
start = time.process_time_ns()
while time.process_time_ns() - start < 400_000_000:
    pass
result = 0
"""
        await inside(sandbox, code)
        after = _thread_times(cgroup.pids())
        counted = (await sandbox.counters()).cpu_total_ns - counted
        used = sum(time - before.get(thread, 0) for thread, time in after.items())
        assert abs(counted - used) <= used * 0.01 + 4_000_000  # the two are not read at one instant

    async def test_killing_ends_a_fork_storm_that_ignores_signals(self, make: Make, cgroups: Cgroups) -> None:
        """The storm may take the sandbox's own kernel with it; nothing is left either way."""
        sandbox = await make()
        storm = STORM.encode()
        await sandbox.channel.write(len(storm).to_bytes(4) + storm)
        await sandbox.channel.read(1)
        async with asyncio.timeout(20):
            await sandbox.kill()
        cgroup = cgroups.open(sandbox.sandbox_id)
        assert cgroup is not None
        assert not cgroup.pids()
        assert (await sandbox.counters()).cpu_total_ns > 0


def _thread_times(pids: frozenset[int]) -> dict[str, int]:
    """Nanoseconds on a CPU of each thread (proc(5), schedstat)."""
    times = {}
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                times[task.name] = int((task / "schedstat").read_text().split()[0])
    return times
