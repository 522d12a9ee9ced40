"""UploadInput: a stream of chunks behind a header, answered before its bytes where they are known already."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from skillcell.api.edge import SEND
from skillcell.core.errors import Fault, FaultKind, invalid
from skillcell.core.types import Principal
from skillcell.storage.upload_receiving import Announced
from skillcell.storage.upload_rows import Upload
from skillcell.storage.uploads import UploadStore
from skillcell.v1 import execution_pb2 as pb
from skillcell.wire.times import instant_to_proto


async def upload_input(
    uploads: UploadStore,
    principal: Principal,
    requests: AsyncIterator[pb.UploadInputRequest],
    context: grpc.aio.ServicerContext[Any, Any],
) -> pb.UploadInputResponse:
    """Raises Fault, and then nothing is kept. What other tenants have uploaded is never looked at."""
    first = await anext(aiter(requests), None)
    if first is None or first.WhichOneof("part") != "header":
        raise _order("the first message must be the header")
    header = first.header
    announced = Announced(header.size_bytes if header.HasField("size_bytes") else None, header.digest)
    if header.digest and (known := await uploads.known(principal.tenant, header.digest)) is not None:
        if announced.size_bytes not in (None, known.size_bytes):
            raise invalid(
                "header.size_bytes",
                f"is {announced.size_bytes}; the bytes of that digest are {known.size_bytes}",
                reason="CONTENT_MISMATCH",
            )
        return _answer(known)
    async with uploads.receive(principal.tenant, announced) as receiving:
        await context.send_initial_metadata((SEND,))
        async for request in requests:
            if request.WhichOneof("part") == "header":
                raise _order("the header came twice")
            await receiving.write(request.chunk)
        return _answer(await receiving.finish())


def _answer(upload: Upload) -> pb.UploadInputResponse:
    return pb.UploadInputResponse(
        digest=upload.digest, size_bytes=upload.size_bytes, expire_time=instant_to_proto(upload.expires_at)
    )


def _order(message: str) -> Fault:
    return Fault(FaultKind.INVALID_ARGUMENT, "STREAM_ORDER", message)
