"""The connection to a gateway: TLS, credentials in the metadata, message sizes, and statuses made into exceptions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import grpc.aio

from skillcell.client.errors import SkillcellError, from_rpc
from skillcell.wire import UnknownValue

Answer = TypeVar("Answer")
MESSAGE_BYTES = 64 << 20
"""The largest message taken or sent."""
_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Also how long one attempt may take: less, and a gateway that is merely busy counts as gone.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Servers refuse pings that come more often than every five minutes unless they are told to allow it.
    ("grpc.keepalive_time_ms", 330_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM texts. Without `root_certificates` the system's are used; key and chain together are mutual TLS."""

    root_certificates: bytes | None = None
    private_key: bytes | None = None
    certificate_chain: bytes | None = None
    server_name: str = ""
    """The name that the certificate must have, where that is not the address's."""


def open_channel(address: str, tls: Tls | None) -> grpc.aio.Channel:
    if tls is None:
        return grpc.aio.insecure_channel(address, options=_OPTIONS)
    credentials = grpc.ssl_channel_credentials(tls.root_certificates, tls.private_key, tls.certificate_chain)
    named = (("grpc.ssl_target_name_override", tls.server_name),) if tls.server_name else ()
    return grpc.aio.secure_channel(address, credentials, options=(*_OPTIONS, *named))


def credentials_metadata(api_key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {api_key}"),) if api_key else ()


async def ask(call: Awaitable[Answer]) -> Answer:
    """One answer. Raises SkillcellError."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error) from error


async def listen(call: Any) -> AsyncGenerator[Any, None]:
    """A stream of answers; leaving it ends the RPC. Raises SkillcellError."""
    try:
        async for answer in call:
            yield answer
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error) from error
    finally:
        call.cancel()


@contextmanager
def known_values() -> Iterator[None]:
    """Raises SkillcellError where the gateway speaks of something that this client does not know."""
    try:
        yield
    except UnknownValue as error:
        raise SkillcellError(f"the gateway is newer than this client, update the client: {error}") from error
