"""The `docker` driver and an engine of the test's own: one that dies and comes back, and one reached over TLS."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import docker
import pytest

from contract.sandbox_probe import inside, probe_command, read_exactly
from docker_daemon import Daemon
from sandbox_fixtures import image as stored_image
from sandbox_fixtures import image_store
from skillcell.core.errors import Fault, FaultKind
from skillcell.core.ids import sandbox_id
from skillcell.core.types import MEBIBYTE, Isolation, Limits, Measurement
from skillcell.sandbox.cgroups import CgroupTree
from skillcell.sandbox.driver import PackageMount, SandboxSpec
from skillcell.sandbox.drivers.docker import DockerDriver
from skillcell.sandbox.drivers.docker_engine import DockerSettings
from skillcell.sandbox.images import Image
from skillcell.sandbox.images_docker import DockerImages

pytestmark = [
    pytest.mark.skipif(shutil.which("dockerd") is None or os.geteuid() != 0, reason="needs dockerd and root"),
    pytest.mark.timeout(240),
    # the docker package leaves the socket of a refused connection to the garbage collector
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]

LIMITS = Limits(memory_bytes=128 * MEBIBYTE, disk_bytes=32 * MEBIBYTE, disk_files=1000, pids=32)


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short: a socket's path has 107 bytes at most."""
    directory = Path("/tmp") / f"skillcell-{sandbox_id()[-10:]}"
    directory.mkdir()
    yield directory
    shutil.rmtree(directory)
    gc.collect()  # while the warning about its sockets is off


@pytest.fixture
async def daemon(directory: Path) -> AsyncIterator[Daemon]:
    daemon = Daemon(directory)
    try:
        await daemon.start()
        yield daemon
    finally:
        daemon.stop()


def import_image(daemon: Daemon) -> Image:
    stored_image("python-3.11")
    client = docker.DockerClient(base_url=daemon.host)
    try:
        return DockerImages(client, image_store()).ensure("python-3.11")
    finally:
        client.close()


def spec_of(image: Image) -> SandboxSpec:
    return SandboxSpec(sandbox_id(), image, Isolation.STANDARD, LIMITS, (), probe_command(image.python))


async def driver_for(settings: DockerSettings) -> DockerDriver:
    """A driver, and nothing there of a run that was cut short."""
    driver = DockerDriver(settings)
    for found in await driver.list():
        await driver.destroy(found.sandbox_id)
    return driver


async def test_a_gone_engine_is_unavailable_and_the_driver_recovers_when_it_returns(daemon: Daemon) -> None:
    driver = await driver_for(DockerSettings(host=daemon.host, instance="loss"))
    spec = spec_of(import_image(daemon))
    sandbox = await driver.create(spec)
    assert await inside(sandbox, "result = 1") == 1

    daemon.crash()
    assert await sandbox.channel.read(1) == b""
    await sandbox.kill()  # by its cgroup: the engine's end delays nothing
    assert (await sandbox.counters()).measurement is Measurement.EXACT
    for attempt in (
        driver.create(replace(spec, sandbox_id=sandbox_id())),
        driver.list(),
        driver.destroy(spec.sandbox_id),
    ):
        with pytest.raises(Fault, match="systemctl start docker") as raised:
            await attempt
        assert (raised.value.kind, raised.value.reason) == (FaultKind.UNAVAILABLE, "ENGINE_UNAVAILABLE")
    checks = await driver.check()
    assert not checks[0].ok
    assert "systemctl start docker" in checks[0].fix

    await daemon.start()
    assert spec.sandbox_id in {found.sandbox_id for found in await driver.list()}
    await driver.destroy(spec.sandbox_id)
    again = await driver.create(replace(spec, sandbox_id=sandbox_id()))
    assert await inside(again, "result = 2") == 2
    assert all(check.ok for check in await driver.check())
    await driver.destroy(again.sandbox_id)
    assert await driver.list() == []
    await driver.close()


