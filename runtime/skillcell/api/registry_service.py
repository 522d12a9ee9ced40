"""RegistryService: archives in, versions out."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import grpc.aio

from skillcell.api.edge import SEND, caller
from skillcell.core.errors import Fault, FaultKind, invalid
from skillcell.core.skills import SkillVersion, VersionState, Visibility
from skillcell.core.types import Principal
from skillcell.registry.catalog import Catalog
from skillcell.registry.catalog_changes import CatalogChanges
from skillcell.registry.catalog_rows import Skill
from skillcell.registry.package_store import PackageStore
from skillcell.registry.publish import Publication, SkillPublisher
from skillcell.v1 import registry_pb2 as pb
from skillcell.v1 import registry_pb2_grpc, skill_pb2
from skillcell.wire.enums import VISIBILITY
from skillcell.wire.skills import finding_to_proto, skill_version_to_proto
from skillcell.wire.times import instant_to_proto

Context = grpc.aio.ServicerContext[Any, Any]
Part = pb.PublishSkillRequest | pb.ValidateSkillRequest
_CHUNK_BYTES = 256 * 1024
_SUFFIXES = {
    pb.ARCHIVE_FORMAT_ZIP: ".zip",
    pb.ARCHIVE_FORMAT_TAR: ".tar",
    pb.ARCHIVE_FORMAT_TAR_GZIP: ".tar.gz",
    pb.ARCHIVE_FORMAT_TAR_XZ: ".tar.xz",
}
ANY_PUBLISHER = "*"


@dataclass(frozen=True, slots=True)
class Received:
    """An archive that has arrived whole."""

    header: pb.SkillHeader
    archive: Path


class RegistryService(registry_pb2_grpc.RegistryServiceServicer):
    """Publishing, and looking at what is published."""

    def __init__(
        self,
        catalog: Catalog,
        changes: CatalogChanges,
        publisher: SkillPublisher,
        packages: PackageStore,
        max_archive_bytes: int,
    ) -> None:
        self._catalog = catalog
        self._changes = changes
        self._publisher = publisher
        self._packages = packages
        self._max_archive_bytes = max_archive_bytes

    async def PublishSkill(
        self, requests: AsyncIterator[pb.PublishSkillRequest], context: Context
    ) -> pb.PublishSkillResponse:
        principal = caller()
        async with self._received(requests, context) as received:
            published = await self._publisher.publish(principal, _publication(principal, received))
        return pb.PublishSkillResponse(version=skill_version_to_proto(published.version), created=published.created)

    async def ValidateSkill(
        self, requests: AsyncIterator[pb.ValidateSkillRequest], context: Context
    ) -> pb.ValidateSkillResponse:
        principal = caller()
        async with self._received(requests, context) as received:
            publication = _publication(principal, received)
            inspection = await self._publisher.validate(publication)
        would_be = SkillVersion(
            publisher=publication.publisher,
            name=inspection.spec.name,
            version=publication.version or inspection.spec.version,
            digest="",
            spec=inspection.spec,
            package_digest="",
        )
        return pb.ValidateSkillResponse(
            valid=inspection.valid,
            findings=[finding_to_proto(finding) for finding in inspection.findings],
            version=skill_version_to_proto(would_be),
        )

    async def GetSkill(self, request: pb.GetSkillRequest, context: Context) -> pb.GetSkillResponse:
        principal = caller()
        version = await self._catalog.get(principal, request.skill)
        skill = await self._catalog.skill(principal, f"{version.publisher}/{version.name}")
        message = skill_version_to_proto(version)
        if request.include_instructions:
            text = await asyncio.to_thread(_instructions, self._packages.path(version.package_digest))
            message.instructions = text
        return pb.GetSkillResponse(skill=_skill(skill), version=message)

    async def ListSkills(self, request: pb.ListSkillsRequest, context: Context) -> pb.ListSkillsResponse:
        page = await self._catalog.list_skills(
            caller(),
            publisher=request.publisher,
            callable_only=request.callable_only,
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return pb.ListSkillsResponse(
            skills=[_skill(skill) for skill in page.items], next_page_token=page.next_page_token
        )

    async def SearchSkills(self, request: pb.SearchSkillsRequest, context: Context) -> pb.SearchSkillsResponse:
        page = await self._catalog.search(
            caller(),
            request.query,
            callable_only=request.callable_only,
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return pb.SearchSkillsResponse(
            matches=[
                pb.SkillMatch(skill=_skill(match.skill), score=match.score, entrypoints=match.entrypoints)
                for match in page.items
            ],
            next_page_token=page.next_page_token,
        )

    async def ListSkillVersions(
        self, request: pb.ListSkillVersionsRequest, context: Context
    ) -> pb.ListSkillVersionsResponse:
        page = await self._catalog.versions(
            caller(), request.skill, page_size=request.page_size, page_token=request.page_token
        )
        return pb.ListSkillVersionsResponse(
            versions=[skill_version_to_proto(version) for version in page.items], next_page_token=page.next_page_token
        )

    async def SetAlias(self, request: pb.SetAliasRequest, context: Context) -> pb.SetAliasResponse:
        skill = await self._changes.set_alias(
            caller(), request.skill, request.alias, request.version, expected_version=request.expected_version or None
        )
        return pb.SetAliasResponse(skill=_skill(skill))

    async def YankSkillVersion(
        self, request: pb.YankSkillVersionRequest, context: Context
    ) -> pb.YankSkillVersionResponse:
        state = VersionState.PUBLISHED if request.undo else VersionState.YANKED
        change = await self._changes.set_state(caller(), request.skill, request.version, state, request.reason)
        return pb.YankSkillVersionResponse(
            version=skill_version_to_proto(change.version), dangling_aliases=change.dangling_aliases
        )

    async def SetSkillVisibility(
        self, request: pb.SetSkillVisibilityRequest, context: Context
    ) -> pb.SetSkillVisibilityResponse:
        visibility = VISIBILITY.from_wire(request.visibility)
        skill = await self._changes.set_visibility(caller(), request.skill, visibility, request.granted_tenants)
        return pb.SetSkillVisibilityResponse(skill=_skill(skill))

    async def DownloadSkill(
        self, request: pb.DownloadSkillRequest, context: Context
    ) -> AsyncIterator[pb.DownloadSkillResponse]:
        version = await self._catalog.get(caller(), request.skill)
        with await self._packages.to_archive(version.package_digest) as archive:
            size, digest = await asyncio.to_thread(_measured, archive)
            if request.offset > size:
                raise Fault(
                    FaultKind.OUT_OF_RANGE,
                    "POSITION_OUT_OF_RANGE",
                    f"offset: is {request.offset}; the archive has {size} bytes",
                )
            header = pb.DownloadSkillHeader(
                version=version.version, digest=version.digest, size_bytes=size, sha256=digest
            )
            if version.created_at is not None:
                header.create_time.CopyFrom(instant_to_proto(version.created_at))
            yield pb.DownloadSkillResponse(header=header, offset=request.offset)
            offset = archive.seek(request.offset)
            while data := await asyncio.to_thread(archive.read, _CHUNK_BYTES):
                yield pb.DownloadSkillResponse(offset=offset, data=data)
                offset += len(data)

    @asynccontextmanager
    async def _received(self, requests: AsyncIterator[Part], context: Context) -> AsyncIterator[Received]:
        """The stream as a file that is gone when the block ends. Raises Fault INVALID_ARGUMENT."""
        with tempfile.TemporaryDirectory(prefix="received-", dir=self._packages.staging_root) as directory:
            header: pb.SkillHeader | None = None
            path, digest, size = Path(directory) / "archive", hashlib.sha256(), 0
            with path.open("wb") as file:
                async for request in requests:
                    if request.WhichOneof("part") == "header":
                        if header is not None:
                            raise _order("the header came twice")
                        header = request.header
                        self._check_size(header.size_bytes)
                        await context.send_initial_metadata((SEND,))
                        continue
                    if header is None:
                        raise _order("the first message must be the header")
                    size += len(request.chunk)
                    self._check_size(size)
                    digest.update(request.chunk)
                    await asyncio.to_thread(file.write, request.chunk)
            if header is None:
                raise _order("there was no header")
            if header.sha256 and header.sha256 != digest.digest():
                raise invalid(
                    "header.sha256", f"the archive that came has sha256 {digest.hexdigest()}", reason="CONTENT_MISMATCH"
                )
            archive = path.with_suffix(_SUFFIXES.get(header.format, ""))
            yield Received(header, path.rename(archive))

    def _check_size(self, size: int) -> None:
        if size > self._max_archive_bytes:
            raise invalid(
                "chunk",
                f"the archive has {size} bytes or more; the limit is {self._max_archive_bytes}",
                reason="ARCHIVE_INVALID",
                limit=str(self._max_archive_bytes),
            )


def _measured(archive: BinaryIO) -> tuple[int, bytes]:
    digest = hashlib.sha256()
    while data := archive.read(_CHUNK_BYTES):
        digest.update(data)
    return archive.tell(), digest.digest()


def _order(message: str) -> Fault:
    return Fault(FaultKind.INVALID_ARGUMENT, "STREAM_ORDER", message)


def _publication(principal: Principal, received: Received) -> Publication:
    header = received.header
    publisher, _, name = header.skill.partition("/")
    visibility: Visibility | None = VISIBILITY.optional(header.visibility)
    return Publication(
        source=received.archive,
        publisher=publisher or _own_publisher(principal),
        name=name,
        version=header.version,
        overlay=header.manifest_overlay or None,
        lenient=header.lenient,
        visibility=visibility,
        aliases=tuple(header.aliases),
    )


def _own_publisher(principal: Principal) -> str:
    named = sorted(principal.publishers - {ANY_PUBLISHER})
    if len(named) == 1:
        return named[0]
    if not named:
        return principal.tenant
    raise invalid("header.skill", f"say which publisher: you own {', '.join(named)}")


def _skill(skill: Skill) -> skill_pb2.Skill:
    return skill_pb2.Skill(
        publisher=skill.publisher,
        name=skill.name,
        description=skill.description,
        latest_version=skill.latest.version,
        aliases=skill.aliases,
        visibility=VISIBILITY.to_wire(skill.visibility),
        granted_tenants=skill.granted_tenants,
        callable=skill.callable,
        create_time=instant_to_proto(skill.created_at),
        update_time=instant_to_proto(skill.updated_at),
    )


def _instructions(package: Path) -> str:
    for name in ("SKILL.md", "skill.md"):
        if (package / name).is_file():
            return (package / name).read_text(encoding="utf-8", errors="replace")
    return ""
