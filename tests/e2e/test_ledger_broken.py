"""A real gateway over a ledger that somebody edited while it was down, until it is restored; and its own witness."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from e2e.conftest import Fresh
from e2e.gateway import Gateway
from e2e.lab import run, spec
from e2e.usage_command import usage
from skillcell.client import DataLoss
from skillcell.core.types import Outcome


def sql(gateway: Gateway, statement: str, *values: Any) -> list[Any]:
    with closing(sqlite3.connect(gateway.data / "skillcell.db")) as database, database:
        return database.execute(statement, values).fetchall()


def ready(gateway: Gateway) -> list[str]:
    """Why it is not."""
    try:
        with urllib.request.urlopen(f"{gateway.metrics}/readyz", timeout=10) as answer:
            return list(json.load(answer)["reasons"])
    except urllib.error.HTTPError as error:
        with error:
            return [f"{error.code}", *json.load(error)["reasons"]]


async def test_a_broken_ledger_refuses_calls_and_names_the_row_while_all_else_works(
    fresh: Fresh, tmp_path: Path
) -> None:
    heads = tmp_path / "heads"
    gateway = fresh(head_file=str(heads), verify_seconds="0.5")
    async with gateway.client() as client:
        results = [await run(client, f"print({number})") for number in range(3)]
    witness = usage(gateway, "head").strip()
    async with asyncio.timeout(30):  # the gateway publishes it too
        while not heads.exists() or not heads.read_text().splitlines()[-1].startswith(witness):
            await asyncio.sleep(0.05)
    assert usage(gateway, "verify", "--witness", witness).startswith("intact: 3 records")
    gateway.stop()
    sql(gateway, "UPDATE usage_records SET hash = ? WHERE sequence = 3", bytes(32))
    gateway.start()
    async with gateway.client() as client:
        for refused in (client.call, client.start):
            with pytest.raises(DataLoss) as raised:
                await refused("dev/lab", **spec("print(4)"))
            assert raised.value.reason == "LEDGER_BROKEN"
            assert raised.value.metadata["sequence"] == "3"
            assert "at record 3" in str(raised.value)
        assert (await client.get(results[0].execution_id)).completed is not None
        watched = [event async for event in client.watch(results[2].execution_id)]
        assert watched[-1].kind.outcome is Outcome.SUCCEEDED
        assert len((await client.list()).items) == 3
        assert len((await client.usage.records()).items) == 3
    code, *reasons = ready(gateway)
    assert code == "503"
    assert any("at record 3" in reason for reason in reasons)
    samples = gateway.samples()
    assert samples["skillcell_ledger_broken", ()] == 1
    assert samples["skillcell_ledger_mismatches", ()] >= 1
    assert gateway.logged("ledger_broken")[0]["sequence"] == 3
    assert "record 3: edited" in usage(gateway, "verify", fails=True)
    assert "record 3: witness_differs" in usage(gateway, "verify", "--witness", f"@{heads}", fails=True)
    assert usage(
        gateway, "verify", "--from", "1", "--to", "2", "--json", fails=True
    )  # the published head still says so
    sql(gateway, "UPDATE usage_records SET hash = ? WHERE sequence = 3", bytes.fromhex(witness[2:]))
    assert usage(gateway, "verify").startswith("intact: 3 records")
    assert ready(gateway) == []
    assert gateway.samples()["skillcell_ledger_broken", ()] == 0
    async with gateway.client() as client:
        assert (await run(client, "print(5)")).ok
    gateway.stop()
    sql(gateway, "UPDATE totals SET billed_ms = '0' WHERE outcome = 'SUCCEEDED'")
    gateway.start()
    said = usage(gateway, "reconcile", "--metrics", gateway.metrics, fails=True)
    series = 'skillcell_billed_seconds_total{tenant="dev",publisher="dev",skill="lab",outcome="SUCCEEDED"} is 0.0'
    assert f"DIFFERS scrape: {series}, the ledger's records give " in said
