"""The driver contract over the `docker` driver: runc, runsc, and an engine whose cgroups are out of reach."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import DockerException

from contract.driver_contract import LIMITS, Cgroups, DriverContract, Make
from contract.sandbox_probe import inside
from sandbox_fixtures import image_store
from skillcell.core.types import MEBIBYTE, Counters, Isolation, Measurement
from skillcell.sandbox.driver import Driver, Guarantee, Sandbox
from skillcell.sandbox.drivers.docker import DockerDriver
from skillcell.sandbox.drivers.docker_control import SandboxCgroups
from skillcell.sandbox.drivers.docker_engine import DockerSettings
from skillcell.sandbox.images import Image
from skillcell.sandbox.images_docker import DockerImages


def _info() -> dict[str, Any]:
    try:
        client = docker.DockerClient()
    except DockerException:
        return {}
    try:
        return dict(client.info())
    except DockerException:
        return {}
    finally:
        client.close()


INFO = _info()
RUNTIMES = frozenset(INFO.get("Runtimes", ()))
CGROUP_DRIVER = INFO.get("CgroupDriver", "")
needs_docker = pytest.mark.skipif(not RUNTIMES, reason="no Docker Engine answers: apt-get install docker.io")


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


class _Docker(DriverContract):
    settings = DockerSettings(instance="contract")

    @pytest.fixture
    async def driver(self) -> AsyncIterator[Driver]:
        driver = DockerDriver(self.settings)
        await driver.check()  # connects, so that what is declared is what this engine was found to give
        yield driver
        await driver.prune_packages(set())
        await driver.close()

    @pytest.fixture
    def image(self, python_image: Image) -> Image:
        client = docker.DockerClient()
        try:
            return DockerImages(client, image_store()).ensure(python_image.reference)
        finally:
            client.close()

    @pytest.fixture
    def cgroups(self) -> Cgroups:
        return SandboxCgroups(self.settings.instance, CGROUP_DRIVER)


@needs_docker
class TestDocker(_Docker):
    async def test_systemd_keeps_no_unit_of_a_sandbox_and_takes_no_limit_from_the_next(
        self, make: Make, driver: Driver
    ) -> None:
        if CGROUP_DRIVER != "systemd":
            return  # such an engine is another machine's: tests/cgroup2-vm.sh makes one
        for _ in range(3):
            sandbox = await make()
            assert await inside(sandbox, "result = 1") == 1
            assert f"-{sandbox.sandbox_id}.slice" in _slices()
            assert (await sandbox.counters()).measurement is Measurement.EXACT
            await driver.destroy(sandbox.sandbox_id)
            async with asyncio.timeout(10):
                while sandbox.sandbox_id in _slices():  # it is told to end it, and does so when it comes to it
                    await asyncio.sleep(0.02)


@needs_docker
class TestDockerBySampling(_Docker):
    """As with a remote engine: its own statistics, its own kill."""

    settings = replace(_Docker.settings, instance="contractsampled", engine_counters=True)

    async def test_exact_usage_is_not_declared(self, driver: Driver, declared: frozenset[Guarantee]) -> None:
        assert Guarantee.EXACT_USAGE not in declared
        assert any("sampled" in check.detail for check in await driver.check())

    async def test_its_namespaces_are_its_own(
        self, make: Make, declared: frozenset[Guarantee], cgroups: Cgroups
    ) -> None:
        sandbox = await make()
        client = docker.APIClient()
        try:
            pid = client.inspect_container(sandbox.sandbox_id)["State"]["Pid"]
        finally:
            client.close()
        for kind in ("pid", "ipc", "uts", "mnt", "cgroup", "net"):
            assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind

    async def test_running_out_of_memory_is_counted(self, make: Make, declared: frozenset[Guarantee]) -> None:
        sandbox = await make()
        code = """
pid = os.fork()
if pid == 0:
    open("/proc/self/oom_score_adj", "w").write("1000")
    bytearray(1 << 30)
    os._exit(0)
result = os.waitpid(pid, 0)[1]
"""
        assert await inside(sandbox, code) == 9
        await sandbox.kill()  # the engine tells of it when it is over
        assert (await sandbox.counters()).oom_kills >= 1

    async def test_files_count_as_memory(self, make: Make, declared: frozenset[Guarantee]) -> None:
        sandbox = await make(replace(LIMITS, disk_bytes=96 * MEBIBYTE))
        await inside(sandbox, f"open('/workspace/x', 'wb').write(b'x' * {30 * MEBIBYTE}); result = 0")
        await _until(sandbox, lambda counters: counters.memory_peak_bytes >= 30 * MEBIBYTE)

    async def test_processes_are_limited_and_their_peak_is_counted(
        self, make: Make, declared: frozenset[Guarantee]
    ) -> None:
        sandbox = await make()
        code = """
alive = 0
try:
    while alive < 1000:
        if os.fork() == 0:
            signal.pause()
        alive += 1
except BlockingIOError:
    pass
result = alive
"""
        assert LIMITS.pids - 5 <= await inside(sandbox, code) < LIMITS.pids
        await _until(sandbox, lambda counters: counters.pids_peak >= LIMITS.pids - 5)

    async def test_killing_ends_a_fork_storm_that_ignores_signals(self, make: Make, cgroups: Cgroups) -> None:
        sandbox = await make()
        await inside(sandbox, STORM)
        async with asyncio.timeout(20):
            await sandbox.kill()
        assert await sandbox.channel.read(1) == b""
        await sandbox.kill()

    async def test_cpu_time_is_seen_within_a_tick(self, make: Make) -> None:
        sandbox = await make()
        code = """
start = time.process_time_ns()
while time.process_time_ns() - start < 400_000_000:
    pass
result = 0
"""
        await inside(sandbox, code)
        counters = await _until(sandbox, lambda counters: counters.cpu_total_ns >= 400_000_000)
        assert counters.measurement is Measurement.SAMPLED
        assert counters.cpu_total_ns < 600_000_000


def _slices() -> str:
    listed = ("systemctl", "list-units", "--all", "--plain", "--no-legend", "--no-pager", "--full", "--type=slice")
    return subprocess.run(listed, capture_output=True, text=True, check=True).stdout


async def _until(sandbox: Sandbox, seen: Callable[[Counters], bool]) -> Counters:
    """The first counters that satisfy `seen`: the engine ticks once a second."""
    async with asyncio.timeout(10):
        while not seen(counters := await sandbox.counters()):
            await asyncio.sleep(0.02)
    return counters


@pytest.mark.skipif("runsc" not in RUNTIMES, reason="the Docker Engine knows no runtime `runsc`: skillcell doctor")
class TestDockerRunsc(_Docker):
    isolation = Isolation.GVISOR
    settings = replace(_Docker.settings, instance="contractgvisor")

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
