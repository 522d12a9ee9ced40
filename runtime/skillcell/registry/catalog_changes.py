"""Changing the catalogue: publish, alias, yank, block, visibility. Each is one transaction and may be repeated."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from sqlalchemy import ColumnElement, Connection, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from skillcell.core.clock import Clock
from skillcell.core.errors import Fault, FaultKind, invalid
from skillcell.core.skills import SkillVersion, VersionState, Visibility
from skillcell.core.types import Principal
from skillcell.registry import semver
from skillcell.registry.catalog import Store, check_state, require_skill, require_version
from skillcell.registry.catalog_rows import (
    OPERATOR,
    PUBLISHER,
    AnyRow,
    Body,
    Skill,
    encode_body,
    find_latest,
    next_version,
    of_skill,
    owns,
    to_skill,
    to_version,
)
from skillcell.registry.findings import shown
from skillcell.registry.references import SkillReference, check_alias, parse_reference, parse_skill
from skillcell.storage.tables_registry import skill_aliases, skill_grants, skill_versions, skills

_TRIES = 3


@dataclass(frozen=True, slots=True)
class Published:
    """A version, and whether this call made it."""

    version: SkillVersion
    created: bool


@dataclass(frozen=True, slots=True)
class StateChange:
    """A version as it is now, and the aliases that still point at it though it can't be called."""

    version: SkillVersion
    dangling_aliases: tuple[str, ...]


