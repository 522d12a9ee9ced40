"""Which engine runs sandboxes here: a driver together with the images that it can start."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import docker
from docker.errors import DockerException

from skillcell.core.errors import Fault, unavailable
from skillcell.core.types import Isolation
from skillcell.sandbox import images_bootstrap
from skillcell.sandbox.driver import Check, Diagnosed, Driver
from skillcell.sandbox.drivers.docker import DockerDriver
from skillcell.sandbox.drivers.docker_engine import DockerSettings
from skillcell.sandbox.drivers.oci import OciDriver, OciSettings
from skillcell.sandbox.images import Image, ImageStore
from skillcell.sandbox.images_docker import DockerImages
from skillcell.sandbox.images_recipes import ALIASES
from skillcell.settings import DriverChoice, Settings

Find = Callable[[str], Image]
_PROBE_SECONDS = 5


@dataclass(slots=True)
class Engine:
    """A driver, its images, and what `doctor` asks."""

    driver: Driver
    diagnosed: Diagnosed
    find: Find
    """Blocking; raises Fault."""
    _known: dict[str, Image] = field(default_factory=dict)

    async def image(self, reference: str) -> Image:
        """An image by alias or reference. What was found stays found: the hot path looks nothing up twice."""
        if reference not in self._known:
            self._known[reference] = await asyncio.to_thread(self.find, reference)
        return self._known[reference]

    def classes(self) -> tuple[Isolation, ...]:
        """The isolation classes that this engine can run."""
        return tuple(isolation for isolation in Isolation if self.driver.guarantees(isolation))


class _EngineImages:
    """Images of a Docker Engine that need not answer yet."""

    def __init__(self, settings: Settings, store: ImageStore) -> None:
        self._settings = settings
        self._store = store
        self._connecting = threading.Lock()
        self._client: docker.DockerClient | None = None
        self._images: DockerImages | None = None

    def ensure(self, reference: str) -> Image:
        with self._connecting:
            if self._images is None:
                self._client = docker_client(self._settings)
                self._images = DockerImages(self._client, self._store)
        return self._images.ensure(reference)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


@asynccontextmanager
async def engine_for(settings: Settings, instance_id: str, images: Path) -> AsyncIterator[Engine]:
    """The engine that settings ask for: `oci` started, `docker` whether or not it answers yet. Raises Fault."""
    store = ImageStore(images)
    if chosen_driver(settings) is DriverChoice.DOCKER:
        driver = DockerDriver(docker_settings(settings, instance_id))
        found = _EngineImages(settings, store)
        try:
            yield Engine(driver, driver, found.ensure)
        finally:
            await driver.close()
            driver.retire()
            await asyncio.to_thread(found.close)
        return
    oci = OciDriver(oci_settings(settings, instance_id))
    try:
        async with oci:
            yield Engine(oci, oci, store.resolve)
    finally:
        oci.retire()


def chosen_driver(settings: Settings) -> DriverChoice:
    """AUTO resolved: Docker where an engine answers, else OCI."""
    if settings.driver is not DriverChoice.AUTO:
        return settings.driver
    try:
        docker_client(settings).close()
    except Fault:
        return DriverChoice.OCI
    return DriverChoice.DOCKER


def docker_client(settings: Settings) -> docker.DockerClient:
    """A client of an engine that answers. Raises Fault."""
    try:
        if settings.docker_host:
            client = docker.DockerClient(base_url=settings.docker_host, timeout=_PROBE_SECONDS)
        else:
            client = docker.from_env(timeout=_PROBE_SECONDS)
        client.ping()
    except (DockerException, OSError) as error:
        raise unavailable(
            "DRIVER_UNAVAILABLE",
            "no Docker Engine answers; start one (systemctl start docker), set DOCKER_HOST, or use --driver oci",
        ) from error
    client.api.timeout = 600
    return client


def docker_settings(settings: Settings, instance_id: str) -> DockerSettings:
    default = DockerSettings()
    host = settings.docker_host or os.environ.get("DOCKER_HOST") or default.host
    return replace(default, host=host, instance=instance_id)


def oci_settings(settings: Settings, instance_id: str) -> OciSettings:
    runtimes = (settings.oci_runtime,) if settings.oci_runtime else ()
    return OciSettings(cgroup_root=f"skillcell-{instance_id}", runtimes=runtimes)


def prepare_images(settings: Settings, aliases: Sequence[str], images: Path, say: Callable[[str], None]) -> None:
    """Makes the images that are missing, for the chosen driver. Blocking; raises Fault."""
    store = ImageStore(images)
    wanted = tuple(aliases) or ALIASES
    if chosen_driver(settings) is DriverChoice.DOCKER:
        DockerImages(docker_client(settings), store).prepare(wanted, say)
    else:
        images_bootstrap.prepare(wanted, store=store, progress=say)


async def check_engine(settings: Settings, images: Path) -> list[Check]:
    """What `doctor` says of the engine and its images; never raises."""
    found: list[Check] = []
    try:
        async with engine_for(settings, "doctor", images) as engine:
            found.append(Check("driver", True, f"{engine.driver.name}, as {settings.driver.value} was asked for"))
            found.extend(await engine.diagnosed.check())
            for alias in ALIASES:
                found.append(await _check_image(engine, ImageStore(images), alias))
    except Fault as fault:
        found.append(Check("driver", False, fault.message, "see the message"))
    return found


async def _check_image(engine: Engine, store: ImageStore, alias: str) -> Check:
    try:
        image = await engine.image(alias)
    except Fault as fault:
        return Check(f"image {alias}", False, fault.message, "skillcell images prepare")
    if image.recipe != store.recipe(alias).fingerprint:
        return Check(f"image {alias}", False, f"{image.digest} is older than its recipe", "skillcell images prepare")
    return Check(f"image {alias}", True, image.digest)
