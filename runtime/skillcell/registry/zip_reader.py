"""A strict reader of zip: each entry goes into a `TreeWriter`.

A zip says everything twice, and readers differ in which they believe; so here both must agree, entries must lie one
behind the other from the first byte to the central directory, and nothing may follow. Stored and deflated entries, no
encryption, no zip64 (a package is far smaller), no spanning. Source: PKWARE APPNOTE 6.3.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from skillcell.registry.byte_source import CHUNK
from skillcell.registry.entry_names import refused, unreadable
from skillcell.registry.limits import PackageLimits
from skillcell.registry.tree_writer import TreeWriter, link_target, read_whole

_END = struct.Struct("<4sHHHHIIH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_DESCRIPTOR = 0x8
_UTF8 = 0x800
_STORED, _DEFLATED = 0, 8
_UNIX = 3
_SPECIAL = {
    stat.S_IFCHR: "devices are not accepted",
    stat.S_IFBLK: "devices are not accepted",
    stat.S_IFIFO: "FIFOs are not accepted",
    stat.S_IFSOCK: "sockets are not accepted",
}


@dataclass(frozen=True, slots=True)
class _Entry:
    raw_name: bytes
    name: str
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    mode: int
    offset: int


def read_zip(file: BinaryIO, writer: TreeWriter, limits: PackageLimits) -> None:
    """All entries, in the order of the file. Raises Fault."""
    length = file.seek(0, os.SEEK_END)
    entries, directory_offset = _directory(file, length, limits)
    position = 0
    for entry in sorted(entries, key=lambda entry: entry.offset):
        if entry.offset != position:
            raise refused(entry.name, "entries of the zip overlap, or leave bytes between them")
        position = _read_entry(file, entry, writer, directory_offset)
    if position != directory_offset:
        raise unreadable("there are bytes in the zip that belong to no entry")


def _directory(file: BinaryIO, length: int, limits: PackageLimits) -> tuple[list[_Entry], int]:
    tail_start = max(0, length - _END.size - 0xFFFF)
    file.seek(tail_start)
    tail = file.read(length - tail_start)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < _END.size:
        raise unreadable("the zip has no end record: it is cut short")
    _, disk, start_disk, here, count, size, offset, comment = _END.unpack_from(tail, at)
    end = tail_start + at
    if end + _END.size + comment != length:
        raise unreadable("there are bytes behind the end of the zip")
    if 0xFFFF in {count, here} or 0xFFFFFFFF in {size, offset}:
        raise unreadable("zip64 archives are not accepted")
    if disk or start_disk or here != count:
        raise unreadable("the zip is one part of several")
    if offset + size != end:
        raise unreadable("the zip's directory is not where its end record says")
    if count > 2 * limits.entries:
        raise unreadable(f"more than {limits.entries} entries", "too-many-entries", limit=str(limits.entries))
    file.seek(offset)
    data = file.read(size)
    entries: list[_Entry] = []
    position = 0
    for _ in range(count):
        entry, position = _central(data, position)
        entries.append(entry)
    if position != len(data):
        raise unreadable("the zip's directory has bytes that belong to no entry")
    return entries, offset


def _central(data: bytes, at: int) -> tuple[_Entry, int]:
    if len(data) - at < _CENTRAL.size:
        raise unreadable("the zip's directory is damaged")
    fields = _CENTRAL.unpack_from(data, at)
    signature, made_by, _, flags, method, _, _, crc, packed, size, name_len, extra_len, comment_len, disk = fields[:14]
    external, offset = fields[15:]
    end = at + _CENTRAL.size + name_len + extra_len + comment_len
    if signature != b"PK\1\2" or end > len(data) or disk:
        raise unreadable("the zip's directory is damaged")
    raw_name = data[at + _CENTRAL.size : at + _CENTRAL.size + name_len]
    name = _decoded(raw_name, utf8=bool(flags & _UTF8))
    mode = external >> 16 if made_by >> 8 == _UNIX else 0
    if 0xFFFFFFFF in {packed, size, offset}:
        raise refused(name, "zip64 entries are not accepted")
    return _Entry(raw_name, name, flags, method, crc, packed, size, mode, offset), end


def _decoded(raw: bytes, *, utf8: bool) -> str:
    try:
        return raw.decode("utf-8")  # also without the flag: macOS and Python 2 never set it
    except UnicodeDecodeError as problem:
        if utf8:
            raise refused(raw.decode("utf-8", "replace"), "the name is not UTF-8") from problem
        return raw.decode("cp437")


def _read_entry(file: BinaryIO, entry: _Entry, writer: TreeWriter, directory_offset: int) -> int:
    """The offset behind the entry."""
    name = entry.name
    if entry.flags & _ENCRYPTED:
        raise refused(name, "encrypted entries are not accepted")
    if entry.method not in {_STORED, _DEFLATED}:
        raise refused(name, f"compression method {entry.method} is not accepted; use deflate")
    file.seek(entry.offset)
    header = file.read(_LOCAL.size)
    if len(header) < _LOCAL.size:
        raise unreadable("the zip is cut short")
    signature, _, flags, method, _, _, crc, packed, size, name_len, extra_len = _LOCAL.unpack(header)
    local_name = file.read(name_len)
    if signature != b"PK\3\4" or local_name != entry.raw_name:
        raise refused(name, "the zip's directory and the entry itself name it differently")
    later = bool(flags & _DESCRIPTOR)
    if method != entry.method or flags & _ENCRYPTED or later != bool(entry.flags & _DESCRIPTOR):
        raise refused(name, "the zip's directory and the entry itself differ in method or flags")
    if not later and (crc, packed, size) != (entry.crc, entry.packed, entry.size):
        raise refused(name, "the zip's directory and the entry itself differ in size or checksum")
    file.seek(extra_len, os.SEEK_CUR)
    start = file.tell()
    if start + entry.packed > directory_offset:
        raise refused(name, "the entry reaches into the zip's directory")
    _deliver(entry, _content(file, entry), writer)
    end = start + entry.packed
    return end + _descriptor_size(file, entry, end, directory_offset) if later else end


def _descriptor_size(file: BinaryIO, entry: _Entry, at: int, directory_offset: int) -> int:
    """Data descriptors come in four shapes; the one that repeats the directory's figures is taken."""
    file.seek(at)
    data = file.read(min(24, directory_offset - at))
    for prefix in (b"PK\7\x08", b""):
        for shape in ("<III", "<IQQ"):
            expected = prefix + struct.pack(shape, entry.crc, entry.packed, entry.size)
            if data.startswith(expected):
                return len(expected)
    raise refused(entry.name, "the zip's directory and the entry itself differ in size or checksum")


