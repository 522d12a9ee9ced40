"""The way of a publication: stage → inspect → resolve dependencies → store → record.

Nothing is half-published: until the last step, one transaction, no version exists. What a failure or crash leaves
behind are staging directories and perhaps a package that no version names; `clean` removes both.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from skillcell.core.errors import Fault, FaultKind, invalid
from skillcell.core.skills import Finding, Layer, PackageRequest, Severity, SkillVersion, Visibility
from skillcell.core.types import Principal
from skillcell.registry import semver
from skillcell.registry.archive import StagedPackage, Staging
from skillcell.registry.catalog import Catalog
from skillcell.registry.catalog_changes import CatalogChanges, Published, check_may_publish
from skillcell.registry.findings import refusal, shown
from skillcell.registry.inspection import Inspection, inspect
from skillcell.registry.limits import PackageLimits
from skillcell.registry.package_store import PackageStore
from skillcell.registry.references import parse_reference

FORMAT = "skillcell-package/1"
_SKILL_FAULTS = frozenset({FaultKind.FAILED_PRECONDITION, FaultKind.INVALID_ARGUMENT, FaultKind.NOT_FOUND})


class PackageResolver(Protocol):
    """Turns dependencies into read-only layers."""

    async def resolve(self, request: PackageRequest, image: str, package: Path) -> tuple[Layer, ...]:
        """The layers, complete and on disk; none for an empty request. `package` is the unpacked Skill, for lock files.

        Raises Fault: FAILED_PRECONDITION when something does not resolve, UNAVAILABLE when it may another time.
        """
        ...


@dataclass(frozen=True, slots=True)
class Publication:
    """A request to publish a folder or archive."""

    source: Path
    publisher: str
    name: str = ""
    """To publish under; empty for the frontmatter's own."""
    version: str = ""
    """SemVer; empty for the manifest's, else one patch above the highest."""
    overlay: bytes | None = None
    """A `skill-runtime.yaml` over the folder's own."""
    lenient: bool = False
    visibility: Visibility | None = None
    """None leaves it as it is; a new Skill is private."""
    aliases: tuple[str, ...] = ()
    folder: str | None = None
    """The folder's true name where `source` is only a copy of it; None to see it from the source."""


class SkillPublisher:
    """Publishes and validates."""

    def __init__(
        self,
        packages: PackageStore,
        catalog: Catalog,
        changes: CatalogChanges,
        resolver: PackageResolver,
        limits: PackageLimits,
    ) -> None:
        self._packages = packages
        self._catalog = catalog
        self._changes = changes
        self._resolver = resolver
        self._staging = Staging(packages.staging_root, limits)

    async def validate(self, publication: Publication) -> Inspection:
        """All findings, with nothing stored. Raises Fault only for an archive that can't be unpacked."""
        async with self._staged(publication) as package:
            return await asyncio.to_thread(_inspect, package, publication)

    async def publish(self, principal: Principal, publication: Publication) -> Published:
        """Raises Fault: INVALID_ARGUMENT with every finding, PERMISSION_DENIED, ALREADY_EXISTS, the resolver's own."""
        check_may_publish(principal, publication.publisher)
        if publication.version and not semver.valid(publication.version):
            raise invalid("version", f"{shown(publication.version)!r} is not SemVer such as 1.2.0")
        async with self._staged(publication) as package:
            inspection = await asyncio.to_thread(_inspect, package, publication)
            if not inspection.valid:
                raise refusal(inspection.findings)
            return await self._publish(principal, publication, package, inspection)

    async def clean(self, older_than_seconds: float = 3600) -> int:
        """Removes what failed and crashed publications left behind; how many things."""
        swept = await self._packages.sweep(older_than_seconds)
        return swept + await self._packages.collect(await self._catalog.package_digests(), older_than_seconds)

    async def _publish(
        self, principal: Principal, publication: Publication, package: StagedPackage, inspection: Inspection
    ) -> Published:
        spec = inspection.spec
        version = publication.version or spec.version
        reference = parse_reference(f"{publication.publisher}/{spec.name}")
        sealed = await self._packages.seal(package)
        digest = version_digest(sealed.digest, publication.overlay)
        found = await self._changes.find_published(principal, reference, digest, version)
        layers: tuple[Layer, ...] = ()
        findings = inspection.findings
        if found is None:
            layers, unresolved = await self._resolve(publication, package, inspection)
            findings += unresolved
        stored = await self._packages.add(sealed)
        draft = SkillVersion(
            publisher=publication.publisher,
            name=spec.name,
            version=version,
            digest=digest,
            spec=replace(spec, version=version),
            package_digest=stored.digest,
            layers=layers,
            findings=findings,
            size_bytes=stored.size_bytes,
            file_count=stored.file_count,
        )
        return await self._changes.publish(
            principal, draft, visibility=publication.visibility, aliases=publication.aliases
        )

    async def _resolve(
        self, publication: Publication, package: StagedPackage, inspection: Inspection
    ) -> tuple[tuple[Layer, ...], tuple[Finding, ...]]:
        """Lenient: dependencies that only the folder declares may fail, since much of a Skill may do without them."""
        spec, wanted = inspection.spec, inspection.spec.packages
        if not (wanted.pip or wanted.npm or wanted.bins):
            return (), ()
        try:
            return await self._resolver.resolve(wanted, spec.image, package.root), ()
        except Fault as fault:
            asked = (kind for kind in ("pip", "npm", "bins") if getattr(wanted, kind))
            only_inferred = all(kind in inspection.inferred for kind in asked)
            if not publication.lenient or not only_inferred or fault.kind not in _SKILL_FAULTS:
                raise
            message = f"dependencies are not installed: {fault.message}"
            return (), (Finding(Severity.WARNING, "dependencies-unresolved", shown(message, 600)),)

    @asynccontextmanager
    async def _staged(self, publication: Publication) -> AsyncIterator[StagedPackage]:
        package = await self._staging.read(publication.source)
        try:
            yield package
        finally:
            await asyncio.shield(self._staging.remove(package))


def version_digest(package_digest: str, overlay: bytes | None) -> str:
    """`sha256:` + the hash of the canonical JSON (sorted keys, no spaces) of package, overlay and format."""
    parts = {
        "format": FORMAT,
        "overlay": hashlib.sha256(overlay).hexdigest() if overlay is not None else "",
        "package": package_digest,
    }
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _inspect(package: StagedPackage, publication: Publication) -> Inspection:
    return inspect(
        package, publication.overlay, lenient=publication.lenient, name=publication.name, folder=publication.folder
    )
