"""Usage by the engine's own statistics, for engines whose cgroups this machine can't see: one streamed response per
sandbox.

A reader could get two things wrong. The engine ticks once a second and forgets a container when it dies, so these
figures lag by up to a second and a call shorter than that may show none: they are SAMPLED. And the stream is read by a
callback of the loop, with neither a thread nor a task of its own; it is asked for before anything is known, as the
engine answers its headers at once ("Get container stats based on resource usage", Engine API).
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Iterator, Mapping
from typing import Any

import docker

from skillcell.core.types import Counters, Measurement
from skillcell.sandbox.drivers.docker_stream import RawStream

_READ_BYTES = 64 * 1024
_LONGEST = 1 << 20
"""No statistics are longer; a stream that goes on without a line's end is given up."""


def open_stats(client: docker.APIClient, container_id: str) -> RawStream:
    """Ask for the stream. Blocking; raises the client's exceptions."""
    raw: Any = client  # its own `stats` would read in the calling thread
    response = raw._get(raw._url("/containers/{0}/stats", container_id), params={"stream": True}, stream=True)
    return RawStream(raw._get_raw_response_socket(response), response)


class StatsFeed:
    """The largest figures that the stream has shown. Belongs to the running loop; `close` it."""

    def __init__(self, stream: RawStream) -> None:
        self.latest = Counters(measurement=Measurement.SAMPLED)
        self._stream = stream
        self._lines = ChunkedLines()
        self._open = True
        self._loop = asyncio.get_running_loop()
        self._take(stream.ahead)
        self._loop.add_reader(stream.socket, self._on_readable)

    def _on_readable(self) -> None:
        try:
            while data := self._stream.socket.recv(_READ_BYTES):
                self._take(data)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except (OSError, ValueError):
            pass  # the engine is gone or talks nonsense: what was seen stays
        self.close()

    def _take(self, data: bytes) -> None:
        for line in self._lines.feed(data):
            self.latest = larger(self.latest, parse_stats(json.loads(line)))

    def close(self) -> None:
        """Idempotent."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._stream.socket)
            self._stream.close()


class ChunkedLines:
    """Lines out of an HTTP body in chunked coding (RFC 9112, 7.1), as it arrives. ValueError for what is none."""

    def __init__(self) -> None:
        self._raw = bytearray()
        self._line = bytearray()
        self._left = 0  # of the current chunk

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Whole lines that are now complete."""
        self._raw += data
        while self._raw:
            if not self._left:
                head, found, rest = bytes(self._raw).lstrip(b"\r\n").partition(b"\r\n")
                if not found:
                    break
                self._left = int(head.partition(b";")[0], 16)
                self._raw = bytearray(rest)
                if not self._left:
                    break
            part = self._raw[: self._left]
            self._left -= len(part)
            del self._raw[: len(part)]
            self._line += part
            *whole, last = bytes(self._line).split(b"\n")
            self._line = bytearray(last)
            if len(last) > _LONGEST:
                raise ValueError("a line without end")
            yield from (line for line in whole if line.strip())


def parse_stats(stats: Mapping[str, Any]) -> Counters:
    """One tick's figures; zeros when the container does not run."""
    cpu = (stats.get("cpu_stats") or {}).get("cpu_usage") or {}
    memory = stats.get("memory_stats") or {}
    return Counters(
        cpu_user_ns=int(cpu.get("usage_in_usermode", 0)),
        cpu_system_ns=int(cpu.get("usage_in_kernelmode", 0)),
        cpu_total_ns=int(cpu.get("total_usage", 0)),
        memory_peak_bytes=int(memory.get("max_usage") or memory.get("usage") or 0),
        pids_peak=int((stats.get("pids_stats") or {}).get("current", 0)),
        measurement=Measurement.SAMPLED,
    )


def larger(one: Counters, other: Counters) -> Counters:
    """The larger of each figure: a later tick may miss what an earlier one saw."""
    return Counters(
        cpu_user_ns=max(one.cpu_user_ns, other.cpu_user_ns),
        cpu_system_ns=max(one.cpu_system_ns, other.cpu_system_ns),
        cpu_total_ns=max(one.cpu_total_ns, other.cpu_total_ns),
        memory_peak_bytes=max(one.memory_peak_bytes, other.memory_peak_bytes),
        pids_peak=max(one.pids_peak, other.pids_peak),
        oom_kills=max(one.oom_kills, other.oom_kills),
        measurement=Measurement.SAMPLED,
    )
