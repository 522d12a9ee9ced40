"""UploadInput as two tenants see it, over a real server and a real store."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from skillcell.api.auth import ApiKeys, hash_key
from skillcell.api.edge import SEND, Edge, caller
from skillcell.api.uploading import upload_input
from skillcell.client import InvalidArgument, ResourceExhausted, SkillcellClient, Unavailable
from skillcell.core.clock import SystemClock
from skillcell.core.types import Principal
from skillcell.storage.database import Database
from skillcell.storage.upload_rows import Room
from skillcell.storage.upload_rules import UploadSettings
from skillcell.storage.uploads import UploadStore
from skillcell.v1 import execution_pb2 as pb
from skillcell.v1 import execution_pb2_grpc as pb_grpc

KEYS = {hash_key(f"{name}-key"): Principal(name, roles=frozenset({"caller"})) for name in ("alice", "bob")}
DATA = b"alice's own" * 1000
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
SETTINGS = UploadSettings(max_bytes=8 << 20, tenant=Room(10 << 20, 10), kept=timedelta(hours=1), reserve_bytes=0)


class Service(pb_grpc.ExecutionServiceServicer):
    """The RPC alone."""

    def __init__(self, store: UploadStore) -> None:
        self._store = store

    async def UploadInput(self, request: Any, context: Any) -> Any:
        return await upload_input(self._store, caller(), request, context)


@dataclass
class Served:
    """Where it listens, and what it keeps."""

    address: str
    directory: Path

    @asynccontextmanager
    async def client(self, tenant: str) -> AsyncIterator[SkillcellClient]:
        async with SkillcellClient(self.address, api_key=f"{tenant}-key") as client:
            yield client

    @property
    def files(self) -> int:
        return sum(path.is_file() for path in self.directory.rglob("*"))


@asynccontextmanager
async def serving(tmp_path: Path, settings: UploadSettings = SETTINGS) -> AsyncIterator[Served]:
    async with await Database.open(f"sqlite:///{tmp_path}/store.db") as database:
        store = UploadStore(tmp_path / "uploads", database, "gateway-1", SystemClock(), settings)
        server = grpc.aio.server(interceptors=(Edge(ApiKeys(KEYS)),))
        pb_grpc.add_ExecutionServiceServicer_to_server(Service(store), server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield Served(f"127.0.0.1:{port}", tmp_path / "uploads")
        finally:
            await server.stop(0)


async def wanted(served: Served, tenant: str, digest: str) -> bool:
    """Whether the bytes of a digest are asked for."""
    async with grpc.aio.insecure_channel(served.address) as channel:
        call = pb_grpc.ExecutionServiceStub(channel).UploadInput(metadata=(("authorization", f"Bearer {tenant}-key"),))
        await call.write(pb.UploadInputRequest(header=pb.UploadInputHeader(digest=digest)))
        asked = SEND in tuple(await call.initial_metadata() or ())
        call.cancel()
        return asked


async def test_another_tenant_cannot_learn_what_has_been_uploaded(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        async with served.client("alice") as alice:
            assert (await alice.upload(DATA)).digest == DIGEST
        assert not await wanted(served, "alice", DIGEST)
        assert await wanted(served, "bob", DIGEST)
        assert await wanted(served, "bob", "sha256:" + "0" * 64)
        async with served.client("bob") as bob:
            assert (await bob.upload(DATA)).digest == DIGEST
        assert served.files == 2
        assert not await wanted(served, "bob", DIGEST)


async def test_refusals_come_before_the_bytes_where_they_can_and_with_their_reason_where_not(tmp_path: Path) -> None:
    async def stream(size: int) -> AsyncIterator[bytes]:
        for _ in range(size >> 20):
            yield bytes(1 << 20)

    async with serving(tmp_path) as served, served.client("alice") as alice:
        heard: list[int] = []
        with pytest.raises(InvalidArgument, match="one upload may have 8388608"):
            await alice.upload(bytes(9 << 20), on_progress=lambda sent, _: heard.append(sent))
        assert heard == []
        with pytest.raises(InvalidArgument, match="one upload may have"):
            await alice.upload(stream(30 << 20))
        await alice.upload(b"1" * (6 << 20))
        with pytest.raises(ResourceExhausted) as announced:
            await alice.upload(b"2" * (5 << 20), on_progress=lambda sent, _: heard.append(sent))
        with pytest.raises(ResourceExhausted) as passed:
            await alice.upload(stream(30 << 20))
        assert heard == []
        for refused in (announced.value, passed.value):
            assert (refused.reason, refused.metadata["quota"]) == ("QUOTA_EXCEEDED", "upload_bytes")
            assert (refused.quota_violations[0].subject, refused.metadata["limit"]) == ("tenant", str(10 << 20))
        assert served.files == 1
        with pytest.raises(InvalidArgument) as mismatch:
            await alice._uploads._send(pb.UploadInputHeader(digest=DIGEST), stream(1 << 20), 0, None)
        assert (mismatch.value.reason, mismatch.value.field_violations[0].field) == (
            "CONTENT_MISMATCH",
            "header.digest",
        )
        assert served.files == 1


async def test_a_disk_without_room_is_told_before_the_bytes(tmp_path: Path) -> None:
    full = UploadSettings(reserve_bytes=1 << 60)
    async with serving(tmp_path, full) as served, served.client("alice") as alice:
        with pytest.raises(Unavailable) as raised:
            await alice.upload(DATA)
        assert (raised.value.reason, raised.value.metadata["cause"]) == ("STORE_UNAVAILABLE", "STORAGE_UNAVAILABLE")
        assert served.files == 0
