"""Fixtures of the contract suites."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("contract.driver_contract", "contract.sandbox_probe")

from sandbox_fixtures import image  # noqa: E402
from skillcell.sandbox.images import Image  # noqa: E402


@pytest.fixture(scope="session")
def python_image() -> Image:
    """The smallest image with Python."""
    return image("python-3.11")
