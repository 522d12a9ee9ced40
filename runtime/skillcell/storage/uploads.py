"""Inputs that were sent ahead: by content, for one tenant each, until a while after their last use.

A row without its file, or a file without its row, is no upload: the file comes first, then the row; what a crash leaves
of either is swept at the next start. What a reader could get wrong: expiry never reaches into a call. A call takes
links of its own before it is admitted (`hold`), and what is collected after that is only the name.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from sqlalchemy import Connection

from skillcell.core.clock import Clock
from skillcell.core.completion import to_completion
from skillcell.core.content import StoredContent
from skillcell.core.errors import invalid, unavailable
from skillcell.storage import upload_rows as rows
from skillcell.storage.database import Database
from skillcell.storage.upload_files import IncomingFile, UploadFiles
from skillcell.storage.upload_receiving import Announced, Receiving, Whole
from skillcell.storage.upload_rows import Upload, UploadKey
from skillcell.storage.upload_rules import Inventory, UploadSettings, gone

_COLLECTED_AT_ONCE = 256
_WORTH_PUTTING_OFF = 100
"""A use puts expiry off when that gains a hundredth of the time kept, so that an input which many calls share is not
written to the store by each of them."""


class UploadStore:
    """Everything of one gateway, under one directory."""

    def __init__(
        self, directory: Path, database: Database, instance_id: str, clock: Clock, settings: UploadSettings
    ) -> None:
        self._files = UploadFiles(directory)
        self._database = database
        self._instance_id = instance_id
        self._clock = clock
        self._settings = settings
        self.inventory = Inventory(settings.tenant, settings.at_once)
        self._changing = asyncio.Lock()
        """Held while a file and its row change together."""

    async def sweep(self) -> int:
        """At start, before anything comes in or runs: makes files and rows agree, and returns how many did not."""
        known = await self._database.read(partial(rows.every, instance_id=self._instance_id))
        removed = await asyncio.to_thread(self._files.sweep)
        lost = set(await asyncio.to_thread(self._lost, known))
        if lost:
            await self._database.write(partial(rows.forget, keys=list(lost)))
        whole = {key: size for key, size in known.items() if key not in lost}
        self.inventory.replace(whole)
        named = {(key.tenant, key.digest) for key in whole}
        return removed + len(lost) + await asyncio.to_thread(self._files.remove_unknown, named)

    async def known(self, tenant: str, digest: str) -> Upload | None:
        """An upload of this tenant, put off; None when there is none."""
        return (await self._find(tenant, (digest,))).get(digest)

    async def sizes(self, tenant: str, digests: Iterable[str]) -> Mapping[str, int]:
        """Sizes of uploads that a call names, each of them put off. Fault NOT_FOUND for one that is not there."""
        wanted = tuple(dict.fromkeys(digests))
        found = await self._find(tenant, wanted)
        for digest in wanted:
            if digest not in found:
                raise gone(digest)
        return {digest: upload.size_bytes for digest, upload in found.items()}

    async def read(self, tenant: str, digest: str) -> bytes:
        """All of one; the caller has looked at its size. Fault NOT_FOUND."""
        try:
            return await asyncio.to_thread(self._files.path(tenant, digest).read_bytes)
        except FileNotFoundError as error:
            raise gone(digest) from error
        except OSError as error:
            raise unavailable("STORAGE_UNAVAILABLE", f"an upload can't be read: {error.strerror}") from error

    @asynccontextmanager
    async def receive(self, tenant: str, announced: Announced) -> AsyncIterator[Receiving]:
        """Takes the bytes of one upload; nothing of it stays unless `finish` has returned. Raises Fault."""
        size, most = announced.size_bytes or 0, self._settings.max_bytes
        if size > most:
            raise invalid("header.size_bytes", f"is {size}; one upload may have {most} bytes", limit=str(most))
        self.inventory.begin(tenant)
        counted, file, receiving = 0, None, None
        try:
            await self._make_room(tenant, size)
            counted = size
            file = await to_completion(asyncio.to_thread(self._files.receive, size, self._settings.reserve_bytes))
            keep = partial(self._keep, tenant)
            receiving = Receiving(tenant, announced, file, inventory=self.inventory, max_bytes=most, keep=keep)
            yield receiving
        finally:
            self.inventory.take_back(tenant, counted if receiving is None else receiving.counted)
            self.inventory.end(tenant)
            if file is not None:
                await to_completion(asyncio.to_thread(file.discard))

    async def hold(self, execution_id: str, tenant: str, digests: Collection[str]) -> Mapping[str, StoredContent]:
        """Keeps what a call names until `release`, whatever is collected meanwhile. Fault NOT_FOUND, and nothing held,
        when one is gone.
        """
        if not digests:
            return {}
        held = await asyncio.to_thread(self._files.hold, execution_id, tenant, tuple(digests))
        if held is None:
            raise gone(", ".join(sorted(digests)[:3]))
        return held

    async def release(self, execution_id: str) -> None:
        """Idempotent; what was held is gone when this returns."""
        await asyncio.to_thread(self._files.release, execution_id)

    async def collect(self) -> int:
        """Removes what is over, and returns how much that was. Raises Fault."""
        removed = 0
        while True:
            some = await to_completion(self._collect_some())
            removed += some
            if some < _COLLECTED_AT_ONCE:
                return removed

    async def _find(self, tenant: str, digests: tuple[str, ...]) -> dict[str, Upload]:
        keys = [self._key(tenant, digest) for digest in digests]
        now = self._clock.now()
        until = now + self._settings.kept

        def look(connection: Connection) -> list[Upload]:
            return [found for key in keys if (found := rows.find(connection, key, now)) is not None]

        found = {upload.digest: upload for upload in await self._database.read(look)}
        for digest in await asyncio.to_thread(self._not_whole, tenant, tuple(found.values())):
            del found[digest]
            await to_completion(self._mend(self._key(tenant, digest)))
        worth = self._settings.kept / _WORTH_PUTTING_OFF
        late = [upload.digest for upload in found.values() if until - upload.expires_at > worth]
        if not late:
            return found

        def put_off(connection: Connection) -> list[str]:
            return [digest for digest in late if rows.put_off(connection, self._key(tenant, digest), now, until)]

        kept = set(await self._database.write(put_off))
        for digest in late:
            upload = found.pop(digest)
            if digest in kept:
                found[digest] = Upload(digest, upload.size_bytes, until)
        return found

    async def _make_room(self, tenant: str, size_bytes: int) -> None:
        """Counts what was announced. What is over is collected before anything is refused for it."""
        wait: timedelta | None = None
        if self.inventory.lacks_room(tenant, size_bytes):
            await self.collect()
            wait = await self._first_over(tenant)
        self.inventory.count_in(tenant, size_bytes, wait)

    async def _first_over(self, tenant: str) -> timedelta | None:
        """How long until some room is made; None when nothing is kept."""
        kept = await self._database.read(partial(rows.kept, instance_id=self._instance_id, tenant=tenant))
        if kept.first_over is None:
            return None
        return max(kept.first_over - self._clock.now(), timedelta(seconds=1))

    async def _keep(self, tenant: str, whole: Whole, file: IncomingFile) -> Upload:
        return await to_completion(self._keep_whole(self._key(tenant, whole.digest), whole, file))

    async def _keep_whole(self, key: UploadKey, whole: Whole, file: IncomingFile) -> Upload:
        """A whole file under its name, with a row; on a Fault neither, unless both were there before."""
        async with self._changing:
            now, size, room = self._clock.now(), whole.size_bytes, self._settings.tenant
            until = now + self._settings.kept
            try:
                await asyncio.to_thread(file.move_to, self._files.path(key.tenant, key.digest))
                keep = partial(rows.keep, key=key, size_bytes=size, now=now, until=until, room=room)
                if not await self._database.write(keep):
                    raise self.inventory.full(key.tenant, size)
                self.inventory.add(key, size)
            except BaseException:
                if self.inventory.size_of(key) is None:
                    await asyncio.to_thread(self._files.remove, key.tenant, key.digest)
                raise
            finally:
                self.inventory.take_back(key.tenant, whole.counted)
            return Upload(key.digest, size, until)

    async def _mend(self, key: UploadKey) -> None:
        """Forgets a row whose file is not there, unless it has come meanwhile."""
        async with self._changing:
            size = self.inventory.size_of(key)
            if size is None or not await asyncio.to_thread(self._files.is_whole, key.tenant, key.digest, size):
                await self._forget([key])

    async def _collect_some(self) -> int:
        async with self._changing:
            now = self._clock.now()
            work = partial(rows.over, instance_id=self._instance_id, now=now, limit=_COLLECTED_AT_ONCE)
            return await self._forget(await self._database.read(work), over_at=now)

    async def _forget(self, keys: list[UploadKey], over_at: datetime | None = None) -> int:
        forgotten = await self._database.write(partial(rows.forget, keys=keys, now=over_at)) if keys else []
        for key in forgotten:
            self.inventory.remove(key)
            await asyncio.to_thread(self._files.remove, key.tenant, key.digest)
        return len(forgotten)

    def _not_whole(self, tenant: str, found: tuple[Upload, ...]) -> list[str]:
        return [one.digest for one in found if not self._files.is_whole(tenant, one.digest, one.size_bytes)]

    def _lost(self, known: Mapping[UploadKey, int]) -> list[UploadKey]:
        return [key for key, size in known.items() if not self._files.is_whole(key.tenant, key.digest, size)]

    def _key(self, tenant: str, digest: str) -> UploadKey:
        return UploadKey(self._instance_id, tenant, digest)
