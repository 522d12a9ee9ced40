"""Frames over a byte channel: the gateway's end of `agent/frames.py`.

What arrives is the Skill's side speaking, so nothing here trusts it: form and size are checked, a breach raises
FrameError.
"""

from __future__ import annotations

from skillcell.agent import frames
from skillcell.agent.frames import FrameError
from skillcell.sandbox.driver import ByteChannel

_READ_BYTES = 256 * 1024


class FrameReader:
    """Whole frames from a byte channel, in order. Holds at most one frame and one read beyond it."""

    def __init__(self, channel: ByteChannel) -> None:
        self._channel = channel
        self._buffer = bytearray()

    async def next(self) -> tuple[int, bytes] | None:
        """The next frame's type and payload; None at a clean end. Raises FrameError, also for an end amid a frame."""
        if not await self._fill(frames.HEADER.size):
            return None
        kind, length = frames.parse_header(bytes(self._buffer[: frames.HEADER.size]))
        total = frames.HEADER.size + length
        if not await self._fill(total):
            raise FrameError("the channel ended amid a frame")
        payload = bytes(memoryview(self._buffer)[frames.HEADER.size : total])
        del self._buffer[:total]
        return kind, payload

    async def _fill(self, size: int) -> bool:
        while len(self._buffer) < size:
            chunk = await self._channel.read(_READ_BYTES)
            if not chunk:
                if self._buffer:
                    raise FrameError("the channel ended amid a frame")
                return False
            self._buffer += chunk
        return True
