"""What the `docker` driver does beyond the contract: packages, faults half-way, leftovers, its channel."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import docker
import pytest

from contract.sandbox_probe import inside, probe_command, read_exactly
from sandbox_fixtures import image as stored_image
from sandbox_fixtures import image_store
from skillcell.core.errors import Fault, FaultKind
from skillcell.core.ids import sandbox_id
from skillcell.core.types import MEBIBYTE, Isolation, Limits
from skillcell.sandbox.cgroups import CgroupTree
from skillcell.sandbox.driver import PackageMount, SandboxSpec
from skillcell.sandbox.drivers.docker import DockerDriver
from skillcell.sandbox.drivers.docker_config import LABEL_INSTANCE
from skillcell.sandbox.drivers.docker_engine import DockerSettings
from skillcell.sandbox.drivers.docker_packages import LABEL_OWNER, LABEL_PACKAGE
from skillcell.sandbox.images import Image
from skillcell.sandbox.images_docker import DockerImages

SETTINGS = DockerSettings(instance="integration")
LIMITS = Limits(memory_bytes=128 * MEBIBYTE, disk_bytes=32 * MEBIBYTE, disk_files=1000, pids=32)


@pytest.fixture
def client() -> Iterator[docker.DockerClient]:
    client = docker.DockerClient()
    yield client
    client.close()


@pytest.fixture
def image(client: docker.DockerClient) -> Image:
    return DockerImages(client, image_store()).ensure(stored_image("python-3.11").reference)


@pytest.fixture
async def driver() -> AsyncIterator[DockerDriver]:
    driver = DockerDriver(SETTINGS)
    yield driver
    for found in await driver.list():
        await driver.destroy(found.sandbox_id)
    await driver.prune_packages(set())
    await driver.close()


@pytest.fixture
def spec(image: Image) -> SandboxSpec:
    return SandboxSpec(sandbox_id(), image, Isolation.STANDARD, LIMITS, (), probe_command(image.python))


def package(directory: Path, text: str) -> PackageMount:
    directory.mkdir()
    (directory / "file").write_text(text)
    (directory / "link").symlink_to("file")
    os.link(directory / "file", directory / "twin")
    return PackageMount(uuid4().hex * 2, directory, "/skill")


def volumes(client: docker.DockerClient, mount: PackageMount) -> list[str]:
    """Names of the data volumes of a package."""
    return [volume.name for volume in client.volumes.list(filters={"label": f"{LABEL_PACKAGE}={mount.digest}"})]


def nothing_is_left(client: docker.DockerClient, wanted: str) -> bool:
    labels = {"label": f"{LABEL_INSTANCE}={SETTINGS.instance}"}
    names = {container.name for container in client.containers.list(all=True, filters=labels, ignore_removed=True)}
    held = {os.readlink(link) for link in SETTINGS.uid_directory.iterdir()}
    return (
        wanted not in names | held and CgroupTree.detect(f"skillcell-docker-{SETTINGS.instance}").open(wanted) is None
    )


async def eventually(seen: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not seen():
            await asyncio.sleep(0.01)


async def test_two_gateways_that_fill_a_package_at_once_end_with_one_whole_copy(
    driver: DockerDriver, client: docker.DockerClient, spec: SandboxSpec, tmp_path: Path
) -> None:
    mount = package(tmp_path / "skill", "whole")
    other = DockerDriver(SETTINGS)
    specs = [replace(spec, sandbox_id=sandbox_id(), mounts=(mount,)) for _ in range(4)]
    sandboxes = await asyncio.gather(*((driver, other)[n % 2].create(one) for n, one in enumerate(specs)))
    for sandbox in sandboxes:
        code = "result = [read(f'/skill/{name}') for name in ('file', 'link', 'twin')]"
        assert await inside(sandbox, code) == ["whole"] * 3
    assert len(volumes(client, mount)) == 1
    for sandbox in sandboxes:
        await driver.destroy(sandbox.sandbox_id)
    await other.close()


async def test_a_package_in_use_is_kept_and_an_unused_one_is_pruned(
    driver: DockerDriver, client: docker.DockerClient, spec: SandboxSpec, tmp_path: Path
) -> None:
    mount = package(tmp_path / "skill", "kept")
    sandbox = await driver.create(replace(spec, mounts=(mount,)))
    await driver.prune_packages(set())
    assert volumes(client, mount)
    await driver.destroy(sandbox.sandbox_id)
    await driver.prune_packages({mount.digest})
    assert volumes(client, mount)
    assert await driver.prune_packages(set()) >= 1
    assert not client.volumes.list(filters={"label": f"{LABEL_OWNER}={SETTINGS.instance}"})
    again = await driver.create(replace(spec, sandbox_id=sandbox_id(), mounts=(mount,)))
    assert await inside(again, "result = read('/skill/file')") == "kept"


async def test_a_package_whose_volume_was_removed_by_hand_is_filled_again(
    driver: DockerDriver, client: docker.DockerClient, spec: SandboxSpec, tmp_path: Path
) -> None:
    mount = package(tmp_path / "skill", "again")
    await driver.destroy((await driver.create(replace(spec, mounts=(mount,)))).sandbox_id)
    client.volumes.get(volumes(client, mount)[0]).remove()
    restarted = DockerDriver(SETTINGS)
    sandbox = await restarted.create(replace(spec, sandbox_id=sandbox_id(), mounts=(mount,)))
    assert await inside(sandbox, "result = read('/skill/file')") == "again"
    await restarted.close()


async def test_a_package_with_a_device_or_pipe_is_refused_and_leaves_nothing(
    driver: DockerDriver, client: docker.DockerClient, spec: SandboxSpec, tmp_path: Path
) -> None:
    mount = package(tmp_path / "skill", "x")
    os.mkfifo(mount.path / "pipe")
    with pytest.raises(Fault, match="pipe"):
        await driver.create(replace(spec, mounts=(mount,)))
    assert not volumes(client, mount)
    assert nothing_is_left(client, spec.sandbox_id)


async def test_an_unknown_image_is_a_failed_precondition(
    driver: DockerDriver, client: docker.DockerClient, spec: SandboxSpec
) -> None:
    for reference in ("", "skillcell/no-such-image:1"):
        with pytest.raises(Fault) as raised:
            await driver.create(replace(spec, image=replace(spec.image, engine_reference=reference)))
        assert (raised.value.kind, raised.value.reason) == (FaultKind.FAILED_PRECONDITION, "IMAGE_NOT_READY")
        assert nothing_is_left(client, spec.sandbox_id)


async def test_an_image_that_declares_a_volume_is_refused(
    driver: DockerDriver, client: docker.DockerClient, spec: SandboxSpec
) -> None:
    made = client.containers.create(spec.image.engine_reference, ["true"], labels={LABEL_INSTANCE: "none"})
    tagged = made.commit("skillcell-test/volume", "1", changes="VOLUME /data")
    made.remove()
    try:
        with pytest.raises(Fault, match="/data") as raised:
            await driver.create(replace(spec, image=replace(spec.image, engine_reference="skillcell-test/volume:1")))
        assert raised.value.kind is FaultKind.FAILED_PRECONDITION
    finally:
        client.images.remove(str(tagged.id), force=True)


async def test_a_class_without_a_runtime_is_a_failed_precondition(
    client: docker.DockerClient, spec: SandboxSpec
) -> None:
    driver = DockerDriver(replace(SETTINGS, runtimes={Isolation.STANDARD: ("no-such-runtime",)}))
    with pytest.raises(Fault) as raised:
        await driver.create(spec)
    assert (raised.value.kind, raised.value.reason) == (FaultKind.FAILED_PRECONDITION, "ISOLATION_UNAVAILABLE")
    assert driver.guarantees(Isolation.STANDARD) == frozenset()
    assert any(not check.ok and check.fix for check in await driver.check())
    await driver.close()
    assert nothing_is_left(client, spec.sandbox_id)


async def test_a_strangers_container_of_that_name_is_left_alone(
    driver: DockerDriver, client: docker.DockerClient, spec: SandboxSpec
) -> None:
    stranger = client.containers.create(spec.image.engine_reference, ["true"], name=spec.sandbox_id)
    try:
        with pytest.raises(Fault) as raised:
            await driver.create(spec)
        assert raised.value.kind is FaultKind.ALREADY_EXISTS
        await driver.destroy(spec.sandbox_id)
        stranger.reload()
    finally:
        stranger.remove(force=True)
    assert nothing_is_left(client, spec.sandbox_id)


@pytest.mark.parametrize("milliseconds", [1, 12, 40, 80])
async def test_a_create_that_is_canceled_leaves_nothing(
    driver: DockerDriver, client: docker.DockerClient, spec: SandboxSpec, milliseconds: int
) -> None:
    await driver.check()
    creating = asyncio.create_task(driver.create(spec))
    await asyncio.wait({creating}, timeout=milliseconds / 1000)
    if creating.done():  # a quick engine needs less than the longer of these
        assert milliseconds > 12
        await driver.destroy((await creating).sandbox_id)
    else:
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating
    assert nothing_is_left(client, spec.sandbox_id)


async def test_what_an_earlier_process_left_is_listed_with_its_counters_and_destroyed(
    driver: DockerDriver, client: docker.DockerClient, spec: SandboxSpec
) -> None:
    earlier = DockerDriver(SETTINGS)
    sandbox = await earlier.create(spec)
    await inside(sandbox, "result = 0")
    only_cgroup = sandbox_id()
    CgroupTree.detect(f"skillcell-docker-{SETTINGS.instance}").create(only_cgroup, LIMITS, devices=False)
    await earlier.close()
    found = {found.sandbox_id: found.counters for found in await driver.list()}
    assert set(found) >= {spec.sandbox_id, only_cgroup}
    counters = found[spec.sandbox_id]
    assert counters is not None
    assert counters.cpu_total_ns > 0
    for left in (spec.sandbox_id, only_cgroup):
        await driver.destroy(left)
        assert nothing_is_left(client, left)
    assert await driver.list() == []


async def test_another_gateways_sandboxes_are_not_ours(driver: DockerDriver, spec: SandboxSpec) -> None:
    other = DockerDriver(replace(SETTINGS, instance="another"))
    sandbox = await other.create(spec)
    assert spec.sandbox_id not in {found.sandbox_id for found in await driver.list()}
    await driver.destroy(spec.sandbox_id)
    assert await inside(sandbox, "result = 1") == 1
    await other.destroy(spec.sandbox_id)
    await other.close()


async def test_every_byte_value_goes_through_in_both_directions(driver: DockerDriver, spec: SandboxSpec) -> None:
    sandbox = await driver.create(spec)
    blob = bytes(range(256)) * 4096 * 8
    code = f"data = take({len(blob)}); give(data); result = len(data)".encode()
    await sandbox.channel.write(len(code).to_bytes(4) + code)
    writing = asyncio.create_task(sandbox.channel.write(blob))
    assert await read_exactly(sandbox.channel, len(blob)) == blob
    await writing


async def test_not_reading_stops_the_agent_and_reading_lets_it_go_on(driver: DockerDriver, spec: SandboxSpec) -> None:
    sandbox = await driver.create(spec)
    code = b"result = [give(b'x' * (1 << 20)) for _ in range(64)] and 0"
    await sandbox.channel.write(len(code).to_bytes(4) + code)
    await read_exactly(sandbox.channel, 1)
    used = -1
    while used != (used := (await sandbox.counters()).cpu_total_ns):  # until it no longer runs: it is held back
        await asyncio.sleep(0.2)
    assert len(await read_exactly(sandbox.channel, 64 * MEBIBYTE - 1)) == 64 * MEBIBYTE - 1


async def test_only_the_end_of_the_agents_stderr_is_kept(driver: DockerDriver, spec: SandboxSpec) -> None:
    sandbox = await driver.create(spec)
    await inside(sandbox, "os.write(2, b'first'); result = [os.write(2, b'x' * 65536) for _ in range(16)] and 0")
    await inside(sandbox, "os.write(2, b'last words'); result = 0")
    await sandbox.kill()
    assert await sandbox.channel.read(1) == b""
    assert sandbox.stderr_tail.endswith(b"last words")
    assert len(sandbox.stderr_tail) == 65536


async def test_closing_the_channel_ends_the_agents_stdin(driver: DockerDriver, spec: SandboxSpec) -> None:
    sandbox = await driver.create(spec)
    await inside(sandbox, "result = 0")
    await sandbox.channel.close()
    await sandbox.channel.close()
    cgroup = CgroupTree.detect(f"skillcell-docker-{SETTINGS.instance}").open(sandbox.sandbox_id)
    assert cgroup is not None
    await eventually(lambda: not cgroup.pids())  # the probe exits when its stdin ends
    assert await sandbox.channel.read(1) == b""
    with pytest.raises(ConnectionError):
        await sandbox.channel.write(b"x")


async def test_writing_to_a_dead_agent_is_a_connection_error(driver: DockerDriver, spec: SandboxSpec) -> None:
    sandbox = await driver.create(spec)
    await sandbox.kill()

    async def write_on() -> None:
        while True:
            await sandbox.channel.write(b"x" * 65536)

    with pytest.raises(ConnectionError):
        await asyncio.wait_for(write_on(), 20)


async def test_an_agent_killed_for_memory_is_counted(driver: DockerDriver, spec: SandboxSpec) -> None:
    sandbox = await driver.create(spec)
    code = b"result = len(bytearray(1 << 30))"
    await sandbox.channel.write(len(code).to_bytes(4) + code)
    assert await sandbox.channel.read(1) == b""
    await sandbox.kill()
    assert (await sandbox.counters()).oom_kills >= 1


async def test_writable_space_is_seen_from_outside(driver: DockerDriver, spec: SandboxSpec) -> None:
    sandbox = await driver.create(spec)
    await inside(sandbox, f"open('/workspace/x', 'wb').write(b'x' * {4 * MEBIBYTE}); result = 0")
    disk = await sandbox.disk()
    assert disk is not None
    assert (disk.bytes_limit, disk.files_limit) == (LIMITS.disk_bytes, LIMITS.disk_files)
    assert 4 * MEBIBYTE <= disk.bytes_used < 5 * MEBIBYTE
    assert disk.files_used == 8  # seven directories and the file


async def test_many_sandboxes_leave_no_descriptor_open(spec: SandboxSpec) -> None:
    driver = DockerDriver(replace(SETTINGS, instance="descriptors", threads=2))

    async def once() -> None:
        sandbox = await driver.create(replace(spec, sandbox_id=sandbox_id()))
        await inside(sandbox, "result = 0")
        await driver.destroy(sandbox.sandbox_id)

    async def rounds(count: int) -> int:
        for _ in range(count):
            await asyncio.gather(once(), once(), once())
        return len(os.listdir("/proc/self/fd"))

    before = await rounds(8)  # the client keeps some idle connections, up to a number of its own
    assert await rounds(5) <= before + 5
    await driver.close()
