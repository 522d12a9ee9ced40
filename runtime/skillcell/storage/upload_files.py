"""Uploaded bytes on disk: what is coming in, what is kept, and what calls hold. Blocking; call it in threads.

Three directories of one file system. `incoming` has files that are not whole yet; `kept` has whole ones, by tenant and
digest; `held` has, for each call that names uploads, a directory of hard links to them, so that a call keeps its bytes
whatever becomes of the upload. A tenant's name is never a path: its hash is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from skillcell.core.content import StoredContent
from skillcell.core.errors import unavailable

_PREFIX = "sha256:"


class UploadFiles:
    """All of one gateway."""

    def __init__(self, directory: Path) -> None:
        self._incoming = directory / "incoming"
        self._kept = directory / "kept"
        self._held = directory / "held"
        for place in (self._incoming, self._kept, self._held):
            place.mkdir(parents=True, exist_ok=True, mode=0o700)

    def receive(self, size_bytes: int, reserve_bytes: int) -> IncomingFile:
        """A file for bytes to come, so many as is known; `reserve_bytes` of the disk stay free."""
        with _stored():
            _check_disk(os.statvfs(self._incoming), size_bytes + reserve_bytes)
            return IncomingFile(self._incoming / uuid.uuid4().hex, reserve_bytes)

    def path(self, tenant: str, digest: str) -> Path:
        """Where whole bytes lie."""
        return self._of(tenant) / digest.removeprefix(_PREFIX)

    def is_whole(self, tenant: str, digest: str, size_bytes: int) -> bool:
        """Whether they are there, and of the right size."""
        with suppress(OSError):
            return self.path(tenant, digest).stat().st_size == size_bytes
        return False

    def remove(self, tenant: str, digest: str) -> None:
        """Idempotent. What calls hold of it stays."""
        with suppress(OSError):
            self.path(tenant, digest).unlink()
        with suppress(OSError):
            self._of(tenant).rmdir()  # when that was the last

    def hold(self, execution_id: str, tenant: str, digests: Sequence[str]) -> dict[str, StoredContent] | None:
        """A call's own links, by digest; None when one is not there, and then none is left."""
        directory = self._held / execution_id
        found: dict[str, StoredContent] = {}
        try:
            with _stored():
                directory.mkdir(mode=0o700)
                for digest in digests:
                    link = directory / digest.removeprefix(_PREFIX)
                    try:
                        os.link(self.path(tenant, digest), link)
                    except FileNotFoundError:
                        self.release(execution_id)
                        return None
                    found[digest] = StoredContent(link, link.stat().st_size)
        except BaseException:
            self.release(execution_id)
            raise
        return found

    def release(self, execution_id: str) -> None:
        """Idempotent."""
        shutil.rmtree(self._held / execution_id, ignore_errors=True)

    def sweep(self) -> int:
        """Removes what is not whole and what calls held; for a start, when nothing comes in and nothing runs."""
        removed = 0
        for path in self._incoming.iterdir():
            path.unlink(missing_ok=True)
            removed += 1
        for path in self._held.iterdir():
            shutil.rmtree(path, ignore_errors=True)
            removed += 1
        return removed

    def remove_unknown(self, known: set[tuple[str, str]]) -> int:
        """Removes whole files that no row speaks of. `known` has tenant and digest of all that have one."""
        wanted = {self.path(tenant, digest) for tenant, digest in known}
        removed = 0
        for folder in self._kept.iterdir():
            for path in folder.iterdir():
                if path not in wanted:
                    path.unlink(missing_ok=True)
                    removed += 1
            with suppress(OSError):
                folder.rmdir()
        return removed

    def _of(self, tenant: str) -> Path:
        return self._kept / hashlib.sha256(tenant.encode()).hexdigest()[:32]


class IncomingFile:
    """Bytes on their way to disk. All but `discard` raise Fault when the disk takes no more.

    A canceled call leaves its thread running, so `discard` may come amid a write: the lock keeps it from closing the
    descriptor under that write, whose number might belong to another file by then.
    """

    def __init__(self, path: Path, reserve_bytes: int) -> None:
        self._path = path
        self._reserve_bytes = reserve_bytes
        self._hash = hashlib.sha256()
        self._lock = threading.Lock()
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, data: bytes) -> None:
        with self._lock, _stored():
            _check_disk(os.fstatvfs(self._fd), len(data) + self._reserve_bytes)
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
            self._hash.update(data)

    def finish(self) -> str:
        """Its digest; the bytes will outlast a crash from here on."""
        with self._lock, _stored():
            os.fsync(self._fd)
            self._close()
            return _PREFIX + self._hash.hexdigest()

    def move_to(self, target: Path) -> None:
        """The bytes under their name; what was there was the same."""
        with self._lock, _stored():
            target.parent.mkdir(exist_ok=True, mode=0o700)
            self._path.replace(target)
            for directory in (target.parent, target.parent.parent):
                _sync(directory)

    def discard(self) -> None:
        """Leaves nothing of what was not moved; idempotent."""
        with self._lock:
            self._close()
            with suppress(OSError):
                self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


@contextmanager
def _stored() -> Iterator[None]:
    """What a disk does not take is the gateway's failure, and passes."""
    try:
        yield
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise unavailable("STORAGE_UNAVAILABLE", f"the gateway can't keep the upload: {why}") from error


def _check_disk(disk: os.statvfs_result, size_bytes: int) -> None:
    if disk.f_bavail * disk.f_frsize < size_bytes:
        raise unavailable("STORAGE_UNAVAILABLE", "the gateway can't keep the upload: its disk is full")


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
