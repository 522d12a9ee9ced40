"""Rate plans as they are kept: versions by content, none of which ever changes.

A name points to the version that rates new calls of its tenants. Making a plan with the content of an earlier version
gives that version again and points the name back to it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, and_, func, insert, or_, select, update

from skillcell.core.errors import invalid, not_found
from skillcell.core.rate_plans import RatePlan, version_number
from skillcell.metering.rating.plan_document import plan_document, plan_from_document
from skillcell.storage.columns import from_microseconds, to_microseconds
from skillcell.storage.database import Database
from skillcell.storage.pages import decode_token, encode_token, fingerprint
from skillcell.storage.tables import tenants
from skillcell.storage.tables_billing import rate_plan_names, rate_plans


@dataclass(frozen=True, slots=True)
class StoredPlan:
    """`current`: its name's tenants are rated by it now."""

    plan: RatePlan
    current: bool


@dataclass(frozen=True, slots=True)
class PlanPage:
    plans: tuple[StoredPlan, ...]
    next_page_token: str


class RatePlanStore:
    """Plans of one store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, plan: RatePlan, now: datetime) -> StoredPlan:
        """Keeps a plan that was checked, as the current version of its name."""
        return await self._database.write(lambda connection: create(connection, plan, now))

    async def get(self, version: str) -> RatePlan:
        """A version, as `standard/3`. NOT_FOUND `RATE_PLAN_NOT_FOUND`."""
        found = await self.find(version)
        if found is None:
            raise not_found("rate_plan", version)
        return found

    async def find(self, version: str) -> RatePlan | None:
        """The same, None where there is none."""
        found = await self._database.read(lambda connection: load(connection, [version]))
        return found.get(version)

    async def list(self, name: str = "", page_size: int = 50, page_token: str = "") -> PlanPage:
        """Newest first. INVALID_ARGUMENT `PAGE_TOKEN_INVALID` for a token of another question."""
        return await self._database.read(lambda connection: _page(connection, name, page_size, page_token))


def create(connection: Connection, plan: RatePlan, now: datetime) -> StoredPlan:
    document = json.dumps(plan_document(plan), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    digest = hashlib.sha256(document.encode()).digest()
    columns = rate_plans.c
    same = select(columns.number, columns.created_at).where(columns.name == plan.name, columns.sha256 == digest)
    row = connection.execute(same).one_or_none()
    if row is None:
        highest = select(func.max(columns.number)).where(columns.name == plan.name)
        number = (connection.execute(highest).scalar_one_or_none() or 0) + 1
        created_at = now
        connection.execute(
            insert(rate_plans),
            {"name": plan.name, "number": number, "document": document, "sha256": digest, "created_at": now},
        )
    else:
        number, created_at = row.number, row.created_at
    names = rate_plan_names.c
    pointed = connection.execute(update(rate_plan_names).where(names.name == plan.name).values(current_number=number))
    if not pointed.rowcount:
        connection.execute(insert(rate_plan_names), {"name": plan.name, "current_number": number})
    return StoredPlan(replace(plan, version=f"{plan.name}/{number}", created_at=created_at), current=True)


def load(connection: Connection, versions: list[str]) -> dict[str, RatePlan]:
    """Plans by version; those that don't exist are left out."""
    found = {}
    for version in versions:
        name, _, number = version.rpartition("/")
        if not name or not number.isdecimal() or len(number) > 9:
            continue
        columns = rate_plans.c
        query = select(rate_plans).where(columns.name == name, columns.number == version_number(version))
        row = connection.execute(query).one_or_none()
        if row is not None:
            found[version] = _plan(row)
    return found


def current_version(connection: Connection, tenant: str, default_plan: str) -> str:
    """The version that rates a tenant's new calls: of its own plan, else of the default; empty where neither is."""
    name = connection.execute(select(tenants.c.rate_plan).where(tenants.c.name == tenant)).scalar_one_or_none()
    name = name or default_plan
    if not name:
        return ""
    query = select(rate_plan_names.c.current_number).where(rate_plan_names.c.name == name)
    number = connection.execute(query).scalar_one_or_none()
    return "" if number is None else f"{name}/{number}"


def plans_in_force(connection: Connection, default_plan: str, created_before: datetime) -> dict[str, str]:
    """The version of each tenant that has a plan and was there before a moment."""
    current = {row.name: row.current_number for row in connection.execute(select(rate_plan_names))}
    columns = tenants.c
    query = select(columns.name, columns.rate_plan).where(columns.created_at < created_before)
    named = {row.name: row.rate_plan or default_plan for row in connection.execute(query)}
    return {tenant: f"{name}/{current[name]}" for tenant, name in named.items() if name in current}


def _plan(row: Row[Any]) -> RatePlan:
    plan = plan_from_document(json.loads(row.document))
    return replace(plan, version=f"{row.name}/{row.number}", created_at=row.created_at)


def _page(connection: Connection, name: str, page_size: int, page_token: str) -> PlanPage:
    question = fingerprint("rate_plans", name)
    columns = rate_plans.c
    query = select(rate_plans, rate_plan_names.c.current_number).join(
        rate_plan_names, rate_plan_names.c.name == columns.name
    )
    if name:
        query = query.where(columns.name == name)
    if page_token:
        at, last_name, last_number = decode_token(page_token, question, int, str, int)
        try:
            when = from_microseconds(int(at))
        except OverflowError as error:
            raise invalid("page_token", "is not a token of this service", reason="PAGE_TOKEN_INVALID") from error
        behind = or_(columns.name < last_name, and_(columns.name == last_name, columns.number < last_number))
        query = query.where(or_(columns.created_at < when, and_(columns.created_at == when, behind)))
    query = query.order_by(columns.created_at.desc(), columns.name.desc(), columns.number.desc())
    found = connection.execute(query.limit(page_size + 1)).all()
    page = found[:page_size]
    token = ""
    if len(found) > page_size:
        last = page[-1]
        token = encode_token(question, to_microseconds(last.created_at), last.name, last.number)
    return PlanPage(tuple(StoredPlan(_plan(row), row.number == row.current_number) for row in page), token)
