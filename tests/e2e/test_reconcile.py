"""Ledger = totals = scrape = sink by one command, of a gateway that goes on working meanwhile."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from pathlib import Path
from typing import Any

from e2e.gateway import Gateway
from e2e.lab import run
from e2e.usage_command import usage
from skillcell.client import SkillcellClient
from skillcell.metering.export.events import Envelope, event_of
from skillcell.v1 import usage_pb2, usage_pb2_grpc


async def events(gateway: Gateway) -> list[dict[str, Any]]:
    """What exports send of each record."""
    made = []
    async with gateway.channel() as channel:
        stub = usage_pb2_grpc.UsageServiceStub(channel)
        stream = stub.StreamUsageRecords(usage_pb2.StreamUsageRecordsRequest(), metadata=gateway.credentials)
        async for answer in stream:
            record = answer.record
            event = event_of(record.canonical_bytes, record.previous_hash, record.hash, Envelope("a-ledger"))
            made.append(json.loads(event.body))
    return made


async def test_all_four_agree_while_calls_go_on_and_every_difference_is_named(
    oci: Gateway, oci_client: SkillcellClient, tmp_path: Path
) -> None:
    for number in range(3):
        await run(oci_client, f"print({number} * 'x'); sys.exit({number % 2})")
    stop = asyncio.Event()

    async def calls() -> None:
        while not stop.is_set():
            await run(oci_client, "print('meanwhile')")

    meanwhile = asyncio.create_task(calls())
    async with aclosing(oci_client.usage.stream(follow=True)) as records:
        async for record in records:
            if record.output_bytes == len("meanwhile\n"):
                break
    said = await asyncio.to_thread(usage, oci, "reconcile", "--metrics", oci.metrics)
    assert said.splitlines()[-1] == "ledger = totals = scrape"
    stop.set()
    await meanwhile
    held = await events(oci)
    file = tmp_path / "sink.jsonl"
    file.write_text("\n".join(json.dumps(event) for event in [held[0], *held]) + "\n")
    whole = ("reconcile", "--metrics", oci.metrics, "--sink-file")
    found = json.loads(await asyncio.to_thread(usage, oci, *whole, str(file), "--json"))
    assert (found["equal"], found["differences"]) == (True, [])
    assert [column["name"] for column in found["columns"]] == ["ledger", "totals", "scrape", "sink"]
    assert {tuple(map(int, column["usage"])) for column in found["columns"]} == {
        tuple(map(int, found["columns"][0]["usage"]))
    }
    assert found["sink"] == {"received": len(held) + 1, "duplicates": 1, "newer": 0}
    held[1]["data"]["billed_ms"] += 1
    batch = json.dumps(held[1:])
    said = await asyncio.to_thread(usage, oci, *whole, "-", given=batch, fails=True)
    assert f"DIFFERS sink: event {held[0]['id']} (record 1) is missing" in said
    assert f"DIFFERS sink: event {held[1]['id']} (record 2) was altered" in said
