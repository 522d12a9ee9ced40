"""A root file tree as bytes, and what can be learned of it without running anything in it.

`pack` writes the canonical tar of a tree: names sorted, owner 0:0, whole seconds, no more than a mode, a date and a
content. The sha256 of it is our images' digest and, at once, the layer digest Docker computes on import. A reader
could trust a link in a foreign tree: every path is resolved inside the tree, as if chrooted (`resolve_inside`).
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, cast

_LINKS_FOLLOWED = 40
_VERSIONED = re.compile(r"python(\d+)\.(\d+)")


class _Sink:
    """What tarfile's stream mode wants of a file."""

    def __init__(self, take: Callable[[bytes], object]) -> None:
        self._take = take

    def write(self, data: bytes, /) -> int:
        self._take(data)
        return len(data)


def pack(tree: Path, take: Callable[[bytes], object]) -> None:
    """Feed `take` the tree's canonical tar, piece by piece. Devices, sockets and FIFOs are left out."""
    first_name: dict[tuple[int, int], str] = {}
    sink = cast("IO[bytes]", _Sink(take))
    with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 20) as archive:
        for name in _walk(tree):
            path = tree / name
            status = path.lstat()
            entry = tarfile.TarInfo(name)
            entry.mode = stat.S_IMODE(status.st_mode)
            entry.mtime = int(status.st_mtime)
            if stat.S_ISDIR(status.st_mode):
                entry.type = tarfile.DIRTYPE
                archive.addfile(entry)
            elif stat.S_ISLNK(status.st_mode):
                entry.type = tarfile.SYMTYPE
                entry.mode = 0o777
                entry.linkname = os.readlink(path)
                archive.addfile(entry)
            elif stat.S_ISREG(status.st_mode):
                original = first_name.setdefault((status.st_dev, status.st_ino), name)
                if original != name:
                    entry.type = tarfile.LNKTYPE
                    entry.linkname = original
                    archive.addfile(entry)
                else:
                    entry.size = status.st_size
                    with open(path, "rb") as content:
                        archive.addfile(entry, content)


def tree_digest(tree: Path) -> str:
    """`sha256:…` of the canonical tar."""
    digest = hashlib.sha256()
    pack(tree, digest.update)
    return f"sha256:{digest.hexdigest()}"


def _walk(tree: Path) -> Iterator[str]:
    """Every name below the root, a directory before what it holds, siblings in byte order."""
    pending = [""]
    while pending:
        prefix = pending.pop()
        if prefix:
            yield prefix
            if os.path.islink(tree / prefix) or not os.path.isdir(tree / prefix):
                continue
        children = sorted(os.listdir(tree / prefix), key=os.fsencode, reverse=True)
        pending += [f"{prefix}/{child}" if prefix else child for child in children]


def resolve_inside(tree: Path, path: str) -> Path:
    """Where `path` leads when `tree` is the root: links followed within it, `..` stopping at it. Need not exist.

    Raises OSError (ELOOP) after forty links.
    """
    pending = [part for part in path.split("/") if part not in ("", ".")][::-1]
    resolved: list[str] = []
    followed = 0
    while pending:
        part = pending.pop()
        if part == "..":
            resolved = resolved[:-1]
            continue
        candidate = tree.joinpath(*resolved, part)
        if not candidate.is_symlink():
            resolved.append(part)
            continue
        followed += 1
        if followed > _LINKS_FOLLOWED:
            raise OSError(40, "too many symbolic links", path)
        target = os.readlink(candidate)
        if target.startswith("/"):
            resolved = []
        pending += [part for part in target.split("/") if part not in ("", ".")][::-1]
    return tree.joinpath(*resolved)


def find_python(tree: Path, search_path: str) -> tuple[str, tuple[int, int]] | None:
    """(absolute path inside, version) of the first Python on a PATH, told by names alone; None when there is none.

    Nothing of a foreign image is run on the host to ask. The name behind the links says it (`python3.12`); where it
    doesn't, the standard library's directory beside it does.
    """
    for name in ("python3", "python"):
        for directory in search_path.split(":"):
            if not directory.startswith("/"):
                continue
            inside = f"{directory.rstrip('/')}/{name}"
            try:
                real = resolve_inside(tree, inside)
            except OSError:
                continue
            if not real.is_file() or not os.access(real, os.X_OK):
                continue
            match = _VERSIONED.fullmatch(real.name)
            if match is not None:
                return inside, (int(match[1]), int(match[2]))
            beside = [
                _VERSIONED.fullmatch(entry.parent.name) for entry in (real.parent.parent / "lib").glob("python3*/os.py")
            ]
            versions = sorted((int(found[1]), int(found[2])) for found in beside if found is not None)
            if versions:
                return inside, versions[0]
    return None
