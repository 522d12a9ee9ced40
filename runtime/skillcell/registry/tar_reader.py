"""A strict reader of tar: ustar, GNU long names, and POSIX pax paths; each entry goes into a `TreeWriter`.

The standard library's reader is built to make the best of anything; this one refuses whatever two readers could take in
two ways: bad checksums, negative or base-256 sizes, sparse files, global paths, data behind the end. Owner, times and
set-id bits are dropped. Source: POSIX.1-2017 pax, GNU tar manual "Basic Tar Format".
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from skillcell.registry.byte_source import ByteSource, Exact
from skillcell.registry.entry_names import refused, unreadable
from skillcell.registry.findings import shown
from skillcell.registry.limits import PackageLimits
from skillcell.registry.tree_writer import TreeWriter

_BLOCK = 512
_META_BYTES = 64 << 10
_ENTRY_OVERHEAD = 4096
_KINDS = {
    "1": "hard links are not accepted",
    "3": "devices are not accepted",
    "4": "devices are not accepted",
    "6": "FIFOs are not accepted",
    "7": "contiguous files are not accepted",
    "S": "sparse files are not accepted",
    "D": "GNU dump directories are not accepted",
    "M": "multi-volume archives are not accepted",
    "V": "volume labels are not accepted",
}


@dataclass(frozen=True, slots=True)
class _Header:
    name: str
    link: str
    kind: str
    size: int
    executable: bool


@dataclass(slots=True)
class _Overrides:
    """What the headers before an entry say of it."""

    name: str | None = None
    link: str | None = None
    size: int | None = None


def read_tar(source: ByteSource, writer: TreeWriter, limits: PackageLimits) -> None:
    """All entries of an uncompressed tar stream. Raises Fault."""
    stream = Exact(source)
    overrides = _Overrides()
    most = limits.unpacked_bytes + limits.entries * _ENTRY_OVERHEAD + _META_BYTES
    while stream.position <= most:
        block = stream.up_to(_BLOCK)
        if len(block) < _BLOCK:
            raise unreadable("the tar ends without its two empty blocks: it is cut short")
        if not block.strip(b"\0"):
            if overrides != _Overrides():
                raise unreadable("the tar ends where an entry should follow")
            _check_end(stream)
            return
        header = _parse(block)
        if header.kind in "LKxg":
            _read_meta(header, stream, overrides)
            continue
        _read_entry(header, overrides, stream, writer)
        overrides = _Overrides()
    raise unreadable(f"the tar has more than {most} bytes", "too-large", limit=str(most))


def _read_entry(header: _Header, overrides: _Overrides, stream: Exact, writer: TreeWriter) -> None:
    name = overrides.name if overrides.name is not None else header.name
    link = overrides.link if overrides.link is not None else header.link
    size = overrides.size if overrides.size is not None else header.size
    if header.kind not in {"0", "\0", "2", "5"}:
        raise refused(name, _KINDS.get(header.kind, f"entries of type {shown(header.kind)!r} are not accepted"))
    if header.kind in {"2", "5"} and size:
        raise refused(name, "a link or folder must have no content")
    if header.kind == "5" or (header.kind == "\0" and name.endswith("/")):
        if size:
            raise refused(name, "a folder must have no content")
        writer.folder(name)
    elif header.kind == "2":
        writer.link(name, link)
    else:
        writer.file(name, stream.pieces(size, f"entry {shown(name)!r}"), executable=header.executable)
        _skip_padding(stream, size, name)


def _parse(block: bytes) -> _Header:
    claimed = _octal(block[148:156], "checksum")
    if claimed != sum(block[:148]) + 8 * 32 + sum(block[156:]):
        raise unreadable("a tar header's checksum is wrong: it is damaged, or not a tar")
    name = _text(block[0:100])
    if block[257:263] == b"ustar\0" and block[345]:
        name = _text(block[345:500]) + "/" + name
    return _Header(
        name=name,
        link=_text(block[157:257]),
        kind=chr(block[156]),
        size=_octal(block[124:136], "size"),
        executable=bool(_octal(block[100:108], "mode") & 0o111),
    )


def _octal(field: bytes, what: str) -> int:
    digits = field.strip(b" \0")
    if not digits:
        return 0
    if any(byte not in b"01234567" for byte in digits):
        raise unreadable(f"a tar header's {what} is not an octal number")
    return int(digits, 8)


def _text(field: bytes) -> str:
    data = field.split(b"\0", 1)[0]
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise refused(data.decode("utf-8", "replace"), "the name is not UTF-8") from problem


def _read_meta(header: _Header, stream: Exact, overrides: _Overrides) -> None:
    if header.size > _META_BYTES:
        raise unreadable(f"a tar extension header has {header.size} bytes; the limit is {_META_BYTES}")
    data = b"".join(stream.pieces(header.size, "an extension header"))
    _skip_padding(stream, header.size, "an extension header")
    if header.kind == "L":
        overrides.name = _text(data)
    elif header.kind == "K":
        overrides.link = _text(data)
    else:
        _read_pax(data, overrides, whole_archive=header.kind == "g")


def _read_pax(data: bytes, overrides: _Overrides, *, whole_archive: bool) -> None:
    at = 0
    while at < len(data):
        length_text = data[at : at + 7].partition(b" ")[0]
        length = int(length_text) if length_text.isdigit() else 0
        record = data[at + len(length_text) + 1 : at + length]
        if at + length > len(data) or not record.endswith(b"\n") or b"=" not in record:
            raise unreadable("a pax header is damaged")
        at += length
        key, _, value = record[:-1].partition(b"=")
        if key.startswith(b"GNU.sparse"):
            raise unreadable("sparse files are not accepted")
        if key not in {b"path", b"linkpath", b"size"}:
            continue
        if whole_archive:
            raise unreadable(f"a global pax header sets {key.decode()} for all entries")
        if b"\0" in value:
            raise refused(value.decode("utf-8", "replace"), "the path has a control character")
        if key == b"path":
            overrides.name = _text(value)
        elif key == b"linkpath":
            overrides.link = _text(value)
        elif not value.isdigit() or len(value) > 19:
            raise unreadable("a pax size is not a number")
        else:
            overrides.size = int(value)


def _skip_padding(stream: Exact, size: int, name: str) -> None:
    for _ in stream.pieces(-size % _BLOCK, f"the padding of {shown(name)!r}"):
        pass


def _check_end(stream: Exact) -> None:
    """A second empty block, then nothing but zeros: writers fill up to their record size."""
    for index in itertools.count():
        block = stream.up_to(_BLOCK * 20)
        if block.strip(b"\0"):
            raise unreadable("there are bytes behind the end of the tar")
        if not block:
            if index == 0:
                raise unreadable("the tar ends without its two empty blocks: it is cut short")
            return
        if index > 4096:
            raise unreadable("there is too much padding behind the end of the tar")
