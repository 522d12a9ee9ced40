"""Metrics as a scraper gets them: over HTTP, from a real ledger."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from ledger_stores import admission, settlement
from skillcell.core.errors import Fault
from skillcell.core.types import Outcome, StageTimes
from skillcell.metering.ledger import Ledger, LedgerSettings
from skillcell.metering.metrics_server import MetricsServer, MetricsSettings
from skillcell.metering.prometheus import CallMetrics
from skillcell.metering.records import LedgerSnapshot
from skillcell.storage.database import Database
from skillcell.storage.failures import ledger_unavailable

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
ON_A_FREE_PORT = MetricsSettings(port=0)


@dataclass
class Scene:
    ledger: Ledger
    calls: CallMetrics
    server: MetricsServer
    reasons: list[str]

    async def ask(self, path: str, accept: str = "", method: str = "GET") -> tuple[int, str, str]:
        """Status, content type and body."""
        return await self.send(f"{method} {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n".encode())

    async def send(self, request: bytes) -> tuple[int, str, str]:
        reader, writer = await asyncio.open_connection(self.server.host, self.server.port)
        writer.write(request)
        reply = (await reader.read()).decode()
        writer.close()
        await writer.wait_closed()
        head, _, body = reply.partition("\r\n\r\n")
        kind = re.search(r"Content-Type: (.*)\r\n", head)
        return int(head.split(" ")[1]), kind.group(1) if kind else "", body

    async def settle(self, **changes: object) -> None:
        given = admission(tenant=str(changes.pop("tenant", "acme")), skill=str(changes.pop("skill", "extract")))
        await self.ledger.admit(given)
        self.calls.observe(await self.ledger.settle(settlement(given, **changes)))

    async def values(self, name: str) -> dict[str, float]:
        """Samples of a name by outcome, tenant and skill."""
        _, _, body = await self.ask("/metrics", OPENMETRICS)
        return {
            "/".join(sample.labels.get(label, "") for label in ("tenant", "skill", "outcome")): sample.value
            for family in text_string_to_metric_families(body)
            for sample in family.samples
            if sample.name == name
        }


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with await Database.open(f"sqlite:///{tmp_path}/ledger.db") as database:
        ledger, calls, reasons = Ledger(database, LedgerSettings(max_tenants=2)), CallMetrics(), list[str]()

        async def ready() -> tuple[str, ...]:
            return tuple(reasons)

        async with MetricsServer(ledger, calls, ready, ON_A_FREE_PORT) as server:
            yield Scene(ledger, calls, server, reasons)


async def test_a_scrape_is_never_behind_a_settled_call(scene: Scene) -> None:
    for number in range(1, 6):
        await scene.settle()
        assert await scene.values("skillcell_calls_total") == {"acme/extract/SUCCEEDED": number}


async def test_counters_are_the_nearest_float_of_the_exact_total(scene: Scene) -> None:
    for _ in range(3):
        await scene.settle(times=StageTimes(run_ns=40_000_000_000_000_001))
    exact = 3 * 40_000_000_000_000_001 * (256 << 20)
    reserved = await scene.values("skillcell_memory_reserved_byte_seconds_total")
    assert reserved == {"acme/extract/SUCCEEDED": exact / 10**9}
    assert await scene.values("skillcell_billed_seconds_total") == {"acme/extract/SUCCEEDED": 3 * 40_000_000_001 / 1000}
    assert await scene.values("skillcell_egress_bytes_total") == {"acme/extract/SUCCEEDED": 24}


async def test_tenants_past_the_bound_count_under_other(scene: Scene) -> None:
    for tenant in ("a", "b", "c", "d"):
        await scene.settle(tenant=tenant)
    counted = await scene.values("skillcell_calls_total")
    assert counted == {"a/extract/SUCCEEDED": 1, "b/extract/SUCCEEDED": 1, "_other/_other/SUCCEEDED": 2}


async def test_counters_go_on_where_they_were_after_a_restart(tmp_path: Path) -> None:
    for expected in (1, 2):
        async with await Database.open(f"sqlite:///{tmp_path}/ledger.db") as database:
            ledger = Ledger(database)
            given = admission()
            await ledger.admit(given)
            await ledger.settle(settlement(given))
            snapshot = await ledger.snapshot()
            assert [(series.outcome, series.sums.calls) for series in snapshot.series] == [
                (Outcome.SUCCEEDED, expected)
            ]


async def test_promtool_finds_nothing_to_say(scene: Scene) -> None:
    await scene.settle()
    promtool = shutil.which("promtool")
    assert promtool is not None, "promtool is needed (package: prometheus)"
    for accept in ("", "text/plain; version=0.0.4"):
        _, _, body = await scene.ask("/metrics", accept)
        checked = await asyncio.to_thread(
            subprocess.run, [promtool, "check", "metrics"], input=body, capture_output=True, text=True, timeout=30
        )
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


async def test_histograms_carry_the_execution_as_exemplar_in_openmetrics(scene: Scene) -> None:
    await scene.settle()
    _, kind, body = await scene.ask("/metrics", OPENMETRICS)
    assert kind.startswith("application/openmetrics-text")
    assert body.endswith("# EOF\n")
    exemplars = {
        sample.name
        for family in text_string_to_metric_families(body)
        for sample in family.samples
        if sample.exemplar and sample.exemplar.labels["execution_id"].startswith("exe_")
    }
    stages = ("queue", "start", "run", "overhead")
    assert exemplars == {f"skillcell_{stage}_seconds_bucket" for stage in stages}
    assert 'skillcell_start_seconds_count{driver="oci",start="cold"} 1.0' in body


async def test_a_plain_scraper_gets_plain_text(scene: Scene) -> None:
    _, kind, body = await scene.ask("/metrics")
    assert kind.startswith("text/plain")
    assert "# TYPE skillcell_calls_total counter" in body


async def test_ledger_and_process_can_be_scraped_apart(scene: Scene) -> None:
    await scene.settle()
    _, _, of_ledger = await scene.ask("/metrics/ledger")
    _, _, of_process = await scene.ask("/metrics/process")
    assert "skillcell_calls_total{" in of_ledger
    assert "skillcell_run_seconds" not in of_ledger
    assert "skillcell_run_seconds_bucket{" in of_process
    assert "skillcell_calls" not in of_process


async def test_readiness_says_why_not(scene: Scene) -> None:
    assert (await scene.ask("/readyz"))[0] == 200
    scene.reasons.append("the gateway drains")
    status, _, body = await scene.ask("/readyz")
    assert (status, "the gateway drains" in body) == (503, True)
    assert (await scene.ask("/healthz"))[::2] == (200, "ok\n")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /other HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\n\r\n", 405),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", 431),
    ],
)
async def test_bad_requests_get_their_status(scene: Scene, request_bytes: bytes, status: int) -> None:
    assert (await scene.send(request_bytes))[0] == status


async def test_head_gives_no_body(scene: Scene) -> None:
    assert await scene.ask("/healthz", method="HEAD") == (200, "text/plain; charset=utf-8", "")


async def test_idle_connections_end_by_themselves_and_never_shut_others_out(tmp_path: Path) -> None:
    async def ready() -> tuple[str, ...]:
        return ()

    settings = MetricsSettings(port=0, max_connections=2, timeout_seconds=0.3)
    async with (
        await Database.open(f"sqlite:///{tmp_path}/ledger.db") as database,
        MetricsServer(Ledger(database), CallMetrics(), ready, settings) as server,
    ):
        idle = [await asyncio.open_connection(server.host, server.port) for _ in range(2)]
        reader, writer = await asyncio.open_connection(server.host, server.port)
        assert (await reader.read()).startswith(b"HTTP/1.1 503")
        for idle_reader, idle_writer in idle:
            assert await idle_reader.read() == b""
            idle_writer.close()
        writer.close()


async def test_a_taken_port_is_said_plainly(scene: Scene) -> None:
    async def ready() -> tuple[str, ...]:
        return ()

    taken = MetricsSettings(port=scene.server.port)
    with pytest.raises(Fault, match="can't serve metrics"):
        async with MetricsServer(scene.ledger, scene.calls, ready, taken):
            pass


class Unreadable(Ledger):
    """A real ledger with one defect: its store can't be read."""

    async def snapshot(self) -> LedgerSnapshot:
        raise ledger_unavailable()


async def test_a_ledger_that_cannot_be_read_is_shown_and_speed_is_still_served(tmp_path: Path) -> None:
    async def ready() -> tuple[str, ...]:
        return ()

    async with await Database.open(f"sqlite:///{tmp_path}/ledger.db") as database:
        ledger, calls = Unreadable(database), CallMetrics()
        async with MetricsServer(ledger, calls, ready, ON_A_FREE_PORT) as server:
            status, _, body = await Scene(ledger, calls, server, []).ask("/metrics")
    assert status == 200
    assert "skillcell_ledger_readable 0.0" in body
    assert "skillcell_calls_total" not in body
    assert "skillcell_run_seconds_bucket" in body
