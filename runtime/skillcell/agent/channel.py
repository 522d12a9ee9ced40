"""The agent's end of the wire: frames in and out over two descriptors that may be one socket, two pipes or an engine's
stream.

Both descriptors are non-blocking. What a reader could get wrong: `push` may keep a view of the caller's buffer until
`backlog` is False, so the buffer must not be used again before that; `send` returns only when everything is out.
"""

from __future__ import annotations

import os
import select

from skillcell.agent import frames

_READ_BYTES = frames.CHUNK_BYTES
_BATCH = 512  # buffers in one writev; the kernel takes 1024


class ChannelClosed(Exception):
    """The gateway's side is gone: there is nobody left to work for."""


class Channel:
    """Frames over `fd_in` and `fd_out`. All methods raise ChannelClosed when the other side is gone."""

    def __init__(self, fd_in: int, fd_out: int) -> None:
        self.fd_in = fd_in
        self.fd_out = fd_out
        os.set_blocking(fd_in, False)
        os.set_blocking(fd_out, False)
        self._received = bytearray()
        self._pending: list[memoryview | bytes] = []

    @property
    def backlog(self) -> bool:
        """Whether bytes wait for the gateway to take them."""
        return bool(self._pending)

    def fill(self) -> None:
        """Takes what has arrived, once."""
        try:
            data = os.read(self.fd_in, _READ_BYTES)
        except BlockingIOError:
            return
        except ConnectionError as error:
            raise ChannelClosed from error
        if not data:
            raise ChannelClosed
        self._received += data

    def next(self) -> tuple[int, bytes] | None:
        """The next whole frame that has arrived; None when there is none yet. Raises frames.FrameError."""
        size = frames.HEADER.size
        received = self._received
        if len(received) < size:
            return None
        kind, length = frames.parse_header(bytes(received[:size]))
        if len(received) < size + length:
            return None
        payload = bytes(memoryview(received)[size : size + length])
        del received[: size + length]
        return kind, payload

    def receive(self) -> tuple[int, bytes]:
        """The next frame, waiting for it. Raises frames.FrameError."""
        while True:
            frame = self.next()
            if frame is not None:
                return frame
            _wait(self.fd_in, select.POLLIN)
            self.fill()

    def push(self, kind: int, payload: memoryview | bytes) -> None:
        """Queues one frame and writes what goes without waiting. Only the pump uses it, one frame at a time."""
        self._pending += [frames.HEADER.pack(kind, len(payload)), payload]
        self.flush()

    def flush(self) -> None:
        """Writes what goes without waiting."""
        while self._pending:
            try:
                written = os.writev(self.fd_out, self._pending[:_BATCH])
            except BlockingIOError:
                return
            except ConnectionError as error:
                raise ChannelClosed from error
            gone = 0
            while gone < len(self._pending) and written >= len(self._pending[gone]):
                written -= len(self._pending[gone])
                gone += 1
            del self._pending[:gone]
            if written:
                self._pending[0] = memoryview(self._pending[0])[written:]

    def drain(self) -> None:
        """Waits until everything is out."""
        while self._pending:
            _wait(self.fd_out, select.POLLOUT)
            self.flush()

    def send(self, kind: int, payload: memoryview | bytes = b"") -> None:
        """One frame, whole."""
        self.push(kind, payload)
        self.drain()

    def send_json(self, kind: int, value: object) -> None:
        """One frame with a JSON payload, whole."""
        self.send(kind, frames.encode_json(kind, value)[frames.HEADER.size :])


def _wait(fd: int, events: int) -> None:
    poll = select.poll()
    poll.register(fd, events)
    poll.poll()
