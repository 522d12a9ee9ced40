"""Bytes that come in chunks and resume: artifacts and packages.

What is saved is complete and has its hash, or is not there.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

from skillcell.client.channel import listen
from skillcell.client.errors import DataLoss, Unavailable

_TRIES = 3


async def chunks(request: Callable[[int], Any], offset: int = 0) -> AsyncGenerator[Any, None]:
    """Answers with `data` from `offset` on; a broken connection resumes where it broke."""
    failures = 0
    while True:
        try:
            async with aclosing(listen(request(offset))) as answers:
                async for answer in answers:
                    if answer.data and answer.offset != offset:
                        raise DataLoss(f"bytes from {answer.offset} came where those from {offset} belong")
                    offset += len(answer.data)
                    failures = 0
                    yield answer
            return
        except Unavailable as error:
            failures += 1
            if error.reason or failures == _TRIES:
                raise
            await asyncio.sleep(0.2 * failures)


async def save(data: AsyncIterator[bytes], path: Path, *, sha256: bytes | None, mode: int = 0o644) -> int:
    """Writes beside `path` and renames at the end, so that half a file is never taken for a whole one.

    Returns the size. Raises DataLoss when the content has another hash, OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(prefix=f".{path.name[:64]}.", dir=path.parent)
    digest, size = hashlib.sha256(), 0
    try:
        with os.fdopen(descriptor, "wb") as file:
            async for chunk in data:
                digest.update(chunk)
                size += len(chunk)
                await asyncio.to_thread(file.write, chunk)
        if sha256 is not None and digest.digest() != sha256:
            raise DataLoss(f"{path.name} has sha256 {digest.hexdigest()}, not the announced {sha256.hex()}")
        os.chmod(draft, mode)
        os.replace(draft, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(draft)
    return size
