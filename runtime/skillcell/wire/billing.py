"""Costs, plans, tenants, statements and payouts. Amounts and quantities are decimal text on the wire, never floats.

Costs lose nothing on the way. Statements and payouts are made by the server alone, so they go one way.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from skillcell.core.corrections import UsageDelta
from skillcell.core.decimals import decimal_text
from skillcell.core.rate_plans import RateComponent, RateMeter, RatePlan, RateTier, TierMode
from skillcell.core.statements import Cost, CostLine, Payout, Statement
from skillcell.core.tenants import Tenant
from skillcell.v1 import admin_pb2, types_pb2, usage_pb2
from skillcell.v1 import policy_pb2 as pb
from skillcell.wire.enums import RATE_METER, UnknownValue
from skillcell.wire.times import instant_from_proto, instant_to_proto

_TEXTS = frozenset({"memory_limit_byte_ns", "memory_used_byte_ns"})
_MODES = {
    TierMode.FLAT: pb.TIER_MODE_UNSPECIFIED,
    TierMode.GRADUATED: pb.TIER_MODE_GRADUATED,
    TierMode.VOLUME: pb.TIER_MODE_VOLUME,
    TierMode.PACKAGE: pb.TIER_MODE_PACKAGE,
}
_MODE_OF: dict[int, TierMode] = {int(number): mode for mode, number in _MODES.items()}


def cost_to_proto(cost: Cost) -> types_pb2.Cost:
    return types_pb2.Cost(
        currency=cost.currency,
        amount=decimal_text(cost.amount),
        plan_version=cost.plan_version,
        lines=[
            types_pb2.CostLine(
                meter=line.meter.value.lower(),
                quantity=decimal_text(line.quantity),
                unit=line.unit,
                amount=decimal_text(line.amount),
            )
            for line in cost.lines
        ],
    )


def cost_from_proto(message: types_pb2.Cost) -> Cost:
    """Raises UnknownValue for a meter or an amount that this version can't read."""
    return Cost(
        message.currency,
        _decimal(message.amount),
        message.plan_version,
        tuple(
            CostLine(_meter(line.meter), _decimal(line.quantity), line.unit, _decimal(line.amount))
            for line in message.lines
        ),
    )


def plan_to_proto(plan: RatePlan, *, current: bool = False) -> pb.RatePlan:
    message = pb.RatePlan(
        name=plan.name,
        version=plan.version,
        currency=plan.currency,
        minor_digits=plan.minor_digits,
        components=[_component(component) for component in plan.components],
        minimum_amount=_unless_zero(plan.minimum_amount),
        publisher_share=_unless_zero(plan.publisher_share),
        accept_price_hints=plan.accept_price_hints,
        current=current,
    )
    if plan.created_at is not None:
        message.create_time.CopyFrom(instant_to_proto(plan.created_at))
    return message


def plan_from_proto(message: pb.RatePlan) -> RatePlan:
    """Of a plan that a gateway sent; `current` is dropped. Raises UnknownValue."""
    return RatePlan(
        name=message.name,
        version=message.version,
        currency=message.currency,
        minor_digits=message.minor_digits,
        components=tuple(
            RateComponent(
                meter=RATE_METER.from_wire(component.meter),
                mode=_mode(component.mode),
                unit_amount=_decimal(component.unit_amount),
                free_allowance=_decimal(component.free_allowance),
                tiers=tuple(
                    RateTier(
                        _decimal(tier.up_to) if tier.up_to else None,
                        _decimal(tier.unit_amount),
                        _decimal(tier.flat_amount),
                    )
                    for tier in component.tiers
                ),
                package_size=_decimal(component.package_size),
            )
            for component in message.components
        ),
        minimum_amount=_decimal(message.minimum_amount),
        publisher_share=_decimal(message.publisher_share),
        accept_price_hints=message.accept_price_hints,
        created_at=instant_from_proto(message.create_time) if message.HasField("create_time") else None,
    )


def plan_to_document(message: pb.RatePlan) -> dict[str, Any]:
    """The plan document that a request's plan says, unchecked, for whoever checks documents."""
    document: dict[str, Any] = {
        "name": message.name,
        "currency": message.currency,
        "components": [_component_document(component) for component in message.components],
        "accept_price_hints": message.accept_price_hints,
        **_given(message, "minimum_amount", "publisher_share"),
    }
    if message.HasField("minor_digits"):
        document["minor_digits"] = message.minor_digits
    return document


def _component_document(message: pb.RateComponent) -> dict[str, Any]:
    document: dict[str, Any] = {
        "meter": RATE_METER.from_wire(message.meter).value.lower(),
        "mode": _mode(message.mode).value.lower(),
        **_given(message, "unit_amount", "free_allowance", "package_size"),
    }
    if message.tiers:
        document["tiers"] = [_given(tier, "up_to", "unit_amount", "flat_amount") for tier in message.tiers]
    return document


