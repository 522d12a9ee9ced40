"""The gateways of the end-to-end tests, one for each driver, shared by all hostile programs."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("security.programs")

from e2e.conftest import client, docker_host, driver, engine, gateway  # noqa: E402

__all__ = ["client", "docker_host", "driver", "engine", "gateway"]
