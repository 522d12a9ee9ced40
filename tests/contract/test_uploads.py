"""What every store must keep of the uploads' promises: SQLite and PostgreSQL alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import inspect

from ledger_stores import NOON
from skillcell.core.errors import Fault
from skillcell.storage import upload_rows as rows
from skillcell.storage.database import Database
from skillcell.storage.upload_receiving import Announced
from skillcell.storage.upload_rows import Room, Upload, UploadKey
from skillcell.storage.upload_rules import UploadSettings
from skillcell.storage.uploads import UploadStore

HOUR = timedelta(hours=1)
ROOM = Room(100, 3)


def key(letter: str = "a", tenant: str = "acme", instance: str = "gateway-1") -> UploadKey:
    return UploadKey(instance, tenant, "sha256:" + letter * 64)


@dataclass
class Table:
    """The rows' functions on one store, at a time of the test's own."""

    database: Database
    now: datetime = field(default=NOON)

    async def keep(self, of: UploadKey, size: int = 10, kept: timedelta = HOUR) -> bool:
        return await self.database.write(
            lambda connection: rows.keep(connection, of, size, now=self.now, until=self.now + kept, room=ROOM)
        )

    async def find(self, of: UploadKey) -> Upload | None:
        return await self.database.read(lambda connection: rows.find(connection, of, self.now))

    async def put_off(self, of: UploadKey, until: datetime) -> bool:
        return await self.database.write(lambda connection: rows.put_off(connection, of, self.now, until))

    async def kept(self, tenant: str = "acme", instance: str = "gateway-1") -> tuple[int, int, datetime | None]:
        found = await self.database.read(lambda connection: rows.kept(connection, instance, tenant))
        return found.size_bytes, found.count, found.first_over

    async def over(self, limit: int = 10) -> list[UploadKey]:
        return await self.database.read(lambda connection: rows.over(connection, "gateway-1", self.now, limit))

    async def forget(self, *keys: UploadKey, over: bool = False) -> list[UploadKey]:
        return await self.database.write(lambda connection: rows.forget(connection, keys, self.now if over else None))


@pytest.fixture
def table(database: Database) -> Table:
    return Table(database)


async def test_what_is_kept_is_found_by_its_own_tenant_on_its_own_gateway_until_it_is_over(table: Table) -> None:
    assert await table.keep(key())
    assert await table.find(key()) == Upload(key().digest, 10, NOON + HOUR)
    for stranger in (key("b"), key(tenant="other"), key(instance="gateway-2")):
        assert await table.find(stranger) is None
    table.now = NOON + HOUR
    assert await table.find(key()) is None


async def test_the_same_bytes_again_are_put_off_and_take_no_room(table: Table) -> None:
    assert await table.keep(key(), 100)
    table.now += HOUR / 2
    assert await table.keep(key(), 100)
    assert await table.kept() == (100, 1, NOON + HOUR * 1.5)


async def test_what_is_over_can_be_put_off_no_more(table: Table) -> None:
    await table.keep(key())
    assert await table.put_off(key(), NOON + 2 * HOUR)
    table.now = NOON + HOUR * 1.5
    assert await table.find(key()) == Upload(key().digest, 10, NOON + 2 * HOUR)
    table.now = NOON + 2 * HOUR
    assert not await table.put_off(key(), NOON + 3 * HOUR)
    assert await table.find(key()) is None


async def test_room_is_held_in_bytes_and_in_number_for_each_tenant_alone(table: Table) -> None:
    assert await table.keep(key("a"), 60)
    assert not await table.keep(key("b"), 41)
    assert await table.keep(key("b"), 40)
    assert await table.keep(key("c"), 0)
    assert not await table.keep(key("d"), 0)
    assert await table.keep(key("d", tenant="other"), 100)
    assert await table.keep(key("d", instance="gateway-2"), 100)
    assert await table.kept() == (100, 3, NOON + HOUR)
    assert await table.kept("nobody") == (0, 0, None)


async def test_only_what_is_still_over_is_forgotten_and_oldest_first(table: Table) -> None:
    await table.keep(key("a"), kept=2 * HOUR)
    await table.keep(key("b"), kept=HOUR)
    await table.keep(key("c"), kept=3 * HOUR)
    await table.keep(key("a", instance="gateway-2"), kept=HOUR)
    table.now = NOON + 2 * HOUR
    assert await table.over() == [key("b"), key("a")]
    assert await table.over(limit=1) == [key("b")]
    table.now = NOON
    assert await table.put_off(key("a"), NOON + 9 * HOUR)  # between being seen and being removed
    table.now = NOON + 2 * HOUR
    assert await table.forget(key("a"), key("b"), key("c"), over=True) == [key("b")]
    assert await table.forget(key("c"), key("b")) == [key("c")]
    assert (await table.kept())[1] == 1


async def test_every_row_of_a_gateway_is_told_with_its_size(table: Table) -> None:
    await table.keep(key("a"), 1)
    await table.keep(key("b", tenant="other"), 2)
    await table.keep(key("c", instance="gateway-2"), 3)
    told = await table.database.read(lambda connection: rows.every(connection, "gateway-1"))
    assert told == {key("a"): 1, key("b", tenant="other"): 2}


async def test_collecting_walks_an_index(table: Table) -> None:
    indexes = await table.database.read(lambda connection: inspect(connection).get_indexes("uploads"))
    assert ["instance_id", "expires_at"] in [index["column_names"] for index in indexes]


@dataclass
class Stepping:
    """A wall clock that the test moves."""

    time: datetime = NOON

    def now(self) -> datetime:
        return self.time

    def monotonic_ns(self) -> int:
        return 0


async def test_an_upload_lives_in_file_and_row_from_its_end_to_its_expiry(database: Database, tmp_path: Path) -> None:
    clock = Stepping()
    store = UploadStore(tmp_path / "uploads", database, "gateway-1", clock, UploadSettings(kept=HOUR, reserve_bytes=0))
    await store.sweep()
    async with store.receive("acme", Announced()) as receiving:
        await receiving.write(b"one ")
        await receiving.write(b"upload")
        upload = await receiving.finish()
    assert await store.sizes("acme", [upload.digest]) == {upload.digest: 10}
    assert await store.read("acme", upload.digest) == b"one upload"
    clock.time += HOUR / 2
    assert (await store.known("acme", upload.digest)) == Upload(upload.digest, 10, NOON + HOUR * 1.5)
    assert await store.known("other", upload.digest) is None
    clock.time = NOON + HOUR * 1.5
    assert await store.collect() == 1
    with pytest.raises(Fault) as refused:
        await store.sizes("acme", [upload.digest])
    assert (refused.value.reason, refused.value.resource) == ("UPLOAD_NOT_FOUND", ("upload", upload.digest))
    assert [path for path in (tmp_path / "uploads").rglob("*") if path.is_file()] == []
    assert (store.inventory.count, store.inventory.size_bytes) == (0, 0)
