"""The driver contract over the `oci` driver: crun, runc, and runsc."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from contract.driver_contract import DriverContract
from contract.gvisor_contract import GvisorContract
from skillcell.sandbox.driver import Driver
from skillcell.sandbox.drivers.oci import OciDriver, OciSettings


class _Oci(DriverContract):
    runtime = ""

    @pytest.fixture
    async def driver(self) -> AsyncIterator[Driver]:
        settings = OciSettings(Path("/run/skillcell-test"), "skillcell-test", (self.runtime,))
        async with OciDriver(settings) as driver:
            yield driver


@pytest.mark.skipif(shutil.which("crun") is None, reason="crun is not installed: apt-get install crun")
class TestCrun(_Oci):
    runtime = "crun"


@pytest.mark.skipif(shutil.which("runc") is None, reason="runc is not installed: apt-get install runc")
class TestRunc(_Oci):
    runtime = "runc"


@pytest.mark.skipif(shutil.which("runsc") is None, reason="runsc is not installed: gvisor.dev/docs/user_guide/install")
class TestRunsc(GvisorContract, _Oci):
    runtime = "runsc"
