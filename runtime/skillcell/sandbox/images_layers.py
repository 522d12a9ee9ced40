"""Layers of a foreign image, applied to a tree (OCI image specification, layer.md).

A layer was written by a stranger: every name is resolved inside the tree, links too; devices and FIFOs are left out,
privilege bits and owners are dropped; bytes, entries and depth have limits. A reader could think that checking names
for `..` is enough: an earlier entry may be a link, so the parent is resolved anew for every entry.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from skillcell.core.errors import Fault, invalid, precondition
from skillcell.sandbox.images_tree import resolve_inside


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """How large an imported image may be."""

    bytes: int = 8 << 30
    """Content of all layers together, unpacked."""
    entries: int = 500_000
    """Files, directories and links of all layers together."""
    depth: int = 64
    """Components of one name."""
    document_bytes: int = 4 << 20
    """One manifest or configuration."""


DEFAULT_LIMITS = ArchiveLimits()


class LayerWriter:
    """Applies layers to a tree, lowest first (OCI image specification, layer.md)."""

    def __init__(self, tree: Path, limits: ArchiveLimits) -> None:
        self._tree = tree
        self._limits = limits
        self._bytes = 0
        self._entries = 0
        self._fresh: set[Path] = set()

    def apply(self, packed: IO[bytes], diff_id: str) -> None:
        """One layer; `diff_id` is the digest its unpacked bytes must have."""
        stream = _Hashing(_unpacked(packed), self._limits.bytes)
        self._fresh = set()
        with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|") as layer:
            for member in layer:
                self._entry(layer, member)
        stream.drain()
        if stream.digest() != diff_id:
            raise broken(f"a layer is {stream.digest()}, its configuration says {diff_id}")

    def _entry(self, layer: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        self._entries += 1
        self._bytes += member.size if member.isreg() else 0
        if self._entries > self._limits.entries:
            raise _too_large("entries", self._entries, self._limits.entries)
        if self._bytes > self._limits.bytes:
            raise _too_large("bytes", self._bytes, self._limits.bytes)
        parts = [part for part in member.name.split("/") if part not in ("", ".")]
        if ".." in parts or "\0" in member.name:
            raise broken(f"a layer's entry {member.name!r} leads out of the image")
        if not parts:
            return
        parent = resolve_inside(self._tree, "/".join(parts[:-1]))
        # Links can make a short name deep.
        depth = len(parent.relative_to(self._tree).parts) + 1
        if depth > self._limits.depth:
            raise _too_large("depth", depth, self._limits.depth)
        name = parts[-1]
        if name == ".wh..wh..opq":
            if parent.is_dir():
                for child in list(parent.iterdir()):
                    self._remove_lower(child)
            return
        if name.startswith(".wh."):
            _remove(parent / _plain(name.removeprefix(".wh."), member.name))
            return
        self._make_parent(parent)
        self._write(layer, member, parent / name)

    def _make_parent(self, parent: Path) -> None:
        missing = []
        while not parent.is_dir():
            if parent.exists():
                parent.unlink()
            missing.append(parent)
            parent = parent.parent
        for directory in reversed(missing):
            directory.mkdir(mode=0o755)

    def _write(self, layer: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
        if member.isdir():
            if target.is_symlink() or not target.is_dir():
                _remove(target)
                target.mkdir(mode=0o755)
            target.chmod((member.mode & 0o755) | 0o555)
        elif member.issym():
            _remove(target)
            target.symlink_to(member.linkname)
        elif member.islnk():
            source_parts = member.linkname.strip("/").split("/")
            source = resolve_inside(self._tree, "/".join(source_parts[:-1])) / _plain(source_parts[-1], member.name)
            if not source.is_symlink() and not source.is_file():
                raise broken(f"a layer's entry {member.name!r} is a hard link to {member.linkname!r}, which is no file")
            if source != target:
                _remove(target)
                os.link(source, target, follow_symlinks=False)
        elif member.isreg():
            _remove(target)
            content = layer.extractfile(member)
            assert content is not None
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
            with open(descriptor, "wb") as file:
                shutil.copyfileobj(content, file, 1 << 20)
                os.fchmod(file.fileno(), (member.mode & 0o755) | 0o444)
        else:
            # Devices and FIFOs: a sandbox has its own /dev.
            return
        if not member.isdir():
            os.utime(target, (member.mtime, member.mtime), follow_symlinks=False)
        while target != self._tree and target not in self._fresh:
            self._fresh.add(target)
            target = target.parent

    def _remove_lower(self, path: Path) -> None:
        """An opaque directory hides what lower layers put there, not what this one did."""
        if path not in self._fresh:
            _remove(path)
        elif path.is_dir() and not path.is_symlink():
            for child in list(path.iterdir()):
                self._remove_lower(child)


class _Hashing:
    """A readable that counts, limits and hashes what passes."""

    def __init__(self, read: Callable[[int], bytes], limit: int) -> None:
        self._read = read
        self._limit = limit
        self._count = 0
        self._hash = hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._read(size)
        self._count += len(data)
        if self._count > self._limit + (self._limit >> 2):
            raise _too_large("bytes", self._count, self._limit)
        self._hash.update(data)
        return data

    def drain(self) -> None:
        while self.read(1 << 20):
            pass

    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


def _unpacked(stream: IO[bytes]) -> Callable[[int], bytes]:
    start = stream.read(4)
    stream.seek(0)
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        raise precondition(
            "IMAGE_COMPRESSION", "a layer is compressed with zstd; export the image with gzip or uncompressed layers"
        )
    if not start.startswith(b"\x1f\x8b"):
        return stream.read
    return gzip.GzipFile(fileobj=stream).read


def _plain(name: str, entry: str) -> str:
    if name in ("", ".", ".."):
        raise broken(f"a layer's entry {entry!r} leads out of the image")
    return name


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def broken(why: str) -> Fault:
    return invalid("archive", f"is no image that can be imported: {why}", reason="INVALID_IMAGE_ARCHIVE")


def _too_large(what: str, value: int, limit: int) -> Fault:
    return invalid("archive", f"has {value} {what}, the limit is {limit}", value=str(value), limit=str(limit))
