"""A small HTTP server, apart from the gRPC port: `/metrics`, `/healthz`, `/readyz`.

`/metrics` is everything; `/metrics/ledger` only what belongs to the ledger, to be scraped once where several gateways
share one; `/metrics/process` only what belongs to this process. It answers GET and HEAD, one request per connection,
within bounds of connections, header bytes and time, so that nothing it is sent can hurt the gateway beside it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Protocol, Self

from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel, ConfigDict, Field

from skillcell.core.errors import Fault, unavailable
from skillcell.metering.prometheus import CallMetrics, Exposition, LedgerState, ledger_families
from skillcell.metering.records import LedgerSnapshot
from skillcell.metering.soundness import Soundness

_log = logging.getLogger(__name__)

Readiness = Callable[[], Awaitable[tuple[str, ...]]]
"""Why no call would be accepted now, one sentence each; empty when one would."""


Families = Callable[[], Awaitable[tuple[Metric, ...]]]
"""Further families that belong to the ledger, as they are at a scrape; must not raise."""


async def no_families() -> tuple[Metric, ...]:
    """Of a gateway that has no more to say."""
    return ()


class MeteredLedger(Protocol):
    """What a scrape asks of the ledger."""

    @property
    def writable(self) -> bool:
        """Whether the last write was kept."""
        ...

    @property
    def soundness(self) -> Soundness:
        """What is known to be wrong with it."""
        ...

    async def probe(self) -> bool:
        """Whether a write would be kept now; updates `writable`."""
        ...

    async def snapshot(self) -> LedgerSnapshot:
        """Everything settled so far; raises Fault when it can't be read."""
        ...


class MetricsSettings(BaseModel):
    """Where and within what bounds metrics are served."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=9464, ge=0, le=65535, description="TCP port; 0 picks a free one.")
    max_connections: int = Field(default=32, ge=1, description="Requests served at once; more are turned away.")
    timeout_seconds: float = Field(default=10, gt=0, description="For a whole request, reading it and answering.")
    max_header_bytes: int = Field(default=8192, ge=256, description="Of request line and headers together.")


@dataclass(frozen=True, slots=True)
class _Reply:
    status: HTTPStatus
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"


class MetricsServer:
    """`async with MetricsServer(…) as server:` listens at `server.host:server.port` until the block ends."""

    def __init__(
        self,
        ledger: MeteredLedger,
        calls: CallMetrics,
        ready: Readiness,
        settings: MetricsSettings | None = None,
        further: Families = no_families,
    ) -> None:
        self._ledger = ledger
        self._calls = calls
        self._ready = ready
        self._further = further
        self._settings = settings or MetricsSettings()
        self._server: asyncio.Server | None = None
        self._open = 0
        self.host = self._settings.host
        self.port = self._settings.port

    async def __aenter__(self) -> Self:
        try:
            server = await asyncio.start_server(
                self._connected, self.host, self.port, limit=self._settings.max_header_bytes
            )
        except OSError as error:
            reason = error.strerror or "the address can't be used"
            raise unavailable(
                "METRICS_PORT_UNAVAILABLE", f"can't serve metrics at {self.host}:{self.port}: {reason}"
            ) from error
        self._server = server
        self.port = server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            async with asyncio.timeout(self._settings.timeout_seconds):
                if self._open > self._settings.max_connections:
                    await _send(writer, _Reply(HTTPStatus.SERVICE_UNAVAILABLE), with_body=True)
                else:
                    await self._serve(reader, writer)
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            pass  # gone or too slow: there is nobody to tell
        except Exception:  # noqa: BLE001 - logged; one bad request must not end the server
            _log.exception("a request for metrics failed")
        finally:
            self._open -= 1
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.LimitOverrunError:
            await _send(writer, _Reply(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE), with_body=True)
            return
        line, *headers = request.split("\r\n")
        words = line.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            await _send(writer, _Reply(HTTPStatus.BAD_REQUEST), with_body=True)
            return
        method, target, _ = words
        if method not in ("GET", "HEAD"):
            reply = _Reply(HTTPStatus.METHOD_NOT_ALLOWED)
        else:
            reply = await self._answer(target.partition("?")[0], _accept(headers))
        await _send(writer, reply, with_body=method != "HEAD")

    async def _answer(self, path: str, accept: str) -> _Reply:
        match path:
            case "/healthz":
                return _Reply(HTTPStatus.OK, b"ok\n")
            case "/readyz":
                reasons = await self._ready()
                status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
                body = json.dumps({"ready": not reasons, "reasons": reasons}).encode() + b"\n"
                return _Reply(status, body, "application/json")
            case "/metrics":
                return await self._metrics(accept, ledger=True, process=True)
            case "/metrics/ledger":
                return await self._metrics(accept, ledger=True, process=False)
            case "/metrics/process":
                return await self._metrics(accept, ledger=False, process=True)
            case _:
                return _Reply(HTTPStatus.NOT_FOUND, b"try /metrics, /healthz or /readyz\n")

    async def _metrics(self, accept: str, *, ledger: bool, process: bool) -> _Reply:
        looked = (await self._look()) if ledger else None
        further = (await self._further()) if ledger else ()

        def render() -> tuple[bytes, str]:
            families = (*ledger_families(*looked), *further) if looked is not None else ()
            of_process = self._calls.registry.collect() if process else ()
            encode, content_type = choose_encoder(accept)
            return encode(Exposition((families, of_process))), content_type

        body, content_type = await asyncio.to_thread(render)
        return _Reply(HTTPStatus.OK, body, content_type)

    async def _look(self) -> tuple[LedgerSnapshot | None, LedgerState]:
        """A ledger that failed is tried again here, so that its gauge recovers without a call being risked."""
        writable = self._ledger.writable or await self._ledger.probe()
        sound = self._ledger.soundness
        state = LedgerState(
            writable,
            sound.count,
            sound.verified.sequence if sound.verified is not None else 0,
            sound.verified_at.timestamp() if sound.verified_at is not None else None,
        )
        try:
            return await self._ledger.snapshot(), state
        except Fault as fault:
            _log.warning("the ledger can't be read for a scrape: %s", fault)
            return None, state


def _accept(headers: list[str]) -> str:
    for header in headers:
        name, _, value = header.partition(":")
        if name.strip().lower() == "accept":
            return value.strip()
    return ""


async def _send(writer: asyncio.StreamWriter, reply: _Reply, *, with_body: bool) -> None:
    head = (
        f"HTTP/1.1 {reply.status.value} {reply.status.phrase}\r\nContent-Type: {reply.content_type}\r\n"
        f"Content-Length: {len(reply.body)}\r\nConnection: close\r\nCache-Control: no-store\r\n\r\n"
    )
    writer.write(head.encode("latin-1") + (reply.body if with_body else b""))
    await writer.drain()
