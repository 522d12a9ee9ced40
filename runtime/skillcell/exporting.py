"""Every sink of the settings with an exporter of its own, running beside the calls.

A sink that is down or held never keeps a call from being served, nor the others from being delivered to.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import structlog
from prometheus_client import CollectorRegistry

from skillcell.core.clock import Clock
from skillcell.core.errors import Fault
from skillcell.core.steps import ExportSteps, export_pass_by
from skillcell.metering.export.events import source_of
from skillcell.metering.export.exporter import Delivery, Exporter
from skillcell.metering.export.http_sink import HttpSink
from skillcell.metering.export.settings import read_sinks
from skillcell.metering.export.sinks import AttemptCounter, Sinks
from skillcell.metering.export.store import SinkStore
from skillcell.storage.database import Database

log = structlog.get_logger("skillcell.export")
_PAUSE_SECONDS = 1.0


@asynccontextmanager
async def exporting(
    setting: str,
    database: Database,
    clock: Clock,
    registry: CollectorRegistry,
    *,
    owner: str,
    steps: ExportSteps = export_pass_by,
    waits: Callable[[], Awaitable[None]] | None = None,
) -> AsyncIterator[Sinks]:
    """Delivers until the block ends; where the store can't be asked yet, from when `waits` has returned.

    INVALID_ARGUMENT for a setting that is wrong, with the key's path.
    """
    settings = read_sinks(setting)
    store = SinkStore(database)
    sinks = Sinks(store, settings, clock, source="")
    counter = AttemptCounter(registry)

    async def begin(stack: AsyncExitStack) -> None:
        sinks.source = source_of(await store.ledger_id())
        await sinks.register()
        for sink in settings:
            post = await stack.enter_async_context(HttpSink(sink))
            delivery = Delivery(store, post, clock, owner, sinks.source, counter.count, steps=steps)
            await stack.enter_async_context(_running(Exporter(sink, delivery).run()))
            log.info("export_begins", sink=sink.name, url=sink.shown_url, mode=sink.mode.value)

    async with AsyncExitStack() as stack:
        if waits is None:
            await begin(stack)
        else:
            await stack.enter_async_context(_running(_later(waits, begin)))
        yield sinks


async def _later(waits: Callable[[], Awaitable[None]], begin: Callable[[AsyncExitStack], Awaitable[None]]) -> None:
    await waits()
    while True:
        try:
            async with AsyncExitStack() as stack:
                await begin(stack)
                await asyncio.Event().wait()
        except Fault as fault:
            log.warning("export_waits", reason=fault.reason, why=fault.message)
            await asyncio.sleep(_PAUSE_SECONDS)


@asynccontextmanager
async def _running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
