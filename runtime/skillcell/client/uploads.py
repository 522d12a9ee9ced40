"""Sends bytes ahead of the calls that name them.

What a reader could get wrong: what can be read twice (bytes, a file) is hashed first, so that the gateway answers
before it is sent when it has it already, and a broken connection costs a second try; a stream is sent once only.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from skillcell.client.channel import ask, known_values
from skillcell.client.errors import Internal, InvalidArgument, Unavailable
from skillcell.client.sending import send
from skillcell.client.types import Uploaded
from skillcell.v1 import execution_pb2 as pb
from skillcell.wire.times import instant_from_proto

Source = bytes | str | PathLike[str] | AsyncIterable[bytes]
"""Bytes, the path of a local file, or a stream of bytes."""
OnProgress = Callable[[int, int], None]
"""Called with the bytes sent so far and the bytes in all, 0 where that is not known."""
CHUNK_BYTES = 1 << 20
_TRIES = 3


@dataclass(frozen=True, slots=True)
class _Repeatable:
    """What can be sent again."""

    source: bytes | Path
    size_bytes: int
    digest: str

    @property
    def header(self) -> pb.UploadInputHeader:
        return pb.UploadInputHeader(size_bytes=self.size_bytes, digest=self.digest)


class Uploads:
    """UploadInput of one gateway."""

    def __init__(self, stub: Any, metadata: Sequence[tuple[str, str]]) -> None:
        self._stub = stub
        self._metadata = tuple(metadata)

    async def send(self, source: Source, on_progress: OnProgress | None = None) -> Uploaded:
        """Keeps the bytes at the gateway. Raises SkillcellError, and OSError for a file that can't be read."""
        if isinstance(source, AsyncIterable):
            return await self._send(pb.UploadInputHeader(), pieces(source), 0, on_progress)
        content = source if isinstance(source, bytes) else Path(source)
        if isinstance(content, Path) and not await asyncio.to_thread(content.is_file):
            return await self._send(pb.UploadInputHeader(), read(content), 0, on_progress)  # a pipe, or an OSError
        whole = await asyncio.to_thread(_measured, content)
        for attempt in range(1, _TRIES + 1):
            try:
                return await self._send(whole.header, read(whole.source), whole.size_bytes, on_progress)
            except Unavailable as error:
                if error.reason or attempt == _TRIES:
                    raise
                await asyncio.sleep(0.2 * attempt)
        raise AssertionError("unreachable")

    async def _send(
        self, header: pb.UploadInputHeader, data: AsyncIterator[bytes], total: int, on_progress: OnProgress | None
    ) -> Uploaded:
        sent = 0

        async def chunks() -> AsyncIterator[pb.UploadInputRequest]:
            nonlocal sent
            async for chunk in data:
                sent += len(chunk)
                yield pb.UploadInputRequest(chunk=chunk)
                if on_progress is not None and sent != total:
                    on_progress(sent, total)

        try:
            first = pb.UploadInputRequest(header=header)
            answer = await send(self._stub.UploadInput, self._metadata, first, chunks())
        except Internal as error:
            if not error.reason:
                await self._ask_why(max(total, sent))
            raise
        if on_progress is not None:
            on_progress(answer.size_bytes, answer.size_bytes)
        with known_values():
            return Uploaded(answer.digest, answer.size_bytes, instant_from_proto(answer.expire_time))

    async def _ask_why(self, size_bytes: int) -> None:
        """Raises the gateway's reason against so many bytes, where it has one.

        When it ends an upload amid its bytes, its status is lost (see `sending.py`); asked with a header alone it says
        the same again.
        """
        header = pb.UploadInputRequest(header=pb.UploadInputHeader(size_bytes=size_bytes))
        try:
            await ask(self._stub.UploadInput(iter((header,)), metadata=self._metadata))
        except InvalidArgument as error:
            if error.reason != "CONTENT_MISMATCH":  # of course it is that: nothing followed
                raise


async def read(source: bytes | Path) -> AsyncIterator[bytes]:
    """Bytes in pieces that fit a message, those of a file off the event loop."""
    if isinstance(source, bytes):
        for start in range(0, len(source), CHUNK_BYTES):
            yield source[start : start + CHUNK_BYTES]
        return
    with await asyncio.to_thread(source.open, "rb", 0) as file:
        while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield data


async def pieces(source: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The same for a stream, however large its own pieces are."""
    async for data in source:
        for start in range(0, len(data), CHUNK_BYTES):
            yield data[start : start + CHUNK_BYTES]


def _measured(source: bytes | Path) -> _Repeatable:
    digest, size = hashlib.sha256(), 0
    if isinstance(source, bytes):
        digest.update(source)
        size = len(source)
    else:
        with source.open("rb") as file:
            while data := file.read(CHUNK_BYTES):
                digest.update(data)
                size += len(data)
    return _Repeatable(source, size, f"sha256:{digest.hexdigest()}")
