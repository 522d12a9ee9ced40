"""Resolves and installs dependencies inside a sandbox: runs pip or npm, and is their way out.

Runs where there is no network. What the tool opens to the proxy on loopback becomes a stream to the gateway, which
alone parses, permits, resolves and connects; nothing is decided here. The task is `build.json` beside this package,
with the fields of `TASK_KEYS`. Standard library alone, Python 3.9. Exits with the tool's own code where that failed.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import sys
import tarfile
from typing import Any

from skillcell.registry import package_mux as mux

PROXY_HOST, PROXY_PORT = "127.0.0.1", 3128
"""Fixed: a sandbox has a loopback of its own, where nothing else listens."""

TASK_KEYS = {
    "kind": "str: pip | npm | programs",
    "argv": "list of str: the tool",
    "env": "dict of str: its whole environment",
    "cwd": "str: its working directory, which is made",
    "tree": "str: the directory that becomes the layer",
    "report": "str: the file from which what was resolved is read",
    "log": "list of str: a file, and what marks the lines of it that are told too when the tool fails; empty for none",
    "remove": "list of str: paths below tree that are no part of the layer",
    "compile": "list of str: what compiles Python sources in the tree, after the report; empty for none",
    "programs": "list of str: for programs, names to look for on PATH",
}

NO_TOOL = 127
"""Code of a tool whose program is not in the image."""

_SAID_BYTES = 256 * 1024
_MOST_NOTES = 50


class Builder:
    """One task."""

    def __init__(self, task: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self._task = task
        self._writer = writer
        self._sending = asyncio.Lock()
        self._links: dict[int, mux.Link] = {}
        self._opened = 0
        self._go: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._clients: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Exit code."""
        task = self._task
        if task["kind"] == "programs":
            path = os.environ.get("PATH")
            await self._report(
                {"missing": [name for name in task["programs"] if shutil.which(name, path=path) is None]}
            )
            return 0
        os.makedirs(task["cwd"], exist_ok=True)
        os.makedirs(task["tree"], exist_ok=True)
        server = await asyncio.start_server(self._client, PROXY_HOST, PROXY_PORT)
        try:
            code, said = await self._tool(task["argv"])
        finally:
            server.close()
        if code != 0:
            await self._report({"code": code, "said": said, "notes": _notes(*task["log"])})
            return code if 0 < code < 256 else 1
        await self._report({"code": 0, "resolved": _RESOLVED[task["kind"]](task["report"])})
        if await self._go == b"tree":
            for name in task["remove"]:
                _remove(os.path.join(task["tree"], name))
            if task["compile"]:
                await self._tool(task["compile"])  # what does not compile is found out by who imports it
            await asyncio.get_running_loop().run_in_executor(None, self._pack, asyncio.get_running_loop())
        return 0

    async def read_frames(self, reader: asyncio.StreamReader) -> None:
        """Until the gateway is gone. Never waits for sending."""
        parser = mux.FrameParser()
        while True:
            data = await reader.read(mux.CHUNK_BYTES)
            if not data:
                return
            for kind, stream, payload in parser.feed(data):
                if kind == mux.GO:
                    if not self._go.done():
                        self._go.set_result(payload)
                elif stream in self._links:  # else of one that has just ended
                    self._links[stream].take(kind, payload)

    async def _send(self, kind: int, stream: int, payload: bytes) -> None:
        async with self._sending:
            self._writer.write(mux.encode(kind, stream, payload))
            await self._writer.drain()

    async def _report(self, value: dict[str, Any]) -> None:
        await self._send(mux.REPORT, 0, json.dumps(value).encode())

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._opened += 1
        link = mux.Link(self._opened, self._send)
        self._links[link.number] = link
        try:
            await self._send(mux.OPEN, link.number, b"")
            outward = asyncio.ensure_future(link.pump_out(reader))
            try:
                await link.pump_in(writer)
                await outward
            except OSError:
                await self._send(mux.RESET, link.number, b"")
            finally:
                outward.cancel()
                await asyncio.gather(outward, return_exceptions=True)
        finally:
            del self._links[link.number]
            writer.close()

    async def _tool(self, argv: list[str]) -> tuple[int, str]:
        """Exit code, and the end of what it printed."""
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                cwd=self._task["cwd"],
                env=self._task["env"],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        except FileNotFoundError:
            return NO_TOOL, ""
        assert process.stdout is not None
        said = bytearray()
        while True:
            data = await process.stdout.read(65536)
            if not data:
                break
            said += data
            del said[:-_SAID_BYTES]
        return await process.wait(), said.decode("utf-8", "replace")

    def _pack(self, loop: asyncio.AbstractEventLoop) -> None:
        sink = _TreeSink(self, loop)
        with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT, bufsize=mux.CHUNK_BYTES) as tar:
            for name in sorted(os.listdir(self._task["tree"])):
                tar.add(os.path.join(self._task["tree"], name), arcname=name, filter=_plain)
        sink.write(b"")


class _TreeSink(io.RawIOBase):
    """A file for `tarfile`, in a thread of its own; each write is a TREE frame that the gateway has room for."""

    def __init__(self, builder: Builder, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._builder = builder
        self._loop = loop

    def write(self, data: Any) -> int:
        sending = self._builder._send(mux.TREE, 0, bytes(data))
        asyncio.run_coroutine_threadsafe(sending, self._loop).result()
        return len(data)


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = 0
    return entry


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def _notes(path: str = "", mark: str = "") -> list[str]:
    found: list[str] = []
    if path and os.path.exists(path):
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                if mark in line and len(found) < _MOST_NOTES:
                    found.append(line.strip()[:2000])
    return found


def _resolved_pip(path: str) -> list[dict[str, str]]:
    """From pip's installation report, https://pip.pypa.io/en/stable/reference/installation-report/."""
    with open(path, encoding="utf-8") as file:
        document = json.load(file)
    found = []
    for item in document["install"]:
        hashes = item["download_info"].get("archive_info", {}).get("hashes", {})
        metadata = item["metadata"]
        found.append({"name": metadata["name"], "version": metadata["version"], "sha256": hashes.get("sha256", "")})
    return found


def _resolved_npm(path: str) -> list[dict[str, str]]:
    """From npm's hidden lock file, which lists what is on the disk. A tree without packages has none."""
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as file:
        document = json.load(file)
    found = []
    for place, item in document.get("packages", {}).items():
        name = item.get("name") or place.rpartition("node_modules/")[2]
        integrity = item.get("integrity", "")
        found.append({"place": place, "name": name, "version": item.get("version", ""), "integrity": integrity})
    return found


_RESOLVED = {"pip": _resolved_pip, "npm": _resolved_npm}


async def _main(task: dict[str, Any]) -> int:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=4 * mux.CHUNK_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, sys.stdout)
    transport.set_write_buffer_limits(0)  # so that what was sent is with the kernel when we exit
    builder = Builder(task, asyncio.StreamWriter(transport, protocol, None, loop))
    frames = asyncio.ensure_future(builder.read_frames(reader))
    work = asyncio.ensure_future(builder.run())
    await asyncio.wait({frames, work}, return_when=asyncio.FIRST_COMPLETED)
    if not work.done():
        frames.result()
        return 1  # the gateway is gone
    frames.cancel()
    return work.result()


def main() -> None:
    """Entry; the one argument is the task's file."""
    with open(sys.argv[1], encoding="utf-8") as file:
        task = json.load(file)
    sys.exit(asyncio.run(_main(task)))
