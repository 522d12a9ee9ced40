"""How much may be uploaded, and how a refusal is told. Pure; the inventory is this process's own count.

What a reader could get wrong: the inventory decides while bytes come in, so that nobody fills a disk with what will
be refused at its end. What finally may be kept is decided by the rows, in the transaction that adds one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from skillcell.core.errors import Fault, FaultKind, QuotaViolation, invalid, not_found
from skillcell.storage.upload_rows import Room, UploadKey


@dataclass(frozen=True, slots=True)
class UploadSettings:
    """Bounds of what is kept."""

    max_bytes: int = 4 << 30
    """Of one upload."""
    tenant: Room = Room(16 << 30, 10_000)
    """Of one tenant's together."""
    kept: timedelta = timedelta(days=1)
    """After the last use."""
    at_once: int = 32
    """Uploads of one tenant that may be coming in."""
    reserve_bytes: int = 256 << 20
    """What stays free on the disk, which the ledger may need too."""


class Inventory:
    """What is kept and what is coming in, by tenant."""

    def __init__(self, room: Room, at_once: int) -> None:
        self._room = room
        self._at_once = at_once
        self._sizes: dict[UploadKey, int] = {}
        self._bytes: Counter[str] = Counter()
        self._count: Counter[str] = Counter()
        self._coming: Counter[str] = Counter()

    @property
    def count(self) -> int:
        """Uploads kept, of all tenants."""
        return len(self._sizes)

    @property
    def size_bytes(self) -> int:
        """Bytes kept or coming in, of all tenants."""
        return self._bytes.total()

    def replace(self, sizes: Mapping[UploadKey, int]) -> None:
        """At start: what the rows say."""
        for key, size in sizes.items():
            self.add(key, size)

    def size_of(self, key: UploadKey) -> int | None:
        return self._sizes.get(key)

    def add(self, key: UploadKey, size_bytes: int) -> None:
        """It is kept; one that was kept before counts once."""
        if key not in self._sizes:
            self._sizes[key] = size_bytes
            self._bytes[key.tenant] += size_bytes
            self._count[key.tenant] += 1

    def remove(self, key: UploadKey) -> None:
        size = self._sizes.pop(key, None)
        if size is not None:
            _take(self._bytes, key.tenant, size)
            _take(self._count, key.tenant, 1)

    def begin(self, tenant: str) -> None:
        """One more comes in; `end` follows. Raises Fault QUOTA_EXCEEDED."""
        if self._coming[tenant] >= self._at_once:
            raise exceeded("uploads_at_once", self._at_once, self._coming[tenant], timedelta(seconds=1))
        self._coming[tenant] += 1

    def end(self, tenant: str) -> None:
        """It has come, or broken off."""
        _take(self._coming, tenant, 1)

    def take_back(self, tenant: str, size_bytes: int) -> None:
        """Bytes that were counted in come no more, or are kept by now."""
        _take(self._bytes, tenant, size_bytes)

    def lacks_room(self, tenant: str, size_bytes: int) -> bool:
        return self._bytes[tenant] + size_bytes > self._room.size_bytes or self._count[tenant] >= self._room.count

    def count_in(self, tenant: str, size_bytes: int, retry_after: timedelta | None = None) -> None:
        """So many bytes more are coming. Raises Fault QUOTA_EXCEEDED, and counts nothing."""
        if self.lacks_room(tenant, size_bytes):
            raise self.full(tenant, size_bytes, retry_after)
        self._bytes[tenant] += size_bytes

    def full(self, tenant: str, size_bytes: int, retry_after: timedelta | None = None) -> Fault:
        """Why there is no room; waiting is told to help only where it can."""
        room = self._room
        if self._count[tenant] >= room.count:
            return exceeded("uploads", room.count, self._count[tenant], retry_after)
        helps = retry_after if size_bytes <= room.size_bytes else None
        return exceeded("upload_bytes", room.size_bytes, self._bytes[tenant], helps)


def _take(counter: Counter[str], tenant: str, amount: int) -> None:
    counter[tenant] -= amount
    if counter[tenant] <= 0:
        del counter[tenant]


def gone(digest: str) -> Fault:
    """No such upload, or not this tenant's: the same words for both."""
    return not_found("upload", digest, "upload it again, then retry")


def mismatch(field: str, description: str) -> Fault:
    """What came is not what was announced."""
    return invalid(field, description, reason="CONTENT_MISMATCH")


def exceeded(quota: str, limit: int, used: int, retry_after: timedelta | None = None) -> Fault:
    return Fault(
        FaultKind.RESOURCE_EXHAUSTED,
        "QUOTA_EXCEEDED",
        f"{quota}: {used} of {limit} are in use, which leaves no room for this upload",
        quotas=(QuotaViolation(quota, limit, used, "tenant"),),
        retry_after=retry_after,
        metadata={"quota": quota, "limit": str(limit), "used": str(used)},
    )
