"""Content-addressed package trees: `packages/<digest>/`, complete or not there.

The digest is the SHA-256 of the tree's canonical listing (`seal`), so it is the same however a package arrived. A tree
is made read-only and flushed to disk before one rename puts it in place; a crash leaves only staging directories, which
`sweep` removes. Source of the archive's form: POSIX.1-2017 ustar and pax.
"""

from __future__ import annotations

import asyncio
import errno
import gzip
import hashlib
import json
import os
import secrets
import stat
import tarfile
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from skillcell.core.errors import Fault, FaultKind
from skillcell.registry.archive import StagedPackage, remove_tree, storage_fault

T = TypeVar("T")
_FIXED_TIME = 315_532_800  # 1980-01-01, the first day a zip can name
_FOLDER, _FILE, _PROGRAM = 0o555, 0o444, 0o555
_MOVABLE = 0o755


@dataclass(frozen=True, slots=True)
class SealedPackage:
    """A staged tree that no one changes any more."""

    package: StagedPackage
    digest: str


@dataclass(frozen=True, slots=True)
class StoredPackage:
    """A tree in the store."""

    digest: str
    """64 hex digits."""
    path: Path
    size_bytes: int
    file_count: int


class PackageStore:
    """All packages of a gateway, below one directory. Several processes may share it."""

    def __init__(self, root: Path) -> None:
        self._packages = root / "packages"
        self.staging_root = root / "staging"
        """On the same file system, so that a rename puts a tree in place."""
        for folder in (self._packages, self.staging_root):
            folder.mkdir(parents=True, exist_ok=True)

    async def seal(self, package: StagedPackage) -> SealedPackage:
        """Makes a staged tree canonical, flushes it, and computes its digest. Raises Fault."""
        return await asyncio.to_thread(_translated, lambda: SealedPackage(package, seal(package.root)))

    async def add(self, sealed: SealedPackage) -> StoredPackage:
        """Moves a tree into the store; the same content again is the tree that is there. Raises Fault."""
        return await asyncio.to_thread(_translated, lambda: self._add(sealed))

    def _add(self, sealed: SealedPackage) -> StoredPackage:
        package, target = sealed.package, self._packages / sealed.digest
        if target.is_dir():
            os.utime(target, (_FIXED_TIME, _FIXED_TIME))  # renews its ctime, see `collect`
        else:
            self._put(package.root, target)
        return StoredPackage(sealed.digest, target, package.size_bytes, package.file_count)

    def path(self, digest: str) -> Path:
        """The tree of a digest. Raises Fault (DATA_LOSS) when it is gone: the catalogue only names what was stored."""
        target = self._packages / digest
        if len(digest) != 64 or not target.is_dir():
            message = f"package sha256:{digest} is not in the store"
            raise Fault(FaultKind.DATA_LOSS, "PACKAGE_LOST", message, resource=("package", digest))
        return target

    async def to_archive(self, digest: str) -> BinaryIO:
        """A tar.gz of the package, the same bytes for the same digest and zlib, in an unnamed file at its start.

        The caller reads it from whatever offset it needs, and closes it. Raises Fault.
        """
        path = self.path(digest)
        return await asyncio.to_thread(_translated, lambda: _archive(path, self.staging_root))

    async def sweep(self, older_than_seconds: float = 3600) -> int:
        """Removes staging directories that no publication can still be using; how many."""
        return await asyncio.to_thread(self._sweep, older_than_seconds)

    async def collect(self, named: Collection[str], older_than_seconds: float = 3600) -> int:
        """Removes packages that no version names, as after a crash between storing and recording; how many.

        A package that is being published is younger than any sensible age: `add` renews it.
        """
        return await asyncio.to_thread(self._collect, frozenset(named), older_than_seconds)

    def _collect(self, named: frozenset[str], older_than_seconds: float) -> int:
        removed = 0
        for path in list(self._packages.iterdir()):
            if path.name not in named and time.time() - path.lstat().st_ctime >= older_than_seconds:
                gone = self.staging_root / f"discarded-{secrets.token_hex(12)}"
                os.chmod(path, _MOVABLE)
                os.rename(path, gone)
                remove_tree(gone)
                removed += 1
        return removed

    def _put(self, tree: Path, target: Path) -> None:
        # A folder that moves to another parent must be writable to whoever is not root.
        os.chmod(tree, _MOVABLE)
        try:
            os.rename(tree, target)
        except OSError as problem:
            if problem.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
                raise
            return  # another publication of the same content was first
        os.chmod(target, _FOLDER)
        _flush(self._packages)

    def _sweep(self, older_than_seconds: float) -> int:
        removed = 0
        for path in list(self.staging_root.iterdir()):
            try:
                age = time.time() - path.lstat().st_mtime
            except FileNotFoundError:
                continue
            if age >= older_than_seconds:
                remove_tree(path)
                removed += 1
        return removed


