"""Every sink of the settings with an exporter of its own, running beside the calls.

A sink that is down or held never keeps a call from being served, nor the others from being delivered to.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import structlog
from prometheus_client import CollectorRegistry

from skillcell.core.clock import Clock
from skillcell.core.steps import ExportSteps, export_pass_by
from skillcell.metering.export.events import source_of
from skillcell.metering.export.exporter import Delivery, Exporter
from skillcell.metering.export.http_sink import HttpSink
from skillcell.metering.export.settings import read_sinks
from skillcell.metering.export.sinks import AttemptCounter, Sinks
from skillcell.metering.export.store import SinkStore
from skillcell.storage.database import Database

log = structlog.get_logger("skillcell.export")


@asynccontextmanager
async def exporting(
    setting: str,
    database: Database,
    clock: Clock,
    registry: CollectorRegistry,
    *,
    owner: str,
    steps: ExportSteps = export_pass_by,
) -> AsyncIterator[Sinks]:
    """Delivers until the block ends. INVALID_ARGUMENT for a setting that is wrong, with the key's path."""
    settings = read_sinks(setting)
    store = SinkStore(database)
    source = source_of(await store.ledger_id())
    sinks = Sinks(store, settings, clock, source)
    await sinks.register()
    counter = AttemptCounter(registry)
    async with AsyncExitStack() as stack:
        for sink in settings:
            post = await stack.enter_async_context(HttpSink(sink))
            delivery = Delivery(store, post, clock, owner, source, counter.count, steps=steps)
            await stack.enter_async_context(_running(Exporter(sink, delivery)))
            log.info("export_begins", sink=sink.name, url=sink.shown_url, mode=sink.mode.value)
        yield sinks


@asynccontextmanager
async def _running(exporter: Exporter) -> AsyncIterator[None]:
    task = asyncio.create_task(exporter.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
