"""Rows of the catalogue as our types, and the one condition that says who may see a Skill.

Every query of the catalogue goes through `visible`: what is not the caller's is not there for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache, lru_cache
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import ColumnElement, Connection, Row, and_, exists, or_, select, true

from skillcell.core.skills import Finding, Layer, SkillSpec, SkillVersion, VersionState, Visibility
from skillcell.core.types import Principal
from skillcell.registry import semver
from skillcell.registry.references import LATEST, SkillReference
from skillcell.storage.tables_registry import skill_aliases, skill_grants, skill_versions, skills

AnyRow = Row[Any]
OPERATOR = "operator"
PUBLISHER = "publisher"


@dataclass(frozen=True, slots=True)
class Skill:
    """A Skill as a whole. `latest` is its highest published release, else the newest version of any kind."""

    publisher: str
    name: str
    owner_tenant: str
    visibility: Visibility
    callable: bool
    created_at: datetime
    updated_at: datetime
    latest: SkillVersion
    aliases: dict[str, str]
    granted_tenants: tuple[str, ...] = ()
    """Shown to the owner alone."""

    @property
    def description(self) -> str:
        return self.latest.spec.description


@dataclass(frozen=True, slots=True)
class Body:
    """What of a version is kept as one JSON text."""

    spec: SkillSpec
    layers: tuple[Layer, ...]
    findings: tuple[Finding, ...]


@cache
def _adapter() -> TypeAdapter[Body]:
    return TypeAdapter(Body)


def encode_body(body: Body) -> str:
    return _adapter().dump_json(body).decode()


@lru_cache(maxsize=512)
def decode_body(text: str) -> Body:
    return _adapter().validate_json(text)


def owns(principal: Principal, publisher: str) -> bool:
    """Whether the caller may change what is published under a name."""
    return OPERATOR in principal.roles or publisher in principal.publishers


def visible(principal: Principal) -> ColumnElement[bool]:
    """The Skills that exist for the caller: its own, public ones, and those granted to its tenant."""
    if OPERATOR in principal.roles:
        return true()
    granted = exists().where(
        skill_grants.c.publisher == skills.c.publisher,
        skill_grants.c.name == skills.c.name,
        skill_grants.c.tenant == principal.tenant,
    )
    return or_(
        skills.c.owner_tenant == principal.tenant,
        skills.c.publisher.in_(sorted(principal.publishers)),
        skills.c.visibility == Visibility.PUBLIC.value,
        and_(skills.c.visibility == Visibility.GRANTED.value, granted),
    )


def find_skill(connection: Connection, principal: Principal, reference: SkillReference) -> AnyRow | None:
    query = select(skills).where(
        skills.c.publisher == reference.publisher, skills.c.name == reference.name, visible(principal)
    )
    return connection.execute(query).one_or_none()


def of_skill(reference: SkillReference) -> ColumnElement[bool]:
    return and_(skill_versions.c.publisher == reference.publisher, skill_versions.c.name == reference.name)


def find_versions(connection: Connection, reference: SkillReference) -> Sequence[AnyRow]:
    """What the selector fits: one row, none, or several for a digest prefix that is too short."""
    query = select(skill_versions).where(of_skill(reference))
    if reference.is_digest:
        return connection.execute(query.where(skill_versions.c.digest.startswith(reference.selector)).limit(3)).all()
    if reference.selector in {"", LATEST}:
        latest = find_latest(connection, reference)
        return [latest] if latest is not None else []
    version = reference.selector
    if not reference.is_version:
        alias = select(skill_aliases.c.version).where(
            skill_aliases.c.publisher == reference.publisher,
            skill_aliases.c.name == reference.name,
            skill_aliases.c.alias == reference.selector,
        )
        version = connection.execute(alias).scalar_one_or_none() or ""
    return connection.execute(query.where(skill_versions.c.version == version)).all()


def find_latest(connection: Connection, reference: SkillReference) -> AnyRow | None:
    """The highest published release, else the highest published prerelease, else the highest of all."""
    published = skill_versions.c.state == VersionState.PUBLISHED.value
    release = (
        select(skill_versions)
        .where(of_skill(reference), published, skill_versions.c.prerelease.is_(False))
        .order_by(skill_versions.c.sort_key.desc())
        .limit(1)
    )
    row = connection.execute(release).one_or_none()
    if row is not None:
        return row
    rest = connection.execute(select(skill_versions).where(of_skill(reference))).all()
    return max(rest, key=lambda row: (row.state == VersionState.PUBLISHED.value, row.sort_key), default=None)


def to_version(row: AnyRow, skill: AnyRow) -> SkillVersion:
    body = decode_body(row.body)
    return SkillVersion(
        publisher=row.publisher,
        name=row.name,
        version=row.version,
        digest=row.digest,
        spec=body.spec,
        package_digest=row.package_digest,
        layers=body.layers,
        findings=body.findings,
        state=VersionState(row.state),
        state_reason=row.state_reason,
        visibility=Visibility(skill.visibility),
        owner_tenant=skill.owner_tenant,
        created_at=row.created_at,
        size_bytes=row.size_bytes,
        file_count=row.file_count,
    )


def to_skill(connection: Connection, principal: Principal, row: AnyRow) -> Skill:
    reference = SkillReference(row.publisher, row.name)
    latest = find_latest(connection, reference)
    if latest is None:
        raise LookupError("a Skill without a version")  # publishing writes both in one transaction
    aliases = select(skill_aliases.c.alias, skill_aliases.c.version).where(
        skill_aliases.c.publisher == row.publisher, skill_aliases.c.name == row.name
    )
    grants = select(skill_grants.c.tenant).where(
        skill_grants.c.publisher == row.publisher, skill_grants.c.name == row.name
    )
    mine = owns(principal, row.publisher)
    return Skill(
        publisher=row.publisher,
        name=row.name,
        owner_tenant=row.owner_tenant,
        visibility=Visibility(row.visibility),
        callable=row.callable,
        created_at=row.created_at,
        updated_at=row.updated_at,
        latest=to_version(latest, row),
        aliases={row.alias: row.version for row in connection.execute(aliases.order_by(skill_aliases.c.alias))},
        granted_tenants=tuple(sorted(connection.execute(grants).scalars())) if mine else (),
    )


def next_version(connection: Connection, reference: SkillReference) -> str:
    """One patch above the highest version there is, of whatever state; 0.1.0 for the first."""
    rows = connection.execute(select(skill_versions.c.version).where(of_skill(reference))).scalars().all()
    highest = max(rows, key=semver.sort_key, default="")
    return semver.next_patch(highest) if highest else "0.1.0"
