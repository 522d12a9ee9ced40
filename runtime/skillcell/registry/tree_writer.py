"""Writes a stranger's entries into a fresh directory, and nowhere else.

Each file is opened through a chain of directory descriptors with O_NOFOLLOW and O_EXCL, and symbolic links are made
last, when nothing is written any more: so no link, whoever made it, is ever followed. All names are judged before
anything is written for them. A refusal leaves the directory to its owner, who removes it (`Staging`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from skillcell.registry.entry_names import collision_key, is_junk, refused, split_name
from skillcell.registry.limits import PackageLimits

_MAX_LINK_BYTES = 1024
_MAX_HOPS = 40
_FILE, _FOLDER, _LINK = "file", "folder", "link"


class TreeWriter:
    """One package that is being unpacked into `root`, an empty directory that only this process writes to."""

    def __init__(self, root: Path, limits: PackageLimits, packed_bytes: int | None = None) -> None:
        self._root = root
        self._limits = limits
        self._packed_bytes = packed_bytes
        self._kinds: dict[tuple[str, ...], str] = {}
        self._keys: dict[str, tuple[str, ...]] = {}
        self._links: dict[tuple[str, ...], str] = {}
        self.size_bytes = 0
        self.left_out: list[str] = []

    def folder(self, name: str) -> None:
        """Idempotent, as archives list folders more than once."""
        parts = split_name(name, self._limits)
        if is_junk(parts):
            self._leave_out(name)
        else:
            self._make_folders(parts, name)

    def file(self, name: str, content: Iterable[bytes], *, executable: bool) -> None:
        """Reads `content` to its end, also for what is left out, so that bombs are counted."""
        parts = self._new(name, _FILE)
        if parts is None:
            for chunk in content:
                self._count(len(chunk), name)
            return
        parent = self._open_folder(parts[:-1])
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(parts[-1], flags, 0o755 if executable else 0o644, dir_fd=parent)
            with os.fdopen(descriptor, "wb") as out:
                os.fchmod(out.fileno(), 0o755 if executable else 0o644)
                for chunk in content:
                    self._count(len(chunk), name)
                    out.write(chunk)
        finally:
            os.close(parent)

    def link(self, name: str, target: str) -> None:
        """A symbolic link, judged and made in `finish`, when all that it could point at is known."""
        parts = self._new(name, _LINK)
        if parts is None:
            return
        if not target or len(target.encode("utf-8", "surrogateescape")) > _MAX_LINK_BYTES or "\0" in target:
            raise refused(name, f"the link's target is empty or has more than {_MAX_LINK_BYTES} bytes")
        if target.startswith("/") or "\\" in target:
            raise refused(name, "the link leads out of the package")
        self._links[parts] = target

    def finish(self) -> str:
        """Makes the links, and returns the name of the one folder that wraps everything, or an empty text."""
        wrapper = self._wrapper()
        inside = (wrapper,) if wrapper else ()
        for parts, target in self._links.items():
            self._resolve(parts, inside)
            parent = self._open_folder(parts[:-1])
            try:
                os.symlink(target, parts[-1], dir_fd=parent)
            finally:
                os.close(parent)
        return wrapper

    @property
    def file_count(self) -> int:
        return sum(kind != _FOLDER for kind in self._kinds.values())

    def _wrapper(self) -> str:
        tops = [parts for parts in self._kinds if len(parts) == 1]
        if len(tops) == 1 and self._kinds[tops[0]] == _FOLDER:
            return tops[0][0]
        return ""

    def _new(self, name: str, kind: str) -> tuple[str, ...] | None:
        parts = split_name(name, self._limits)
        if is_junk(parts):
            self._leave_out(name)
            return None
        if not parts or name.endswith("/"):
            raise refused(name, f"a {kind} needs a name")
        if parts in self._kinds:
            was = self._kinds[parts]
            raise refused(
                name, "the name is given twice" if was == kind else f"the name is given to a {was} and a {kind}"
            )
        self._make_folders(parts[:-1], name)
        self._claim(parts, kind, name)
        return parts

    def _make_folders(self, parts: tuple[str, ...], name: str) -> None:
        for depth in range(1, len(parts) + 1):
            head = parts[:depth]
            kind = self._kinds.get(head)
            if kind == _FOLDER:
                continue
            if kind is not None:
                raise refused(name, f"{'/'.join(head)!r} is a {kind} and a folder")
            self._claim(head, _FOLDER, name)
            parent = self._open_folder(head[:-1])
            try:
                os.mkdir(head[-1], 0o755, dir_fd=parent)
            finally:
                os.close(parent)

    def _claim(self, parts: tuple[str, ...], kind: str, name: str) -> None:
        if len(self._kinds) >= self._limits.entries:
            raise refused(name, f"more than {self._limits.entries} entries", "too-many-entries")
        key = collision_key(parts)
        other = self._keys.setdefault(key, parts)
        if other != parts:
            raise refused(name, f"it differs from {'/'.join(other)!r} in case or Unicode form alone")
        self._kinds[parts] = kind

    def _leave_out(self, name: str) -> None:
        if len(self.left_out) >= self._limits.entries:
            raise refused(name, f"more than {self._limits.entries} entries", "too-many-entries")
        self.left_out.append(name)

    def _count(self, size: int, name: str) -> None:
        self.size_bytes += size
        limits = self._limits
        if self.size_bytes > limits.unpacked_bytes:
            why = f"the files have more than {limits.unpacked_bytes} bytes together"
            raise refused(name, why, "too-large", limit=str(limits.unpacked_bytes))
        if self._packed_bytes is None or self.size_bytes <= limits.ratio_from_bytes:
            return
        if self.size_bytes > limits.ratio * max(self._packed_bytes, 1):
            why = f"the archive unpacks to more than {limits.ratio} times its size"
            raise refused(name, why, "bomb", limit=str(limits.ratio))

    def _open_folder(self, parts: tuple[str, ...]) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._root, flags)
        for part in parts:
            try:
                below = os.open(part, flags, dir_fd=descriptor)
            finally:
                os.close(descriptor)
            descriptor = below
        return descriptor

    def _resolve(self, start: tuple[str, ...], inside: tuple[str, ...]) -> None:
        """Walks a link through all others as the kernel would. Raises Fault when it leaves `inside` or loops."""
        name = "/".join(start)
        at = list(start[:-1])
        todo = self._links[start].split("/")
        hops = 0
        while todo:
            part = todo.pop(0)
            if part in {"", "."}:
                continue
            if part == "..":
                if len(at) <= len(inside):
                    raise refused(name, "the link leads out of the package")
                at.pop()
                continue
            here = (*at, part)
            target = self._links.get(here)
            if target is not None:
                hops += 1
                if hops > _MAX_HOPS:
                    raise refused(name, "the link leads in a circle")
                todo = target.split("/") + todo
            else:
                at.append(part)


def read_whole(chunks: Iterable[bytes], limit: int, name: str) -> bytes:
    """A small content in memory, as a link's target. Raises Fault past `limit` bytes."""
    data = b""
    for chunk in chunks:
        data += chunk
        if len(data) > limit:
            raise refused(name, f"has more than {limit} bytes")
    return data


def link_target(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise refused(name, "the link's target is not UTF-8") from problem
