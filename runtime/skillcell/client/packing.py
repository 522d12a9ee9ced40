"""A Skill on disk as the bytes that are sent: a folder becomes a deterministic tar.gz, an archive goes as it is.

Deterministic means: the same names, contents and executable bits give the same bytes, whoever packs them when. The
folder itself is the archive's only top entry, because its name says something: the Skill's must equal it. The gateway
judges what is in it; here only what can't be packed at all is refused, by name.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

CHUNK_BYTES = 1 << 20
_JUNK = frozenset({".git", ".hg", ".svn", "__MACOSX", ".DS_Store"})
"""What version control and desktops leave behind; the gateway would drop it too."""
_IN_MEMORY_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Packed:
    """Bytes ready to be sent."""

    file: IO[bytes]
    size_bytes: int
    sha256: bytes

    def chunks(self) -> Iterator[bytes]:
        self.file.seek(0)
        while chunk := self.file.read(CHUNK_BYTES):
            yield chunk


@contextmanager
def packed(path: Path) -> Iterator[Packed]:
    """Raises OSError for what can't be read, ValueError for a folder entry that is no file, folder or link."""
    if path.is_dir():
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as target:
            _pack(path, cast(BinaryIO, target))
            yield _measured(cast("IO[bytes]", target))
    else:
        with path.open("rb") as source:
            yield _measured(source)


def _measured(file: IO[bytes]) -> Packed:
    file.seek(0)
    digest, size = hashlib.sha256(), 0
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
    return Packed(file, size, digest.digest())


def _pack(root: Path, target: BinaryIO) -> None:
    with (
        gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=target, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        top = root.resolve().name
        for path, name in ((root, ""), *_entries(root)):
            if full := "/".join(part for part in (top, name) if part):
                _add(archive, path, full)


def _entries(root: Path) -> Iterator[tuple[Path, str]]:
    for directory, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in _JUNK)
        for name in sorted([*folders, *(name for name in files if name not in _JUNK)]):
            path = Path(directory, name)
            yield path, path.relative_to(root).as_posix()


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    status = path.lstat()
    entry = tarfile.TarInfo(name)
    entry.mode = 0o755 if status.st_mode & 0o100 or stat.S_ISDIR(status.st_mode) else 0o644
    if stat.S_ISDIR(status.st_mode):
        entry.type = tarfile.DIRTYPE
        archive.addfile(entry)
    elif stat.S_ISLNK(status.st_mode):
        entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(path)
        archive.addfile(entry)
    elif stat.S_ISREG(status.st_mode):
        with path.open("rb") as content:
            entry.size = os.fstat(content.fileno()).st_size
            archive.addfile(entry, content)
    else:
        raise ValueError(f"{path}: a Skill holds files, folders and links only; this is none of these")
