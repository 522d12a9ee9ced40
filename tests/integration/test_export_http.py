"""What a sink or a network may do to us over HTTP, and what an operator sees of it on /metrics."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from ledger_stores import admission, settlement
from skillcell.core.clock import SystemClock
from skillcell.core.errors import Fault
from skillcell.exporting import exporting
from skillcell.metering.export.answers import Answer, Verdict
from skillcell.metering.export.events import STRUCTURED_TYPE
from skillcell.metering.export.http_sink import HttpSink
from skillcell.metering.export.settings import SinkSettings
from skillcell.metering.ledger import Ledger
from skillcell.metering.metrics_server import MetricsServer, MetricsSettings
from skillcell.metering.prometheus import CallMetrics
from skillcell.storage.database import Database

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
SECRET = "Bearer s3cret-of-the-sink"


def says(reply: bytes, after: bytes = b"") -> Handler:
    """Answers any request with these bytes, and goes on with `after` until nobody listens."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(reply)
            while after:
                writer.write(after)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    return answer


async def sent(handler: Handler, tls: ssl.SSLContext | None = None, **settings: Any) -> Answer:
    """One event sent to a server with that behaviour."""
    async with await asyncio.start_server(handler, "127.0.0.1", 0, ssl=tls) as server:
        port = server.sockets[0].getsockname()[1]
        scheme = "https" if tls else "http"
        given = {"name": "meter", "url": f"{scheme}://localhost:{port}/", "headers": {"Authorization": SECRET}}
        async with HttpSink(SinkSettings.model_validate(given | {"timeout_seconds": 5} | settings)) as post:
            return await post.send(STRUCTURED_TYPE, b"{}")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """For localhost, signed by itself; its key lies beside it."""
    made = tmp_path / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(made)]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *subject, *files]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return made


async def test_a_sink_without_a_trusted_certificate_gets_nothing(certificate: Path) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, certificate.with_name("key.pem"))
    accepted = says(b"HTTP/1.1 204 Taken\r\n\r\n")
    refused = await sent(accepted, tls)
    assert refused.verdict is Verdict.UNREACHED
    assert "certificate verify failed" in refused.detail
    assert (await sent(accepted, tls, ca_file=str(certificate))).verdict is Verdict.ACCEPTED


async def test_an_answer_without_an_end_costs_no_memory_and_its_status_counts() -> None:
    refused = says(b"HTTP/1.1 400 No\r\nTransfer-Encoding: chunked\r\n\r\n", b"1000\r\n" + b"x" * 4096 + b"\r\n")
    answer = await sent(refused)
    assert (answer.status, len(answer.detail)) == (400, 300)


@pytest.mark.parametrize("reply", [b"SSH-2.0-OpenSSH\r\n", b"", b"HTTP/1.1 999999 \r\n\r\n", b"HTTP/1.1 200 OK\r\nA"])
async def test_what_is_no_answer_is_none(reply: bytes) -> None:
    assert (await sent(says(reply))).verdict is Verdict.UNREACHED


async def test_a_secret_that_a_sink_echoes_is_not_shown() -> None:
    body = f"you said {SECRET}, and \x1b[31m s3cret-of-the-sink".encode()
    answer = await sent(says(b"HTTP/1.1 400 No\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)))
    assert str(answer) == "400 Bad Request: you said ***, and ?[31m ***"


async def test_a_headers_file_that_is_wrong_is_told_by_line_and_never_quoted(tmp_path: Path) -> None:
    file = tmp_path / "headers"
    file.write_text("A: b\nno header s3cret\n")
    answer = await sent(says(b""), headers_file=str(file))
    assert answer.verdict is Verdict.UNREACHED
    assert "line 2" in answer.detail
    assert "s3cret" not in answer.detail


async def test_a_ca_file_that_cannot_be_read_keeps_the_gateway_from_starting() -> None:
    with pytest.raises(Fault, match="meter: ca_file /there/is/none can't be used"):
        await sent(says(b""), ca_file="/there/is/none")


async def test_metrics_of_exports_are_clean_and_belong_to_the_ledger(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(await Database.open(f"sqlite:///{tmp_path}/ledger.db"))
        ledger, calls = Ledger(database), CallMetrics()
        setting = '[{"name": "meter", "url": "http://127.0.0.1:9/", "poll_seconds": 0.01, "start": "next"}]'
        made = exporting(setting, database, SystemClock(), calls.registry, owner="one")
        sinks = await stack.enter_async_context(made)
        for _ in range(3):
            given = admission()
            await ledger.admit(given)
            await ledger.settle(settlement(given))

        async def ready() -> tuple[str, ...]:
            return ()

        server = MetricsServer(ledger, calls, ready, MetricsSettings(port=0), sinks.families)
        await stack.enter_async_context(server)
        async with asyncio.timeout(10):
            while not (await sinks.statuses())[0].attempts:
                await asyncio.sleep(0.01)
        text = await _scrape(server, "/metrics")
        assert 'skillcell_export_lag_records{sink="meter"} 3.0' in text
        assert 'skillcell_export_attempts_total{result="unreached",sink="meter"}' in text
        assert "skillcell_export_held" in await _scrape(server, "/metrics/ledger")
        process = await _scrape(server, "/metrics/process")
        assert "skillcell_export_held" not in process
        assert "skillcell_export_attempts_total" in process
    promtool = shutil.which("promtool")
    assert promtool is not None, "promtool is needed (package: prometheus)"
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


async def _scrape(server: MetricsServer, path: str) -> str:
    reader, writer = await asyncio.open_connection(server.host, server.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    text = (await reader.read()).decode().partition("\r\n\r\n")[2]
    writer.close()
    await writer.wait_closed()
    return text


async def test_without_sinks_nothing_is_exported_and_nothing_shown(tmp_path: Path) -> None:
    async with (
        await Database.open(f"sqlite:///{tmp_path}/ledger.db") as database,
        exporting("", database, SystemClock(), CollectorRegistry(), owner="one") as sinks,
    ):
        assert await sinks.statuses() == ()
        assert [list(family.samples) for family in await sinks.families()] == [[]] * 4
