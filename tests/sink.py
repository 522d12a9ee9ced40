"""A sink of usage events: a process that keeps what it gets, durably and before it answers, and fails on command.

Run as a program it serves one directory; `Sink` starts, commands and kills it, and reads what it kept. What is kept of
a request are the exact bytes of its events, one a line, so that resends can be compared.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Sink:
    """One directory, and the process that serves it while there is one. Its port stays the same over restarts."""

    directory: Path
    port: int = 0
    process: subprocess.Popen[str] | None = field(default=None, repr=False)

    def start(self) -> None:
        command = [sys.executable, __file__, str(self.directory), str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def kill(self) -> None:
        assert self.process is not None
        process, self.process = self.process, None
        process.send_signal(signal.SIGKILL)
        process.communicate()

    def ended(self) -> int:
        """Waits until it has died by itself."""
        assert self.process is not None
        process, self.process = self.process, None
        process.communicate(timeout=30)
        return process.returncode

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/events"

    def tell(self, **faults: Any) -> None:
        """From now on: `answers` [[status, headers]…], one for each coming request, nothing kept; `refuse`
        [sequence…] with 400; `most` events in a request, else 413; `drop` so many requests after keeping them;
        `die` after keeping one; `slow` seconds before an answer; `key` that must be given."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/faults", json.dumps(faults).encode(), method="POST"
        )
        urllib.request.urlopen(request, timeout=10).close()

    @property
    def bodies(self) -> list[bytes]:
        """Every event that was kept, duplicates too, in the order it came."""
        path = self.directory / "events.jsonl"
        return path.read_bytes().splitlines() if path.exists() else []

    @property
    def sequences(self) -> list[int]:
        return [json.loads(body)["data"]["sequence"] for body in self.bodies]

    @property
    def requests(self) -> list[dict[str, Any]]:
        """Every request: content type, number of events, status (0: none was given)."""
        path = self.directory / "requests.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@contextmanager
def sink(directory: Path) -> Iterator[Sink]:
    made = Sink(directory)
    made.start()
    try:
        yield made
    finally:
        if made.process is not None:
            made.kill()


def split(content_type: str, body: bytes) -> list[bytes]:
    """The exact bytes of each event of a request."""
    if content_type != "application/cloudevents-batch+json":
        assert content_type == "application/cloudevents+json", content_type
        return [body]
    text, found, at = body.decode(), [], 1
    decoder = json.JSONDecoder()
    while text[at] != "]":
        _, end = decoder.raw_decode(text, at)
        found.append(text[at:end].encode())
        at = end + (text[end] == ",")
    return found


class Server:
    """The process's side."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._faults: dict[str, Any] = {}

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if line.split()[1] == "/faults":
            self._faults = json.loads(body)
            return await self._answer(writer, 200)
        events = split(headers.get("content-type", ""), body)
        status, more = self._status(headers, events)
        if 200 <= status < 300:
            self._keep("events.jsonl", b"".join(event + b"\n" for event in events))
        dropped = self._faults.get("drop", 0) > 0 and 200 <= status < 300
        seen = {"type": headers.get("content-type"), "events": len(events), "status": 0 if dropped else status}
        self._keep("requests.jsonl", json.dumps(seen).encode() + b"\n")
        if self._faults.get("die"):
            os._exit(9)
        if dropped:
            self._faults["drop"] -= 1
            return False
        if self._faults.get("slow"):
            await asyncio.sleep(self._faults["slow"])
        return await self._answer(writer, status, more)

    def _status(self, headers: dict[str, str], events: list[bytes]) -> tuple[int, dict[str, str]]:
        faults = self._faults
        if faults.get("answers"):
            status, more = faults["answers"].pop(0)
            return status, more
        if "key" in faults and headers.get("authorization") != faults["key"]:
            return 401, {}
        if len(events) > faults.get("most", len(events)):
            return 413, {}
        if any(json.loads(event)["data"]["sequence"] in faults.get("refuse", ()) for event in events):
            return 400, {}
        return 204, {}

    def _keep(self, name: str, data: bytes) -> None:
        with (self._directory / name).open("ab", buffering=0) as file:
            file.write(data)
            os.fsync(file.fileno())

    async def _answer(self, writer: asyncio.StreamWriter, status: int, more: dict[str, str] | None = None) -> bool:
        body = b"" if status == 204 else f"the sink says {status}".encode()
        lines = [f"HTTP/1.1 {status} Said", *(f"{name}: {value}" for name, value in (more or {}).items())]
        if status != 204:
            lines.append(f"Content-Length: {len(body)}")
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await writer.drain()
        return True


async def serve(directory: Path, port: int) -> None:
    server = await asyncio.start_server(Server(directory).connected, "127.0.0.1", port, limit=1 << 20)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
