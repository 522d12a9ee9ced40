"""Foreign images from an archive, `docker save` output or an OCI layout as a tar, to a tree of the store.

Nothing of the archive is trusted: every blob is checked against its digest, and layers are applied as `images_layers`
says. A reader could think the reference's digest names the layers; it names the manifest, which names the
configuration, which names the layers: each step is checked.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from skillcell.core.errors import Fault, invalid, precondition
from skillcell.sandbox.images import (
    MOUNT_POINTS,
    Image,
    ImageStore,
    machine_architecture,
    parse_foreign,
    require_python,
)
from skillcell.sandbox.images_layers import DEFAULT_LIMITS, ArchiveLimits, LayerWriter, broken
from skillcell.sandbox.images_tree import find_python, resolve_inside

_INDEX_DEPTH = 4
_TITLE = "org.opencontainers.image.ref.name"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def import_archive(
    store: ImageStore, archive: Path, *, reference: str = "", limits: ArchiveLimits = DEFAULT_LIMITS
) -> Image:
    """Import an image for this machine's architecture. `reference` (`repository@sha256:…`) is what Skills will name it
    by and must be the digest of the archive's manifest, or of its configuration; without one, the archive's own name is
    taken. INVALID_ARGUMENT for a broken or hostile archive, FAILED_PRECONDITION for one that can't serve as a sandbox.
    """
    expected = parse_foreign(reference)[1] if reference else ""
    try:
        with tarfile.open(archive, mode="r:*") as outer:
            content = _Archive(outer, limits)
            found = content.manifest(expected)
            with store.building() as scratch:
                tree = scratch / "tree"
                tree.mkdir(mode=0o755)
                _apply_layers(tree, content, found, limits)
                image = _describe(tree, found, reference or f"{found.name}@{found.digest}")
                for point in MOUNT_POINTS:
                    resolve_inside(tree, point).mkdir(mode=0o755, parents=True, exist_ok=True)
                return store.adopt(tree, image)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise broken("it is not a readable tar") from error
    except (json.JSONDecodeError, KeyError, TypeError, IndexError) as error:
        raise broken("its manifest or configuration is malformed") from error
    except OSError as error:
        raise broken(f"its content can't be laid out as files ({error.strerror})") from error


@dataclass(frozen=True, slots=True)
class _Manifest:
    name: str
    digest: str
    config: Mapping[str, Any]
    layers: tuple[str, ...]
    """Paths in the archive, lowest first."""


class _Archive:
    """The two layouts behind one question: which configuration, which layers."""

    def __init__(self, outer: tarfile.TarFile, limits: ArchiveLimits) -> None:
        self._outer = outer
        self._limits = limits
        self._members = {os.path.normpath(member.name): member for member in outer.getmembers()}

    def open(self, path: str) -> IO[bytes]:
        member = self._members.get(os.path.normpath(path))
        # docker save may name a layer by a link to an equal one.
        if member is not None and (member.issym() or member.islnk()):
            base = os.path.dirname(member.name) if member.issym() else ""
            member = self._members.get(os.path.normpath(os.path.join(base, member.linkname)))
        stream = self._outer.extractfile(member) if member is not None and member.isreg() else None
        if stream is None:
            raise broken(f"it has no file {path!r}")
        return stream

    def manifest(self, expected: str) -> _Manifest:
        if "index.json" in self._members and "oci-layout" in self._members:
            return self._oci(expected)
        if "manifest.json" in self._members:
            return self._docker(expected)
        raise broken("it has neither index.json (OCI layout) nor manifest.json (docker save)")

    def _document(self, path: str, digest: str = "") -> Any:
        data = self.open(path).read(self._limits.document_bytes + 1)
        if len(data) > self._limits.document_bytes:
            raise broken(f"{path!r} is longer than {self._limits.document_bytes} bytes")
        if digest and _sha256(data) != digest:
            raise broken(f"{path!r} is {_sha256(data)}, not {digest}")
        return json.loads(data)

    def _oci(self, expected: str) -> _Manifest:
        index = self._document("index.json")
        seen: list[str] = []
        for names, title, document in self._manifests(index["manifests"], (), ""):
            config_digest = str(document["config"]["digest"])
            seen += [*names, config_digest]
            if expected in ("", *names, config_digest):
                config = self._document(_blob(config_digest), config_digest)
                layers = tuple(_blob(str(layer["digest"])) for layer in document["layers"])
                return _Manifest(_repository(title), expected or names[0], config, layers)
        raise _mismatch(expected, seen)

    def _manifests(
        self, descriptors: Sequence[Mapping[str, Any]], above: tuple[str, ...], title: str
    ) -> Iterator[tuple[tuple[str, ...], str, Mapping[str, Any]]]:
        """(every digest that names it, its title, document) of each manifest for this architecture, through nested
        indexes: a multi-architecture reference names the index.
        """
        if len(above) > _INDEX_DEPTH:
            raise broken(f"its indexes nest deeper than {_INDEX_DEPTH}")
        for descriptor in descriptors:
            architecture = (descriptor.get("platform") or {}).get("architecture", machine_architecture())
            if architecture != machine_architecture():
                continue
            digest = str(descriptor["digest"])
            document = self._document(_blob(digest), digest)
            name = title or str((descriptor.get("annotations") or {}).get(_TITLE, ""))
            if "manifests" in document:
                yield from self._manifests(document["manifests"], (*above, digest), name)
            else:
                yield (*above, digest), name, document

    def _docker(self, expected: str) -> _Manifest:
        entries = self._document("manifest.json")
        seen: list[str] = []
        for entry in entries:
            data = self.open(entry["Config"]).read(self._limits.document_bytes + 1)
            digest = _sha256(data)
            seen.append(digest)
            if expected in ("", digest):
                tags = entry.get("RepoTags") or [""]
                return _Manifest(_repository(tags[0]), digest, json.loads(data), tuple(entry["Layers"]))
        raise _mismatch(expected, seen)


def _apply_layers(tree: Path, content: _Archive, manifest: _Manifest, limits: ArchiveLimits) -> None:
    diff_ids = [str(diff_id) for diff_id in manifest.config["rootfs"]["diff_ids"]]
    if len(diff_ids) != len(manifest.layers):
        raise broken(f"its configuration names {len(diff_ids)} layers, its manifest {len(manifest.layers)}")
    writer = LayerWriter(tree, limits)
    for path, diff_id in zip(manifest.layers, diff_ids, strict=True):
        writer.apply(content.open(path), diff_id)


def _describe(tree: Path, manifest: _Manifest, reference: str) -> Image:
    architecture = str(manifest.config.get("architecture", ""))
    if architecture != machine_architecture():
        raise precondition(
            "IMAGE_ARCHITECTURE",
            f"image {reference!r} is for {architecture!r}, this machine is {machine_architecture()!r}",
            value=architecture,
            limit=machine_architecture(),
        )
    settings = manifest.config.get("config") or {}
    env = dict(str(pair).partition("=")[::2] for pair in settings.get("Env") or [])
    env.setdefault("PATH", DEFAULT_PATH)
    python = require_python(reference, find_python(tree, env["PATH"]))
    return Image(reference, manifest.digest, None, architecture, env, python)


def _blob(digest: str) -> str:
    if re.fullmatch(r"sha256:[0-9a-f]{64}", digest) is None:
        raise broken(f"{digest!r} is not a sha256 digest")
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _repository(name: str) -> str:
    without_tag = re.sub(r":[^:/]*$", "", name)
    return without_tag if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/-]*[A-Za-z0-9]", without_tag) else "imported"


def _sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _mismatch(expected: str, seen: list[str]) -> Fault:
    return invalid(
        "reference",
        f"names {expected}, the archive holds {', '.join(seen) or 'nothing'}. A docker-save archive knows only the "
        "image ID; an OCI archive (`skopeo copy docker://… oci-archive:image.tar`) keeps the manifest's digest",
        reason="IMAGE_DIGEST_MISMATCH",
        value=expected,
    )
