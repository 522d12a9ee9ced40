"""Uploads: bounded while they come in, whole or not there, and never pulled from under a call."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from skillcell.core.errors import Fault, FaultKind
from skillcell.storage import upload_files
from skillcell.storage.database import Database
from skillcell.storage.upload_receiving import Announced
from skillcell.storage.upload_rows import Room, Upload
from skillcell.storage.upload_rules import UploadSettings
from skillcell.storage.uploads import UploadStore

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
SETTINGS = UploadSettings(max_bytes=1000, tenant=Room(2000, 10), kept=DAY, at_once=3, reserve_bytes=0)


class Clock:
    """A wall clock that the test moves."""

    def __init__(self) -> None:
        self.time = NOON

    def now(self) -> datetime:
        return self.time

    def monotonic_ns(self) -> int:
        return 0


class Shop:
    """A store with what it stands on, which a test may open again as a restart does."""

    def __init__(self, directory: Path, database: Database) -> None:
        self.directory = directory / "uploads"
        self.database = database
        self.clock = Clock()
        self.store = self.opened()

    def opened(self, **changes: Any) -> UploadStore:
        settings = replace(SETTINGS, **changes)
        return UploadStore(self.directory, self.database, "gateway-1", self.clock, settings)

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.directory)) for path in self.directory.rglob("*") if path.is_file())

    def counted(self) -> tuple[int, int]:
        return self.store.inventory.count, self.store.inventory.size_bytes


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    async with await Database.open(f"sqlite:///{tmp_path}/store.db") as database:
        yield Shop(tmp_path, database)


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


async def upload(
    store: UploadStore, data: bytes, tenant: str = "acme", size: int | None = None, digest: str = ""
) -> Upload:
    async with store.receive(tenant, Announced(size, digest)) as receiving:
        for start in range(0, len(data), 100):
            await receiving.write(data[start : start + 100])
        return await receiving.finish()


async def refused(store: UploadStore, data: bytes, **announced: Any) -> Fault:
    with pytest.raises(Fault) as caught:
        await upload(store, data, **announced)
    return caught.value


async def test_the_same_bytes_are_kept_once_for_each_tenant_and_named_by_their_hash(shop: Shop) -> None:
    data = b"shared" * 50
    first = await upload(shop.store, data)
    assert first == Upload(digest_of(data), len(data), NOON + DAY)
    shop.clock.time += DAY / 2
    assert (await upload(shop.store, data)).expires_at == NOON + DAY * 1.5
    assert shop.counted() == (1, 300)
    assert len(shop.files()) == 1
    await upload(shop.store, data, tenant="other")
    assert shop.counted() == (2, 600)
    assert len(shop.files()) == 2
    assert not [path for path in shop.files() if "acme" in path or "other" in path]
    empty = await upload(shop.store, b"", size=0)
    assert await shop.store.read("acme", empty.digest) == b""


@pytest.mark.parametrize(
    ("announced", "field"),
    [
        ({"size": 99}, "header.size_bytes"),
        ({"size": 101}, "header.size_bytes"),
        ({"digest": digest_of(b"other")}, "header.digest"),
        ({"size": 100, "digest": digest_of(b"other")}, "header.digest"),
    ],
)
async def test_bytes_that_are_not_what_was_announced_are_refused_and_gone(
    shop: Shop, announced: dict[str, Any], field: str
) -> None:
    fault = await refused(shop.store, b"x" * 100, **announced)
    assert (fault.kind, fault.reason) == (FaultKind.INVALID_ARGUMENT, "CONTENT_MISMATCH")
    assert fault.violations[0].field == field
    assert (shop.files(), shop.counted()) == ([], (0, 0))
    assert await shop.store.known("acme", digest_of(b"x" * 100)) is None


async def test_one_that_is_too_large_is_refused_as_soon_as_that_is_known(shop: Shop) -> None:
    with pytest.raises(Fault, match="one upload may have 1000 bytes") as caught:
        async with shop.store.receive("acme", Announced(1001)):
            pytest.fail("not a byte should have been asked for")
    assert (caught.value.reason, caught.value.metadata["limit"]) == ("INVALID_FIELD", "1000")
    async with shop.store.receive("acme", Announced()) as receiving:
        await receiving.write(b"x" * 1000)
        with pytest.raises(Fault, match="more than 1000 bytes came"):
            await receiving.write(b"y")
    assert (shop.files(), shop.counted()) == ([], (0, 0))
    assert (await upload(shop.store, b"x" * 1000)).size_bytes == 1000


async def test_a_tenants_room_holds_before_while_and_after_bytes_come(shop: Shop) -> None:
    await upload(shop.store, b"a" * 900)
    await upload(shop.store, b"b" * 900)
    with pytest.raises(Fault) as caught:
        async with shop.store.receive("acme", Announced(201)):
            pytest.fail("not a byte should have been asked for")
    fault = caught.value
    assert (fault.kind, fault.reason) == (FaultKind.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
    quota = fault.quotas[0]
    assert (quota.quota, quota.limit, quota.used, quota.subject) == ("upload_bytes", 2000, 1800, "tenant")
    assert fault.retry_after == DAY
    async with shop.store.receive("acme", Announced()) as receiving:
        await receiving.write(b"c" * 200)
        with pytest.raises(Fault, match="upload_bytes: 2000 of 2000"):
            await receiving.write(b"c")
    assert (len(shop.files()), shop.counted()) == (2, (2, 1800))
    assert (await upload(shop.store, b"d" * 200)).size_bytes == 200
    assert (await upload(shop.store, b"e" * 1000, tenant="other")).size_bytes == 1000


async def test_what_is_coming_takes_room_from_what_comes_beside_it(shop: Shop) -> None:
    async with shop.store.receive("acme", Announced(1000)), shop.store.receive("acme", Announced()) as slow:
        await slow.write(b"s" * 600)
        assert (await refused(shop.store, b"x" * 401)).reason == "QUOTA_EXCEEDED"
        assert (await upload(shop.store, b"x" * 400)).size_bytes == 400
    assert shop.counted() == (1, 400)


async def test_the_number_of_uploads_is_bounded_kept_and_coming(shop: Shop) -> None:
    for number in range(10):
        await upload(shop.store, b"%d" % number)
    fault = await refused(shop.store, b"one more")
    assert (fault.reason, fault.quotas[0].quota, fault.quotas[0].used) == ("QUOTA_EXCEEDED", "uploads", 10)
    other = [shop.store.receive("other", Announced()) for _ in range(4)]
    for one in other[:3]:
        await one.__aenter__()
    with pytest.raises(Fault, match="uploads_at_once: 3 of 3"):
        await other[3].__aenter__()
    for one in other[:3]:
        await one.__aexit__(None, None, None)
    assert (await upload(shop.store, b"now", tenant="other")).size_bytes == 3


async def test_what_is_over_makes_room_before_anything_is_refused_for_it(shop: Shop) -> None:
    await upload(shop.store, b"a" * 1000)
    await upload(shop.store, b"b" * 1000)
    shop.clock.time += DAY
    assert (await upload(shop.store, b"c" * 1000, size=1000)).size_bytes == 1000
    assert shop.counted() == (1, 1000)


async def test_a_broken_upload_leaves_nothing(shop: Shop) -> None:
    async def comes() -> None:
        async with shop.store.receive("acme", Announced(500)) as receiving:
            await receiving.write(b"half")
            begun.set()
            await asyncio.Event().wait()

    begun = asyncio.Event()
    task = asyncio.create_task(comes())
    await begun.wait()
    assert len(shop.files()) == 1
    assert shop.counted() == (0, 500)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (shop.files(), shop.counted()) == ([], (0, 0))


async def test_a_full_disk_is_told_and_nothing_half_kept(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(upload_files.os, "write", full)
        fault = await refused(shop.store, b"x")
    assert (fault.kind, fault.reason) == (FaultKind.UNAVAILABLE, "STORAGE_UNAVAILABLE")
    with monkeypatch.context() as patched:
        patched.setattr(upload_files.os, "fsync", full)
        assert (await refused(shop.store, b"x")).reason == "STORAGE_UNAVAILABLE"
    disk = os.statvfs(shop.directory)
    shop.store = shop.opened(reserve_bytes=disk.f_bavail * disk.f_frsize + (1 << 40))
    assert "disk is full" in (await refused(shop.store, b"x")).message
    assert (shop.files(), shop.counted()) == ([], (0, 0))


async def test_a_store_that_cannot_be_written_keeps_no_file(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = await upload(shop.store, b"kept before")
    await shop.database.close()
    assert (await refused(shop.store, b"x")).reason == "LEDGER_UNAVAILABLE"
    assert (await refused(shop.store, b"kept before")).reason == "LEDGER_UNAVAILABLE"
    assert [Path(path).name for path in shop.files()] == [kept.digest.removeprefix("sha256:")]
    assert shop.counted() == (1, 11)


async def test_a_call_keeps_what_it_holds_when_the_upload_is_over(shop: Shop) -> None:
    data = b"held" * 100
    one, other = await upload(shop.store, data), await upload(shop.store, b"other")
    held = await shop.store.hold("exe_1", "acme", {one.digest: 0, other.digest: 0})
    shop.clock.time += DAY
    assert await shop.store.collect() == 2
    assert shop.counted() == (0, 0)
    assert (held[one.digest].path.read_bytes(), held[one.digest].size_bytes) == (data, 400)
    with pytest.raises(Fault) as caught:
        await shop.store.hold("exe_2", "acme", [one.digest])
    assert caught.value.reason == "UPLOAD_NOT_FOUND"
    await shop.store.release("exe_1")
    await shop.store.release("exe_1")
    assert shop.files() == []
    assert list((shop.directory / "held").iterdir()) == []


async def test_a_call_holds_all_or_nothing_and_only_its_tenants(shop: Shop) -> None:
    mine = await upload(shop.store, b"mine")
    theirs = await upload(shop.store, b"theirs", tenant="other")
    for digests in ([mine.digest, digest_of(b"no")], [theirs.digest]):
        with pytest.raises(Fault, match="was not found"):
            await shop.store.hold("exe_1", "acme", digests)
        assert list((shop.directory / "held").iterdir()) == []
    assert await shop.store.hold("exe_1", "acme", []) == {}


async def test_a_use_is_written_only_when_it_gains_something(shop: Shop) -> None:
    kept = await upload(shop.store, b"shared by many calls")
    before = shop.database.commits
    for _ in range(5):
        shop.clock.time += DAY / 1000
        await shop.store.sizes("acme", [kept.digest, kept.digest])
    assert shop.database.commits == before
    shop.clock.time += DAY / 100
    await shop.store.sizes("acme", [kept.digest])
    assert shop.database.commits == before + 1
    found = await shop.store.known("acme", kept.digest)
    assert found is not None
    assert found.expires_at == shop.clock.time + DAY


async def test_a_start_makes_files_and_rows_agree(shop: Shop) -> None:
    whole, short, lost = [await upload(shop.store, name) for name in (b"whole", b"short", b"lost")]
    await shop.store.hold("exe_1", "acme", [whole.digest])
    files = upload_files.UploadFiles(shop.directory)
    files.path("acme", short.digest).write_bytes(b"s")
    files.path("acme", lost.digest).unlink()
    (shop.directory / "incoming" / "half").write_bytes(b"half")
    unknown = files.path("gone", digest_of(b"unknown"))
    unknown.parent.mkdir()
    unknown.write_bytes(b"unknown")
    shop.store = shop.opened()
    assert await shop.store.sweep() == 6  # incoming, held, two rows, the short file, the unknown one
    assert [Path(path).name for path in shop.files()] == [whole.digest.removeprefix("sha256:")]
    assert shop.counted() == (1, 5)
    assert await shop.store.sizes("acme", [whole.digest]) == {whole.digest: 5}
    assert await shop.store.known("acme", short.digest) is None
    assert await shop.store.sweep() == 0


async def test_a_row_whose_file_went_away_is_no_upload_and_can_be_sent_again(shop: Shop) -> None:
    kept = await upload(shop.store, b"data")
    upload_files.UploadFiles(shop.directory).path("acme", kept.digest).unlink()
    with pytest.raises(Fault, match="was not found"):
        await shop.store.sizes("acme", [kept.digest])
    assert shop.counted() == (0, 0)
    await upload(shop.store, b"data")
    assert await shop.store.read("acme", kept.digest) == b"data"


async def test_many_at_once_of_the_same_bytes_are_one_upload(shop: Shop) -> None:
    shop.store = shop.opened(at_once=50, tenant=Room(1 << 20, 10))
    done = await asyncio.gather(*(upload(shop.store, b"same" * 200) for _ in range(40)))
    assert {one.digest for one in done} == {digest_of(b"same" * 200)}
    assert (len(shop.files()), shop.counted()) == (1, (1, 800))
