"""Inputs that are sent ahead: whole or not there, for their own tenant, and never through the gateway's memory."""

from __future__ import annotations

import hashlib
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2 as details_pb
from google.rpc.status_pb2 import Status

from e2e.gateway import Gateway
from skillcell.v1 import execution_pb2 as pb
from skillcell.v1 import execution_pb2_grpc, spec_pb2


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def header(**fields: Any) -> pb.UploadInputRequest:
    return pb.UploadInputRequest(header=pb.UploadInputHeader(**fields))


def chunk(data: bytes) -> pb.UploadInputRequest:
    return pb.UploadInputRequest(chunk=data)


async def send(gateway: Gateway, *messages: pb.UploadInputRequest) -> pb.UploadInputResponse:
    """One upload, message by message, as a client of any language sends it."""
    async with gateway.channel() as channel:
        stub = execution_pb2_grpc.ExecutionServiceStub(channel)
        return await stub.UploadInput(iter(messages), metadata=gateway.credentials, timeout=60)


async def refusal(attempt: Any) -> tuple[str, str, Status]:
    """Code, reason and all details of what must be refused."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await attempt
    trailers = dict(raised.value.trailing_metadata() or ())
    status, info = Status.FromString(trailers["grpc-status-details-bin"]), details_pb.ErrorInfo()
    assert status.details[0].Unpack(info)
    return raised.value.code().name, info.reason, status


async def test_an_upload_is_named_by_its_hash_and_the_same_again_needs_no_bytes(oci: Gateway) -> None:
    data = b"once and again" * 1000
    answer = await send(oci, header(), chunk(data[:5]), chunk(data[5:]))
    assert (answer.digest, answer.size_bytes) == (digest_of(data), len(data))
    again = await send(oci, header(digest=answer.digest, size_bytes=len(data)))
    assert (again.digest, again.size_bytes) == (answer.digest, len(data))
    assert again.expire_time.ToDatetime() >= answer.expire_time.ToDatetime()
    whole = await send(oci, header(digest=answer.digest), *[chunk(data)] * 3)  # answered before these are looked at
    assert whole.size_bytes == len(data)


async def test_a_broken_order_and_what_was_not_announced_are_refused(oci: Gateway) -> None:
    data = b"announced"
    for messages in ([], [chunk(data)], [header(), header()]):
        assert (await refusal(send(oci, *messages)))[:2] == ("INVALID_ARGUMENT", "STREAM_ORDER")
    for announced in ({"size_bytes": 8}, {"size_bytes": 10}, {"digest": digest_of(b"other")}):
        assert (await refusal(send(oci, header(**announced), chunk(data))))[:2] == (
            "INVALID_ARGUMENT",
            "CONTENT_MISMATCH",
        )
    assert (await refusal(send(oci, header(), chunk(bytes((2 << 20) + 1)))))[:2] == (
        "INVALID_ARGUMENT",
        "INVALID_FIELD",
    )
    assert (await refusal(send(oci, header(size_bytes=5 << 30))))[:2] == ("INVALID_ARGUMENT", "INVALID_FIELD")
    spec = spec_pb2.ExecutionSpec(skill="dev/lab", entrypoint="run", args=["pass"], stdin_upload=digest_of(data))
    async with oci.channel() as channel:
        stub = execution_pb2_grpc.ExecutionServiceStub(channel)
        started = stub.StartExecution(pb.StartExecutionRequest(spec=spec), metadata=oci.credentials)
        assert (await refusal(started))[:2] == ("NOT_FOUND", "UPLOAD_NOT_FOUND")
