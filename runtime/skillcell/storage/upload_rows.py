"""Rows of uploads: what each tenant keeps on this gateway, how large it is, and until when.

Every function takes a connection within a transaction that is not its own. An upload that is over is as good as gone
from that moment on, whether a collector has come by or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, select, update

from skillcell.storage.tables_uploads import uploads

_columns = uploads.c


@dataclass(frozen=True, slots=True)
class UploadKey:
    """Whose bytes, and which."""

    instance_id: str
    tenant: str
    digest: str
    """`sha256:` and 64 hex digits."""


@dataclass(frozen=True, slots=True)
class Upload:
    """Bytes that were sent ahead."""

    digest: str
    size_bytes: int
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Room:
    """What one tenant may keep."""

    size_bytes: int
    count: int


@dataclass(frozen=True, slots=True)
class Kept:
    """What one tenant keeps, what is over but not collected included."""

    size_bytes: int
    count: int
    first_over: datetime | None
    """When the first of it will be over."""


def find(connection: Connection, key: UploadKey, now: datetime) -> Upload | None:
    """None when there is none, or it is over."""
    row = connection.execute(
        select(_columns.size_bytes, _columns.expires_at).where(_is(key), _columns.expires_at > now)
    ).one_or_none()
    return None if row is None else Upload(key.digest, row.size_bytes, row.expires_at)


def put_off(connection: Connection, key: UploadKey, now: datetime, expires_at: datetime) -> bool:
    """Keeps it until `expires_at`; False when it was over before, and stays so."""
    query = update(uploads).where(_is(key), _columns.expires_at > now).values(expires_at=expires_at)
    return bool(connection.execute(query).rowcount)


def keep(
    connection: Connection, key: UploadKey, size_bytes: int, *, now: datetime, until: datetime, room: Room
) -> bool:
    """A row for bytes that have come; one that is there is put off, and takes no room. False when there is no room."""
    if connection.execute(update(uploads).where(_is(key)).values(expires_at=until)).rowcount:
        return True
    before = kept(connection, key.instance_id, key.tenant)
    if before.size_bytes + size_bytes > room.size_bytes or before.count >= room.count:
        return False
    connection.execute(
        insert(uploads).values(
            instance_id=key.instance_id,
            tenant=key.tenant,
            digest=key.digest,
            size_bytes=size_bytes,
            created_at=now,
            expires_at=until,
        )
    )
    return True


def kept(connection: Connection, instance_id: str, tenant: str) -> Kept:
    row = connection.execute(
        select(func.coalesce(func.sum(_columns.size_bytes), 0), func.count(), func.min(_columns.expires_at)).where(
            _columns.instance_id == instance_id, _columns.tenant == tenant
        )
    ).one()
    return Kept(int(row[0]), int(row[1]), row[2])


def over(connection: Connection, instance_id: str, now: datetime, limit: int) -> list[UploadKey]:
    """Some of what is over, oldest first."""
    rows = connection.execute(
        select(_columns.tenant, _columns.digest)
        .where(_columns.instance_id == instance_id, _columns.expires_at <= now)
        .order_by(_columns.expires_at)
        .limit(limit)
    )
    return [UploadKey(instance_id, row.tenant, row.digest) for row in rows]


def every(connection: Connection, instance_id: str) -> dict[UploadKey, int]:
    """All of one gateway, with their sizes."""
    query = select(_columns.tenant, _columns.digest, _columns.size_bytes).where(_columns.instance_id == instance_id)
    return {UploadKey(instance_id, row.tenant, row.digest): row.size_bytes for row in connection.execute(query)}


def forget(connection: Connection, keys: Sequence[UploadKey], now: datetime | None = None) -> list[UploadKey]:
    """Deletes rows, with `now` only those that are over still, and returns whose they were."""
    forgotten = []
    for key in keys:
        query = delete(uploads).where(_is(key))
        if now is not None:
            query = query.where(_columns.expires_at <= now)
        if connection.execute(query).rowcount:
            forgotten.append(key)
    return forgotten


def _is(key: UploadKey) -> ColumnElement[bool]:
    return and_(_columns.instance_id == key.instance_id, _columns.tenant == key.tenant, _columns.digest == key.digest)
