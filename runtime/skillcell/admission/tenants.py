"""Tenants as operators keep them: who calls and pays, what it publishes as, and by which plan it is rated.

A publisher's name belongs to one tenant; whoever changes a tenant with an old etag is told, and changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from skillcell.core.errors import Fault, FaultKind, not_found
from skillcell.core.tenants import Tenant
from skillcell.storage.database import Database
from skillcell.storage.pages import decode_token, encode_token, fingerprint
from skillcell.storage.tables import tenants
from skillcell.storage.tables_billing import rate_plan_names, tenant_publishers

_QUESTION = fingerprint("tenants")


@dataclass(frozen=True, slots=True)
class TenantPage:
    """`next_page_token` is empty at the end."""

    tenants: tuple[Tenant, ...]
    next_page_token: str


class TenantStore:
    """Over one `Database`, which stays its owner's to close."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, tenant: Tenant, now: datetime) -> Tenant:
        """The same again returns the one that exists.

        ALREADY_EXISTS `RESOURCE_EXISTS` for a taken id or publisher name, NOT_FOUND `RATE_PLAN_NOT_FOUND`.
        """
        return await self._database.write(lambda connection: _create(connection, tenant, now))

    async def ensure(self, tenant: Tenant, now: datetime) -> None:
        """Makes a tenant unless one of that id is there, whatever that is like."""

        # Looked at first, since a store that can only be read is no reason not to start.
        if await self._database.read(lambda connection: _row(connection, tenant.id)) is None:
            await self._database.write(lambda connection: _ensure(connection, tenant, now))

    async def get(self, tenant_id: str) -> Tenant:
        """NOT_FOUND `TENANT_NOT_FOUND`."""
        return await self._database.read(lambda connection: _get(connection, tenant_id))

    async def list(self, page_size: int = 50, page_token: str = "") -> TenantPage:
        """By id. INVALID_ARGUMENT `PAGE_TOKEN_INVALID`."""
        return await self._database.read(lambda connection: _page(connection, page_size, page_token))

    async def update(self, tenant: Tenant) -> Tenant:
        """Replaces display name, publishers and plan; with an etag only what was read.

        NOT_FOUND `TENANT_NOT_FOUND`, `RATE_PLAN_NOT_FOUND`; ALREADY_EXISTS `RESOURCE_EXISTS`; ABORTED `ETAG_MISMATCH`.
        """
        return await self._database.write(lambda connection: _update(connection, tenant))


def _create(connection: Connection, tenant: Tenant, now: datetime) -> Tenant:
    row = _row(connection, tenant.id)
    if row is not None:
        there = _get(connection, tenant.id)
        if _content(there) == _content(tenant):
            return there
        raise _taken("tenant", tenant.id, f"tenant {tenant.id} exists with other content; update it instead")
    _check(connection, tenant)
    connection.execute(
        insert(tenants),
        {
            "name": tenant.id,
            "display_name": tenant.display_name,
            "state": "ACTIVE",
            "state_reason": "",
            "created_at": now,
            "rate_plan": tenant.rate_plan,
            "revision": 1,
        },
    )
    _publish_as(connection, tenant.id, tenant.publishers)
    return _get(connection, tenant.id)


def _ensure(connection: Connection, tenant: Tenant, now: datetime) -> None:
    if _row(connection, tenant.id) is None:
        _create(connection, tenant, now)


def _update(connection: Connection, tenant: Tenant) -> Tenant:
    there = _get(connection, tenant.id)
    if tenant.etag and tenant.etag != there.etag:
        raise Fault(
            FaultKind.ABORTED,
            "ETAG_MISMATCH",
            f"tenant {tenant.id} was changed meanwhile; read it again, then decide again",
            resource=("tenant", tenant.id),
            metadata={"field": "tenant.etag", "etag": there.etag},
        )
    if _content(there) == _content(tenant):
        return there
    _check(connection, tenant)
    connection.execute(
        update(tenants)
        .where(tenants.c.name == tenant.id)
        .values(display_name=tenant.display_name, rate_plan=tenant.rate_plan, revision=tenants.c.revision + 1)
    )
    connection.execute(delete(tenant_publishers).where(tenant_publishers.c.tenant == tenant.id))
    _publish_as(connection, tenant.id, tenant.publishers)
    return _get(connection, tenant.id)


def _content(tenant: Tenant) -> Tenant:
    """What its operator wrote of it."""
    return Tenant(tenant.id, tenant.display_name, tuple(sorted(tenant.publishers)), tenant.rate_plan)


def _check(connection: Connection, tenant: Tenant) -> None:
    names = rate_plan_names.c
    if tenant.rate_plan:
        known = connection.execute(select(names.name).where(names.name == tenant.rate_plan)).scalar_one_or_none()
        if known is None:
            raise not_found("rate_plan", tenant.rate_plan)
    columns = tenant_publishers.c
    query = select(columns.publisher).where(columns.publisher.in_(tenant.publishers), columns.tenant != tenant.id)
    taken = connection.execute(query.order_by(columns.publisher).limit(1)).scalar_one_or_none()
    if taken is not None:
        raise _taken("publisher", taken, f"publisher name {taken} belongs to another tenant; choose another")


def _taken(kind: str, name: str, message: str) -> Fault:
    return Fault(FaultKind.ALREADY_EXISTS, "RESOURCE_EXISTS", message, resource=(kind, name))


def _publish_as(connection: Connection, tenant_id: str, publishers: Iterable[str]) -> None:
    rows = [{"publisher": publisher, "tenant": tenant_id} for publisher in sorted(set(publishers))]
    if rows:
        connection.execute(insert(tenant_publishers), rows)


def _row(connection: Connection, tenant_id: str) -> Row[Any] | None:
    return connection.execute(select(tenants).where(tenants.c.name == tenant_id)).one_or_none()


def _get(connection: Connection, tenant_id: str) -> Tenant:
    row = _row(connection, tenant_id)
    if row is None:
        raise not_found("tenant", tenant_id)
    return _with_publishers(connection, [row])[0]


def _with_publishers(connection: Connection, rows: list[Row[Any]]) -> list[Tenant]:
    columns = tenant_publishers.c
    query = select(columns.tenant, columns.publisher).where(columns.tenant.in_([row.name for row in rows]))
    found: dict[str, list[str]] = {}
    for tenant_id, publisher in connection.execute(query):
        found.setdefault(tenant_id, []).append(publisher)
    return [replace(_tenant(row), publishers=tuple(sorted(found.get(row.name, ())))) for row in rows]


def _tenant(row: Row[Any]) -> Tenant:
    return Tenant(
        id=row.name,
        display_name=row.display_name,
        rate_plan=row.rate_plan,
        suspended=row.state == "SUSPENDED",
        created_at=row.created_at,
        etag=hashlib.sha256(f"{row.name}/{row.revision}".encode()).hexdigest()[:16],
    )


def _page(connection: Connection, page_size: int, page_token: str) -> TenantPage:
    query = select(tenants).order_by(tenants.c.name)
    if page_token:
        (last,) = decode_token(page_token, _QUESTION, str)
        query = query.where(tenants.c.name > last)
    found = list(connection.execute(query.limit(page_size + 1)))
    page = _with_publishers(connection, found[:page_size])
    return TenantPage(tuple(page), encode_token(_QUESTION, page[-1].id) if len(found) > page_size else "")
