"""Many connections over one channel: the wire between the gateway and a build of dependencies in its sandbox.

Both sides import this module (the builder finds it beside itself), so it uses the standard library alone and speaks
Python 3.9. A frame is one byte of kind, four of stream, four of length, and the payload. Each direction of each stream
has a window: who sends waits for credit, so one slow connection holds back no other, and neither side keeps more than
a window for each. What a reader could get wrong: whoever takes frames off the channel must never wait for sending one,
or both sides could wait for each other; sending belongs to the streams' own tasks.

    OPEN, DATA, END, RESET, CREDIT    a connection that the builder's tool opened to its proxy; bytes; half-close
    REPORT (builder)                  JSON: what was resolved, or how the tool failed
    GO (gateway)                      after a REPORT that resolved: b"tree" to send the tree, b"done" to leave it
    TREE (builder)                    the tree as a tar in pieces, then an empty one
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Iterator

HEADER = struct.Struct(">BII")
OPEN, DATA, END, RESET, CREDIT, REPORT, GO, TREE = range(1, 9)
CHUNK_BYTES = 64 * 1024
REPORT_BYTES = 4 * 1024 * 1024
"""The most that a REPORT carries; all other frames carry CHUNK_BYTES at most."""
WINDOW_BYTES = 512 * 1024
"""What may be under way in one direction of one stream."""

Send = Callable[[int, int, bytes], Awaitable[None]]
Frame = tuple[int, int, bytes]


class MuxError(Exception):
    """The other side broke the protocol."""


def encode(kind: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return HEADER.pack(kind, stream, len(payload)) + payload


class FrameParser:
    """Whole frames from pieces of a channel."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Frames that these bytes complete. Raises MuxError."""
        self._buffer += data
        at = 0
        while len(self._buffer) - at >= HEADER.size:
            kind, stream, length = HEADER.unpack_from(self._buffer, at)
            if not OPEN <= kind <= TREE or length > (REPORT_BYTES if kind == REPORT else CHUNK_BYTES):
                raise MuxError(f"a frame of kind {kind} and {length} bytes")
            end = at + HEADER.size + length
            if len(self._buffer) < end:
                break
            payload = bytes(memoryview(self._buffer)[at + HEADER.size : end])
            at = end
            yield kind, stream, payload
        del self._buffer[:at]


class Link:
    """One stream: frames come in by `take`, bytes are had by `read`, and `pump_out` sends a reader's bytes."""

    def __init__(self, number: int, send: Send) -> None:
        self.number = number
        self._send = send
        self._pieces: deque[bytes] = deque()
        self._arrived = asyncio.Event()
        self._room = WINDOW_BYTES
        self._credit = WINDOW_BYTES
        self._credited = asyncio.Event()
        self._ended = False
        self.broken = False

    def take(self, kind: int, payload: bytes) -> None:
        """A frame of this stream; never waits. Raises MuxError for more than the window, or bytes behind the end."""
        if kind == DATA:
            self._room -= len(payload)
            if self._room < 0 or self._ended:
                raise MuxError("a stream sent past its window or its end")
            if payload:
                self._pieces.append(payload)
                self._arrived.set()
        elif kind == CREDIT:
            credit = self._credit + int.from_bytes(payload, "big")
            if len(payload) != 4 or credit > WINDOW_BYTES:
                raise MuxError("credit that was never used")
            self._credit = credit
            self._credited.set()
        else:  # END and RESET
            self._ended = True
            self.broken = self.broken or kind == RESET
            self._arrived.set()
            self._credited.set()

    async def read(self) -> bytes:
        """The next bytes, b"" at the end. Raises ConnectionResetError when the other side broke the stream off."""
        while not self._pieces:
            if self.broken:
                raise ConnectionResetError("the stream was reset")
            if self._ended:
                return b""
            self._arrived.clear()
            await self._arrived.wait()
        piece = self._pieces.popleft()
        self._room += len(piece)
        await self._send(CREDIT, self.number, len(piece).to_bytes(4, "big"))
        return piece

    async def write(self, data: bytes) -> None:
        """Returns when all of it is under way. Raises ConnectionResetError."""
        view = memoryview(data)
        while view:
            while not self._credit:
                if self.broken:
                    raise ConnectionResetError("the stream was reset")
                self._credited.clear()
                await self._credited.wait()
            size = min(len(view), self._credit, CHUNK_BYTES)
            self._credit -= size
            await self._send(DATA, self.number, bytes(view[:size]))
            view = view[size:]

    async def pump_out(self, reader: asyncio.StreamReader) -> None:
        """Sends what `reader` has, to its end. Raises OSError."""
        while True:
            data = await reader.read(CHUNK_BYTES)
            if not data:
                await self._send(END, self.number, b"")
                return
            await self.write(data)

    async def pump_in(self, writer: asyncio.StreamWriter) -> None:
        """Writes what arrives to `writer`, to its end. Raises OSError."""
        while True:
            data = await self.read()
            if not data:
                if writer.can_write_eof():
                    writer.write_eof()
                return
            writer.write(data)
            await writer.drain()
