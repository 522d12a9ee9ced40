"""Plans, costs, tenants and corrections cross the wire as they were; money is text all the way."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from skillcell.core.corrections import UsageDelta
from skillcell.core.rate_plans import RateComponent, RateMeter, RatePlan, RateTier, TierMode
from skillcell.core.statements import Cost, CostLine, Payout, PayoutLine, Statement, StatementLine
from skillcell.core.tenants import Tenant
from skillcell.metering.rating.plan_document import plan_from_document
from skillcell.v1 import types_pb2
from skillcell.wire import UnknownValue
from skillcell.wire import billing as wire

NOW = datetime(2026, 11, 22, 10, 20, 30, 123456, UTC)
PLAN = RatePlan(
    "standard",
    "standard/3",
    "JPY",
    0,
    (
        RateComponent(RateMeter.CALLS, unit_amount=Decimal("0.000000000000000001"), free_allowance=Decimal(3)),
        RateComponent(
            RateMeter.CPU_SECONDS,
            TierMode.GRADUATED,
            tiers=(RateTier(Decimal("1.5"), Decimal(0), Decimal(7)), RateTier(None, Decimal("0.20"))),
        ),
        RateComponent(RateMeter.EGRESS_BYTES, TierMode.VOLUME, tiers=(RateTier(None, Decimal(2)),)),
        RateComponent(RateMeter.OUTPUT_BYTES, TierMode.PACKAGE, unit_amount=Decimal(5), package_size=Decimal(1000)),
        RateComponent(RateMeter.BILLED_SECONDS),
    ),
    minimum_amount=Decimal(12),
    publisher_share=Decimal("0.7"),
    created_at=NOW,
)


def test_a_plan_comes_back_as_it_was() -> None:
    assert wire.plan_from_proto(wire.plan_to_proto(PLAN)) == PLAN
    assert wire.plan_to_proto(PLAN, current=True).current


def test_the_document_of_a_plan_on_the_wire_is_the_plan() -> None:
    document = wire.plan_to_document(wire.plan_to_proto(PLAN))
    assert plan_from_document(document) == replace(PLAN, version="", created_at=None)


def test_decimal_places_that_are_not_given_are_the_currencys() -> None:
    message = wire.plan_to_proto(replace(PLAN, currency="EUR", minimum_amount=Decimal("0.05")))
    message.ClearField("minor_digits")
    assert plan_from_document(wire.plan_to_document(message)).minor_digits == 2


def test_a_cost_comes_back_to_the_last_digit() -> None:
    amount = Decimal("0.00000000000000000000012300")
    cost = Cost("EUR", amount, "p/1", (CostLine(RateMeter.CALLS, Decimal(1), "Requests", amount),))
    message = wire.cost_to_proto(cost)
    assert message.amount == "0.000000000000000000000123"
    assert (message.lines[0].meter, message.lines[0].quantity) == ("calls", "1")
    assert wire.cost_from_proto(message) == cost


@pytest.mark.parametrize(
    "message",
    [types_pb2.Cost(amount="1e"), types_pb2.Cost(lines=[types_pb2.CostLine(meter="wishes", amount="1")])],
)
def test_a_cost_that_a_newer_gateway_tells_is_an_unknown_value(message: types_pb2.Cost) -> None:
    with pytest.raises(UnknownValue):
        wire.cost_from_proto(message)


def test_a_correction_keeps_every_difference_and_its_sign() -> None:
    delta = UsageDelta(-1, 2, -(10**37), 10**30, -5, 6, -7, 8, -1)
    assert len(set(vars_of(delta))) == 9 - 1
    assert wire.delta_from_proto(wire.delta_to_proto(delta)) == delta
    assert wire.delta_from_proto(wire.delta_to_proto(UsageDelta())) == UsageDelta()


def vars_of(delta: UsageDelta) -> list[int]:
    return [getattr(delta, name) for name in UsageDelta.names()]


def test_a_tenant_comes_back_as_it_was() -> None:
    tenant = Tenant("acme", "Acme", ("acme", "tools"), "standard", True, NOW, "e1")
    assert wire.tenant_from_proto(wire.tenant_to_proto(tenant)) == tenant


def test_charges_show_their_minor_units_and_quantities_what_they_are() -> None:
    lines = (
        StatementLine("p/1", 0, RateMeter.CPU_SECONDS, "Core-Seconds", Decimal("0.50"), Decimal("1.20"), Decimal(1),
                      "acme", "tool", 3),
        StatementLine("p/1", -1, None, "", Decimal(1), Decimal("0.00"), Decimal(0)),
    )  # fmt: skip
    message = wire.statement_to_proto(Statement("t", "2026-11", "EUR", 2, lines, Decimal("1.20")))
    first, minimum = message.lines
    assert (first.skill, first.meter, first.quantity, first.amount) == ("acme/tool", "cpu_seconds", "0.5", "1.20")
    assert (minimum.skill, minimum.meter, minimum.amount, message.total) == ("", "minimum", "0.00", "1.20")
    sold = PayoutLine("acme", "tool", 3, Decimal("1.20"), Decimal("0.84"), Decimal("0.36"))
    payout = wire.payout_to_proto(Payout("acme", "2026-11", "EUR", (sold,), Decimal("0.84")))
    assert (payout.lines[0].skill, payout.lines[0].platform_fee, payout.total) == ("acme/tool", "0.36", "0.84")
