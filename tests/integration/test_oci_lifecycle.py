"""The `oci` driver when things die: launcher, gateway, both; and when many things happen at once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from contract.driver_contract import LIMITS, traces
from contract.sandbox_probe import inside, probe_command
from sandbox_fixtures import image
from skillcell.core.errors import Fault, FaultKind
from skillcell.core.ids import sandbox_id
from skillcell.core.types import Isolation
from skillcell.sandbox.cgroups import CgroupTree
from skillcell.sandbox.driver import SandboxSpec
from skillcell.sandbox.drivers.oci import OciDriver, OciSettings
from skillcell.sandbox.images import Image

SETTINGS = OciSettings(Path("/run/skillcell-test"), "skillcell-test-lifecycle")

_GATEWAY = """
import asyncio, json, sys
from dataclasses import replace
from pathlib import Path
from contract.driver_contract import LIMITS
from contract.sandbox_probe import inside, probe_command
from sandbox_fixtures import image
from skillcell.core.types import Isolation
from skillcell.sandbox.driver import SandboxSpec
from skillcell.sandbox.drivers.oci import OciDriver, OciSettings

async def main():
    driver = OciDriver(OciSettings(Path(sys.argv[1]), sys.argv[2]))
    found = image("python-3.11")
    for name in sys.argv[3:]:
        spec = SandboxSpec(name, found, Isolation.STANDARD, LIMITS, (), probe_command(found.python))
        sandbox = await driver.create(spec)
        await inside(sandbox, "os.fork() or signal.pause(); result = 0")
    launcher = (await driver._ready()).pid
    print(json.dumps(launcher), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def python_image() -> Image:
    return image("python-3.11")


@pytest.fixture
async def driver() -> AsyncIterator[OciDriver]:
    async with OciDriver(SETTINGS) as driver:
        yield driver
        for found in await driver.list():
            await driver.destroy(found.sandbox_id)


@pytest.fixture
def spec(python_image: Image) -> SandboxSpec:
    return SandboxSpec(sandbox_id(), python_image, Isolation.STANDARD, LIMITS, (), probe_command(python_image.python))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def pids(name: str) -> frozenset[int]:
    cgroup = CgroupTree.detect(SETTINGS.cgroup_root).open(name)
    return cgroup.pids() if cgroup else frozenset()


async def start_gateway(*names: str) -> tuple[asyncio.subprocess.Process, int]:
    """Another gateway process with running sandboxes; its process and its launcher's pid."""
    tests = Path(__file__).parents[1]
    gateway = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _GATEWAY,
        str(SETTINGS.run_directory),
        SETTINGS.cgroup_root,
        *names,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{tests}:{tests.parent / 'runtime'}"},
    )
    assert gateway.stdout is not None
    return gateway, json.loads(await gateway.stdout.readline())


async def test_a_dead_launchers_sandboxes_are_killed_and_another_one_serves(
    driver: OciDriver, spec: SandboxSpec
) -> None:
    sandbox = await driver.create(spec)
    await inside(sandbox, "result = 0")
    alive = pids(spec.sandbox_id)
    (launcher,) = [check.detail.split()[-1] for check in await driver.check() if check.name == "oci launcher"]
    os.kill(int(launcher), signal.SIGKILL)
    assert await sandbox.channel.read(1) == b""
    await until(lambda: not pids(spec.sandbox_id))
    assert alive
    assert (await sandbox.counters()).cpu_total_ns > 0
    await driver.destroy(spec.sandbox_id)
    assert not traces(spec.sandbox_id)
    again = await driver.create(spec)
    assert await inside(again, "result = 1") == 1


async def test_a_request_to_a_dying_launcher_is_unavailable_and_leaves_nothing(
    driver: OciDriver, spec: SandboxSpec
) -> None:
    (launcher,) = [check.detail.split()[-1] for check in await driver.check() if check.name == "oci launcher"]
    os.kill(int(launcher), signal.SIGSTOP)  # it takes the request and never answers
    creating = asyncio.ensure_future(driver.create(spec))
    await asyncio.sleep(0)
    os.kill(int(launcher), signal.SIGKILL)
    with pytest.raises(Fault) as raised:
        await creating
    assert raised.value.kind is FaultKind.UNAVAILABLE
    assert not traces(spec.sandbox_id)


