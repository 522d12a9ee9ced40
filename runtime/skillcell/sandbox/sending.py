"""The gateway's side of a delivery: the job, its files and its standard input, in frames of bounded size.

What a reader could get wrong: content may be far larger than memory. It is read from disk as the sandbox takes it, one
piece at a time, and waiting in the channel's `write` is all the back-pressure there is.
"""

from __future__ import annotations

import asyncio

from skillcell.agent import frames
from skillcell.core.content import Content, StoredContent
from skillcell.core.errors import unavailable
from skillcell.sandbox.driver import ByteChannel
from skillcell.sandbox.job import Job

_READ_BYTES = 4 * frames.CHUNK_BYTES
"""Read from disk at once: fewer hops between threads for the same bytes."""


async def send_job(channel: ByteChannel, job: Job) -> None:
    """JOB and the files. RUN is the caller's, so that it can time the start. Raises ConnectionError, and Fault when a
    file can't be read.
    """
    await channel.write(job.announcement())
    for delivery in job.files:
        await channel.write(delivery.announcement())
        await _send(channel, frames.DATA, delivery.content)


async def send_stdin(channel: ByteChannel, job: Job) -> None:
    """Standard input to its end, then what comes live, signals in between. Raises as `send_job` does."""
    ended = False
    await _send(channel, frames.STDIN, job.stdin)
    if job.live_stdin is not None:
        async for item in job.live_stdin:
            if isinstance(item, int):
                await channel.write(frames.encode_json(frames.SIGNAL, {"signal": item}))
            elif item is None:
                ended = True
                await channel.write(frames.encode(frames.STDIN_EOF))
            else:
                await _send(channel, frames.STDIN, item)
    if not ended:
        await channel.write(frames.encode(frames.STDIN_EOF))


async def _send(channel: ByteChannel, kind: int, content: Content) -> None:
    if isinstance(content, StoredContent):
        await _send_file(channel, kind, content)
    else:
        await _send_bytes(channel, kind, content)


async def _send_bytes(channel: ByteChannel, kind: int, data: bytes) -> None:
    for start in range(0, len(data), frames.CHUNK_BYTES):
        await channel.write(frames.encode(kind, data[start : start + frames.CHUNK_BYTES]))


async def _send_file(channel: ByteChannel, kind: int, content: StoredContent) -> None:
    left = content.size_bytes
    try:
        # Buffered, whatever the buffer is worth here: its lock keeps a close from pulling the descriptor from under a
        # read whose waiter was canceled.
        with await asyncio.to_thread(content.path.open, "rb") as file:
            while left:
                data = await asyncio.to_thread(file.read, min(left, _READ_BYTES))
                if not data:
                    raise unavailable("STORAGE_UNAVAILABLE", f"an upload ended {left} bytes early")
                left -= len(data)
                await _send_bytes(channel, kind, data)
    except ConnectionError:
        raise
    except OSError as error:
        raise unavailable("STORAGE_UNAVAILABLE", f"an upload can't be read: {error.strerror}") from error
