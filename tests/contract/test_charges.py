"""Charges as FOCUS rows, over either store: exactly the parts of the statements that tenants get."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from contract.test_billing import (
    APRIL,
    IN_APRIL,
    LONG_AGO,
    MARCH,
    PLAN,
    billing,
    call,
    plans,
    tenants,
)
from ledger_stores import BILLER, NOON
from skillcell.admission.tenants import TenantStore
from skillcell.core.corrections import Correction, UsageDelta
from skillcell.core.tenants import Tenant
from skillcell.metering.billing.charges import ChargeExport
from skillcell.metering.billing.statements import Billing
from skillcell.metering.ledger import Ledger
from skillcell.metering.rating.focus import FocusSource, billed_sum
from skillcell.storage.database import Database

__all__ = ["billing", "plans", "tenants"]  # fixtures that these tests share
SOURCE = FocusSource()


@pytest.fixture
def export(database: Database) -> ChargeExport:
    return ChargeExport(database)


async def test_a_tenants_rows_sum_to_its_statement_by_day_skill_and_outcome(
    ledger: Ledger, billing: Billing, export: ChargeExport
) -> None:
    for day in range(3):
        await call(ledger, NOON + timedelta(days=day), skill=("extract", "render")[day % 2])
    await call(ledger, tenant="other")
    found = await export.charges("acme", MARCH, SOURCE)
    statement = await billing.statement("acme", MARCH)
    assert billed_sum(found.rows) == statement.statement.total
    assert found.open
    days = {row["ChargePeriodStart"] for row in found.rows if row["ChargeFrequency"] == "Usage-Based"}
    assert len(days) == 3
    assert {row["InvoiceId"] for row in found.rows} == {None}


async def test_everybody_with_charges_is_named_those_with_nothing_but_a_minimum_too(
    ledger: Ledger, billing: Billing, tenants: TenantStore, export: ChargeExport
) -> None:
    await tenants.create(Tenant("idle", "Idle Ltd", rate_plan=PLAN.name), LONG_AGO)
    await tenants.create(Tenant("free"), LONG_AGO)
    await call(ledger)
    assert await export.tenants(MARCH) == ("acme", "idle")
    (row,) = (await export.charges("idle", MARCH, SOURCE)).rows
    assert (row["BilledCost"], row["BillingAccountName"]) == (Decimal("0.10"), "Idle Ltd")
    assert (await export.charges("free", MARCH, SOURCE)).rows == ()
    assert (await export.charges("nobody", MARCH, SOURCE)).rows == ()


async def test_a_closed_months_rows_never_change_and_late_corrections_are_in_the_open_one(
    ledger: Ledger, billing: Billing, export: ChargeExport
) -> None:
    first = await call(ledger)
    await call(ledger)
    await billing.close(BILLER, MARCH, IN_APRIL)
    before = await export.charges("acme", MARCH, SOURCE)
    assert not before.open
    assert {row["InvoiceId"] for row in before.rows} == {"2026-03-acme-EUR"}
    back = UsageDelta(calls=-1, billed_ms=-first.billed_ms)
    await ledger.record_correction(BILLER, Correction(first.event_id, back, "refund"), IN_APRIL)
    assert await export.charges("acme", MARCH, SOURCE) == before
    assert await export.tenants(MARCH) == ("acme",)
    after = await export.charges("acme", APRIL, SOURCE)
    assert billed_sum(after.rows) == (await billing.statement("acme", APRIL)).statement.total
    assert "Correction" in {row["ChargeClass"] for row in after.rows}
