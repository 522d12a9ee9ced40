"""What a request names instead of sending along: found, bounded, and read only where it has to be looked into.

What a reader could get wrong: standard input and files are never read here, however large they are; the JSON input is,
to be held against its schema, and then dropped. The sandbox gets it from disk like the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Protocol

from skillcell.core.errors import invalid
from skillcell.core.types import ExecutionRequest, Principal


class Uploads(Protocol):
    """Inputs that were sent ahead, by tenant and digest."""

    async def sizes(self, tenant: str, digests: Iterable[str]) -> Mapping[str, int]:
        """Size of each, which is kept for a while from now on. Fault NOT_FOUND for one that is not there."""
        ...

    async def read(self, tenant: str, digest: str) -> bytes:
        """All of one. Fault NOT_FOUND."""
        ...


class NamedUploads:
    """Looks up what requests name. JSON inputs are read one at a time: each may take many times its size in memory."""

    def __init__(self, uploads: Uploads, input_json_bytes: int) -> None:
        self._uploads = uploads
        self._input_json_bytes = input_json_bytes
        self._reading = asyncio.Semaphore(1)

    async def sizes(self, principal: Principal, request: ExecutionRequest) -> Mapping[str, int]:
        """Of everything it names. Raises Fault NOT_FOUND, and INVALID_ARGUMENT for a JSON input that is too large."""
        if not request.uploads:
            return {}
        sizes = await self._uploads.sizes(principal.tenant, request.uploads)
        size, most = sizes.get(request.input_upload, 0), self._input_json_bytes
        if size > most:
            raise invalid(
                "input_upload", f"has {size} bytes; a JSON input may have {most}; send it as a file", limit=str(most)
            )
        return sizes

    @asynccontextmanager
    async def input_json(self, principal: Principal, request: ExecutionRequest) -> AsyncIterator[bytes]:
        """The JSON input that it names, for as long as the block lasts."""
        async with self._reading:
            yield await self._uploads.read(principal.tenant, request.input_upload)
