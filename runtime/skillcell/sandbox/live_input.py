"""Standard input and signals for a call that runs: fed from one side, consumed from the other, bounded in between.

Bytes are counted by the caller's own offsets, so that a client that lost its connection and sends again what it is
not sure of writes nothing twice.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from skillcell.core.errors import Fault, FaultKind, invalid

Item = bytes | int
"""Bytes for standard input, or the number of a signal."""
_ROOM_BYTES = 1 << 20
_MOST_SIGNALS = 64


class LiveInput:
    """One call's. `feed` waits while the Skill does not read; that is how it holds back its client."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._bytes = 0
        self._received = 0
        self._ended = False
        self._closed = False
        self._changed = asyncio.Condition()

    async def feed(self, offset: int, data: bytes, *, end: bool) -> None:
        """Bytes from `offset` on; what came before is passed over. Raises Fault for a gap, or bytes past the end."""
        async with self._changed:
            if offset > self._received:
                raise Fault(
                    FaultKind.OUT_OF_RANGE,
                    "POSITION_OUT_OF_RANGE",
                    f"stdin.offset: is {offset}; {self._received} bytes came before",
                    metadata={"received": str(self._received)},
                )
            await self._changed.wait_for(lambda: self._bytes < _ROOM_BYTES or self._closed)
            # Only now: a client that came back may have sent the same bytes while its old stream waited here with them.
            fresh = data[self._received - offset :]
            if fresh and self._ended and not self._closed:
                raise invalid("stdin.data", "comes after the end of standard input", reason="STREAM_ORDER")
            if fresh and not self._closed:
                self._items.append(fresh)
                self._bytes += len(fresh)
            self._received += len(fresh)
            self._ended = self._ended or end
            self._changed.notify_all()

    async def end(self) -> None:
        """No more bytes; signals may still come."""
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    async def signal(self, number: int) -> None:
        """Goes ahead of bytes that wait. Raises Fault when more wait than any Skill could want."""
        async with self._changed:
            if sum(isinstance(item, int) for item in self._items) >= _MOST_SIGNALS:
                raise Fault(
                    FaultKind.RESOURCE_EXHAUSTED, "QUEUE_FULL", f"{_MOST_SIGNALS} signals wait to be delivered already"
                )
            self._items.appendleft(number)
            self._changed.notify_all()

    async def close(self) -> None:
        """The call is over: whoever feeds goes on without effect."""
        async with self._changed:
            self._closed = True
            self._items.clear()
            self._bytes = 0
            self._changed.notify_all()

    async def items(self) -> AsyncIterator[Item | None]:
        """What was fed, in order; None once, where the bytes end. Goes on for signals until the call is over."""
        told = False
        while True:
            async with self._changed:
                await self._changed.wait_for(
                    lambda: bool(self._items) or self._closed or (self._ended and not told)  # noqa: B023
                )
                if self._closed:
                    return
                item = self._items.popleft() if self._items else None
                if isinstance(item, bytes):
                    self._bytes -= len(item)
                told = told or item is None
                self._changed.notify_all()
            yield item
