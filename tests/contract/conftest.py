"""Fixtures of the contract suites."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("contract.driver_contract", "contract.sandbox_probe")

from ledger_stores import PostgreSQL  # noqa: E402
from sandbox_fixtures import image  # noqa: E402
from skillcell.metering.ledger import Ledger  # noqa: E402
from skillcell.sandbox.images import Image  # noqa: E402
from skillcell.storage.database import Database  # noqa: E402


@pytest.fixture(scope="session")
def python_image() -> Image:
    """The smallest image with Python."""
    return image("python-3.11")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    cluster: PostgreSQL = request.getfixturevalue("cluster")
    return cluster.new_url()


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    async with await Database.open(url) as opened:
        yield opened


@pytest.fixture
def ledger(database: Database) -> Ledger:
    return Ledger(database)
