"""The gateway's end of a build's connections: which hosts they reach, and how many bytes.

Each stream begins as an HTTP proxy's CONNECT. Only the index's own hosts pass; names are resolved here, so a build
learns nothing of the network but what the index sends it. What happened is kept as facts, because pip and npm tell
"refused", "unreachable" and "not found" apart too seldom.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import suppress

from skillcell.registry.package_mux import END, OPEN, RESET, Link, MuxError, encode
from skillcell.registry.packages_dial import Dial, DialError

_HEAD_BYTES = 8192
_MOST_STREAMS = 64
_MOST_OPENED = 20_000
_CONNECT = re.compile(
    rb"CONNECT (?P<host>\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9._-]{1,253}):(?P<port>[0-9]{1,5}) HTTP/1\.[01]\r\n"
)
_ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


class IndexTunnel:
    """All connections of one build. Enter it; leaving ends them."""

    def __init__(self, hosts: frozenset[tuple[str, int]], dial: Dial, limit_bytes: int) -> None:
        self._hosts = hosts
        self._dial = dial
        self._limit_bytes = limit_bytes
        self._links: dict[int, Link] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._outgoing: asyncio.Queue[bytes] = asyncio.Queue()
        self._opened = 0
        self.bytes_moved = 0
        self.refused: dict[str, None] = {}
        """`host:port` that are not the index's, in the order asked for."""
        self.unreachable: dict[str, str] = {}
        """`host:port` of the index → why there was no connection."""
        self.exhausted = False
        """Whether the limit of bytes was passed."""

    async def __aenter__(self) -> IndexTunnel:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def outgoing(self) -> AsyncIterator[bytes]:
        """Frames for the builder, for ever."""
        while True:
            yield await self._outgoing.get()

    async def send(self, kind: int, stream: int, payload: bytes) -> None:
        """Never waits: what is under way is bounded by the windows of the streams."""
        self._count(len(payload))
        self._outgoing.put_nowait(encode(kind, stream, payload))

    def take(self, kind: int, stream: int, payload: bytes) -> None:
        """A frame of a connection; never waits. Raises MuxError."""
        self._count(len(payload))
        if kind == OPEN:
            self._opened += 1
            if stream in self._links or len(self._links) >= _MOST_STREAMS or self._opened > _MOST_OPENED:
                raise MuxError("too many connections")
            link = self._links[stream] = Link(stream, self.send)
            task = asyncio.create_task(self._serve(link), name="index-connection")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif stream in self._links:  # else of one that has just ended
            self._links[stream].take(kind, payload)

    def _count(self, size: int) -> None:
        self.bytes_moved += size
        if self.bytes_moved > self._limit_bytes:
            self.exhausted = True
            for link in self._links.values():
                link.take(RESET, b"")

    async def _serve(self, link: Link) -> None:
        try:
            await self._connect(link)
        except OSError:
            await self.send(RESET, link.number, b"")
        finally:
            del self._links[link.number]

    async def _connect(self, link: Link) -> None:
        head, early = await _head(link)
        asked = _CONNECT.match(head)
        target = (asked["host"].decode().strip("[]").lower(), int(asked["port"])) if asked else ("", 0)
        if target not in self._hosts or self.exhausted:
            name = f"{target[0]}:{target[1]}" if asked else "a request that is not CONNECT"
            if len(self.refused) < _MOST_STREAMS:
                self.refused[name] = None
            await self._answer(link, b"403 Forbidden")
            return
        try:
            reader, writer = await self._dial(*target)
        except DialError as error:
            self.unreachable[f"{target[0]}:{target[1]}"] = str(error)
            await self._answer(link, b"502 Bad Gateway")
            return
        try:
            await link.write(_ESTABLISHED)
            writer.write(early)
            outward = asyncio.create_task(link.pump_out(reader))
            try:
                await link.pump_in(writer)
                await outward
            finally:
                outward.cancel()
                await asyncio.gather(outward, return_exceptions=True)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, link: Link, status: bytes) -> None:
        await link.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await self.send(END, link.number, b"")


async def _head(link: Link) -> tuple[bytes, bytes]:
    """The request's head with its empty line, and what came behind it. Raises OSError when there is none."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = await link.read()
        if not piece or len(data) > _HEAD_BYTES:
            raise ConnectionResetError("no request")
        data += piece
    head, _, early = data.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", early
