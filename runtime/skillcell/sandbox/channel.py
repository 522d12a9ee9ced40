"""Bytes to and from an agent over a socket or pipes, and the last words of an agent that died.

A reader could get two things wrong. Back-pressure comes from the socket alone: nothing is read ahead, so a caller
who does not read stops the agent. And `asyncio`'s socket calls return at once while data is there, without letting
anyone else run: the channel yields by itself, or one flood would starve every other call.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_READ_BYTES = 256 * 1024
_YIELD_AFTER = 4  # system calls in a row without waiting
_TAIL_BYTES = 64 * 1024


class SocketChannel:
    """`ByteChannel` over a connected stream socket. One reader and one writer at a time."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._busy = 0
        self._calls = 0
        self._closing = False

    async def read(self, limit: int) -> bytes:
        """1..limit bytes (at most 256 KiB), or b"" when the agent's side or this one is closed."""
        if self._closing:
            return b""
        with self._using():
            await self._be_fair()
            try:
                return await asyncio.get_running_loop().sock_recv(self._socket, min(limit, _READ_BYTES))
            except ConnectionError:
                return b""

    async def write(self, data: bytes) -> None:
        """Returns when the kernel took all of it. Raises ConnectionError when the agent's side is gone."""
        if self._closing:
            raise ConnectionResetError("the channel is closed")
        with self._using():
            await self._be_fair()
            await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def close(self) -> None:
        """End both directions; a read or write that waits ends too."""
        if self._closing:
            return
        self._closing = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes whoever waits; the last one closes
        if not self._busy:
            self._socket.close()

    @contextmanager
    def _using(self) -> Iterator[None]:
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            if self._closing and not self._busy:
                self._socket.close()

    async def _be_fair(self) -> None:
        self._calls += 1
        if self._calls % _YIELD_AFTER == 0:
            await asyncio.sleep(0)


class PipeChannel:
    """`ByteChannel` over two pipes, for runtimes that can't take a socket. One reader and one writer at a time."""

    def __init__(self, reading: int, writing: int) -> None:
        for descriptor in (reading, writing):
            os.set_blocking(descriptor, False)
        self._reading = reading
        self._writing = writing
        self._waiting: set[asyncio.Future[None]] = set()
        self._calls = 0
        self._closed = False

    async def read(self, limit: int) -> bytes:
        """1..limit bytes (at most 256 KiB), or b"" when the agent's side or this one is closed."""
        await self._be_fair()
        loop = asyncio.get_running_loop()
        while not self._closed:
            try:
                return os.read(self._reading, min(limit, _READ_BYTES))
            except BlockingIOError:
                await self._wait(loop.add_reader, loop.remove_reader, self._reading)
        return b""

    async def write(self, data: bytes) -> None:
        """Returns when the kernel took all of it. Raises ConnectionError when the agent's side is gone."""
        await self._be_fair()
        loop = asyncio.get_running_loop()
        view = memoryview(data)
        while view:
            if self._closed:
                raise ConnectionResetError("the channel is closed")
            try:
                view = view[os.write(self._writing, view) :]
            except BlockingIOError:
                await self._wait(loop.add_writer, loop.remove_writer, self._writing)

    async def close(self) -> None:
        """End both directions; a read or write that waits ends too."""
        if self._closed:
            return
        self._closed = True
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._reading)
        loop.remove_writer(self._writing)
        os.close(self._reading)
        os.close(self._writing)
        for waiting in self._waiting:
            _wake(waiting)

    async def _wait(self, add: Callable[..., object], remove: Callable[[int], object], descriptor: int) -> None:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        add(descriptor, _wake, waiting)
        try:
            await waiting
        finally:
            self._waiting.discard(waiting)
            if not self._closed:  # close removed them, and the number may be another file's by now
                remove(descriptor)

    async def _be_fair(self) -> None:
        self._calls += 1
        if self._calls % _YIELD_AFTER == 0:
            await asyncio.sleep(0)


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


class Tail:
    """Reads a pipe for as long as it lives and keeps its last 64 KiB: an agent's stderr, for the log."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._kept = bytearray()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(descriptor, self._on_readable)

    def _on_readable(self) -> None:
        try:
            data = os.read(self._descriptor, _TAIL_BYTES)
        except BlockingIOError:
            return
        if not data:
            self.close()
            return
        self._kept += data
        del self._kept[:-_TAIL_BYTES]

    def text(self) -> str:
        """What was kept so far, with all that is in the pipe now."""
        before = -1
        while self._descriptor >= 0 and before != len(self._kept) < _TAIL_BYTES:
            before = len(self._kept)
            self._on_readable()
        return self._kept.decode("utf-8", "replace")

    def close(self) -> None:
        """Stop reading. Idempotent."""
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1
