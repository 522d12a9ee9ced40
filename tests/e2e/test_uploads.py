"""Inputs that are sent ahead: whole or not there, for their own tenant, and never through the gateway's memory."""

from __future__ import annotations

import asyncio
import hashlib
import os
import textwrap
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.rpc import error_details_pb2 as details_pb
from google.rpc.status_pb2 import Status

from e2e.conftest import Fresh
from e2e.gateway import Gateway
from e2e.lab import SMALL, run, spec, until
from skillcell.client import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    SkillcellClient,
    SkillcellError,
)
from skillcell.client.collect import collect
from skillcell.core.events import Stdout
from skillcell.core.types import SECOND_NS, FaultParty, Outcome
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
        estimate = stub.EstimateExecution(pb.EstimateExecutionRequest(spec=spec), metadata=oci.credentials)
        assert (await refusal(estimate))[:2] == ("NOT_FOUND", "UPLOAD_NOT_FOUND")
        start = pb.ExecuteInteractiveRequest(start=pb.ExecuteRequest(spec=spec))
        live = stub.ExecuteInteractive(iter((start,)), metadata=oci.credentials)
        code, reason, status = await refusal(live.read())
        assert (code, reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
        assert "start.spec.stdin_upload" in status.message


HASHES = """
import hashlib, sys
digest = hashlib.sha256()
while data := sys.stdin.buffer.read(1 << 20):
    digest.update(data)
print(digest.hexdigest())
"""
MIB = 1 << 20


def endless(size: int, path: Path) -> str:
    """A file of that many bytes that no compression helps with; its hash."""
    digest, block = hashlib.sha256(), os.urandom(MIB)
    with path.open("wb") as file:
        for number in range(size // MIB):
            piece = number.to_bytes(8) + block[8:]
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


async def test_everything_large_goes_through_by_itself_and_counts_as_input(
    client: SkillcellClient, tmp_path: Path
) -> None:
    wanted = endless(24 * MIB, tmp_path / "big")
    value = {"text": "ü" * (3 * MIB)}
    code = f"""
    import hashlib, json, os, sys
    {textwrap.indent(HASHES, "    ").strip()}
    print(hashlib.sha256(open("data/big", "rb").read()).hexdigest(), os.access("data/big", os.X_OK))
    print(len(json.load(open(os.environ["SKILLCELL_INPUT"]))["text"]), open("small").read())
    """
    heard: dict[str, tuple[int, int]] = {}
    events = client.execute(
        "dev/lab",
        **spec(code, limits=replace(SMALL, memory_bytes=256 * MIB)),
        stdin=tmp_path / "big",
        files={"data/big": tmp_path / "big", "small": b"small"},
        input=value,
        on_upload=lambda name, sent, total: heard.__setitem__(name, (sent, total)),
    )
    result = await collect(events)
    assert result.ok, result.stderr
    lines = result.stdout.decode().splitlines()
    assert lines == [wanted, f"{wanted} False", f"{3 * MIB} small"]
    size = 24 * MIB
    assert heard == dict.fromkeys(("stdin", "data/big"), (size, size)) | {"input": (6 * MIB + 12, 6 * MIB + 12)}
    assert result.usage.input_bytes == 2 * size + 6 * MIB + 12 + 5


async def test_many_calls_share_one_upload_and_keep_its_request_id(oci: Gateway, oci_client: SkillcellClient) -> None:
    data = os.urandom(6 * MIB)
    shared = await oci_client.upload(data)
    assert shared.digest == digest_of(data)
    before = oci.samples()["skillcell_uploads_bytes", ()]
    calls = [run(oci_client, HASHES, stdin_upload=shared.digest) for _ in range(8)]
    results = await asyncio.gather(*calls)
    assert {result.stdout.decode().strip() for result in results} == {hashlib.sha256(data).hexdigest()}
    assert oci.samples()["skillcell_uploads_bytes", ()] == before
    assert list((oci.data / "uploads" / "held").iterdir()) == []
    name = str(uuid.uuid4())
    first = await run(oci_client, HASHES, stdin_upload=shared.digest, request_id=name)
    again = await run(oci_client, HASHES, stdin_upload=shared.digest, request_id=name)
    assert again.execution_id == first.execution_id
    other = await oci_client.upload(b"other bytes")
    with pytest.raises(AlreadyExists):
        await run(oci_client, HASHES, stdin_upload=other.digest, request_id=name)


async def test_an_input_that_breaks_its_schema_or_a_sandbox_that_is_too_small_is_told(
    oci_client: SkillcellClient, tmp_path: Path
) -> None:
    wrong = await oci_client.upload(b'{"n": 10, "pad": "' + b"x" * (5 * MIB) + b'"}')
    with pytest.raises(InvalidArgument) as raised:
        await oci_client.call("dev/lab", entrypoint="typed", input_upload=wrong.digest)
    assert raised.value.reason == "INPUT_INVALID"
    assert raised.value.field_violations[0].field == "input/n"
    endless(17 * MIB, tmp_path / "large")
    with pytest.raises(InvalidArgument, match="a JSON input may have 16777216"):
        await oci_client.call("dev/lab", entrypoint="typed", input_json=tmp_path / "large")
    full = await run(oci_client, "pass", files={"large": tmp_path / "large"}, limits=replace(SMALL, disk_bytes=8 * MIB))
    assert (full.outcome, full.completed.fault) == (Outcome.DISK_LIMIT_EXCEEDED, FaultParty.CALLER)
    ignored = await run(oci_client, "print('read nothing')", stdin=tmp_path / "large")
    assert ignored.stdout == b"read nothing\n"


async def test_a_broken_upload_an_expired_one_and_a_crash_leave_nothing(fresh: Fresh, tmp_path: Path) -> None:
    gateway = fresh(uploads_kept_seconds="2", uploads_tenant_bytes=str(13 * MIB), upload_bytes=str(16 * MIB))
    uploads = gateway.data / "uploads"

    def files() -> list[Path]:
        return [path for path in uploads.rglob("*") if path.is_file()]

    async def slowly(first: bytes, entered: asyncio.Event) -> AsyncIterator[bytes]:
        yield first
        entered.set()
        await asyncio.Event().wait()

    async with gateway.client() as client:
        # Too large, and too much: refused when it is announced, else as soon as it is passed.
        with pytest.raises(InvalidArgument, match="one upload may have"):
            await client.upload(bytes(17 * MIB))
        with pytest.raises(ResourceExhausted, match="upload_bytes"):
            await client.upload(as_stream(bytes(17 * MIB)))
        with pytest.raises(ResourceExhausted) as raised:
            await client.upload(bytes(14 * MIB))
        assert raised.value.reason == "QUOTA_EXCEEDED"
        assert f"of {13 * MIB}" in raised.value.quota_violations[0].description
        assert files() == []
        kept = await client.upload(bytes(12 * MIB))

        # A use puts expiry off; a call that was admitted outlives it; a retry of that call needs it no more.
        waits = "import sys, time\nprint('up', flush=True)\ntime.sleep(4)\n" + HASHES
        name = str(uuid.uuid4())
        stream = client.execute("dev/lab", request_id=name, **spec(waits, stdin_upload=kept.digest))
        seen = await until(stream, Stdout)
        async with asyncio.timeout(30):
            while any(path.parent.parent.name == "kept" for path in files()):
                await asyncio.sleep(0.1)
        with pytest.raises(NotFound) as gone:
            await run(client, "pass", stdin_upload=kept.digest)
        assert gone.value.reason == "UPLOAD_NOT_FOUND"
        seen += [event async for event in stream]
        out = b"".join(event.kind.data for event in seen if isinstance(event.kind, Stdout))
        assert out.decode().split() == ["up", hashlib.sha256(bytes(12 * MIB)).hexdigest()]
        replayed = client.execute("dev/lab", request_id=name, **spec(waits, stdin_upload=kept.digest))
        assert [event async for event in replayed] == seen
        async with asyncio.timeout(10):  # the links of the call go with its sandbox, a moment after its last event
            while files():
                await asyncio.sleep(0.02)

        # A client that leaves in the middle, and a gateway that dies there.
        for crash in (False, True):
            entered = asyncio.Event()
            upload = asyncio.create_task(client.upload(slowly(bytes(MIB), entered)))
            await entered.wait()
            async with asyncio.timeout(10):
                while not files():
                    await asyncio.sleep(0.02)
            if crash:
                gateway.kill()
                with pytest.raises(SkillcellError):
                    await upload
                assert len(files()) == 1
                gateway.start()
            else:
                upload.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await upload
            async with asyncio.timeout(10):
                while files():
                    await asyncio.sleep(0.02)
    async with gateway.client() as client:
        again = await client.upload(tmp_path / "again" if (tmp_path / "again").write_bytes(b"again") else b"")
        assert (await run(client, HASHES, stdin_upload=again.digest)).ok


async def test_half_a_gibibyte_goes_through_a_gateway_whose_memory_stays_flat(
    oci: Gateway, oci_client: SkillcellClient, tmp_path: Path
) -> None:
    await run(oci_client, HASHES, stdin=bytes(8 * MIB))  # whatever is made once is made
    before, most = oci.resident_bytes(), 0
    wanted = endless(512 * MIB, tmp_path / "huge")

    async def watched() -> None:
        nonlocal most
        while True:
            most = max(most, oci.resident_bytes())
            await asyncio.sleep(0.02)

    watching = asyncio.create_task(watched())
    try:
        limits = replace(SMALL, wall_ns=60 * SECOND_NS)
        result = await run(oci_client, HASHES, stdin=tmp_path / "huge", limits=limits)
    finally:
        watching.cancel()
        (tmp_path / "huge").unlink()
    assert result.stdout.decode().strip() == wanted
    assert result.usage.input_bytes == 512 * MIB
    assert most - before < 64 * MIB


async def as_stream(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 3 * MIB):
        yield data[start : start + 3 * MIB]
