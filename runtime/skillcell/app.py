"""The composition root: the only place that constructs. Read `gateway` from top to bottom and you know all there is.

It is past 400 lines because it names every part once, in the order of their dependencies; to spread that over modules
would hide the order. It decides nothing: a decision that creeps in belongs beside the part that it is about.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import Gauge

from skillcell.admission.planner import Planner
from skillcell.admission.policy import Policy
from skillcell.admission.tenants import TenantStore
from skillcell.admission.uploads import NamedUploads
from skillcell.api.admin_service import AdminService
from skillcell.api.auth import ALL_ROLES, ApiKeys, hash_key
from skillcell.api.billing import Charges
from skillcell.api.execution_service import ExecutionService
from skillcell.api.registry_service import RegistryService
from skillcell.api.server import Health, ServerSettings, serving
from skillcell.api.sinks import SinkDesk
from skillcell.api.usage_service import UsageService
from skillcell.checkpoints import keep_checkpoints
from skillcell.core.clock import Clock, SystemClock
from skillcell.core.errors import Fault
from skillcell.core.plan import Plan
from skillcell.core.records import Admission
from skillcell.core.steps import crash_at
from skillcell.core.tenants import Tenant
from skillcell.core.types import Principal
from skillcell.core.wall_history import WallHistory
from skillcell.engines import Engine, check_engine, engine_for, prepare_images
from skillcell.execution import Executor, Gateway, Stages
from skillcell.exporting import exporting
from skillcell.live import LiveExecutions
from skillcell.local import DataDirectory, boot_id, make_data, open_data, write_note
from skillcell.logs import configure_logging
from skillcell.metering.auditing import Auditor, AuditSettings
from skillcell.metering.billing.assignments import Assignments
from skillcell.metering.billing.charges import ChargeExport
from skillcell.metering.billing.plans import RatePlanStore
from skillcell.metering.billing.statements import Billing
from skillcell.metering.heads import HeadFile
from skillcell.metering.ledger import Ledger
from skillcell.metering.metrics_server import MetricsServer, MetricsSettings, Readiness
from skillcell.metering.pool_metrics import PoolMetrics
from skillcell.metering.prometheus import CallMetrics
from skillcell.recovery import Recovery
from skillcell.registry.catalog import Catalog
from skillcell.registry.catalog_changes import CatalogChanges
from skillcell.registry.limits import PackageLimits
from skillcell.registry.package_store import PackageStore
from skillcell.registry.packages import LAYER_LIMITS, PackageSettings, SandboxedPackages, build_limits
from skillcell.registry.packages_build import BuildSandboxes
from skillcell.registry.packages_dial import dial
from skillcell.registry.packages_layers import LayerStore
from skillcell.registry.publish import SkillPublisher
from skillcell.registry.rules import EntrypointRules
from skillcell.retention import Retention, clean_for_ever
from skillcell.sandbox.agent_package import agent_command, build_agent_package
from skillcell.sandbox.driver import Check, PackageMount
from skillcell.sandbox.images_recipes import recipes_directory
from skillcell.sandbox.prepare import mounts_for
from skillcell.scheduler.capacity import Capacity, CapacityGate
from skillcell.scheduler.leases import Furnishing, Leases
from skillcell.scheduler.making import Maker
from skillcell.scheduler.pool import WarmPool
from skillcell.scheduler.pool_plan import PoolSettings
from skillcell.scheduler.reaper import Reaper
from skillcell.settings import Settings, split_address
from skillcell.startup import Stage, StartedPlanner, Startup
from skillcell.storage.artifacts import ArtifactStore
from skillcell.storage.database import Database
from skillcell.storage.spool import Spool
from skillcell.storage.upload_rows import Room
from skillcell.storage.upload_rules import UploadSettings
from skillcell.storage.uploads import UploadStore
from skillcell.stores import check_store
from skillcell.watching import Watching
from skillcell.wire.events import EventEncoder, Pinned, start_of

log = structlog.get_logger("skillcell")
_RETENTION_SECONDS = 60.0
_CLEAN_SECONDS = 3600.0
_DEVELOPMENT_TENANT = "dev"


@dataclass(frozen=True, slots=True)
class Running:
    """A gateway that serves."""

    address: str
    metrics: str
    data: DataDirectory
    driver: str
    executor: Executor
    live: LiveExecutions
    health: Health
    waits_for: str
    """Why it admits no calls yet; empty when it does."""


@asynccontextmanager
async def gateway(settings: Settings) -> AsyncIterator[Running]:
    """Everything of one gateway, built in the order of its dependencies; serves until the block ends. Raises Fault."""
    async with AsyncExitStack() as stack:
        clock, health, metrics = SystemClock(), Health(), CallMetrics()
        data = stack.enter_context(open_data(settings.data))
        database = await stack.enter_async_context(Database.connect(settings.database or data.database_url))
        steps = crash_at(settings.unsafe_crash_at)
        ledger = Ledger(database, steps=steps)
        auditor = _auditor(settings, ledger)
        tenants, plans = TenantStore(database), RatePlanStore(database)
        assignments, billing = Assignments(database, settings.rate_plan, clock), Billing(database, settings.rate_plan)
        engine = await stack.enter_async_context(engine_for(settings, data.instance_id, data.images))
        catalog, changes, packages = Catalog(database), CatalogChanges(database, clock), PackageStore(data.path)
        limits = PackageLimits(packed_bytes=settings.publish_bytes)
        agent, gate = build_agent_package(data.agent), CapacityGate(_capacity(settings))
        layers = LayerStore(data.layers, data.staging, LAYER_LIMITS)
        resolver = _resolver(settings, data, engine, clock, agent=agent, gate=gate, layers=layers)
        publisher = SkillPublisher(packages, catalog, changes, resolver, limits)
        artifacts = ArtifactStore(data.artifacts)
        maker = Maker(engine.driver, clock)
        pool = await stack.enter_async_context(_pool(settings, maker, clock, gate, metrics))
        leases = Leases(engine.driver, gate, maker, pool, clock, furnishing=_furnishing(data, engine, agent))
        rules, uploads = EntrypointRules(), _uploads(settings, data, database, clock)
        named = NamedUploads(uploads, settings.input_json_bytes)
        offered = engine.classes()
        planner = Planner(catalog, rules, Policy(), offered, settings.isolation, uploads=named, rate_plans=assignments)
        startup = Startup()
        stages = Stages(
            planner=StartedPlanner(planner, startup),
            leases=leases,
            uploads=uploads,
            ledger=ledger,
            observer=metrics,
            new_codec=_codec,
            new_spool=lambda execution_id: Spool(data.events / execution_id, limit_bytes=settings.spool_bytes),
            artifacts=artifacts.sink,
            output_check=lambda plan: rules.output_check(plan.entrypoint),
            steps=steps,
        )
        me = Gateway(data.instance_id, boot_id(), engine.driver.name)
        live = LiveExecutions()
        executor = Executor(stages, live, me, clock)
        watching = Watching(live, ledger, _kept_spools(settings, data, closed=True), settings.reconnect_seconds)
        recovery = Recovery(
            ledger,
            engine.driver,
            clock,
            metrics,
            new_codec=_recovered_codec,
            kept_spool=_kept_spools(settings, data),
            start_of=start_of,
            boot_id=me.boot_id,
            plan_of=plans.find,
            steps=steps,
        )
        _show_calls(metrics, executor, live, gate)
        reaper = Reaper(engine.driver, lambda: maker.live | resolver.live)
        await startup.begin(
            Stage("store", database.prepare, waits=bool(settings.database)),
            Stage("ledger", auditor.begin, waits=bool(settings.database)),
            Stage("tenant", lambda: tenants.ensure(Tenant(_DEVELOPMENT_TENANT, "Development"), clock.now())),
            Stage("swept", uploads.sweep),
            Stage("recovered", lambda: recovery.run(data.instance_id)),
            Stage("reaped", lambda: reaper.sweep(at_once=True)),
        )
        _show_uploads(metrics, uploads)
        retention = Retention(
            (data.events, data.artifacts), settings.events_kept_seconds, live.__contains__, WallHistory(clock)
        )
        await stack.enter_async_context(_background(startup.then(lambda: reaper.run(settings.reap_seconds))))
        await stack.enter_async_context(_background(keep_checkpoints(live, ledger, clock, me.boot_id)))
        looked_every = min(_RETENTION_SECONDS, max(1.0, settings.events_kept_seconds / 2))
        await stack.enter_async_context(_background(startup.then(lambda: retention.run(looked_every))))
        await stack.enter_async_context(_background(clean_for_ever(publisher.clean, _CLEAN_SECONDS)))
        collected_every = min(_RETENTION_SECONDS, max(1.0, settings.uploads_kept_seconds / 2))
        await stack.enter_async_context(_background(clean_for_ever(uploads.collect, collected_every)))
        clean_layers = _layer_collector(catalog, layers)
        await stack.enter_async_context(_background(clean_for_ever(clean_layers, _CLEAN_SECONDS)))
        await stack.enter_async_context(_background(startup.then(auditor.run)))
        host, port = split_address(settings.metrics)
        sinks = await stack.enter_async_context(
            exporting(
                settings.sinks,
                database,
                clock,
                metrics.registry,
                owner=data.instance_id,
                steps=steps,
                waits=None if startup.done else startup.wait,
            )
        )
        readiness, at = _readiness(engine, ledger, executor, startup), MetricsSettings(host=host, port=port)
        metrics_server = await stack.enter_async_context(MetricsServer(ledger, metrics, readiness, at, sinks.families))
        services = (
            ExecutionService(
                executor,
                watching,
                ledger,
                artifacts,
                timedelta(seconds=settings.events_kept_seconds),
                uploads=uploads,
                steps=steps,
            ),
            RegistryService(catalog, changes, publisher, packages, settings.publish_bytes),
            # Abstract, since what they do not serve yet is left to the edge, which answers UNIMPLEMENTED.
            UsageService(ledger, Charges(billing, tenants, ChargeExport(database, settings.rate_plan))),  # type: ignore[abstract]
            AdminService(tenants, plans, assignments, billing, ledger, sinks=SinkDesk(sinks), clock=clock),  # type: ignore[abstract]
        )
        server_settings = ServerSettings(settings.listen, settings.max_message_bytes)
        port = await stack.enter_async_context(serving(server_settings, _authenticator(data), services, health))
        await health.serving(startup.done)
        await stack.enter_async_context(_background(_started(startup, executor, health)))
        log.info("serving", driver=engine.driver.name, data=str(data.path), ready=startup.done)
        yield Running(
            address=f"{split_address(settings.listen)[0]}:{port}",
            metrics=f"{metrics_server.host}:{metrics_server.port}",
            data=data,
            driver=engine.driver.name,
            executor=executor,
            live=live,
            health=health,
            waits_for=startup.waits_for,
        )


async def serve(settings: Settings, announce: Callable[[Running], None]) -> None:
    """Serves until SIGTERM or SIGINT, then drains: calls may finish for a while, all are settled. Raises Fault."""
    configure_logging()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with gateway(settings) as running:
        write_note(running.address, running.metrics, running.data.development_key)
        announce(running)
        await stopping.wait()
        log.info("draining", live=len(running.live), within_seconds=settings.drain_seconds)
        await running.health.serving(False)
        await running.executor.drain(settings.drain_seconds)
    log.info("stopped")


async def doctor(settings: Settings) -> Sequence[Check]:
    """Each thing that this machine needs, and the exact fix where it lacks; never raises."""
    data = make_data(settings.data)
    return (*await check_store(settings, data), *await check_engine(settings, data.images))


def prepare(settings: Settings, aliases: Sequence[str], say: Callable[[str], None]) -> None:
    """Makes the sandbox images that are missing. Raises Fault."""
    prepare_images(settings, aliases, make_data(settings.data).images, say)


def _capacity(settings: Settings) -> Capacity:
    return Capacity.of_machine(
        reserve=settings.memory_reserve,
        cpu_overcommit=settings.cpu_overcommit,
        queue_length=settings.queue_length,
        set_aside_bytes=settings.pool_size * _pool_settings(settings).idle_bytes,
    )


def _pool_settings(settings: Settings) -> PoolSettings:
    return PoolSettings(
        idle_most=settings.pool_size,
        idle_most_of_kind=settings.pool_size_of_kind,
        keep_seconds=settings.pool_keep_seconds,
        age_seconds=settings.pool_age_seconds,
    )


@asynccontextmanager
async def _pool(
    settings: Settings, maker: Maker, clock: Clock, gate: CapacityGate, metrics: CallMetrics
) -> AsyncIterator[WarmPool]:
    observer = PoolMetrics(metrics.registry)
    hands = max(1, len(os.sched_getaffinity(0)) // 2)
    pool = WarmPool(maker, clock, _pool_settings(settings), observer, hands=hands, may_refill=lambda: gate.waiting == 0)
    observer.show(lambda: pool.idle, lambda: pool.oldest_seconds)
    async with pool.running():
        yield pool


def _furnishing(data: DataDirectory, engine: Engine, agent: PackageMount) -> Furnishing:
    def mounts(plan: Plan) -> tuple[PackageMount, ...]:
        return mounts_for(plan, data.packages, data.layers, agent)

    return Furnishing(engine.image, mounts, agent_command=lambda image: agent_command(image.python))


def _resolver(
    settings: Settings,
    data: DataDirectory,
    engine: Engine,
    clock: Clock,
    *,
    agent: PackageMount,
    gate: CapacityGate,
    layers: LayerStore,
) -> SandboxedPackages:
    offered, capacity = engine.classes(), _capacity(settings)
    sandboxes = BuildSandboxes(
        engine.driver,
        agent,
        gate,
        clock,
        limits=build_limits(capacity.memory_bytes, capacity.milli_cpus),
        dial=dial,
        isolation=offered[0] if offered and settings.isolation not in offered else settings.isolation,
    )
    package_settings = PackageSettings(
        tools=data.tools,
        recipes=recipes_directory(),
        package_index=settings.package_index,
        npm_registry=settings.npm_registry,
    )
    return SandboxedPackages(sandboxes, layers, engine.image, package_settings)


def _uploads(settings: Settings, data: DataDirectory, database: Database, clock: Clock) -> UploadStore:
    bounds = UploadSettings(
        max_bytes=settings.upload_bytes,
        tenant=Room(settings.uploads_tenant_bytes, settings.uploads_tenant_count),
        kept=timedelta(seconds=settings.uploads_kept_seconds),
        reserve_bytes=settings.uploads_reserve_bytes,
    )
    return UploadStore(data.uploads, database, data.instance_id, clock, bounds)


def _show_calls(metrics: CallMetrics, executor: Executor, live: LiveExecutions, gate: CapacityGate) -> None:
    """What this process has in hand; where several share a ledger, each shows its own."""
    here = Gauge(
        "skillcell_executions", "Calls that are carried out here, waiting ones too.", registry=metrics.registry
    )
    here.set_function(lambda: len(live))
    waiting = Gauge("skillcell_queued_executions", "Calls that wait for room here.", registry=metrics.registry)
    waiting.set_function(lambda: gate.waiting)
    draining = Gauge("skillcell_draining", "1 from when this process was told to stop.", registry=metrics.registry)
    draining.set_function(lambda: int(executor.draining))


def _show_uploads(metrics: CallMetrics, uploads: UploadStore) -> None:
    count = Gauge("skillcell_uploads", "Uploaded inputs that are kept.", registry=metrics.registry)
    count.set_function(lambda: uploads.inventory.count)
    size = Gauge("skillcell_uploads_bytes", "Bytes of inputs, kept and coming in.", registry=metrics.registry)
    size.set_function(lambda: uploads.inventory.size_bytes)


def _layer_collector(catalog: Catalog, layers: LayerStore) -> Callable[[], Awaitable[int]]:
    async def collect() -> int:
        return await layers.collect(await catalog.layer_digests())

    return collect


def _codec(plan: Plan, execution_id: str) -> EventEncoder:
    return EventEncoder(execution_id, Pinned(plan.version.version, plan.version.digest, plan.entrypoint.name))


def _kept_spools(settings: Settings, data: DataDirectory, *, closed: bool = False) -> Callable[[str], Spool]:
    def kept(execution_id: str) -> Spool:
        return Spool.reopen(data.events / execution_id, limit_bytes=settings.spool_bytes, closed=closed)

    return kept


def _recovered_codec(admission: Admission) -> EventEncoder:
    return EventEncoder(admission.execution_id)


def _authenticator(data: DataDirectory) -> ApiKeys:
    everything = Principal(
        tenant=_DEVELOPMENT_TENANT, publishers=frozenset({"*"}), roles=ALL_ROLES, key_id="development"
    )
    return ApiKeys({hash_key(data.development_key): everything})


def _auditor(settings: Settings, ledger: Ledger) -> Auditor:
    often = AuditSettings(seconds=settings.verify_seconds, full_seconds=settings.verify_full_seconds)
    return Auditor(ledger, often, HeadFile(Path(settings.head_file)) if settings.head_file else None)


async def _started(startup: Startup, executor: Executor, health: Health) -> None:
    """Goes on with the start until it is done, and lets everybody know."""
    await startup.run()
    log.info("started", **startup.results)
    if not executor.draining:
        await health.serving(True)


def _readiness(engine: Engine, ledger: Ledger, executor: Executor, startup: Startup) -> Readiness:
    async def why_not() -> tuple[str, ...]:
        reasons = []
        if executor.draining:
            reasons.append("draining")
        if not startup.done:
            reasons.append(startup.waits_for)
        if not await ledger.probe():
            reasons.append("the ledger can't be written")
        reasons += [f"{problem.spoken}; new calls are refused" for problem in ledger.soundness.problems[:1]]
        try:
            await engine.driver.ready()
        except Fault as fault:
            reasons.append(fault.message)
        return tuple(reasons)

    return why_not


@asynccontextmanager
async def _background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
