"""What every RPC passes on its way in and out: credentials, role, validation, and faults made into statuses.

A service behind this raises `Fault`s and reads `caller()`; it never sees an unauthenticated call or an invalid
message.
"""

from __future__ import annotations

import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
import protovalidate
import structlog
from google.protobuf.message import Message

from skillcell.api.auth import Authenticator
from skillcell.api.roles import roles_for
from skillcell.api.scope import role_required
from skillcell.api.status import code_of, message_of, trailers_of
from skillcell.core.errors import Fault, FaultKind, FieldViolation
from skillcell.core.ids import new_id
from skillcell.core.types import Principal

log = structlog.get_logger("skillcell.api")
_caller: contextvars.ContextVar[Principal] = contextvars.ContextVar("caller")
SEND = ("skillcell-upload", "send")
"""Initial metadata of an RPC that takes bytes behind a header, once they are wanted."""
_OPEN = ("/grpc.health.v1.Health/", "/grpc.reflection.")


def caller() -> Principal:
    """Who made the call that is being served."""
    return _caller.get()


def validate(message: Message) -> None:
    """Raises Fault INVALID_ARGUMENT with every violation of the constraints that the protos declare."""
    try:
        protovalidate.validate(message)
    except protovalidate.ValidationError as error:
        violations = tuple(_told(violation) for violation in error.violations)
        text = "; ".join(f"{v.field}: {v.description}".removeprefix(": ") for v in violations[:5])
        raise Fault(FaultKind.INVALID_ARGUMENT, "INVALID_FIELD", text, violations=violations) from error


def _told(violation: Any) -> FieldViolation:
    """With the value where it is a number or a short text; never that of an environment variable."""
    path, what = _field_path(violation), str(violation.proto.message or violation.proto.rule_id)
    value = violation.field_value
    if isinstance(value, int | float | str) and len(repr(value)) <= 80 and ".env[" not in path:
        what += f"; it is {value!r}"
    return FieldViolation(path, what)


def _field_path(violation: Any) -> str:
    parts: list[str] = []
    path = violation.proto.field  # None where a rule is about the message as a whole
    for element in path.elements if path is not None else ():
        subscript = "" if element.subscript is None else f"[{element.subscript.value}]"
        parts.append(element.field_name + subscript)
    return ".".join(parts)


class Edge(grpc.aio.ServerInterceptor):
    """Wraps every handler but health and reflection."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(_OPEN):
            return handler
        return self._wrap(handler, handler_call_details.method)

    def _wrap(self, handler: Any, method: str) -> Any:
        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._streaming(handler.stream_stream, method), handler.request_deserializer, serialize
            )
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(
                self._unary(handler.stream_unary, method), handler.request_deserializer, serialize
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._streaming(handler.unary_stream, method), handler.request_deserializer, serialize
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(handler.unary_unary, method), handler.request_deserializer, serialize
        )

    def _unary(self, serve: Any, method: str) -> Any:
        async def wrapped(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                return await serve(await self._enter(request, context, method), context)
            except Exception as error:  # noqa: BLE001 - the edge: what is no Fault is logged and told as INTERNAL
                await _abort(context, error, method)

        return wrapped

    def _streaming(self, serve: Any, method: str) -> Any:
        # A coroutine that writes, not a generator: gRPC leaves a generator of a canceled call to the garbage collector,
        # and a call must end when its client goes.
        async def wrapped(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            try:
                async with aclosing(serve(await self._enter(request, context, method), context)) as responses:
                    async for response in responses:
                        await context.write(response)
            except Exception as error:  # noqa: BLE001 - the edge: what is no Fault is logged and told as INTERNAL
                await _abort(context, error, method)

        return wrapped

    async def _enter(self, request: Any, context: grpc.aio.ServicerContext[Any, Any], method: str) -> Any:
        metadata = {str(key): value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        principal = await self._authenticator.authenticate(metadata)
        roles = roles_for(method)
        if principal.roles.isdisjoint(roles):
            raise role_required(*roles)
        _caller.set(principal)
        if isinstance(request, Message):
            validate(request)
            return request
        return _validated(request)


async def _validated(requests: AsyncIterator[Message]) -> AsyncIterator[Message]:
    async for request in requests:
        validate(request)
        yield request


def serialize(message: Message | bytes) -> bytes:
    """Events come from the spool as bytes already; everything else is a message."""
    return message if isinstance(message, bytes) else message.SerializeToString()


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: Exception, method: str) -> None:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, NotImplementedError):
        error = Fault(FaultKind.UNIMPLEMENTED, "NOT_SERVED", f"{method} is not served by this gateway")
    if not isinstance(error, Fault):
        incident = new_id("inc")
        log.error("rpc_failed", method=method, incident=incident, exc_info=error)
        message = f"the gateway failed; the operator's log says how, under {incident}"
        error = Fault(FaultKind.INTERNAL, "INTERNAL", message, metadata={"incident": incident})
    await context.abort(code_of(error), message_of(error), trailers_of(error))
