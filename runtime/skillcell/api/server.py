"""The gRPC server: services behind the edge, health, reflection, and bounds on what a client may do to us."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from skillcell.api.auth import Authenticator
from skillcell.api.edge import Edge
from skillcell.core.errors import Fault, FaultKind
from skillcell.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    execution_pb2,
    execution_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    usage_pb2,
    usage_pb2_grpc,
)

_SERVICES: tuple[tuple[str, Callable[[Any, grpc.aio.Server], None], type], ...] = (
    (
        execution_pb2.DESCRIPTOR.services_by_name["ExecutionService"].full_name,
        execution_pb2_grpc.add_ExecutionServiceServicer_to_server,
        execution_pb2_grpc.ExecutionServiceServicer,
    ),
    (
        registry_pb2.DESCRIPTOR.services_by_name["RegistryService"].full_name,
        registry_pb2_grpc.add_RegistryServiceServicer_to_server,
        registry_pb2_grpc.RegistryServiceServicer,
    ),
    (
        session_pb2.DESCRIPTOR.services_by_name["SessionService"].full_name,
        session_pb2_grpc.add_SessionServiceServicer_to_server,
        session_pb2_grpc.SessionServiceServicer,
    ),
    (
        usage_pb2.DESCRIPTOR.services_by_name["UsageService"].full_name,
        usage_pb2_grpc.add_UsageServiceServicer_to_server,
        usage_pb2_grpc.UsageServiceServicer,
    ),
    (
        admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name,
        admin_pb2_grpc.add_AdminServiceServicer_to_server,
        admin_pb2_grpc.AdminServiceServicer,
    ),
)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Bounds of the gRPC server."""

    listen: str
    max_message_bytes: int
    max_streams: int = 4096
    """Calls open at once on one connection."""
    max_metadata_bytes: int = 16 * 1024


class Health:
    """What health checks and load balancers see; each service and the whole ("") change together."""

    def __init__(self) -> None:
        self.servicer = health.aio.HealthServicer()

    async def serving(self, ready: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *(name for name, _, _ in _SERVICES)):
            await self.servicer.set(name, status)


@asynccontextmanager
async def serving(
    settings: ServerSettings, authenticator: Authenticator, services: Sequence[object], health_state: Health
) -> AsyncIterator[int]:
    """Serves until the block ends; yields the port. A service that is not among `services` answers UNIMPLEMENTED."""
    server = grpc.aio.server(
        interceptors=(Edge(authenticator),),
        options=(
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_concurrent_streams", settings.max_streams),
            ("grpc.max_metadata_size", settings.max_metadata_bytes),
            ("grpc.so_reuseport", 0),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
        ),
    )
    for _, add, base in _SERVICES:
        add(next((service for service in services if isinstance(service, base)), base()), server)
    health_pb2_grpc.add_HealthServicer_to_server(health_state.servicer, server)
    names = (*(name for name, _, _ in _SERVICES), health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    try:
        port = server.add_insecure_port(settings.listen)
    except RuntimeError as error:
        raise Fault(
            FaultKind.UNAVAILABLE,
            "WRONG_STATE",
            f"can't listen on {settings.listen}; is it taken? Give another one with --listen",
        ) from error
    await server.start()
    try:
        yield port
    finally:
        await server.stop(grace=2.0)
