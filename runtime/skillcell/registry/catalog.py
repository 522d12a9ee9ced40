"""Finding Skills: by reference, by list, by words. Writing is in `catalog_changes.py`.

A Skill that a caller may not see is NOT_FOUND, in the same words as one that never was; suggestions come only from what
the caller may see.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from sqlalchemy import Connection, select, tuple_

from skillcell.core.errors import Fault, FaultKind, invalid, precondition
from skillcell.core.skills import SkillVersion, VersionState
from skillcell.core.types import Principal
from skillcell.registry.catalog_rows import (
    AnyRow,
    Skill,
    find_latest,
    find_skill,
    find_versions,
    of_skill,
    to_skill,
    to_version,
    visible,
)
from skillcell.registry.findings import shown
from skillcell.registry.references import SkillReference, parse_reference, parse_skill
from skillcell.storage.pages import decode_token, encode_token, fingerprint
from skillcell.storage.tables_registry import skill_versions, skills

T = TypeVar("T")
_PAGE, _MAX_PAGE = 50, 1000
_MAX_CANDIDATES = 5000


class Store(Protocol):
    """What the catalogue needs of the database: each call is one transaction, off the event loop."""

    async def read(self, work: Callable[[Connection], T]) -> T: ...

    async def write(self, work: Callable[[Connection], T]) -> T: ...


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """`next_page_token` is empty on the last page."""

    items: tuple[T, ...]
    next_page_token: str = ""


@dataclass(frozen=True, slots=True)
class Match:
    """A Skill that a search found; only the order of scores means anything."""

    skill: Skill
    score: float
    entrypoints: tuple[str, ...]


class Catalog:
    """All Skills, as one caller at a time may see them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def get(self, principal: Principal, reference: str) -> SkillVersion:
        """The version a reference leads to, in whatever state. Raises Fault: INVALID_ARGUMENT, NOT_FOUND."""
        parsed = parse_reference(reference)
        return await self._store.read(lambda connection: _version(connection, principal, parsed))

    async def resolve(self, principal: Principal, reference: str) -> SkillVersion:
        """As `get`, for a call: FAILED_PRECONDITION when the version was yanked or blocked."""
        version = await self.get(principal, reference)
        check_state(version)
        return version

    async def skill(self, principal: Principal, skill: str) -> Skill:
        """Raises Fault: INVALID_ARGUMENT, NOT_FOUND."""
        parsed = parse_reference(skill)
        return await self._store.read(
            lambda connection: to_skill(connection, principal, require_skill(connection, principal, parsed))
        )

    async def list_skills(
        self,
        principal: Principal,
        *,
        publisher: str = "",
        callable_only: bool = False,
        page_size: int = 0,
        page_token: str = "",
    ) -> Page[Skill]:
        """By publisher and name. Raises Fault INVALID_ARGUMENT for a token that is not of this list."""
        size, question = page_length(page_size), fingerprint("skills", publisher, callable_only)
        by_name = (skills.c.publisher, skills.c.name)
        query = select(skills).where(visible(principal)).order_by(*by_name).limit(size + 1)
        if publisher:
            query = query.where(skills.c.publisher == publisher)
        if callable_only:
            query = query.where(skills.c.callable.is_(True))
        if page_token:
            after = decode_token(page_token, question, str, str)
            query = query.where(tuple_(skills.c.publisher, skills.c.name) > tuple_(*after))

        def work(connection: Connection) -> Page[Skill]:
            rows = connection.execute(query).all()
            token = encode_token(question, rows[size - 1].publisher, rows[size - 1].name) if len(rows) > size else ""
            return Page(tuple(to_skill(connection, principal, row) for row in rows[:size]), token)

        return await self._store.read(work)

    async def search(
        self, principal: Principal, query: str, *, callable_only: bool = False, page_size: int = 0, page_token: str = ""
    ) -> Page[Match]:
        """Skills that have all the words in name, description or entrypoints; best first."""
        words = sorted(set(query.casefold().split()))[:16]
        if not words:
            raise invalid("query", "must have at least one word")
        size, question = page_length(page_size), fingerprint("search", words, callable_only)
        after = int(decode_token(page_token, question, int)[0]) if page_token else 0
        has_all = (skills.c.search_text.contains(word, autoescape=True) for word in words)
        found = select(skills).where(visible(principal), *has_all)
        if callable_only:
            found = found.where(skills.c.callable.is_(True))

        def work(connection: Connection) -> Page[Match]:
            rows = connection.execute(found.limit(_MAX_CANDIDATES)).all()
            ranked = sorted((-_score(words, row.name, row.search_text), row.publisher, row.name, row) for row in rows)
            page = ranked[after : after + size]
            token = encode_token(question, after + size) if len(ranked) > after + size else ""
            matches = (Match(to_skill(connection, principal, row), -score, ()) for score, _, _, row in page)
            return Page(tuple(_with_entrypoints(match, words) for match in matches), token)

        return await self._store.read(work)

    async def versions(
        self, principal: Principal, skill: str, *, page_size: int = 0, page_token: str = ""
    ) -> Page[SkillVersion]:
        """Newest publication first. Raises Fault: INVALID_ARGUMENT, NOT_FOUND."""
        reference = parse_skill(skill)
        size, question = page_length(page_size), fingerprint("versions", reference.skill)
        newest_first = skill_versions.c.number.desc()
        query = select(skill_versions).where(of_skill(reference)).order_by(newest_first).limit(size + 1)
        if page_token:
            query = query.where(skill_versions.c.number < decode_token(page_token, question, int)[0])

        def work(connection: Connection) -> Page[SkillVersion]:
            owner = require_skill(connection, principal, reference)
            rows = connection.execute(query).all()
            token = encode_token(question, rows[size - 1].number) if len(rows) > size else ""
            return Page(tuple(to_version(row, owner) for row in rows[:size]), token)

        return await self._store.read(work)

    async def package_digests(self) -> frozenset[str]:
        """Of all versions, for `PackageStore.collect`."""
        query = select(skill_versions.c.package_digest).distinct()
        return await self._store.read(lambda connection: frozenset(connection.execute(query).scalars()))

    async def layer_digests(self) -> frozenset[str]:
        """Of all versions, for `LayerStore.collect`."""

        def work(connection: Connection) -> frozenset[str]:
            bodies = connection.execute(select(skill_versions.c.body)).scalars()
            # not `decode_body`: a pass over everything would push what is called now out of its cache
            return frozenset(layer["digest"] for body in bodies for layer in json.loads(body)["layers"])

        return await self._store.read(work)


