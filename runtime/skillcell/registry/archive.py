"""A folder or archive becomes one canonical tree in a staging directory, or nothing at all.

Folder, zip, tar, tar.gz and tar.xz end alike: regular files (0644 or 0755), folders, and links that stay inside.
Whatever else there is refuses the whole package, with the entry's name. Everything here blocks; `Staging.read` runs it
in a thread.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from skillcell.core.errors import Fault, FaultKind, invalid
from skillcell.registry.byte_source import CHUNK, ByteSource, Gzip, Plain, Xz
from skillcell.registry.entry_names import refused, unreadable
from skillcell.registry.limits import PackageLimits
from skillcell.registry.tar_reader import read_tar
from skillcell.registry.tree_writer import TreeWriter
from skillcell.registry.zip_reader import read_zip

_OTHER_FORMATS = {
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar",
    b"\x04\x22\x4d\x18": "lz4",
}


@dataclass(frozen=True, slots=True)
class StagedPackage:
    """A package that was unpacked but not yet published."""

    root: Path
    """The Skill's own folder: SKILL.md lies here if anywhere."""
    staging: Path
    """The directory to remove; `root` is it or lies in it."""
    folder: str
    """The name of the Skill's folder as its author has it; empty when an archive has none around it."""
    size_bytes: int
    file_count: int
    left_out: tuple[str, ...]
    """Names of what tools leave in archives (`__MACOSX`, `.DS_Store`, `.git`), which were not taken."""


class Staging:
    """Makes and removes staging directories below `root`, on the file system of the package store."""

    def __init__(self, root: Path, limits: PackageLimits) -> None:
        self._root = root
        self._limits = limits

    async def read(self, source: Path) -> StagedPackage:
        """Unpacks a folder or archive. The caller removes it with `remove`. Raises Fault, and then nothing is left."""
        return await asyncio.to_thread(self.read_blocking, source)

    async def remove(self, package: StagedPackage) -> None:
        """Idempotent."""
        await asyncio.to_thread(remove_tree, package.staging)

    def read_blocking(self, source: Path) -> StagedPackage:
        staging = self._root / f"package-{secrets.token_hex(12)}"
        tree = staging / "tree"
        try:
            tree.mkdir(parents=True, mode=0o700)
            return self._read(source, staging, tree)
        except OSError as problem:
            remove_tree(staging)
            raise storage_fault(problem) from problem
        except BaseException:
            remove_tree(staging)
            raise

    def _read(self, source: Path, staging: Path, tree: Path) -> StagedPackage:
        limits = self._limits
        try:
            kind = source.stat().st_mode
        except OSError as problem:
            raise invalid("source", f"can't be read: {os.strerror(problem.errno or 0)}") from problem
        if stat.S_ISDIR(kind):
            writer = TreeWriter(tree, limits)
            _read_folder(source, writer)
            writer.finish()
            root, folder = tree, source.resolve().name
        elif stat.S_ISREG(kind):
            with source.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size > limits.packed_bytes:
                    why = f"it has {size} bytes; the limit is {limits.packed_bytes}"
                    raise unreadable(why, "too-large", limit=str(limits.packed_bytes))
                writer = TreeWriter(tree, limits, packed_bytes=size)
                _read_archive(file, writer, limits)
            folder = writer.finish()
            root = tree / folder if folder else tree
        else:
            raise invalid("source", "is neither a folder nor a file")
        return StagedPackage(root, staging, folder, writer.size_bytes, writer.file_count, tuple(writer.left_out))


def _read_archive(file: BinaryIO, writer: TreeWriter, limits: PackageLimits) -> None:
    head = file.read(512)
    file.seek(0)
    source: ByteSource
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        read_zip(file, writer, limits)
        return
    if head.startswith(b"\x1f\x8b"):
        source = Gzip(file)
    elif head.startswith(b"\xfd7zXZ\0"):
        source = Xz(file)
    elif len(head) == 512 and not any(head.startswith(magic) for magic in _OTHER_FORMATS):
        source = Plain(file)
    else:
        name = next((name for magic, name in _OTHER_FORMATS.items() if head.startswith(magic)), "this")
        raise unreadable(f"{name} is not an accepted format; zip, tar, tar.gz and tar.xz are", "format")
    read_tar(source, writer, limits)


def _read_folder(source: Path, writer: TreeWriter) -> None:
    """Copies by descriptors: a folder that is changed meanwhile can't lead the copy out of itself."""
    _copy_folder(os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), "", writer)


def _copy_folder(descriptor: int, prefix: str, writer: TreeWriter) -> None:
    """Takes the descriptor over. Depth is bounded by the writer, which refuses a folder before it is entered."""
    try:
        for name in sorted(os.listdir(descriptor)):
            _copy_entry(descriptor, name, prefix + name, writer)
    finally:
        os.close(descriptor)


def _copy_entry(parent: int, name: str, path: str, writer: TreeWriter) -> None:
    kind = os.lstat(name, dir_fd=parent).st_mode
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    if stat.S_ISLNK(kind):
        writer.link(path, os.readlink(name, dir_fd=parent))
    elif stat.S_ISDIR(kind):
        left_out = len(writer.left_out)
        writer.folder(path)
        if len(writer.left_out) == left_out:
            _copy_folder(os.open(name, flags | os.O_DIRECTORY, dir_fd=parent), path + "/", writer)
    elif stat.S_ISREG(kind):
        with os.fdopen(os.open(name, flags, dir_fd=parent), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise refused(path, "it changed while it was read")
            writer.file(path, _chunks(file), executable=bool(status.st_mode & 0o111))
    else:
        raise refused(path, "only files, folders and links are accepted, no devices, FIFOs or sockets")


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while data := file.read(CHUNK):
        yield data


def remove_tree(root: Path) -> None:
    """Removes a tree of ours, read-only folders included. Idempotent; depth is bounded by `PackageLimits`."""
    if os.geteuid() != 0:
        for folder, _, _ in os.walk(root):
            os.chmod(folder, 0o700)
    shutil.rmtree(root, ignore_errors=True)


def storage_fault(problem: OSError) -> Fault:
    """The disk's own refusal, without a path."""
    why = os.strerror(problem.errno) if problem.errno else "unknown error"
    return Fault(FaultKind.UNAVAILABLE, "STORE_UNAVAILABLE", f"packages can't be stored now: {why}")