def _translated(work: Callable[[], T]) -> T:
    try:
        return work()
    except OSError as problem:
        raise storage_fault(problem) from problem


def seal(root: Path) -> str:
    """Gives every entry its canonical mode and time, flushes it to disk, and returns the digest of the listing.

    The listing is one JSON array a line, sorted by path as UTF-8 bytes: [path, "d"], [path, "l", target] or
    [path, "f" or "x", SHA-256 of the content]; "x" is an executable file. The root itself is not listed.
    """
    lines: list[tuple[bytes, bytes]] = []
    for folder, folders, names in os.walk(root, topdown=False):
        for name in names + [name for name in folders if os.path.islink(os.path.join(folder, name))]:
            path = os.path.join(folder, name)
            lines.append(_listed(os.path.relpath(path, root), _seal_entry(path)))
        os.chmod(folder, _FOLDER)
        os.utime(folder, (_FIXED_TIME, _FIXED_TIME))
        _flush(Path(folder))
        if folder != str(root):
            lines.append(_listed(os.path.relpath(folder, root), ["d"]))
    return hashlib.sha256(b"".join(line for _, line in sorted(lines))).hexdigest()


def _listed(path: str, facts: list[str]) -> tuple[bytes, bytes]:
    line = json.dumps([path, *facts], ensure_ascii=False, separators=(",", ":"))
    return path.encode(), line.encode() + b"\n"


def _seal_entry(path: str) -> list[str]:
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        os.utime(path, (_FIXED_TIME, _FIXED_TIME), follow_symlinks=False)
        return ["l", os.readlink(path)]
    program = bool(status.st_mode & 0o111)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fchmod(descriptor, _PROGRAM if program else _FILE)
        os.utime(descriptor, (_FIXED_TIME, _FIXED_TIME))
        os.fsync(descriptor)
    return ["x" if program else "f", digest]


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _entries(root: Path) -> Iterator[tuple[str, Path]]:
    """Every entry but the root, sorted as in the listing."""
    found = (Path(folder, name) for folder, folders, names in os.walk(root) for name in folders + names)
    named = [(path.relative_to(root).as_posix(), path) for path in found]
    return iter(sorted(named, key=lambda item: item[0].encode()))


def _archive(root: Path, folder: Path) -> BinaryIO:
    out: BinaryIO = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
    with (
        gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=out, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, path in _entries(root):
            status = path.lstat()
            entry = tarfile.TarInfo(name)
            entry.mtime = _FIXED_TIME
            if stat.S_ISLNK(status.st_mode):
                entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, os.readlink(path), 0o777
                tar.addfile(entry)
            elif stat.S_ISDIR(status.st_mode):
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(entry)
            else:
                entry.size = status.st_size
                entry.mode = 0o755 if status.st_mode & 0o111 else 0o644
                with path.open("rb") as content:
                    tar.addfile(entry, content)
    out.seek(0)
    return out