async def test_a_killed_gateways_sandboxes_die_and_their_counters_wait_for_the_next(driver: OciDriver) -> None:
    names = [sandbox_id(), sandbox_id()]
    gateway, launcher = await start_gateway(*names)
    gateway.kill()
    await gateway.wait()
    await until(lambda: not Path(f"/proc/{launcher}").exists())
    assert not any(pids(name) for name in names)
    found = {found.sandbox_id: found.counters for found in await driver.list()}
    for name in names:
        counters = found[name]
        assert counters is not None
        assert counters.cpu_total_ns > 0
        await driver.destroy(name)
        assert not traces(name)


async def test_what_outlives_gateway_and_launcher_is_found_and_ended(driver: OciDriver) -> None:
    name = sandbox_id()
    gateway, launcher = await start_gateway(name)
    gateway.send_signal(signal.SIGSTOP)
    os.kill(launcher, signal.SIGKILL)
    gateway.kill()
    await gateway.wait()
    await until(lambda: not Path(f"/proc/{launcher}").exists())
    assert name in {found.sandbox_id for found in await driver.list()}
    await driver.destroy(name)
    assert not pids(name)
    assert not traces(name)


async def test_a_canceled_create_leaves_nothing(driver: OciDriver, spec: SandboxSpec) -> None:
    for turns in (0, 1, 2, 5):
        tried = replace(spec, sandbox_id=sandbox_id())
        creating = asyncio.ensure_future(driver.create(tried))
        for _ in range(turns):
            await asyncio.sleep(0)
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating
        assert not traces(tried.sandbox_id)


async def test_many_at_once_have_users_of_their_own(driver: OciDriver, spec: SandboxSpec) -> None:
    specs = [replace(spec, sandbox_id=sandbox_id()) for _ in range(12)]
    sandboxes = await asyncio.gather(*(driver.create(each) for each in specs))
    maps = [await inside(sandbox, "result = read('/proc/self/uid_map')") for sandbox in sandboxes]
    assert len(set(maps)) == 12
    await asyncio.gather(*(driver.destroy(each.sandbox_id) for each in specs))
    assert not any(traces(each.sandbox_id) for each in specs)


async def test_no_path_of_the_host_shows_inside(driver: OciDriver, spec: SandboxSpec) -> None:
    rootfs = spec.image.rootfs
    assert rootfs is not None
    sandbox = await driver.create(spec)
    mounts = await inside(sandbox, "result = read('/proc/self/mountinfo')")
    assert str(rootfs.parents[1]) not in mounts
    assert str(SETTINGS.run_directory) not in mounts


async def test_an_agents_last_words_are_kept_and_bounded(driver: OciDriver, spec: SandboxSpec) -> None:
    sandbox = await driver.create(spec)
    code = "for _ in range(400): os.write(2, b'x' * 1024)\nos.write(2, b'the end'); result = 0"
    await inside(sandbox, code)
    text = sandbox.diagnostics()
    assert text.endswith("the end")
    assert len(text) <= 65536


async def test_an_isolation_class_without_a_runtime_is_refused(driver: OciDriver, spec: SandboxSpec) -> None:
    assert driver.guarantees(Isolation.VM) == frozenset()
    with pytest.raises(Fault) as raised:
        await driver.create(replace(spec, isolation=Isolation.VM))
    assert raised.value.kind is FaultKind.FAILED_PRECONDITION


async def test_user_ids_that_ran_out_are_unavailable_and_come_back(spec: SandboxSpec) -> None:
    settings = replace(SETTINGS, run_directory=Path("/run/skillcell-test/narrow"), uid_pairs=1)
    async with OciDriver(settings) as driver:
        await driver.create(spec)
        second = replace(spec, sandbox_id=sandbox_id())
        with pytest.raises(Fault) as raised:
            await driver.create(second)
        assert raised.value.kind is FaultKind.UNAVAILABLE
        await driver.destroy(spec.sandbox_id)
        await driver.create(second)
        await driver.destroy(second.sandbox_id)


async def test_leaving_the_driver_ends_its_sandboxes(spec: SandboxSpec) -> None:
    async with OciDriver(SETTINGS) as driver:
        await driver.create(spec)
    assert not pids(spec.sandbox_id)
    async with OciDriver(SETTINGS) as driver:
        await driver.destroy(spec.sandbox_id)
    assert not traces(spec.sandbox_id)
