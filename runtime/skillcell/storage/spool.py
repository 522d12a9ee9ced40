"""The event log of one execution: written once, read by any number of watchers, from any place, live or later.

Records are opaque bytes, numbered from 1 without gaps. They lie in segment files, so that memory stays flat whatever
a Skill prints, and what is kept is bounded: when the spool is full, the oldest segment that every attached reader has
passed is let go; when a reader has not passed it, `append` waits (that is how a slow caller holds back its own
sandbox); when nobody is attached and none is expected (`expect_reader`), `append` raises SpoolFull. A reader could
get wrong: file calls here are short writes and reads of the page cache, never fsync.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path

from skillcell.core.errors import Fault, unavailable

_HEADER = struct.Struct(">QI")
"""Sequence and length before each record."""
_BATCH_BYTES = 256 * 1024
_INDEX_BYTES = 64 * 1024


class SpoolFull(Exception):
    """Nobody reads, and all the room there is for replay is taken."""


class Expired(Exception):
    """The records asked for are no longer kept. `first` is the first sequence that is."""

    def __init__(self, first: int) -> None:
        super().__init__(f"events before {first} are no longer kept")
        self.first = first


@dataclass(slots=True)
class _Segment:
    path: Path
    fd: int
    first: int
    size: int = 0
    last: int = 0
    index: list[tuple[int, int]] = field(default_factory=list)
    """(sequence, offset) about every _INDEX_BYTES, so that a reader finds its place without reading all."""


class Spool:
    """One execution's records. One writer; `append` is not called concurrently."""

    def __init__(self, directory: Path, *, limit_bytes: int, segment_bytes: int | None = None) -> None:
        self._directory = directory
        self._limit = limit_bytes
        self._segment_bytes = segment_bytes or max(64 * 1024, min(4 << 20, limit_bytes // 8))
        self._segments: deque[_Segment] = deque()
        self._bytes = 0
        self._last = 0
        self._closed = False
        self._changed = asyncio.Condition()
        self._readers: dict[int, int] = {}
        self._reader_ids = 0
        self._expected = False
        self._released = False

    @property
    def last_sequence(self) -> int:
        """Number of the newest record, 0 when there is none."""
        return self._last

    @property
    def first_sequence(self) -> int:
        """Number of the oldest record that is kept."""
        return self._segments[0].first if self._segments else self._last + 1

    @property
    def limit_bytes(self) -> int:
        """How much is kept at the most."""
        return self._limit

    @property
    def attached(self) -> int:
        """How many readers are reading now."""
        return len(self._readers)

    @classmethod
    def reopen(cls, directory: Path, *, limit_bytes: int, closed: bool) -> Spool:
        """What an earlier process wrote, up to the last whole record. `closed`: it was ended, nothing will follow."""
        spool = cls(directory, limit_bytes=limit_bytes)
        for path in sorted(directory.glob("*.events")):
            spool._load(path)
        spool._closed = closed
        return spool

    async def append(self, record: bytes, *, final: bool = False, past_limit: bool = False) -> int:
        """Writes one record and returns its sequence. A final one always finds room, and nothing may follow it: readers
        end after it, also when it could not be written. One may be let `past_limit`. Raises SpoolFull, and Fault when
        the disk takes no more (then nothing was written).
        """
        size = _HEADER.size + len(record)
        async with self._changed:
            unbounded = final or past_limit
            while self._bytes + size > self._limit and self._segments and not (unbounded or self._closed):
                if self._let_go():
                    continue
                if not self._readers and not self._expected:
                    raise SpoolFull(f"{self._bytes} bytes of events wait, and nobody reads them")
                await self._changed.wait()
            if self._closed:
                raise RuntimeError("the spool is closed; nothing may follow its last record")
            try:
                self._write(_HEADER.pack(self._last + 1, len(record)) + record)
            except OSError as error:
                raise _not_kept(error) from error
            finally:
                self._closed = final
                self._changed.notify_all()
            return self._last

    async def read(self, after: int = 0) -> AsyncGenerator[tuple[int, bytes]]:
        """Every record after `after`, in order, until the final one. Raises Expired when the first of them is gone."""
        if after + 1 < self.first_sequence:
            raise Expired(self.first_sequence)
        self._reader_ids += 1
        reader = self._reader_ids
        self._readers[reader] = after
        try:
            while True:
                async with self._changed:
                    self._readers[reader] = after
                    self._changed.notify_all()
                    while after >= self._last and not self._closed:
                        await self._changed.wait()
                    if after >= self._last:
                        return
                    if after + 1 < self.first_sequence:  # deleted meanwhile
                        raise Expired(self.first_sequence)
                    batch = self._read_batch(after)
                for sequence, record in batch:
                    yield sequence, record
                    after = sequence
        finally:
            del self._readers[reader]
            self._close_when_done()
            await asyncio.shield(self._wake())

    async def expect_reader(self, expected: bool) -> None:
        """Whether a full spool without readers waits for one (True) or raises (False, the state at first)."""
        async with self._changed:
            self._expected = expected
            self._changed.notify_all()

    async def close(self) -> None:
        """No more records: readers end after what is there."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    def release(self) -> None:
        """Closes the descriptors, once the last reader has gone; the files stay."""
        self._released = True
        self._close_when_done()

    def _close_when_done(self) -> None:
        if self._released and not self._readers:
            self._close_descriptors()

    def _close_descriptors(self) -> None:
        for segment in self._segments:
            if segment.fd >= 0:
                os.close(segment.fd)
                segment.fd = -1

    def delete(self) -> None:
        """Removes everything; who still reads gets Expired."""
        self._released = True
        self._close_descriptors()
        self._segments.clear()
        self._bytes = 0
        shutil.rmtree(self._directory, ignore_errors=True)

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _write(self, framed: bytes) -> None:
        segment = self._segment_for(len(framed))
        _write_all(_descriptor(segment), framed, segment.size)  # until here it is as if nothing had been written
        self._last += 1
        if not segment.index or segment.size - segment.index[-1][1] > _INDEX_BYTES:
            segment.index.append((self._last, segment.size))
        segment.size += len(framed)
        segment.last = self._last
        self._bytes += len(framed)

    def _segment_for(self, size: int) -> _Segment:
        last = self._segments[-1] if self._segments else None
        if last is not None and (not last.size or last.size + size <= self._segment_bytes):
            return last
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        first = self._last + 1
        path = self._directory / f"{first:020d}.events"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._segments.append(_Segment(path, fd, first))
        return self._segments[-1]

    def _load(self, path: Path) -> None:
        """Takes a segment up to its last whole record; what can't follow the one before it is removed."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        segment = _Segment(path, fd, int(path.stem))
        expected = self._last + 1 if self._segments else segment.first
        total = os.fstat(fd).st_size
        while segment.size + _HEADER.size <= total:
            sequence, length = _HEADER.unpack(os.pread(fd, _HEADER.size, segment.size))
            end = segment.size + _HEADER.size + length
            if end > total or sequence != expected or not sequence:  # torn, or a hole that a lost machine left
                break
            if not segment.index or segment.size - segment.index[-1][1] > _INDEX_BYTES:
                segment.index.append((sequence, segment.size))
            segment.size, segment.last = end, sequence
            expected += 1
        if segment.size < total:  # else left alone: it counts as written anew, and is kept the longer
            os.ftruncate(fd, segment.size)
        if not segment.last:
            os.close(fd)
            path.unlink()
            return
        self._segments.append(segment)
        self._bytes += segment.size
        self._last = segment.last

    def _let_go(self) -> bool:
        """Drops the oldest segment if someone reads and all who do have passed it."""
        oldest = self._segments[0]
        if not self._readers or min(self._readers.values()) < oldest.last:
            return False
        self._segments.popleft()
        if oldest.fd >= 0:
            os.close(oldest.fd)
        oldest.path.unlink(missing_ok=True)
        self._bytes -= oldest.size
        return True

    def _read_batch(self, after: int) -> list[tuple[int, bytes]]:
        segment = next(s for s in self._segments if s.last > after)
        fd = _descriptor(segment)
        offset = 0
        for sequence, place in segment.index:
            if sequence > after + 1:
                break
            offset = place
        batch: list[tuple[int, bytes]] = []
        while offset < segment.size and not batch:
            block = os.pread(fd, min(_BATCH_BYTES, segment.size - offset), offset)
            _, length = _HEADER.unpack_from(block)
            if _HEADER.size + length > len(block):
                block = os.pread(fd, _HEADER.size + length, offset)
            place = 0
            while place + _HEADER.size <= len(block):
                sequence, length = _HEADER.unpack_from(block, place)
                end = place + _HEADER.size + length
                if end > len(block):
                    break
                if sequence > after:
                    batch.append((sequence, block[place + _HEADER.size : end]))
                place = end
            offset += place
        return batch


def _descriptor(segment: _Segment) -> int:
    """Open again after a release, for who reads late; the last reader to leave closes it."""
    if segment.fd < 0:
        segment.fd = os.open(segment.path, os.O_RDWR | os.O_CLOEXEC)
    return segment.fd


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _not_kept(error: OSError) -> Fault:
    why = os.strerror(error.errno or 0)
    return unavailable("STORAGE_UNAVAILABLE", f"the gateway can't keep the call's events: {why}")