async def test_an_engine_killed_amid_creates_leaves_nothing_of_those_that_failed(daemon: Daemon) -> None:
    settings = DockerSettings(host=daemon.host, instance="amid", threads=4)
    driver = await driver_for(settings)
    image = import_image(daemon)
    specs = [spec_of(image) for _ in range(12)]
    first_done = asyncio.Event()

    async def create(spec: SandboxSpec) -> None:
        try:
            await driver.create(spec)
        finally:
            first_done.set()

    creating = asyncio.gather(*(create(spec) for spec in specs), return_exceptions=True)
    await first_done.wait()
    daemon.crash()
    results = await creating
    failed = {spec.sandbox_id for spec, result in zip(specs, results, strict=True) if result is not None}
    made = {spec.sandbox_id for spec in specs} - failed
    assert failed
    assert made
    assert all(result is None or isinstance(result, Fault) for result in results)
    cgroups = CgroupTree.detect("skillcell-docker-amid")
    assert not failed & set(cgroups.list())

    await daemon.start()
    assert {found.sandbox_id for found in await driver.list()} == made
    for left in made:
        await driver.destroy(left)
    client = docker.APIClient(base_url=daemon.host)
    assert client.containers(all=True) == []
    client.close()
    assert cgroups.list() == []
    assert not {os.readlink(link) for link in settings.uid_directory.iterdir()} & (made | failed)
    await driver.close()


async def test_an_engine_over_tls_serves_as_a_remote_one_with_sampled_usage(directory: Path) -> None:
    _certificates(directory)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    tls = [f"--tls{name}={directory / file}" for name, file in (("cacert", "ca.pem"), ("cert", "cert.pem"))]
    daemon = Daemon(
        directory, "-H", f"tcp://127.0.0.1:{port}", "--tlsverify", *tls, f"--tlskey={directory / 'key.pem'}"
    )
    try:
        await daemon.start()
        settings = DockerSettings(
            host=f"tcp://127.0.0.1:{port}",
            tls_ca=directory / "ca.pem",
            tls_certificate=directory / "cert.pem",
            tls_key=directory / "key.pem",
            instance="tls",
        )
        driver = DockerDriver(settings)
        (directory / "package").mkdir()
        (directory / "package" / "file").write_text("sent")
        package = PackageMount("c" * 64, directory / "package", "/skill")
        sandbox = await driver.create(replace(spec_of(import_image(daemon)), mounts=(package,)))
        assert await inside(sandbox, "result = read('/skill/file')") == "sent"
        blob = os.urandom(8 * MEBIBYTE)
        code = f"data = take({len(blob)}); give(data); result = len(data)".encode()
        await sandbox.channel.write(len(code).to_bytes(4) + code)
        writing = asyncio.create_task(sandbox.channel.write(blob))
        assert await read_exactly(sandbox.channel, len(blob)) == blob
        await writing
        assert (await sandbox.counters()).measurement is Measurement.SAMPLED
        await sandbox.kill()
        await driver.destroy(sandbox.sandbox_id)
        assert await driver.list() == []
        await driver.close()

        strangers = DockerDriver(replace(settings, tls_certificate=None, tls_key=None))
        with pytest.raises(Fault) as raised:
            await strangers.list()
        assert raised.value.reason in {"ENGINE_TLS", "ENGINE_UNAVAILABLE"}  # TLS 1.3 refuses after the handshake
        await strangers.close()
    finally:
        daemon.stop()


def _certificates(directory: Path) -> None:
    """An authority (ca.pem) and one certificate of it (cert.pem, key.pem) that serves both ends."""
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    subprocess.run(
        [*new, "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.pem"],
        cwd=directory,
        check=True,
        capture_output=True,
    )
    subprocess.run(
        [
            *(
                *new,
                "-subj",
                "/CN=127.0.0.1",
                "-keyout",
                "key.pem",
                "-out",
                "cert.pem",
                "-CA",
                "ca.pem",
                "-CAkey",
                "ca.key",
            ),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-addext", "extendedKeyUsage=serverAuth,clientAuth"),
            *("-addext", "basicConstraints=critical,CA:FALSE"),
        ],
        cwd=directory,
        check=True,
        capture_output=True,
    )
