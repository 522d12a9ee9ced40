"""The registry: publish, find, alias, yank and download Skills."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import grpc.aio

from skillcell.client import convert
from skillcell.client.channel import ask, known_values
from skillcell.client.download import chunks, save
from skillcell.client.packing import Packed, packed
from skillcell.client.sending import send
from skillcell.client.types import Page, Published, Skill, Validation
from skillcell.core.skills import SkillVersion
from skillcell.v1 import registry_pb2 as pb
from skillcell.v1 import registry_pb2_grpc
from skillcell.wire import finding_from_proto, skill_version_from_proto

OnProgress = Callable[[int, int], None]
"""Called with the bytes sent so far and the bytes in all."""
Message = TypeVar("Message", pb.PublishSkillRequest, pb.ValidateSkillRequest)


class RegistryCalls:
    """RegistryService of one gateway. All raise SkillcellError."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Sequence[tuple[str, str]]) -> None:
        self._stub = registry_pb2_grpc.RegistryServiceStub(channel)
        self._metadata = tuple(metadata)

    async def publish(
        self,
        path: str | PathLike[str],
        *,
        as_name: str = "",
        version: str = "",
        runtime: bytes = b"",
        lenient: bool = False,
        aliases: Sequence[str] = (),
        on_progress: OnProgress | None = None,
    ) -> Published:
        """Publishes a folder, or an archive of one as it is. `runtime` is a skill-runtime.yaml laid over it.

        Raises OSError and ValueError for a path that can't be read or packed.
        """
        header = pb.SkillHeader(
            skill=as_name, version=version, manifest_overlay=runtime, lenient=lenient, aliases=aliases
        )
        async with _Packing(Path(path)) as package:
            first = pb.PublishSkillRequest(header=_header(package, header))
            rest = _chunks(package, pb.PublishSkillRequest, on_progress)
            answer = await send(self._stub.PublishSkill, self._metadata, first, rest)
        with known_values():
            return Published(skill_version_from_proto(answer.version), answer.created)

    async def validate(
        self,
        path: str | PathLike[str],
        *,
        as_name: str = "",
        version: str = "",
        runtime: bytes = b"",
        lenient: bool = False,
        on_progress: OnProgress | None = None,
    ) -> Validation:
        """Everything that `publish` would find; nothing is kept."""
        header = pb.SkillHeader(skill=as_name, version=version, manifest_overlay=runtime, lenient=lenient)
        async with _Packing(Path(path)) as package:
            first = pb.ValidateSkillRequest(header=_header(package, header))
            rest = _chunks(package, pb.ValidateSkillRequest, on_progress)
            answer = await send(self._stub.ValidateSkill, self._metadata, first, rest)
        with known_values():
            return Validation(
                answer.valid,
                tuple(finding_from_proto(finding) for finding in answer.findings),
                skill_version_from_proto(answer.version) if answer.HasField("version") else None,
            )

    async def get(self, reference: str) -> tuple[Skill, SkillVersion]:
        """A Skill, and the version that the reference leads to."""
        answer = await ask(self._stub.GetSkill(pb.GetSkillRequest(skill=reference), metadata=self._metadata))
        with known_values():
            return convert.skill(answer.skill), skill_version_from_proto(answer.version)

    async def list(
        self, *, publisher: str = "", callable_only: bool = False, page_size: int = 0, page_token: str = ""
    ) -> Page[Skill]:
        """Skills that the caller may see, by name."""
        request = pb.ListSkillsRequest(
            publisher=publisher, callable_only=callable_only, page_size=page_size, page_token=page_token
        )
        answer = await ask(self._stub.ListSkills(request, metadata=self._metadata))
        with known_values():
            return Page(tuple(convert.skill(item) for item in answer.skills), answer.next_page_token)

    async def search(self, query: str, *, page_size: int = 0, page_token: str = "") -> Page[Skill]:
        """Best matches first."""
        request = pb.SearchSkillsRequest(query=query, page_size=page_size, page_token=page_token)
        answer = await ask(self._stub.SearchSkills(request, metadata=self._metadata))
        with known_values():
            return Page(tuple(convert.skill(match.skill) for match in answer.matches), answer.next_page_token)

    async def versions(self, skill: str, *, page_size: int = 0, page_token: str = "") -> Page[SkillVersion]:
        """Newest first."""
        request = pb.ListSkillVersionsRequest(skill=skill, page_size=page_size, page_token=page_token)
        answer = await ask(self._stub.ListSkillVersions(request, metadata=self._metadata))
        with known_values():
            return Page(tuple(skill_version_from_proto(item) for item in answer.versions), answer.next_page_token)

    async def set_alias(self, skill: str, alias: str, version: str) -> Skill:
        """Points an alias at a version; an empty version takes the alias away."""
        request = pb.SetAliasRequest(skill=skill, alias=alias, version=version)
        answer = await ask(self._stub.SetAlias(request, metadata=self._metadata))
        with known_values():
            return convert.skill(answer.skill)

    async def yank(self, skill: str, version: str, *, reason: str = "", undo: bool = False) -> SkillVersion:
        """Takes a version back: it can no longer be called. `undo` gives it back."""
        request = pb.YankSkillVersionRequest(skill=skill, version=version, reason=reason, undo=undo)
        answer = await ask(self._stub.YankSkillVersion(request, metadata=self._metadata))
        with known_values():
            return skill_version_from_proto(answer.version)

    async def download(self, reference: str, path: Path) -> pb.DownloadSkillHeader:
        """The package of a version as an archive file, checked against its hash."""

        def ask_from(offset: int) -> Any:
            request = pb.DownloadSkillRequest(skill=reference, offset=offset)
            return self._stub.DownloadSkill(request, metadata=self._metadata)

        async with aclosing(chunks(ask_from)) as answers:
            first = await anext(answers)

            async def data() -> AsyncGenerator[bytes, None]:
                yield first.data
                async for answer in answers:
                    yield answer.data

            await save(data(), path, sha256=first.header.sha256 or None)
        header: pb.DownloadSkillHeader = first.header
        return header


class _Packing:
    """`packed` off the event loop: packing a large folder takes seconds."""

    def __init__(self, path: Path) -> None:
        self._context = packed(path)

    async def __aenter__(self) -> Packed:
        return await asyncio.to_thread(self._context.__enter__)

    async def __aexit__(self, *error: Any) -> None:
        await asyncio.to_thread(self._context.__exit__, *error)


def _header(package: Packed, header: pb.SkillHeader) -> pb.SkillHeader:
    header.size_bytes = package.size_bytes
    header.sha256 = package.sha256
    return header


async def _chunks(package: Packed, message: type[Message], on_progress: OnProgress | None) -> AsyncIterator[Message]:
    sent, parts = 0, package.chunks()
    while chunk := await asyncio.to_thread(next, parts, b""):
        yield message(chunk=chunk)
        sent += len(chunk)
        if on_progress is not None:
            on_progress(sent, package.size_bytes)
