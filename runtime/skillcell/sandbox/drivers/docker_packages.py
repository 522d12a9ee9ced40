"""Read-only packages as volumes of the engine, so that a remote engine has them too and a call copies nothing.

Two volumes for each package: a data volume with a name of its own, filled through a container that is never started,
and then a marker volume, named by the digest, whose label names the data volume. Making a volume that exists returns
the one that is there, so the marker is an atomic compare-and-set: of two gateways that fill at once exactly one wins,
the other drops its copy and takes the winner's, and a crash half-way leaves a data volume that no marker names. A
reader could get one thing wrong: the engine makes a missing volume up, empty, when a container names it; so what is
pruned must leave the cache first.
"""

from __future__ import annotations

import os
import secrets
import stat
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import docker
from docker.errors import APIError, NotFound

from skillcell.core.errors import Fault, FaultKind, precondition
from skillcell.sandbox.driver import PackageMount

LABEL_PACKAGE = "skillcell.package"
LABEL_OWNER = "skillcell.package-of"
LABEL_DATA = "skillcell.package-data"

_STALE_SECONDS = 900.0
"""A data volume without a marker is somebody's work in progress until it is this old."""
_SPOOL_BYTES = 8 << 20


class PackageVolumes:
    """The packages of one gateway instance on its engine. Safe to use from several threads."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._known: dict[str, str] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()

    def forget(self) -> None:
        """Look again at what the engine has: it may be another one, or have lost its data."""
        with self._guard:
            self._known.clear()

    def ensure(self, client: docker.APIClient, mounts: Sequence[PackageMount], image: str) -> list[tuple[str, str]]:
        """(data volume, target) for each package, filled where the engine has none yet. `image` is any that it has."""
        return [(self._known.get(mount.digest) or self._ensure(client, mount, image), mount.target) for mount in mounts]

    def _ensure(self, client: docker.APIClient, mount: PackageMount, image: str) -> str:
        with self._guard:
            lock = self._locks.setdefault(mount.digest, threading.Lock())
        with lock:
            known = self._known.get(mount.digest)
            if known is None:
                known = self._find(client, mount.digest) or self._fill(client, mount, image)
                self._known[mount.digest] = known
            return known

    def _marker(self, digest: str) -> str:
        return f"skillcell-pkg-{self._instance}-{digest.removeprefix('sha256:')}"

    def _find(self, client: docker.APIClient, digest: str) -> str | None:
        """The data volume that the marker names, if both are there and are what they seem."""
        try:
            marker = client.inspect_volume(self._marker(digest))
        except NotFound:
            return None
        name = (marker.get("Labels") or {}).get(LABEL_DATA, "")
        try:
            data = client.inspect_volume(name) if name else {}
        except NotFound:
            data = {}
        if (data.get("Labels") or {}).get(LABEL_PACKAGE) == digest:
            return str(name)
        client.remove_volume(self._marker(digest))  # it points at nothing: somebody removed the data by hand
        return None

    def _fill(self, client: docker.APIClient, mount: PackageMount, image: str) -> str:
        labels = {LABEL_PACKAGE: mount.digest, LABEL_OWNER: self._instance}
        name = f"{self._marker(mount.digest)}-{secrets.token_hex(6)}"
        client.create_volume(name, labels=labels)
        try:
            _copy_in(client, mount.path, name, image, labels)
            marker = client.create_volume(
                self._marker(mount.digest), labels={LABEL_OWNER: self._instance, LABEL_DATA: name}
            )
            winner = str((marker.get("Labels") or {}).get(LABEL_DATA, ""))
        except BaseException:
            with suppress(Exception):  # the first error is the one to tell; prune removes what stays
                client.remove_volume(name)
            raise
        if winner != name:
            client.remove_volume(name)
        if not winner:
            raise precondition(
                "PACKAGE_VOLUME_FOREIGN",
                "a volume with the name of a package exists but is not ours; remove it: docker volume rm "
                + self._marker(mount.digest),
            )
        return winner

    def prune(self, client: docker.APIClient, keep: set[str]) -> int:
        """Remove packages whose digests are not in `keep`, unless a container uses them, and stale half-made ones."""
        volumes = client.volumes(filters={"label": f"{LABEL_OWNER}={self._instance}"}).get("Volumes") or []
        markers = {v["Labels"][LABEL_DATA]: v["Name"] for v in volumes if LABEL_DATA in v["Labels"]}
        removed = 0
        for volume in volumes:
            digest = volume["Labels"].get(LABEL_PACKAGE)
            if digest is None or digest in keep:
                continue
            marker = markers.get(volume["Name"])
            if marker is None and time.time() - _made(volume) < _STALE_SECONDS:
                continue
            removed += self._remove(client, digest, volume["Name"], marker)
        self._remove_stale_fillers(client)
        return removed

    def _remove(self, client: docker.APIClient, digest: str, data: str, marker: str | None) -> bool:
        with self._guard:
            lock = self._locks.setdefault(digest, threading.Lock())
        with lock:
            try:
                client.remove_volume(data)  # refused while a container uses it: then the marker stays too
            except APIError as error:
                if error.status_code == 409:
                    return False
                if error.status_code != 404:
                    raise
            self._known.pop(digest, None)
            if marker is not None:
                with suppress(NotFound):
                    client.remove_volume(marker)
        return True

    def _remove_stale_fillers(self, client: docker.APIClient) -> None:
        labels = [LABEL_PACKAGE, f"{LABEL_OWNER}={self._instance}"]
        for container in client.containers(all=True, filters={"label": labels}):
            if time.time() - float(container["Created"]) > _STALE_SECONDS:
                with suppress(NotFound):
                    client.remove_container(container["Id"], force=True)


def _made(volume: dict[str, Any]) -> float:
    try:
        return datetime.fromisoformat(str(volume.get("CreatedAt", ""))).timestamp()
    except ValueError:
        return time.time()


def _copy_in(client: docker.APIClient, source: Path, volume: str, image: str, labels: dict[str, str]) -> None:
    body = {
        "Image": image,
        "Entrypoint": ["/never-started"],
        "Labels": labels,
        "NetworkDisabled": True,
        "HostConfig": {
            "NetworkMode": "none",
            "Mounts": [{"Type": "volume", "Source": volume, "Target": "/fill", "VolumeOptions": {"NoCopy": True}}],
        },
    }
    container = client.create_container_from_config(body)["Id"]  # type: ignore[no-untyped-call]
    try:
        with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as archive:
            write_tree(source, archive)
            archive.seek(0)
            client.put_archive(container, "/fill", archive)
    finally:
        client.remove_container(container, force=True)


def write_tree(source: Path, archive: IO[bytes]) -> None:
    """A directory as a tar: root's, no one's to write, no set-id bits; links kept as links. Anything else than files,
    directories and links is refused."""
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, name in _walk(source):
            tar.inodes.clear()  # type: ignore[attr-defined]  # a second hard link is a file like the first
            entry = tar.gettarinfo(path, arcname=name)
            if not (entry.isreg() or entry.isdir() or entry.issym()):
                raise Fault(
                    FaultKind.INTERNAL, "PACKAGE_ENTRY", f"package entry {name!r} is no file, directory or link"
                )
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            entry.mode = stat.S_IMODE(entry.mode) & 0o555 | (0o444 if entry.isreg() else 0o555)
            if entry.isreg():
                with open(path, "rb") as content:
                    tar.addfile(entry, content)
            else:
                tar.addfile(entry)


def _walk(source: Path) -> Iterator[tuple[str, str]]:
    """(path, name in the archive), parents first, sorted, at any depth."""
    pending = [(os.fspath(source), ".")]
    while pending:
        path, name = pending.pop()
        yield path, name
        if os.path.isdir(path) and not os.path.islink(path):
            pending.extend(
                (os.path.join(path, child), f"{name}/{child}") for child in sorted(os.listdir(path), reverse=True)
            )
