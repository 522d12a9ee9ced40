"""A PostgreSQL whose connection breaks when it hurts most: after a COMMIT was sent, before its answer came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit


class Proxy:
    """Passes bytes both ways. Swallows the answer to the COMMIT that follows the first of the statements in `cuts`,
    and the connection with it; then it is the next one's turn.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._socket = Path(parse_qs(parts.query)["host"][0]) / ".s.PGSQL.5432"
        self._name = parts.path
        self._server: asyncio.Server | None = None
        self._connections: list[asyncio.Task[None]] = []
        self.cuts: list[bytes] = []
        self.cut = 0
        """How many it has cut so far."""

    @property
    def url(self) -> str:
        assert self._server is not None
        return (
            f"postgresql://postgres@127.0.0.1:{self._server.sockets[0].getsockname()[1]}{self._name}?gssencmode=disable"
        )

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.append(asyncio.create_task(self._pass(reader, writer)))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up, down = await asyncio.open_unix_connection(str(self._socket))
        seen, committing = asyncio.Event(), asyncio.Event()

        async def ask() -> None:
            while data := await reader.read(65536):
                if self.cuts and self.cuts[0] in data:
                    seen.set()
                if seen.is_set() and b"COMMIT\0" in data:
                    del self.cuts[0]
                    committing.set()
                down.write(data)
                await down.drain()

        async def answer() -> None:
            while data := await up.read(65536):
                if committing.is_set():  # the server has answered, so the commit is kept
                    self.cut += 1
                    return
                writer.write(data)
                await writer.drain()

        tasks = [asyncio.create_task(ask()), asyncio.create_task(answer())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            with suppress(ConnectionError):
                await asyncio.gather(*tasks, return_exceptions=True)
            writer.close()
            down.close()


@asynccontextmanager
async def proxy(url: str) -> AsyncIterator[Proxy]:
    between = Proxy(url)
    await between.start()
    try:
        yield between
    finally:
        await between.close()
