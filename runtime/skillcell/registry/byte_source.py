"""Bytes of an archive, decompressed on the way: read in bounded pieces, never past what the limits allow.

Both readers ask for exactly what they need next, so memory stays at one chunk however much an archive claims to hold.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Protocol

from skillcell.registry.entry_names import unreadable

CHUNK = 256 << 10
_XZ_MEMORY = 256 << 20
_MAX_MEMBERS = 1000


class ByteSource(Protocol):
    """A stream that is read once."""

    def read(self, size: int) -> bytes:
        """1..size bytes, or b"" at the end. Raises Fault when the stream is broken."""
        ...


class Plain:
    """A file as it is."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        return self._file.read(min(size, CHUNK))


class Gzip:
    """RFC 1952, several members allowed. A broken, cut or trailing part is a Fault."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._stream = zlib.decompressobj(wbits=31)
        self._members = 1

    def read(self, size: int) -> bytes:
        while True:
            feed = self._stream.unconsumed_tail
            if self._stream.eof:
                feed = self._stream.unused_data or self._file.read(CHUNK)
                if not feed:
                    return b""
                self._stream = zlib.decompressobj(wbits=31)
                self._members += 1
                if self._members > _MAX_MEMBERS:
                    raise unreadable(f"the gzip stream has more than {_MAX_MEMBERS} members")
            elif not feed:
                feed = self._file.read(CHUNK)
                if not feed:
                    raise unreadable("the gzip stream is cut short")
            try:
                data = self._stream.decompress(feed, min(size, CHUNK))
            except zlib.error as problem:
                what = "is damaged" if self._members == 1 else "is damaged, or has bytes behind its end"
                raise unreadable(f"the gzip stream {what}") from problem
            if data:
                return data


class Xz:
    """One .xz stream with bounded memory. A broken, cut or trailing part is a Fault."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)

    def read(self, size: int) -> bytes:
        while not self._stream.eof:
            feed = b""
            if self._stream.needs_input:
                feed = self._file.read(CHUNK)
                if not feed:
                    raise unreadable("the xz stream is cut short")
            try:
                data = self._stream.decompress(feed, min(size, CHUNK))
            except lzma.LZMAError as problem:
                raise unreadable("the xz stream is damaged, or needs too much memory") from problem
            if data:
                return data
        if self._stream.unused_data or self._file.read(1):
            raise unreadable("there are bytes behind the end of the xz stream")
        return b""


class Exact:
    """Reads exact amounts from a source, and knows how much it has read."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self.position = 0

    def up_to(self, size: int) -> bytes:
        """`size` bytes, fewer only at the end. For small sizes: all of it is held."""
        parts: list[bytes] = []
        while size > 0 and (data := self._source.read(size)):
            parts.append(data)
            size -= len(data)
            self.position += len(data)
        return b"".join(parts)

    def pieces(self, size: int, what: str) -> Iterator[bytes]:
        """Exactly `size` bytes in chunks. Raises Fault when the source ends before."""
        while size > 0:
            data = self._source.read(size)
            if not data:
                raise unreadable(f"it ends inside {what}")
            size -= len(data)
            self.position += len(data)
            yield data