class CatalogChanges:
    """What publishers and operators do."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def find_published(
        self, principal: Principal, reference: SkillReference, digest: str, version: str
    ) -> SkillVersion | None:
        """The version that has this digest already. Raises Fault ALREADY_EXISTS when `version` has another one."""
        check_may_publish(principal, reference.publisher)
        return await self._store.read(lambda connection: _existing(connection, principal, reference, digest, version))

    async def publish(
        self,
        principal: Principal,
        draft: SkillVersion,
        *,
        visibility: Visibility | None = None,
        aliases: Collection[str] = (),
    ) -> Published:
        """Records a version whose package is stored. `draft.version` may be empty: one patch above the highest.

        The same digest again is the version that has it, whatever version was asked for. Raises Fault:
        PERMISSION_DENIED, ALREADY_EXISTS naming both digests.
        """
        check_may_publish(principal, draft.publisher)
        for alias in aliases:
            check_alias(alias, "aliases")
        for attempt in range(_TRIES):
            try:
                return await self._store.write(
                    lambda connection: self._publish(connection, principal, draft, visibility, aliases)
                )
            except IntegrityError:
                # Another gateway published meanwhile: look again, and find its version or take the next number.
                if attempt == _TRIES - 1:
                    raise
        raise AssertionError("unreachable")

    async def set_alias(
        self, principal: Principal, skill: str, alias: str, version: str, *, expected_version: str | None = None
    ) -> Skill:
        """Points an alias at a version or digest; an empty version takes it away.

        Raises Fault: NOT_FOUND, PERMISSION_DENIED, FAILED_PRECONDITION for a version that can't be called, ABORTED when
        the alias does not point at `expected_version`.
        """
        reference = parse_skill(skill)
        check_alias(alias)
        target = parse_reference(f"{skill}@{version}", "version") if version else None
        expected = parse_reference(f"{skill}@{expected_version}", "expected_version") if expected_version else None

        def work(connection: Connection) -> Skill:
            row = _require_own(connection, principal, reference)
            at = _alias_target(connection, reference, alias)
            if expected is not None and at != require_version(connection, expected).version:
                message = f"alias {alias!r} points at {at or 'nothing'}, not at {expected.selector}"
                raise Fault(FaultKind.ABORTED, "ETAG_MISMATCH", message, metadata={"version": at})
            if target is not None:
                found = to_version(require_version(connection, target), row)
                check_state(found)
                _point(connection, reference, alias, found.version)
            elif not at:
                message = f"{skill} has no alias {alias!r}"
                raise Fault(FaultKind.NOT_FOUND, "ALIAS_NOT_FOUND", message, resource=("alias", alias))
            else:
                connection.execute(delete(skill_aliases).where(*_is_alias(reference, alias)))
            return to_skill(connection, principal, row)

        return await self._store.write(work)

    async def set_state(
        self, principal: Principal, skill: str, version: str, state: VersionState, reason: str = ""
    ) -> StateChange:
        """Yanks, blocks, or frees a version. Only an operator blocks, and only an operator undoes that."""
        reference = parse_reference(f"{skill}@{version}", "version")

        def work(connection: Connection) -> StateChange:
            owner = _require_own(connection, principal, reference)
            row = require_version(connection, reference)
            if VersionState.BLOCKED in {state, VersionState(row.state)} and OPERATOR not in principal.roles:
                raise _denied("blocking a version and undoing it need the role operator")
            values = {"state": state.value, "state_reason": reason if state is not VersionState.PUBLISHED else ""}
            connection.execute(update(skill_versions).where(skill_versions.c.number == row.number).values(**values))
            _refresh(connection, reference, self._clock)
            changed = replace(to_version(row, owner), state=state, state_reason=values["state_reason"])
            at = select(skill_aliases.c.alias).where(
                skill_aliases.c.publisher == reference.publisher,
                skill_aliases.c.name == reference.name,
                skill_aliases.c.version == row.version,
            )
            dangling = () if state is VersionState.PUBLISHED else tuple(sorted(connection.execute(at).scalars()))
            return StateChange(changed, dangling)

        return await self._store.write(work)

    async def set_visibility(
        self, principal: Principal, skill: str, visibility: Visibility, tenants: Collection[str] = ()
    ) -> Skill:
        """Who may see and call a Skill; `tenants` is the whole list and goes with GRANTED alone."""
        reference = parse_skill(skill)
        if tenants and visibility is not Visibility.GRANTED:
            raise invalid("granted_tenants", "goes with the visibility GRANTED alone")

        def work(connection: Connection) -> Skill:
            _require_own(connection, principal, reference)
            _set_visibility(connection, reference, visibility, tenants)
            return to_skill(connection, principal, require_skill(connection, principal, reference))

        return await self._store.write(work)

    def _publish(
        self,
        connection: Connection,
        principal: Principal,
        draft: SkillVersion,
        visibility: Visibility | None,
        aliases: Collection[str],
    ) -> Published:
        reference = SkillReference(draft.publisher, draft.name)
        found = _existing(connection, principal, reference, draft.digest, draft.version)
        now = self._clock.now()
        if found is None:
            _ensure_skill(connection, principal, reference, now)
            version = draft.version or next_version(connection, reference)
            connection.execute(
                insert(skill_versions).values(
                    publisher=draft.publisher,
                    name=draft.name,
                    version=version,
                    sort_key=semver.sort_key(version),
                    prerelease=semver.is_prerelease(version),
                    digest=draft.digest,
                    package_digest=draft.package_digest,
                    state=VersionState.PUBLISHED.value,
                    state_reason="",
                    created_at=now,
                    size_bytes=draft.size_bytes,
                    file_count=draft.file_count,
                    body=encode_body(Body(draft.spec, draft.layers, draft.findings)),
                )
            )
            _refresh(connection, reference, self._clock)
        else:
            version = found.version
        if visibility is not None:
            _set_visibility(connection, reference, visibility, ())
        for alias in aliases:
            _point(connection, reference, alias, version)
        row = require_version(connection, replace(reference, selector=version))
        return Published(to_version(row, require_skill(connection, principal, reference)), found is None)


def check_may_publish(principal: Principal, publisher: str) -> None:
    """Raises Fault PERMISSION_DENIED. It says nothing of whether the publisher exists."""
    if PUBLISHER not in principal.roles and OPERATOR not in principal.roles:
        raise _denied("publishing needs the role publisher")
    if not owns(principal, publisher):
        raise _denied(f"these credentials can't publish as {shown(publisher)!r}")


def _existing(
    connection: Connection, principal: Principal, reference: SkillReference, digest: str, version: str
) -> SkillVersion | None:
    same = select(skill_versions).where(of_skill(reference), skill_versions.c.digest == digest)
    row = connection.execute(same).one_or_none()
    if row is not None:
        return to_version(row, require_skill(connection, principal, reference))
    taken = select(skill_versions.c.digest).where(of_skill(reference), skill_versions.c.version == version)
    other = connection.execute(taken).scalar_one_or_none()
    if other is not None:
        raise Fault(
            FaultKind.ALREADY_EXISTS,
            "VERSION_EXISTS",
            f"{reference.skill}@{version} exists with other content: it has {other}, this is {digest}; "
            "choose another version",
            resource=("skill_version", f"{reference.skill}@{version}"),
            metadata={"existing_digest": other, "digest": digest},
        )
    return None


def _ensure_skill(connection: Connection, principal: Principal, reference: SkillReference, now: object) -> None:
    mine = select(skills.c.name).where(skills.c.publisher == reference.publisher, skills.c.name == reference.name)
    if connection.execute(mine).one_or_none() is None:
        connection.execute(
            insert(skills).values(
                publisher=reference.publisher,
                name=reference.name,
                owner_tenant=principal.tenant,
                visibility=Visibility.PRIVATE.value,
                search_text="",
                callable=False,
                created_at=now,
                updated_at=now,
            )
        )


def _refresh(connection: Connection, reference: SkillReference, clock: Clock) -> None:
    """Makes the Skill's own row speak of its latest version."""
    row = find_latest(connection, reference)
    if row is None:
        return
    spec = to_version(row, connection.execute(select(skills).where(*_is_skill(reference))).one()).spec
    called = (f"{entrypoint.name} {entrypoint.description}" for entrypoint in spec.entrypoints)
    words = [reference.publisher, reference.name, spec.description, *called]
    connection.execute(
        update(skills)
        .where(*_is_skill(reference))
        .values(
            search_text=" ".join(words).casefold().replace("\0", " "),
            callable=bool(spec.entrypoints),
            updated_at=clock.now(),
        )
    )


