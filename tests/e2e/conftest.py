"""One gateway for each driver, shared by all tests that leave it whole; and fresh ones for the others."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.register_assert_rewrite("e2e.gateway", "e2e.lab")

from docker_daemon import any_engine  # noqa: E402
from e2e.gateway import Gateway, new_gateway, serving  # noqa: E402
from e2e.lab import FILES, publish  # noqa: E402
from skillcell.client import SkillcellClient  # noqa: E402

Fresh = Callable[..., Gateway]


@pytest.fixture(scope="session")
def engine() -> Iterator[str]:
    """URL of a Docker Engine."""
    with any_engine() as host:
        yield host


@pytest.fixture(scope="session", params=["oci", "docker"])
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def docker_host(driver: str, request: pytest.FixtureRequest) -> str:
    """URL of the engine where the driver needs one."""
    return str(request.getfixturevalue("engine")) if driver == "docker" else ""


@pytest.fixture(scope="session")
def gateway(driver: str, docker_host: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Serves the lab Skill by each driver in turn."""
    home = tmp_path_factory.mktemp(driver)
    with serving(new_gateway(home, driver, docker_host)) as gateway:
        publish_lab(gateway, home)
        yield gateway


@pytest.fixture(scope="session")
def oci(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Serves the lab Skill by the oci driver, for what does not depend on the driver."""
    home = tmp_path_factory.mktemp("one")
    with serving(new_gateway(home, "oci")) as gateway:
        publish_lab(gateway, home)
        yield gateway


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str:
    """A new store's URL for `fresh(database=…)`, of each kind in turn; empty for SQLite in the data directory."""
    return str(request.getfixturevalue("cluster").new_url()) if request.param == "postgresql" else ""


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Fresh]:
    """Makes a gateway for one test, which may kill it: `fresh(driver, docker_host, **settings)`. Settings are those
    of `skillcell.settings`: `fresh(database=url)` keeps its ledger in PostgreSQL."""
    with ExitStack() as stack:

        def make(driver: str = "oci", docker_host: str = "", **settings: str) -> Gateway:
            home = Path(tempfile.mkdtemp(prefix=f"gateway-{driver}-", dir=tmp_path))
            gateway = stack.enter_context(serving(new_gateway(home, driver, docker_host, **settings)))
            publish_lab(gateway, home)
            return gateway

        yield make


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[SkillcellClient]:
    async with gateway.client() as client:
        yield client


@pytest.fixture
async def oci_client(oci: Gateway) -> AsyncIterator[SkillcellClient]:
    async with oci.client() as client:
        yield client


def publish_lab(gateway: Gateway, home: Path) -> None:
    """From a fixture that is no coroutine, so in a loop of its own."""

    async def work() -> None:
        async with gateway.client() as client:
            await publish(client, home / "lab", FILES, "dev/lab")

    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work()).result()
