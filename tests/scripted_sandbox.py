"""A sandbox whose agent follows a script: real frames over a real socket, with whatever defect the script has."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from skillcell.agent import frames
from skillcell.core import events
from skillcell.core.types import Counters, Isolation, Limits, StageTimes
from skillcell.sandbox.channel import SocketChannel
from skillcell.sandbox.driver import DiskUsage
from skillcell.sandbox.framing import FrameReader
from skillcell.sandbox.job import Job

LIMITS = Limits(wall_ns=10_000_000_000, output_bytes=4096, artifact_bytes=4096, artifact_count=3)
STARTED = events.Started("sbx_1", False, "scripted", Isolation.STANDARD, LIMITS, StageTimes())

Script = Callable[["ScriptedAgent"], Awaitable[None]]


def job(limits: Limits = LIMITS, **changes: Any) -> Job:
    """A job that any script can take."""
    return replace(Job("exec", ("true",), {}, "/workspace", limits), **changes)


class ScriptedAgent:
    """The agent's end of the channel."""

    def __init__(self, sock: socket.socket) -> None:
        self._channel = SocketChannel(sock)
        self.reader = FrameReader(self._channel)

    async def send(self, kind: int, payload: bytes | dict[str, Any] = b"") -> None:
        """One frame; lengths are not checked, since a bad agent would not."""
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        await self._channel.write(frames.HEADER.pack(kind, len(data)) + data)

    async def raw(self, data: bytes) -> None:
        await self._channel.write(data)

    async def take_job(self) -> list[tuple[int, bytes]]:
        """Everything up to RUN."""
        taken = []
        while (frame := await self.reader.next()) is not None:
            taken.append(frame)
            if frame[0] == frames.RUN:
                break
        return taken

    async def start(self) -> list[tuple[int, bytes]]:
        """Take the job and say that it runs."""
        taken = await self.take_job()
        await self.send(frames.STARTED)
        return taken

    async def exit(self, code: int | None = 0, signal: int | None = None, **more: Any) -> None:
        await self.send(frames.EXITED, {"code": code, "signal": signal, "disk": {}, **more})

    async def artifact(self, name: str, data: bytes) -> None:
        await self.send(frames.ARTIFACT, {"name": name, "size": len(data)})
        await self.send(frames.DATA, data)
        await self.send(frames.ARTIFACT_END)

    async def stall(self) -> None:
        """For ever; only a kill ends it."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        await self._channel.close()


@dataclass
class ScriptedSandbox:
    """`Sandbox` around a script. `kill` ends the script and its end of the channel, as death ends an agent."""

    script: Script
    sandbox_id: str = "sbx_1"
    count: Callable[[], Counters] = Counters
    writable: Callable[[], DiskUsage | None] = lambda: None
    kills: int = 0
    counted_after_kill: bool = False
    channel: SocketChannel = field(init=False)

    def __post_init__(self) -> None:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self.channel = SocketChannel(ours)
        self._agent = ScriptedAgent(theirs)
        self._task = asyncio.create_task(self._follow(), name="scripted-agent")

    async def _follow(self) -> None:
        try:
            with suppress(ConnectionError, frames.FrameError):
                await self.script(self._agent)
        finally:
            await self._agent.close()

    async def counters(self) -> Counters:
        self.counted_after_kill = self.kills > 0
        return self.count()

    async def begin(self) -> Counters:
        return self.count()

    async def disk(self) -> DiskUsage | None:
        return self.writable()

    async def kill(self) -> None:
        self.kills += 1
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._agent.close()  # the script may not even have begun

    async def gone(self) -> None:
        """Closes our end too."""
        await self.kill()
        await self.channel.close()