def _given(message: Any, *names: str) -> dict[str, str]:
    return {name: value for name in names if (value := getattr(message, name))}


def _component(component: RateComponent) -> pb.RateComponent:
    priced = component.mode in (TierMode.FLAT, TierMode.PACKAGE)
    return pb.RateComponent(
        meter=RATE_METER.to_wire(component.meter),
        unit_amount=decimal_text(component.unit_amount) if priced else "",
        free_allowance=_unless_zero(component.free_allowance),
        mode=_MODES[component.mode],
        tiers=[
            pb.RateTier(
                up_to="" if tier.up_to is None else decimal_text(tier.up_to),
                unit_amount=decimal_text(tier.unit_amount),
                flat_amount=_unless_zero(tier.flat_amount),
            )
            for tier in component.tiers
        ],
        package_size=_unless_zero(component.package_size),
    )


def statement_to_proto(statement: Statement) -> usage_pb2.GetStatementResponse:
    """Without what a response tells besides: `open`, `as_of_sequence`, `currencies`."""
    return usage_pb2.GetStatementResponse(
        tenant=statement.tenant,
        period=statement.period,
        currency=statement.currency,
        lines=[
            usage_pb2.StatementLine(
                skill=f"{line.publisher}/{line.skill}" if line.publisher else "",
                meter="minimum" if line.meter is None else line.meter.value.lower(),
                quantity=decimal_text(line.quantity),
                unit=line.unit,
                amount=_money(line.amount),
                plan_version=line.plan_version,
            )
            for line in statement.lines
        ],
        total=_money(statement.total),
    )


def payout_to_proto(payout: Payout) -> usage_pb2.GetPayoutResponse:
    """Without what a response tells besides: `open`, `currencies`."""
    return usage_pb2.GetPayoutResponse(
        publisher=payout.publisher,
        period=payout.period,
        currency=payout.currency,
        lines=[
            usage_pb2.PayoutLine(
                skill=f"{line.publisher}/{line.skill}",
                calls=line.calls,
                charged=_money(line.charged),
                publisher_share=_money(line.publisher_share),
                platform_fee=_money(line.platform_fee),
            )
            for line in payout.lines
        ],
        total=_money(payout.total),
    )


def tenant_to_proto(tenant: Tenant) -> admin_pb2.Tenant:
    message = admin_pb2.Tenant(
        id=tenant.id,
        display_name=tenant.display_name,
        publishers=tenant.publishers,
        rate_plan=tenant.rate_plan,
        suspended=tenant.suspended,
        etag=tenant.etag,
    )
    if tenant.created_at is not None:
        message.create_time.CopyFrom(instant_to_proto(tenant.created_at))
    return message


def tenant_from_proto(message: admin_pb2.Tenant) -> Tenant:
    return Tenant(
        id=message.id,
        display_name=message.display_name,
        publishers=tuple(message.publishers),
        rate_plan=message.rate_plan,
        suspended=message.suspended,
        created_at=instant_from_proto(message.create_time) if message.HasField("create_time") else None,
        etag=message.etag,
    )


def delta_to_proto(delta: UsageDelta) -> admin_pb2.UsageDelta:
    values: dict[str, Any] = {name: getattr(delta, name) for name in UsageDelta.names()}
    texts = {name: str(values[name]) if values[name] else "" for name in _TEXTS}
    return admin_pb2.UsageDelta(**{**values, **texts})


def delta_from_proto(message: admin_pb2.UsageDelta) -> UsageDelta:
    return UsageDelta(**{name: int(getattr(message, name) or 0) for name in UsageDelta.names()})


def _mode(number: int) -> TierMode:
    if number not in _MODE_OF:
        raise UnknownValue(f"TierMode has no value {number}")
    return _MODE_OF[number]


def _meter(text: str) -> RateMeter:
    try:
        return RateMeter(text.upper())
    except ValueError as error:
        raise UnknownValue(f"there is no meter {text[:40]!r}") from error


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text or "0")
    except ArithmeticError as error:
        raise UnknownValue(f"{text[:40]!r} is no decimal") from error


def _unless_zero(value: Decimal) -> str:
    return decimal_text(value) if value else ""


def _money(amount: Decimal) -> str:
    """With the zeros of its minor units."""
    return format(amount, "f")


def charge_to_proto(row: Mapping[str, object], *, open_: bool) -> usage_pb2.StreamChargesResponse:
    """A FOCUS row; what is null is left out."""
    columns = {name: _charge_text(value) for name, value in row.items() if value is not None}
    return usage_pb2.StreamChargesResponse(columns=columns, open=open_)


def _charge_text(value: object) -> str:
    if isinstance(value, Decimal):
        return decimal_text(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return str(value)
