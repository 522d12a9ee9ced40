"""Layers on the disk: `layers/<digest>/`, complete or not there, and what they were made for.

Beside each tree lies `<digest>.json` with its lock; `requests/<key>.json` remembers which layer a request came to: for
ever where the request pins everything by hash, else for a short time. A reader could think that a layer's digest is
its content's: it is that of its lock, image and architecture, so the first one built is the one that stays.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from skillcell.core.errors import Fault, precondition
from skillcell.core.skills import Layer
from skillcell.registry.archive import remove_tree, storage_fault
from skillcell.registry.byte_source import Plain
from skillcell.registry.limits import PackageLimits
from skillcell.registry.package_store import seal
from skillcell.registry.tar_reader import read_tar
from skillcell.registry.tree_writer import TreeWriter

FORMAT = "skillcell-layer/1"
_DIGEST_LENGTH = 64
_FOLDER, _MOVABLE = 0o555, 0o755
_FIXED_TIME = 315_532_800  # as `seal` gives it


def layer_digest(kind: str, lock: Sequence[str], image_digest: str, architecture: str) -> str:
    """sha256 hex over the canonical JSON of what makes a layer what it is."""
    return _hash(
        {"format": FORMAT, "kind": kind, "lock": list(lock), "image": image_digest, "architecture": architecture}
    )


def request_key(facts: Mapping[str, Any]) -> str:
    """Names a request."""
    return _hash({"format": FORMAT, **facts})


class LayerStore:
    """All layers of a gateway. Several processes may share it."""

    def __init__(self, layers: Path, staging: Path, limits: PackageLimits) -> None:
        self._layers = layers
        self._requests = layers / "requests"
        self._staging = staging
        self._limits = limits
        for folder in (layers, self._requests, staging):
            folder.mkdir(parents=True, exist_ok=True)

    def scratch(self) -> Path:
        """A new directory for one build, which its maker removes; on the file system of the layers."""
        place = self._staging / f"layer-{secrets.token_hex(12)}"
        place.mkdir(mode=0o700)
        return place

    async def discard(self, scratch: Path) -> None:
        """Idempotent."""
        await asyncio.to_thread(remove_tree, scratch)

    async def find(self, digest: str) -> Layer | None:
        """A layer that is here."""
        return await asyncio.to_thread(self._find, digest)

    async def recall(self, key: str) -> Layer | None:
        """The layer that a request came to before, if that still holds."""
        return await asyncio.to_thread(self._recall, key)

    async def remember(self, key: str, layer: Layer, seconds: float | None) -> None:
        """`seconds` None: for ever."""
        record = {"digest": layer.digest, "until": None if seconds is None else time.time() + seconds}
        await asyncio.to_thread(_write, self._requests / f"{key}.json", record)

    async def add(self, layer: Layer, archive: Path, scratch: Path) -> None:
        """Unpacks a tar into `scratch` and puts it in place. Raises Fault, and then there is no such layer."""
        await asyncio.to_thread(self._add, layer, archive, scratch)

    async def collect(self, named: Collection[str], older_than_seconds: float = 86_400) -> int:
        """Removes layers that no version names and no publication has asked for lately; how many."""
        return await asyncio.to_thread(self._collect, frozenset(named), older_than_seconds)

    def _collect(self, named: frozenset[str], older_than_seconds: float) -> int:
        removed = 0
        for path in list(self._layers.iterdir()):
            unused = len(path.name) == _DIGEST_LENGTH and path.name not in named
            if unused and time.time() - path.lstat().st_ctime >= older_than_seconds:
                gone = self._staging / f"discarded-{secrets.token_hex(12)}"
                os.chmod(path, _MOVABLE)
                os.rename(path, gone)
                path.with_name(f"{path.name}.json").unlink(missing_ok=True)
                remove_tree(gone)
                removed += 1
        for request in list(self._requests.iterdir()):
            if self._recall(request.stem, renew=False) is None:
                request.unlink(missing_ok=True)
        return removed

    def _find(self, digest: str, *, renew: bool = True) -> Layer | None:
        try:
            record = json.loads((self._layers / f"{digest}.json").read_bytes())
            if (self._layers / digest).is_dir():
                if renew:
                    os.utime(self._layers / digest, (_FIXED_TIME, _FIXED_TIME))  # its ctime, see `collect`
                return Layer(record["kind"], digest, tuple(record["lock"]))
        except (OSError, ValueError, KeyError):
            pass
        return None

    def _recall(self, key: str, *, renew: bool = True) -> Layer | None:
        try:
            record = json.loads((self._requests / f"{key}.json").read_bytes())
            until = record["until"]
            if until is None or time.time() < until:
                return self._find(record["digest"], renew=renew)
        except (OSError, ValueError, KeyError):
            pass
        return None

    def _add(self, layer: Layer, archive: Path, scratch: Path) -> None:
        tree, target = scratch / "tree", self._layers / layer.digest
        try:
            tree.mkdir()
            writer = TreeWriter(tree, self._limits)
            with archive.open("rb") as file:
                read_tar(Plain(file), writer, self._limits)
            writer.finish()
            content = seal(tree)
            record = {"kind": layer.kind, "lock": list(layer.lock), "content": content, "bytes": writer.size_bytes}
            _write(self._layers / f"{layer.digest}.json", record)
            _put(tree, target)
        except OSError as problem:
            raise storage_fault(problem) from problem
        except Fault as fault:
            message = f"the packages can't be kept: {fault.message}"
            raise precondition("DEPENDENCY_UNRESOLVED", message, kind=layer.kind) from fault


def _put(tree: Path, target: Path) -> None:
    os.chmod(tree, _MOVABLE)  # a folder that moves to another parent must be writable to whoever is not root
    try:
        os.rename(tree, target)
    except OSError as problem:
        if problem.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
            raise
        return  # another build of the same lock was first
    os.chmod(target, _FOLDER)
    _flush(target.parent)


def _write(path: Path, record: Mapping[str, Any]) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with draft.open("w", encoding="utf-8") as file:
            json.dump(record, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as problem:
        draft.unlink(missing_ok=True)
        raise storage_fault(problem) from problem


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hash(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