def _is_skill(reference: SkillReference) -> tuple[ColumnElement[bool], ...]:
    return skills.c.publisher == reference.publisher, skills.c.name == reference.name


def _is_alias(reference: SkillReference, alias: str) -> tuple[ColumnElement[bool], ...]:
    table = skill_aliases.c
    return table.publisher == reference.publisher, table.name == reference.name, table.alias == alias


def _alias_target(connection: Connection, reference: SkillReference, alias: str) -> str:
    query = select(skill_aliases.c.version).where(*_is_alias(reference, alias))
    return connection.execute(query).scalar_one_or_none() or ""


def _point(connection: Connection, reference: SkillReference, alias: str, version: str) -> None:
    connection.execute(delete(skill_aliases).where(*_is_alias(reference, alias)))
    connection.execute(
        insert(skill_aliases).values(publisher=reference.publisher, name=reference.name, alias=alias, version=version)
    )


def _set_visibility(
    connection: Connection, reference: SkillReference, visibility: Visibility, tenants: Collection[str]
) -> None:
    connection.execute(update(skills).where(*_is_skill(reference)).values(visibility=visibility.value))
    grants = skill_grants.c
    connection.execute(
        delete(skill_grants).where(grants.publisher == reference.publisher, grants.name == reference.name)
    )
    for tenant in sorted(set(tenants)):
        connection.execute(
            insert(skill_grants).values(publisher=reference.publisher, name=reference.name, tenant=tenant)
        )


def _require_own(connection: Connection, principal: Principal, reference: SkillReference) -> AnyRow:
    """The Skill's row. NOT_FOUND when the caller may not see it, PERMISSION_DENIED when it may only see it."""
    row = require_skill(connection, principal, reference)
    check_may_publish(principal, reference.publisher)
    return row


def _denied(message: str) -> Fault:
    return Fault(FaultKind.PERMISSION_DENIED, "ROLE_REQUIRED", message)
