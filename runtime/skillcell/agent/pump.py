"""While the Skill runs: its output to the gateway as it comes, the gateway's stdin and signals to it, zombies reaped.

Back-pressure is the point. One frame at most waits for the gateway; until it is taken nothing more is read from the
Skill, whose writes then block. Stdin waits in a bounded queue; when that is full nothing more is read from the gateway.
Neither waits for the other, so there is no circle to lock up in.
"""

from __future__ import annotations

import json
import os
import select

from skillcell.agent import frames, process
from skillcell.agent.channel import Channel
from skillcell.agent.spawn import Process

_STDIN_QUEUE_BYTES = 1024 * 1024
_LINE_READ_BYTES = 64 * 1024
_JUDGED_BYTES = 64 * 1024
"""A longer line is the gateway's to judge: what it grows into when parsed could be more memory than the sandbox has."""


class EventLines:
    """Cuts the bytes of the events FIFO into EVENT payloads; what is no event becomes one that says so."""

    def __init__(self) -> None:
        self._partial = bytearray()
        self._overlong = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Payloads of the lines that these bytes complete."""
        payloads = []
        *whole, rest = data.split(b"\n")
        for line in whole:
            self._keep(line)
            payloads += self._take()
        self._keep(rest)
        return payloads

    def end(self) -> list[bytes]:
        """The last line, when it had no newline."""
        return self._take()

    def _keep(self, piece: bytes) -> None:
        if self._overlong or len(self._partial) + len(piece) > frames.VALUE_BYTES:
            self._overlong += len(self._partial) + len(piece)
            self._partial = bytearray()
        else:
            self._partial += piece

    def _take(self) -> list[bytes]:
        line, self._partial = bytes(self._partial).strip(), bytearray()
        overlong, self._overlong = self._overlong, 0
        if overlong:
            return [_complaint(f"an event of {overlong} bytes is over the limit of {frames.VALUE_BYTES}")]
        if not line:
            return []
        if len(line) > _JUDGED_BYTES:
            return [line]
        try:
            said = json.loads(line.decode(), parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            return [_complaint(f"a line in SKILLCELL_EVENTS is not JSON: {error}")]
        if not isinstance(said, dict):
            return [_complaint(f"a line in SKILLCELL_EVENTS is a JSON {type(said).__name__}, not an object")]
        return [line]


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _complaint(message: str) -> bytes:
    return json.dumps({"type": "log", "level": "warning", "message": message[:500], "fields": {}}).encode()


class Pump:
    """One run of one process. `run` returns its wait status; `drain` afterwards sends what the dead left behind."""

    def __init__(self, channel: Channel, child: Process, events_fd: int, child_ended_fd: int) -> None:
        self._channel = channel
        self._child = child
        self._events_fd = events_fd
        self._ended_fd = child_ended_fd
        self._lines = EventLines()
        self._buffer = bytearray(frames.CHUNK_BYTES)
        self._view = memoryview(self._buffer)
        self._outputs = {child.stdout: frames.STDOUT, child.stderr: frames.STDERR}
        self._stdin_queue: list[memoryview] = []
        self._stdin_bytes = 0
        self._stdin_ended = False

    def run(self) -> int:
        """Returns when the main process has ended, however many others live. Raises ChannelClosed, FrameError."""
        status = self._reaped()
        self._take_frames()
        while status is None:
            for fd, events in self._poll():
                if fd == self._ended_fd:
                    status = self._reaped()
                elif fd == self._channel.fd_out:
                    self._channel.flush()
                elif fd == self._channel.fd_in:
                    self._channel.fill()
                    self._take_frames()
                elif fd == self._child.stdin:
                    self._feed_stdin(events)
                elif not self._channel.backlog:
                    self._forward(fd)
        return status

    def drain(self) -> None:
        """After the death of all writers: everything they wrote, to the last byte."""
        self._channel.drain()
        for fd in [*self._outputs, self._events_fd]:
            while self._forward(fd):
                self._channel.drain()
        for payload in self._lines.end():
            self._channel.send(frames.EVENT, payload)
        self._channel.drain()

    def close(self) -> None:
        """Idempotent."""
        for fd in self._outputs:
            os.close(fd)
        self._outputs.clear()
        self._close_stdin()

    def _poll(self) -> list[tuple[int, int]]:
        poll = select.poll()
        poll.register(self._ended_fd, select.POLLIN)
        if self._channel.backlog:
            poll.register(self._channel.fd_out, select.POLLOUT)
        else:
            for fd in (*self._outputs, self._events_fd):
                poll.register(fd, select.POLLIN)
        if self._stdin_bytes < _STDIN_QUEUE_BYTES:
            poll.register(self._channel.fd_in, select.POLLIN)
        if self._stdin_queue:
            poll.register(self._child.stdin, select.POLLOUT)
        return poll.poll()

    def _reaped(self) -> int | None:
        try:
            os.read(self._ended_fd, 4096)
        except BlockingIOError:
            pass
        return process.reap(self._child.pid)

    def _forward(self, fd: int) -> bool:
        """Whether there was something to read."""
        try:
            if fd == self._events_fd:
                data = os.read(fd, _LINE_READ_BYTES)
                for payload in self._lines.feed(data):
                    self._channel.push(frames.EVENT, payload)
                return bool(data)
            size = os.readv(fd, [self._buffer])
        except BlockingIOError:
            return False
        if size:
            self._channel.push(self._outputs[fd], self._view[:size])
            return True
        del self._outputs[fd]
        os.close(fd)
        return False

    def _take_frames(self) -> None:
        while self._stdin_bytes < _STDIN_QUEUE_BYTES:
            frame = self._channel.next()
            if frame is None:
                return
            kind, payload = frame
            if kind == frames.STDIN:
                if self._child.stdin >= 0 and payload:
                    self._stdin_queue.append(memoryview(payload))
                    self._stdin_bytes += len(payload)
            elif kind == frames.STDIN_EOF:
                self._stdin_ended = True
                if not self._stdin_queue:
                    self._close_stdin()
            elif kind == frames.SIGNAL:
                self._signal(payload)
            else:
                raise frames.FrameError(f"frame type {kind} came while the Skill ran")

    def _feed_stdin(self, events: int) -> None:
        try:
            written = os.writev(self._child.stdin, self._stdin_queue[:64])
        except BlockingIOError:
            if events & select.POLLERR:
                self._close_stdin()
            return
        except OSError:
            self._close_stdin()  # the Skill reads no more, which is its right
            self._take_frames()
            return
        self._stdin_bytes -= written
        while self._stdin_queue and written >= len(self._stdin_queue[0]):
            written -= len(self._stdin_queue.pop(0))
        if written:
            self._stdin_queue[0] = self._stdin_queue[0][written:]
        self._take_frames()
        if self._stdin_ended and not self._stdin_queue:
            self._close_stdin()

    def _close_stdin(self) -> None:
        self._stdin_queue.clear()
        self._stdin_bytes = 0
        if self._child.stdin >= 0:
            os.close(self._child.stdin)
            self._child.stdin = -1

    def _signal(self, payload: bytes) -> None:
        try:
            number = json.loads(payload)["signal"]
            os.killpg(self._child.pid, number)
        except (ValueError, KeyError, TypeError) as error:
            raise frames.FrameError(f"SIGNAL: {error}") from error
        except (ProcessLookupError, PermissionError):
            pass  # it has just ended
        except OSError as error:
            raise frames.FrameError(f"SIGNAL {number}: {error.strerror}") from error