def check_state(version: SkillVersion) -> None:
    """Raises Fault FAILED_PRECONDITION unless the version may be called."""
    if version.state is VersionState.PUBLISHED:
        return
    word = "was yanked by its publisher" if version.state is VersionState.YANKED else "was blocked by an operator"
    because = f": {version.state_reason}" if version.state_reason else ""
    message = f"{version.reference} {word}{because}"
    raise precondition(f"VERSION_{version.state.value}", message, skill=version.reference)


def page_length(size: int) -> int:
    """0 means the default. Raises Fault INVALID_ARGUMENT."""
    if size < 0:
        raise invalid("page_size", f"{size} is negative")
    return min(size, _MAX_PAGE) or _PAGE


def require_skill(connection: Connection, principal: Principal, reference: SkillReference) -> AnyRow:
    """The row of a Skill the caller may see. Raises Fault NOT_FOUND."""
    row = find_skill(connection, principal, reference)
    if row is not None:
        return row
    seen = select(skills.c.publisher, skills.c.name).where(visible(principal)).limit(_MAX_CANDIDATES)
    names = [f"{row.publisher}/{row.name}" for row in connection.execute(seen)]
    close = difflib.get_close_matches(reference.skill, names, 3, 0.6)
    raise _not_found("SKILL_NOT_FOUND", "skill", reference.skill, close)


def require_version(connection: Connection, reference: SkillReference) -> AnyRow:
    """The row of a version of a Skill the caller may see. Raises Fault: NOT_FOUND, INVALID_ARGUMENT."""
    rows = find_versions(connection, reference)
    if len(rows) > 1:
        raise invalid("skill", f"{reference} fits several versions; give more digits of the digest")
    if rows:
        return rows[0]
    listed = connection.execute(select(skill_versions.c.version).where(of_skill(reference)).limit(_MAX_CANDIDATES))
    names = list(listed.scalars())
    close = difflib.get_close_matches(reference.selector, names, 3, 0.5)
    if not close and (latest := find_latest(connection, reference)) is not None:
        close = [latest.version]
    hints = [f"{reference.skill}@{version}" for version in close]
    raise _not_found("SKILL_VERSION_NOT_FOUND", "skill_version", str(reference), hints)


def _version(connection: Connection, principal: Principal, reference: SkillReference) -> SkillVersion:
    owner = require_skill(connection, principal, reference)
    return to_version(require_version(connection, reference), owner)


def _not_found(reason: str, kind: str, name: str, close: list[str]) -> Fault:
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    return Fault(
        FaultKind.NOT_FOUND,
        reason,
        f"{kind.replace('_', ' ')} {shown(name)!r} was not found{hint}",
        resource=(kind, shown(name)),
        metadata={"close": ", ".join(close)} if close else {},
    )


def _score(words: list[str], name: str, text: str) -> float:
    """Words in the name count most, then how often they occur."""
    in_name = sum(4.0 if word == name else 2.0 if word in name else 0.0 for word in words)
    return in_name + sum(min(text.count(word), 5) for word in words) / 10


def _with_entrypoints(match: Match, words: list[str]) -> Match:
    texts = {e.name: f"{e.name} {e.description}".casefold() for e in match.skill.latest.spec.entrypoints}
    names = tuple(name for name, text in texts.items() if any(word in text for word in words))
    return Match(match.skill, match.score, names)
