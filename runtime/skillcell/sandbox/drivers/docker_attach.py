"""The agent's channel over the engine's attach stream: one hijacked connection, stdin out, stdout and stderr in.

Each piece of output comes behind an 8-byte header (stream, three zeros, big-endian length: Engine API, "Attach to a
container"). A reader could get three things wrong. The connection is made before the container starts, and what the
HTTP client read ahead belongs to the stream. Nothing is read that nobody asked for: that is the back-pressure, stderr
included. And stderr is the agent's last words only, of which the end is kept for a diagnosis.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import docker

from skillcell.sandbox.drivers.docker_stream import RawStream

_HEADER = 8
_STDOUT = 1
_READ_BYTES = 256 * 1024
_STDERR_KEPT = 64 * 1024


def attach(client: docker.APIClient, container_id: str) -> RawStream:
    """Attach to a container that has not started yet. Blocking; raises the client's exceptions.

    The engine answers a moment before it wires the streams up; a start takes it a thousand times as long.
    """
    query = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1, "detachKeys": ""}
    wrapped: Any = client.attach_socket(container_id, params=query)
    return RawStream(wrapped, wrapped._response)  # the client keeps the response alive by it


class AttachChannel:
    """A ByteChannel over an attached stream. One reader and one writer at a time; belongs to the running loop."""

    def __init__(self, stream: RawStream) -> None:
        self._stream = stream
        self._socket = stream.socket
        self._buffer = bytearray(stream.ahead)
        self._pending = 0  # bytes of the current stdout piece still to come
        self._skip = 0  # the same of a stderr piece
        self._stderr = bytearray()
        self._ended = False  # no one is there to take what we write
        self._drained = False  # all there was has been read
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._waiters: dict[bool, set[asyncio.Future[None]]] = {False: set(), True: set()}

    @property
    def stderr_tail(self) -> bytes:
        """The last bytes that came on stderr, 64 KiB at most."""
        return bytes(self._stderr)

    async def read(self, limit: int) -> bytes:
        """1..limit bytes, or b"" when the agent's side is gone."""
        while True:
            chunk = self._take(limit)
            if chunk:
                return chunk
            if self._drained or self._closed:
                return b""
            data = await self._receive()
            if not data:
                self._drained = True
                self.end()
            self._buffer += data

    def _take(self, limit: int) -> bytes:
        """Stdout bytes out of the buffer, over as many pieces as are there; stderr set aside."""
        parts: list[bytes] = []
        position, room, end = 0, limit, len(self._buffer)
        while position < end and room:
            if self._pending:
                size = min(self._pending, room, end - position)
                parts.append(bytes(self._buffer[position : position + size]))
                self._pending -= size
                room -= size
            elif self._skip:
                size = min(self._skip, end - position)
                self._keep(self._buffer[position : position + size])
                self._skip -= size
            elif end - position >= _HEADER:
                size = _HEADER
                length = int.from_bytes(self._buffer[position + 4 : position + 8])
                if self._buffer[position] == _STDOUT:
                    self._pending = length
                else:
                    self._skip = length
            else:
                break
            position += size
        del self._buffer[:position]
        return b"".join(parts)

    def _keep(self, data: bytes | bytearray) -> None:
        self._stderr += data
        del self._stderr[:-_STDERR_KEPT]

    async def _receive(self) -> bytes:
        while not self._closed:
            try:
                data = self._socket.recv(_READ_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError):
                await self._ready(writing=False)
            except ssl.SSLWantWriteError:
                await self._ready(writing=True)
            except OSError:
                return b""
            else:
                await asyncio.sleep(0)  # a stream that never runs dry must not starve the loop
                return data
        return b""

    async def write(self, data: bytes) -> None:
        """Raises ConnectionError when the agent's side is gone."""
        rest = memoryview(data)
        while rest:
            if self._closed or self._ended:
                raise ConnectionResetError("the agent's side is gone")
            try:
                rest = rest[self._socket.send(rest) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                await self._ready(writing=True)
            except ssl.SSLWantReadError:
                await self._ready(writing=False)
            except ConnectionError:
                raise
            except OSError as error:
                raise ConnectionResetError("the connection to the engine broke") from error

    def end(self) -> None:
        """The agent is dead: a writer gets an error, as the engine may never say so. What it wrote stays readable."""
        self._ended = True
        self._wake(self._waiters[True])

    async def _ready(self, *, writing: bool) -> None:
        """Until the socket may be used that way. TLS can make a reader wait for writing: several may wait for one."""
        waiter = self._loop.create_future()
        waiters = self._waiters[writing]
        waiters.add(waiter)
        add, remove = (
            (self._loop.add_writer, self._loop.remove_writer)
            if writing
            else (self._loop.add_reader, self._loop.remove_reader)
        )
        add(self._socket, self._wake, waiters)
        try:
            await waiter
        finally:
            waiters.discard(waiter)
            if not waiters and not self._closed:
                remove(self._socket)

    @staticmethod
    def _wake(waiters: set[asyncio.Future[None]]) -> None:
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def close(self) -> None:
        """Never raises."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        for waiters in self._waiters.values():
            self._wake(waiters)
        self._stream.close()
