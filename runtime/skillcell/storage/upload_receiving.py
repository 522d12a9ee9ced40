"""One upload on its way in: counted, bounded and hashed as it comes, kept when it is whole and what was announced."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from skillcell.core.errors import invalid
from skillcell.storage.upload_files import IncomingFile
from skillcell.storage.upload_rows import Upload
from skillcell.storage.upload_rules import Inventory, mismatch


@dataclass(frozen=True, slots=True)
class Whole:
    """An upload that has come whole."""

    digest: str
    size_bytes: int
    counted: int
    """Bytes of the inventory that stand for it until it is kept; whoever keeps it, or fails to, takes them back."""


Keep = Callable[[Whole, IncomingFile], Awaitable[Upload]]
"""Keeps a whole file. Raises Fault."""


@dataclass(frozen=True, slots=True)
class Announced:
    """What is said of an upload before its bytes come."""

    size_bytes: int | None = None
    digest: str = ""


class Receiving:
    """Its bytes count against its tenant's room before they are written. `write` and `finish` raise Fault."""

    def __init__(
        self,
        tenant: str,
        announced: Announced,
        file: IncomingFile,
        *,
        inventory: Inventory,
        max_bytes: int,
        keep: Keep,
    ) -> None:
        """What was announced must be counted already."""
        self._tenant = tenant
        self._announced = announced
        self._file = file
        self._inventory = inventory
        self._max_bytes = max_bytes
        self._keep = keep
        self._size = 0
        self.counted = announced.size_bytes or 0
        """Bytes of the inventory that stand for this one."""

    async def write(self, data: bytes) -> None:
        """The next bytes. What is too much is refused as soon as it comes, and not written."""
        size, announced = self._size + len(data), self._announced.size_bytes
        if announced is not None and size > announced:
            raise mismatch("header.size_bytes", f"{size} bytes or more came, {announced} were announced")
        if size > self._max_bytes:
            raise invalid(
                "chunk",
                f"more than {self._max_bytes} bytes came; one upload may have no more",
                limit=str(self._max_bytes),
            )
        if size > self.counted:
            self._inventory.count_in(self._tenant, size - self.counted)
            self.counted = size
        await asyncio.to_thread(self._file.write, data)
        self._size = size

    async def finish(self) -> Upload:
        """Kept, durably, once this returns."""
        announced = self._announced
        if announced.size_bytes is not None and self._size != announced.size_bytes:
            raise mismatch("header.size_bytes", f"{self._size} bytes came, {announced.size_bytes} were announced")
        digest = await asyncio.to_thread(self._file.finish)
        if announced.digest and digest != announced.digest:
            raise mismatch("header.digest", f"the bytes that came have {digest}")
        counted, self.counted = self.counted, 0
        return await self._keep(Whole(digest, self._size, counted), self._file)
