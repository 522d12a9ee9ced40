"""Artifacts on disk: one directory for each execution, contents named by number, facts in an index beside them.

A name that came from a sandbox is never used as a path here.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import mimetypes
import os
import shutil
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from pathlib import Path

from skillcell.core.errors import not_found, unavailable
from skillcell.core.events import Artifact
from skillcell.core.paths import path_problem

_INDEX = "index.jsonl"
CHUNK_BYTES = 256 * 1024


class ArtifactStore:
    """All artifacts of all executions, under one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def sink(self, execution_id: str) -> ExecutionArtifacts:
        """Where one execution's artifacts are written."""
        return ExecutionArtifacts(self._directory / execution_id)

    async def list(self, execution_id: str) -> tuple[Artifact, ...]:
        """What is kept of an execution, in the order it came."""
        return tuple(artifact for _, artifact in await asyncio.to_thread(_read_index, self._directory / execution_id))

    async def read(self, execution_id: str, name: str, offset: int = 0) -> tuple[Artifact, AsyncGenerator[bytes]]:
        """An artifact and its bytes from `offset` on, in chunks. Raises Fault NOT_FOUND."""
        directory = self._directory / execution_id
        for number, artifact in await asyncio.to_thread(_read_index, directory):
            if artifact.name == name:
                return artifact, _chunks(directory / f"{number}.data", offset)
        raise not_found("artifact", name, f"execution {execution_id} has none of that name, or it is no longer kept")

    async def delete(self, execution_id: str) -> None:
        """Removes an execution's artifacts; idempotent."""
        await asyncio.to_thread(shutil.rmtree, self._directory / execution_id, ignore_errors=True)


class ExecutionArtifacts:
    """Receives the artifacts of one execution, one at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._names: set[str] = set()

    async def open(self, name: str) -> FileArtifact:
        """Raises ValueError with a reason fit for the caller."""
        problem = path_problem(name)
        if problem:
            raise ValueError(f"the name {problem}")
        if name in self._names:
            raise ValueError("an artifact of that name was there before")
        self._names.add(name)
        with _stored():
            await asyncio.to_thread(self._directory.mkdir, parents=True, exist_ok=True, mode=0o700)
            return FileArtifact(self._directory, len(self._names), name)


class FileArtifact:
    """One artifact on its way to disk. All but `discard` raise Fault when the disk takes no more.

    A canceled call leaves its thread running, so `discard` may come amid a write: the lock keeps it from closing the
    descriptor under that write, whose number might belong to another file by then.
    """

    def __init__(self, directory: Path, number: int, name: str) -> None:
        self._directory = directory
        self._path = directory / f"{number}.data"
        self._number = number
        self._name = name
        self._size = 0
        self._hash = hashlib.sha256()
        self._lock = threading.Lock()
        self._kept = False
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    async def write(self, data: bytes) -> None:
        await asyncio.to_thread(self._write, data)

    async def finish(self) -> Artifact:
        """Readable once this returns."""
        return await asyncio.to_thread(self._finish)

    async def discard(self) -> None:
        """Leaves nothing of an artifact that was not finished."""
        await asyncio.to_thread(self._discard)

    def _write(self, data: bytes) -> None:
        with self._lock, _stored():
            _write_all(self._fd, data)
            self._hash.update(data)
            self._size += len(data)

    def _finish(self) -> Artifact:
        with self._lock, _stored():
            self._close()
            artifact = self._listed()
            self._kept = True
            return artifact

    def _listed(self) -> Artifact:
        media_type = mimetypes.guess_type(self._name)[0] or "application/octet-stream"
        artifact = Artifact(self._name, self._size, self._hash.hexdigest(), media_type)
        line = {
            "number": self._number,
            "name": artifact.name,
            "size_bytes": artifact.size_bytes,
            "sha256": artifact.sha256,
            "media_type": artifact.media_type,
        }
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        index = os.open(self._directory / _INDEX, flags, 0o600)
        try:
            whole = os.fstat(index).st_size
            try:
                _write_all(index, json.dumps(line).encode() + b"\n")
            except OSError:
                os.ftruncate(index, whole)  # half a line would swallow the next one
                raise
        finally:
            os.close(index)
        return artifact

    def _discard(self) -> None:
        with self._lock:
            self._close()
            if not self._kept:
                self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


@contextmanager
def _stored() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise unavailable("STORAGE_UNAVAILABLE", f"the gateway can't keep an artifact: {why}") from error


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _read_index(directory: Path) -> list[tuple[int, Artifact]]:
    try:
        lines = (directory / _INDEX).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        entry = json.loads(line)
        number = entry.pop("number")
        found.append((number, Artifact(**entry)))
    return found


async def _chunks(path: Path, offset: int) -> AsyncGenerator[bytes]:
    with await asyncio.to_thread(path.open, "rb") as file:
        file.seek(offset)
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk
