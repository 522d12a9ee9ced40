"""Files for one call, written where they belong before it starts.

What is written here is charged to the sandbox, and goes below a root by names that can't leave it. /input and a
delivered /skill become read-only by permission once everything is there; the Skill's own root, if it is a read-only
mount, is not touched.
"""

from __future__ import annotations

import errno
import os
import stat

from skillcell.agent import tree

READ_ONLY_ROOTS = ("input", "skill")
_COPY_BYTES = 256 * 1024


class DeliveryError(Exception):
    """A file that could not be put in place; the message names it and says why."""


class Delivery:
    """The files of one job. `roots` maps root names to directories. Use `begin`, `data`, then `finish`."""

    def __init__(self, roots: dict[str, str]) -> None:
        self._roots = roots
        self._fd = -1
        self._left = 0
        self._label = ""
        self._touched: set[str] = set()

    def begin(self, root: str, name: str, mode: int, size: int) -> None:
        """The next file; the one before must be whole."""
        self._close()
        self._label = f"{root}/{name}"
        if root not in self._roots:
            raise DeliveryError(f"{self._label}: unknown root")
        try:
            parts = tree.split_name(name)
        except tree.UnsafeName as error:
            raise DeliveryError(f"{self._label}: {error}") from error
        if root in READ_ONLY_ROOTS:
            mode = mode & 0o111 | 0o444
        try:
            if root in READ_ONLY_ROOTS and root not in self._touched:
                _make_writable(self._roots[root])
            self._fd = _create(self._roots[root], parts, mode)
        except OSError as error:
            raise self._failure(error, root) from error
        self._touched.add(root)
        self._left = size
        if not size:
            self._close()

    def data(self, payload: bytes) -> None:
        """The next bytes of the file that was begun."""
        if self._fd < 0 or len(payload) > self._left:
            raise DeliveryError(f"{self._label or 'DATA'}: more bytes than announced")
        try:
            view = memoryview(payload)
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            raise self._failure(error) from error
        self._left -= len(payload)
        if not self._left:
            self._close()

    def finish(self) -> None:
        """Everything was delivered. Raises DeliveryError when a file is not whole."""
        self._close()
        for root in READ_ONLY_ROOTS:
            if root in self._touched:
                _make_read_only(self._roots[root])

    def abandon(self) -> None:
        """Gives up the file that was begun."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _close(self) -> None:
        if self._fd < 0:
            return
        left, self._left = self._left, 0
        self.abandon()
        if left:
            raise DeliveryError(f"{self._label}: {left} bytes are missing")

    def _failure(self, error: OSError, root: str = "") -> DeliveryError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DeliveryError(f"{self._label}: no space left in the sandbox's writable directories")
        if error.errno == errno.ENOENT and root and not os.path.isdir(self._roots[root]):
            return DeliveryError(f"{self._label}: the sandbox has no directory {self._roots[root]}")
        return DeliveryError(f"{self._label}: {error.strerror}")


def _create(root: str, parts: list[str], mode: int) -> int:
    root_fd = tree.open_root(root)
    try:
        parent = tree.open_parent(root_fd, parts)
        try:
            try:
                os.unlink(parts[-1], dir_fd=parent)
            except FileNotFoundError:
                pass
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(parts[-1], flags, mode & 0o777, dir_fd=parent)
            os.fchmod(fd, mode & 0o777)
            return fd
        finally:
            os.close(parent)
    finally:
        os.close(root_fd)


def _make_writable(root: str) -> None:
    """Undoes what the job before left read-only. What is not ours stays as it is, and the write then says so."""
    for _path, _directories, _files, fd in os.fwalk(root):
        try:
            os.fchmod(fd, 0o755)
        except OSError:
            return


def _make_read_only(root: str) -> None:
    for path, _directories, _files, fd in os.fwalk(root, topdown=False):
        try:
            os.fchmod(fd, 0o555)
        except PermissionError as error:
            # The mount point may belong to another user, who then alone decides; below it everything is ours.
            if path != root:
                raise DeliveryError(f"{path}: {error.strerror}") from error


def copy_tree(source: str, target: str) -> None:
    """Copies a package into a directory that its owner may write: modes kept but for the owner's write bit.

    Links stay links as long as they point inside; others are left out. Raises DeliveryError.
    """
    source = os.path.realpath(source)
    if not os.path.isdir(source):
        raise DeliveryError(f"the sandbox has no directory {source}")
    waiting = [""]
    try:
        while waiting:
            relative = waiting.pop()
            with os.scandir(os.path.join(source, relative)) as entries:
                for entry in entries:
                    name = os.path.join(relative, entry.name)
                    if _copy_entry(entry, source, os.path.join(target, name)):
                        waiting.append(name)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DeliveryError(
                "no space left in the sandbox's writable directories for a copy of the Skill"
            ) from error
        raise DeliveryError(f"copying the Skill: {error.filename}: {error.strerror}") from error


def _copy_entry(entry: os.DirEntry[str], source: str, target: str) -> bool:
    """Whether it is a directory, to be entered."""
    status = entry.stat(follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        link = os.readlink(entry.path)
        goal = os.path.realpath(entry.path)
        if not os.path.isabs(link) and (goal == source or goal.startswith(source + "/")):
            os.symlink(link, target)
        return False
    if stat.S_ISDIR(status.st_mode):
        os.makedirs(target, exist_ok=True)
        os.chmod(target, status.st_mode & 0o777 | 0o700)
        return True
    if stat.S_ISREG(status.st_mode):
        _copy_file(entry.path, target, status.st_mode & 0o777 | 0o600)
    return False


def _copy_file(source: str, target: str, mode: int) -> None:
    reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            while data := os.read(reading, _COPY_BYTES):
                view = memoryview(data)
                while view:
                    view = view[os.write(writing, view) :]
            os.fchmod(writing, mode)
        finally:
            os.close(writing)
    finally:
        os.close(reading)
