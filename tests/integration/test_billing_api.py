"""Billing over real sockets and a real store, with keys of every role: who may do what, and what each refusal says."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from ledger_stores import admission, settlement
from skillcell.admission.tenants import TenantStore
from skillcell.api.admin_service import AdminService
from skillcell.api.auth import ApiKeys, hash_key
from skillcell.api.billing import Charges
from skillcell.api.server import Health, ServerSettings, serving
from skillcell.api.sinks import SinkDesk
from skillcell.api.usage_service import UsageService
from skillcell.client import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    SkillcellClient,
    SkillcellError,
)
from skillcell.core.corrections import UsageDelta
from skillcell.core.rate_plans import RateComponent, RateMeter, RatePlan, RateTier, TierMode
from skillcell.core.tenants import Tenant
from skillcell.core.types import Principal, UsageRecord
from skillcell.metering.billing.assignments import Assignments
from skillcell.metering.billing.charges import ChargeExport
from skillcell.metering.billing.plans import RatePlanStore
from skillcell.metering.billing.statements import Billing
from skillcell.metering.export.sinks import Sinks
from skillcell.metering.export.store import SinkStore
from skillcell.metering.ledger import Ledger
from skillcell.storage.database import Database
from skillcell.v1 import admin_pb2, admin_pb2_grpc, policy_pb2, usage_pb2

KEYS = {
    "caller": Principal("acme", roles=frozenset({"caller"})),
    "stranger": Principal("other", roles=frozenset({"caller"})),
    "publisher": Principal("maker", frozenset({"tools"}), frozenset({"publisher"}), "key_publisher"),
    "operator": Principal("platform", roles=frozenset({"operator"}), key_id="key_operator"),
    "biller": Principal("platform", roles=frozenset({"biller"}), key_id="key_biller"),
}
PLAN = RatePlan(
    "standard",
    "",
    "EUR",
    2,
    (RateComponent(RateMeter.CALLS, unit_amount=Decimal("0.25")),),
    publisher_share=Decimal("0.7"),
)


class Calendar:
    """A wall clock that a test sets; the monotonic one stands still."""

    def __init__(self) -> None:
        self.at = datetime(2026, 3, 10, 12, tzinfo=UTC)

    def now(self) -> datetime:
        return self.at

    def monotonic_ns(self) -> int:
        return 0


@dataclass
class Office:
    """A served store, and a client for each role."""

    ledger: Ledger
    clock: Calendar
    assignments: Assignments
    address: str
    clients: dict[str, SkillcellClient]

    def __getattr__(self, role: str) -> SkillcellClient:
        return self.clients[role]

    async def call(self, ended_at: datetime | None = None, **of: Any) -> UsageRecord:
        """One call, rated by what rates it now."""
        tenant = of.get("tenant", "acme")
        plan = await self.assignments.plan_for(tenant)
        given = admission(plan_version=plan.version if plan else "", labels={"team": "red"}, **of)
        await self.ledger.admit(given)
        return await self.ledger.settle(settlement(given, ended_at=ended_at or self.clock.at))


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(await Database.open(f"sqlite:///{tmp_path}/ledger.db"))
        clock, ledger, tenants = Calendar(), Ledger(database), TenantStore(database)
        assignments, billing = Assignments(database, "", clock), Billing(database)
        sinks = SinkDesk(Sinks(SinkStore(database), (), clock, "/skillcell/ledgers/test"))
        services = (
            UsageService(ledger, Charges(billing, tenants, ChargeExport(database))),  # type: ignore[abstract]
            AdminService(  # type: ignore[abstract]
                tenants, RatePlanStore(database), assignments, billing, ledger, sinks=sinks, clock=clock
            ),
        )
        keys = ApiKeys({hash_key(f"sk_{role}"): principal for role, principal in KEYS.items()})
        settings = ServerSettings("127.0.0.1:0", 1 << 20)
        port = await stack.enter_async_context(serving(settings, keys, services, Health()))
        address = f"127.0.0.1:{port}"
        clients = {
            role: await stack.enter_async_context(SkillcellClient(address, api_key=f"sk_{role}")) for role in KEYS
        }
        yield Office(ledger, clock, assignments, address, clients)


@pytest.fixture
async def rated(office: Office) -> Office:
    """With a plan, and tenants that have it."""
    await office.operator.admin.create_rate_plan(PLAN)
    for tenant in ("acme", "other"):
        await office.operator.admin.create_tenant(Tenant(tenant, rate_plan="standard"))
    return office


async def test_a_plan_is_made_assigned_and_charged(office: Office) -> None:
    made = await office.operator.admin.create_rate_plan(PLAN)
    assert (made.plan.version, made.current) == ("standard/1", True)
    assert made.plan == replace(PLAN, version="standard/1", created_at=office.clock.at)
    await office.operator.admin.create_tenant(Tenant("acme"))
    await office.call()
    acme = await office.operator.admin.tenant("acme")
    await office.operator.admin.update_tenant(replace(acme, rate_plan="standard"))
    for _ in range(3):
        await office.call()
    await office.operator.admin.create_rate_plan(replace(PLAN, publisher_share=Decimal("0.9")))
    await office.call()
    for who in (office.caller, office.biller):
        found = await who.billing.statement("2026-03", tenant="acme")
        assert [(line.skill, line.meter, line.quantity, line.amount, line.plan_version) for line in found.lines] == [
            ("tools/extract", "calls", 3, Decimal("0.75"), "standard/1"),
            ("tools/extract", "calls", 1, Decimal("0.25"), "standard/2"),
        ]
        assert (found.total, found.currency, found.open, found.as_of_sequence) == (Decimal("1.00"), "EUR", True, 5)
    assert await office.caller.billing.statement("2026-03") == found
    earned = await office.publisher.billing.payout("2026-03")
    (line,) = earned.lines
    assert (line.skill, line.calls, line.charged) == ("tools/extract", 4, Decimal("1.00"))
    assert line.publisher_share + line.platform_fee == line.charged
    assert earned.total == line.publisher_share == Decimal("0.76")
    assert await office.biller.billing.payout("2026-03", publisher="tools") == earned


async def test_each_act_takes_its_role(rated: Office) -> None:
    record = await rated.call()
    acts: dict[str, tuple[set[str], Callable[[SkillcellClient], Any]]] = {
        "create plan": ({"operator"}, lambda who: who.admin.create_rate_plan(PLAN)),
        "list plans": ({"operator", "biller"}, lambda who: who.admin.rate_plans()),
        "create tenant": ({"operator"}, lambda who: who.admin.create_tenant(Tenant("new"))),
        "get tenant": ({"operator"}, lambda who: who.admin.tenant("acme")),
        "list tenants": ({"operator"}, lambda who: who.admin.tenants()),
        "update tenant": ({"operator"}, lambda who: who.admin.update_tenant(Tenant("new"))),
        "close": ({"biller"}, lambda who: who.admin.close_period("2026-02")),
        "correct": ({"biller"}, lambda who: who.admin.correct(record.event_id, UsageDelta(billed_ms=-1), reason="x")),
        "another's statement": ({"biller", "caller"}, lambda who: who.billing.statement("2026-03", tenant="acme")),
        "another's payout": ({"biller", "publisher"}, lambda who: who.billing.payout("2026-03", publisher="tools")),
        "another's records": (
            {"biller", "operator", "caller"},
            lambda who: who.usage.records(tenant="acme"),
        ),
        "another's sums": ({"biller", "operator", "caller"}, lambda who: who.usage.summary(tenant="acme")),
    }
    for act, (roles, do) in acts.items():
        allowed = set()
        for role, client in rated.clients.items():
            (answer,) = await asyncio.gather(do(client), return_exceptions=True)
            if isinstance(answer, PermissionDenied):
                assert (answer.reason, bool(answer.metadata["role"])) == ("ROLE_REQUIRED", True), act
            else:
                assert not isinstance(answer, BaseException), act
                allowed.add(role)
        assert allowed == roles, act


async def test_a_publisher_sees_calls_of_its_skills_without_their_callers_labels(rated: Office) -> None:
    await rated.call()
    await rated.call(publisher="maps")
    (seen,) = (await rated.publisher.usage.records(publisher="tools")).items
    assert (seen.tenant, seen.publisher, dict(seen.labels)) == ("acme", "tools", {})
    (group,) = (await rated.publisher.usage.summary(by=["tenant"], publisher="tools")).groups
    assert (group.keys, group.totals.calls) == ({"tenant": "acme"}, 1)
    assert (await rated.publisher.usage.records(publisher="maps")).items == ()
    assert (await rated.publisher.usage.records()).items == ()
    for question in (
        rated.publisher.usage.records(publisher="tools", labels={"team": "red"}),
        rated.publisher.usage.summary(by=["label:team"], publisher="tools"),
    ):
        with pytest.raises(InvalidArgument, match="labels are their callers' own"):
            await question
    assert dict((await rated.caller.usage.records()).items[0].labels) == {"team": "red"}


async def test_sums_come_by_every_dimension_and_page_by_page_of_one_moment(rated: Office) -> None:
    for number in range(3):
        await rated.call(entrypoint=f"scripts/{number}.py")
    by = ["tenant", "publisher", "skill", "version", "entrypoint", "outcome", "isolation", "label:team", "label:none"]
    found = await rated.biller.usage.summary(by=by, bucket="month")
    assert [group.keys["entrypoint"] for group in found.groups] == [f"scripts/{number}.py" for number in range(3)]
    keys = found.groups[0].keys
    assert (keys["isolation"], keys["label:team"], keys["label:none"]) == ("STANDARD", "red", "")
    totals = found.groups[0].totals
    assert (totals.run_ns, totals.egress_in_bytes, totals.egress_out_bytes, totals.output_bytes) == (
        70_000_001,
        5,
        3,
        17,
    )
    whole = (await rated.biller.usage.summary()).groups[0].totals
    assert (whole.calls, whole.run_ns, whole.egress_in_bytes) == (3, 3 * 70_000_001, 15)


async def refused(raised: type[SkillcellError], reason: str, call: Any) -> SkillcellError:
    with pytest.raises(raised) as caught:
        await call
    assert caught.value.reason == reason
    return caught.value


async def test_every_refusal_says_what_is_wrong(rated: Office) -> None:
    admin, billing = rated.operator.admin, rated.biller.billing
    await refused(NotFound, "TENANT_NOT_FOUND", admin.tenant("nobody"))
    await refused(NotFound, "TENANT_NOT_FOUND", admin.update_tenant(Tenant("nobody")))
    await refused(NotFound, "TENANT_NOT_FOUND", billing.statement("2026-03", tenant="nobody"))
    await refused(NotFound, "RATE_PLAN_NOT_FOUND", admin.create_tenant(Tenant("new", rate_plan="gold")))
    await refused(NotFound, "RATE_PLAN_NOT_FOUND", admin.update_tenant(Tenant("acme", rate_plan="gold")))
    await refused(NotFound, "RATE_PLAN_NOT_FOUND", billing.payout("2026-03", publisher="nobody"))
    await admin.create_tenant(Tenant("free"))
    await refused(NotFound, "RATE_PLAN_NOT_FOUND", billing.statement("2026-03", tenant="free"))
    await refused(AlreadyExists, "RESOURCE_EXISTS", admin.create_tenant(Tenant("acme", "Another")))
    await admin.create_tenant(Tenant("maker", publishers=("tools",)))
    await refused(AlreadyExists, "RESOURCE_EXISTS", admin.create_tenant(Tenant("thief", publishers=("tools",))))
    read = await admin.tenant("acme")
    await admin.update_tenant(replace(read, display_name="Acme"))
    stale = await refused(Aborted, "ETAG_MISMATCH", admin.update_tenant(replace(read, display_name="Acme Ltd")))
    assert "changed meanwhile" in stale.message
    for question in (admin.tenants(page_token="x"), admin.rate_plans(page_token="x")):
        await refused(InvalidArgument, "PAGE_TOKEN_INVALID", question)
    for question in (
        admin.create_tenant(Tenant("Not an id")),
        billing.statement("2026-13", tenant="acme"),
        billing.statement("0000-01", tenant="acme"),
        rated.biller.admin.close_period("now"),
        rated.biller.billing.payout("2026-03"),
    ):
        await refused(InvalidArgument, "INVALID_FIELD", question)


async def test_a_plan_that_can_not_be_charged_is_refused_with_every_path(rated: Office) -> None:
    tiers = (RateTier(Decimal(5), Decimal(1)), RateTier(Decimal(3), Decimal(1)), RateTier(None, Decimal(1)))
    components = (RateComponent(RateMeter.CALLS, TierMode.VOLUME, tiers=tiers),)
    plan = replace(PLAN, currency="XXX", components=components)
    error = await refused(InvalidArgument, "INVALID_FIELD", rated.operator.admin.create_rate_plan(plan))
    assert {violation.field for violation in error.field_violations} == {
        "plan.currency",
        "plan.components[0].tiers[1].up_to",
    }
    async with grpc.aio.insecure_channel(rated.address) as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        message = policy_pb2.RatePlan(name="x", currency="EUR", components=[{"meter": 1}], publisher_share="1.5")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.CreateRatePlan(
                admin_pb2.CreateRatePlanRequest(plan=message), metadata=(("authorization", "Bearer sk_operator"),)
            )
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "plan.publisher_share" in (caught.value.details() or "")
    assert [one.plan.version for one in (await rated.biller.admin.rate_plans()).items] == ["standard/1"]


async def test_a_closed_month_stays_and_late_usage_is_billed_in_the_open_one(rated: Office) -> None:
    march = rated.clock.at
    first = await rated.call()
    early = await refused(FailedPrecondition, "WRONG_STATE", rated.biller.admin.close_period("2026-03"))
    assert "is not over before 2026-04-01T00:00:00Z" in early.message
    rated.clock.at = march + timedelta(days=30)
    closed = await rated.biller.admin.close_period("2026-03")
    assert (closed.last_sequence, closed.closed_at) == (1, rated.clock.at)
    told = await rated.caller.billing.statement("2026-03"), await rated.publisher.billing.payout("2026-03")
    assert not told[0].open
    sent = await statement_bytes(rated)
    late = await rated.call(ended_at=march)
    made = await rated.biller.admin.correct(first.event_id, UsageDelta(calls=-1), reason="failed after all")
    rated.clock.at += timedelta(days=1)
    assert await rated.biller.admin.close_period("2026-03") == closed
    assert (await rated.caller.billing.statement("2026-03"), await rated.publisher.billing.payout("2026-03")) == told
    assert await statement_bytes(rated) == sent
    april = await rated.caller.billing.statement("2026-04")
    assert (april.open, april.as_of_sequence) == (True, made.sequence)
    assert (late.sequence, april.total) == (2, Decimal("0.00"))


async def statement_bytes(office: Office) -> bytes:
    """As they are on the wire."""
    async with grpc.aio.insecure_channel(office.address) as channel:
        ask = channel.unary_unary("/skillcell.v1.UsageService/GetStatement")
        request = usage_pb2.GetStatementRequest(period="2026-03").SerializeToString()
        return bytes(await ask(request, metadata=(("authorization", "Bearer sk_caller"),)))


async def test_a_correction_is_made_once_and_bounded(rated: Office) -> None:
    record = await rated.call()
    admin, request_id = rated.biller.admin, str(uuid.uuid4())
    delta = UsageDelta(billed_ms=-5, memory_limit_byte_ns=-(10**15))
    made = [
        await admin.correct(record.event_id, delta, reason="measured twice", request_id=request_id) for _ in range(2)
    ]
    assert made[0] == made[1]
    assert (made[0].correction_of, made[0].billed_ms, made[0].calls) == (record.event_id, -5, 0)
    assert made[0].memory_limit_byte_ns == -(10**15)
    again = admin.correct(record.event_id, delta, reason="another", request_id=request_id)
    await refused(AlreadyExists, "REQUEST_ID_REUSED", again)
    await refused(NotFound, "USAGE_RECORD_NOT_FOUND", admin.correct("evt_x", delta, reason="x"))
    much = admin.correct(record.event_id, UsageDelta(billed_ms=-record.billed_ms), reason="x")
    error = await refused(InvalidArgument, "INVALID_FIELD", much)
    assert [(v.field, v.description) for v in error.field_violations] == [
        ("delta.billed_ms", f"is -{record.billed_ms}; only {record.billed_ms - 5} is left to take back")
    ]
    await refused(InvalidArgument, "INVALID_FIELD", admin.correct(record.event_id, delta, reason=""))
    assert [one.correction_of for one in (await rated.caller.usage.records()).items] == ["", record.event_id]


async def test_lists_of_tenants_and_plans_come_page_by_page(rated: Office) -> None:
    await rated.operator.admin.create_rate_plan(replace(PLAN, name="basic"))
    tenants = await rated.operator.admin.tenants(page_size=1)
    assert [tenant.id for tenant in tenants.items] == ["acme"]
    rest = await rated.operator.admin.tenants(page_size=5, page_token=tenants.next_page_token)
    assert ([tenant.id for tenant in rest.items], rest.next_page_token) == (["other"], "")
    plans = await rated.biller.admin.rate_plans(page_size=1)
    older = await rated.biller.admin.rate_plans(page_token=plans.next_page_token)
    assert [one.plan.version for one in (*plans.items, *older.items)] == ["standard/1", "basic/1"]
    assert [one.plan.name for one in (await rated.biller.admin.rate_plans(name="basic")).items] == ["basic"]