def _deliver(entry: _Entry, content: Iterator[bytes], writer: TreeWriter) -> None:
    name, kind = entry.name, stat.S_IFMT(entry.mode)
    if kind in _SPECIAL:
        raise refused(name, _SPECIAL[kind])
    if name.endswith("/") or kind == stat.S_IFDIR:
        if entry.size or kind == stat.S_IFLNK:
            raise refused(name, "a folder must have no content")
        for _ in content:
            pass
        writer.folder(name)
    elif kind == stat.S_IFLNK:
        writer.link(name, link_target(read_whole(content, 4096, name), name))
    else:
        writer.file(name, content, executable=bool(entry.mode & 0o111))


def _content(file: BinaryIO, entry: _Entry) -> Iterator[bytes]:
    """The unpacked bytes, of just the size and checksum that were announced; reads no further than `entry.packed`."""
    left, total, crc = entry.packed, 0, 0
    stream = zlib.decompressobj(wbits=-15) if entry.method == _DEFLATED else None
    feed = b""
    while True:
        if not feed and left:
            feed = file.read(min(left, CHUNK))
            left -= len(feed)
            if not feed:
                raise unreadable("the zip is cut short")
        if stream is None:
            data, feed = feed, b""
        else:
            try:
                data = stream.decompress(feed, CHUNK)
            except zlib.error as problem:
                raise refused(entry.name, "the entry is damaged") from problem
            feed = stream.unconsumed_tail
            if stream.unused_data:
                raise refused(entry.name, "there are bytes behind the entry's end")
        total += len(data)
        crc = zlib.crc32(data, crc)
        if total > entry.size:
            raise refused(entry.name, f"it unpacks to more than the {entry.size} bytes it announces")
        if data:
            yield data
        elif not feed and not left:
            break
    if total != entry.size or crc != entry.crc or (stream is not None and not stream.eof):
        raise refused(entry.name, "the entry is damaged: its size or checksum is wrong")
