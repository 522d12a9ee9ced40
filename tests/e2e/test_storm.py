"""The gateway dies at every labelled step of a call's path and at random times; nobody's call is lost or doubled."""

from __future__ import annotations

from pathlib import Path

import pytest

from skillcell.core.steps import Step
from storm import Storm, storm_gateway


@pytest.mark.timeout(300)
async def test_whatever_step_the_gateway_dies_at_every_call_has_one_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [step.value for step in Step] + ["random"] * 8
    with storm_gateway(tmp_path, "sqlite") as gateway:
        account = await Storm(gateway).run(places)
    with capsys.disabled():
        print("", *account.lines(), sep="\n  ")
    assert account.violations == []
    assert account.kills.total() >= len(places)
    assert account.recovered > 0
