"""Files below a root that strangers may have shaped: opened component by component, never through a link.

A reader could get wrong that looking first and opening then is a race: everything here opens with O_NOFOLLOW relative
to a directory that is already open, and what `fstat` of the open file says is what counts. Names are the file system's
bytes, decoded with surrogateescape; `odd_name` says which of them can't be told to anybody.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

NAME_BYTES = 1024
"""The longest relative name that an artifact may have."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ENTRIES = 500_000


class UnsafeName(ValueError):
    """A relative name that is not one."""


class Entry:
    """One thing found by `walk`: an open directory and a name in it, its relative name, what lstat says."""

    __slots__ = ("directory_fd", "name", "path", "problem", "status")

    def __init__(
        self, directory_fd: int, name: str, path: str, status: os.stat_result | None, problem: str = ""
    ) -> None:
        self.directory_fd = directory_fd
        self.name = name
        self.path = path
        self.status = status
        self.problem = problem


def split_name(name: str) -> list[str]:
    """The components of a relative name. Raises UnsafeName for absolute names, `..`, empty components and NUL."""
    parts = name.split("/")
    if not name or any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise UnsafeName(f"{name!r} is not a plain relative name")
    return parts


def odd_name(path: str) -> str:
    """Why a name can't be an artifact's; empty when it can."""
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    if len(encoded) > NAME_BYTES:
        return f"its name is longer than {NAME_BYTES} bytes"
    if any(ord(char) < 32 or 127 <= ord(char) < 160 for char in path):
        return "its name has control characters"
    if any(len(part.encode()) > 255 for part in path.split("/")):
        return "a part of its name is longer than 255 bytes"
    return ""


def open_root(path: str) -> int:
    """An open directory. The root itself is the gateway's choice, so links on the way to it are followed."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def open_parent(root_fd: int, parts: list[str], mode: int = 0o755) -> int:
    """The directory that holds the last of `parts`, making what is missing. The caller closes it."""
    current = os.dup(root_fd)
    try:
        for part in parts[:-1]:
            try:
                os.mkdir(part, mode, dir_fd=current)
            except FileExistsError:
                pass
            following = os.open(part, _DIRECTORY, dir_fd=current)
            os.close(current)
            current = following
    except BaseException:
        os.close(current)
        raise
    return current


def walk(root_fd: int) -> Iterator[Entry]:
    """Everything below a directory that is not itself a directory, sorted by name within each, and directories that
    can't be entered.

    Holds one descriptor and no recursion, whatever the depth; what lies below a name of NAME_BYTES is not entered. The
    entry's descriptor is good until the next step.
    """
    current = os.dup(root_fd)
    trail = [_identity(current)]
    path: list[str] = []
    waiting = [_listed(current)]
    seen = 0
    try:
        while waiting:
            if not waiting[-1]:
                waiting.pop()
                trail.pop()
                if not waiting:
                    return
                path.pop()
                current = _up(current, trail[-1])
                continue
            name = waiting[-1].pop()
            seen += 1
            if seen > _ENTRIES:
                reason = "there are too many files to look at; this one and what follows are left"
                yield Entry(current, name, "/".join([*path, name]), None, reason)
                return
            relative = "/".join([*path, name])
            try:
                status = os.stat(name, dir_fd=current, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if not stat.S_ISDIR(status.st_mode) or len(os.fsencode(relative)) > NAME_BYTES:
                yield Entry(current, name, relative, status)
                continue
            try:
                below = _enter(current, name)
            except OSError as error:
                yield Entry(current, name, relative, status, f"a directory that can't be entered: {error.strerror}")
                continue
            os.close(current)
            current = below
            path.append(name)
            trail.append(_identity(current))
            waiting.append(_listed(current))
    finally:
        os.close(current)


def _enter(current: int, name: str) -> int:
    below = os.open(name, _DIRECTORY, dir_fd=current)
    try:
        os.stat("..", dir_fd=below)  # readable is not enough: without search permission there would be no way back
    except OSError:
        os.close(below)
        raise
    return below


def _up(current: int, expected: tuple[int, int]) -> int:
    above = os.open("..", _DIRECTORY, dir_fd=current)
    os.close(current)
    if _identity(above) != expected:
        raise OSError("a directory was moved while it was read")
    return above


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _listed(fd: int) -> list[str]:
    return sorted(os.listdir(fd), reverse=True)
