"""Statements as a FOCUS 1.2 dataset: one row for each component, Skill version, outcome, day and set of labels.

What a reader could get wrong:
- `BilledCost` is a row's part of the rounded statement line, to 12 places by largest remainder: the rows of a tenant
  sum to its statement, exactly. `EffectiveCost` is the same, as nothing is paid ahead.
- Tiers and allowances count a tenant's whole period, so no row has a tier of its own. The unit price of a row is the
  line's average, allowance and tiers counted in; list and contracted price are the same, as plans are what is listed.
  `ListCost` is that price × the quantity, not rounded to the currency.
- `ChargeClass` is `Correction` where a call of an earlier month is corrected; within the month a correction is usage.
- `PublisherName` is the Skill's publisher, `ProviderName` who runs the gateway.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from skillcell.core.decimals import decimal_text
from skillcell.core.rate_plans import RateComponent, RateMeter, RatePlan, TierMode
from skillcell.core.statements import Statement, StatementLine
from skillcell.metering.rating.focus_columns import NAMES, Kind
from skillcell.metering.rating.money import ZERO, apportioned, exact, quotient, rounded
from skillcell.metering.rating.quantities import UsageKey, UsageSums, quantity

_COST_DIGITS = 12
_METER_NAMES: Mapping[RateMeter, str] = {
    RateMeter.CALLS: "Calls",
    RateMeter.BILLED_SECONDS: "Run Time",
    RateMeter.CPU_SECONDS: "CPU Time",
    RateMeter.MEMORY_RESERVED_GIB_SECONDS: "Memory Granted",
    RateMeter.MEMORY_USED_GIB_SECONDS: "Memory Used",
    RateMeter.MEMORY_LARGER_GIB_SECONDS: "Memory",
    RateMeter.EGRESS_BYTES: "Egress",
    RateMeter.OUTPUT_BYTES: "Output",
}


@dataclass(frozen=True, slots=True)
class FocusSource:
    """Who bills, and what statements don't know."""

    provider: str = "Skillcell"
    """Who runs the gateway; it issues the invoices too: of a third party's, FOCUS wants a `BilledCost` of 0."""
    region_id: str = ""
    region_name: str = ""
    """Needed where there is a region id."""
    account_names: Mapping[str, str] = field(default_factory=dict)
    """By tenant; a tenant without one is called by its id."""
    invoiced: bool = False
    """Whether the period is closed: only then its charges belong to an invoice."""


def invoice_id(statement: Statement) -> str:
    """Names a tenant's invoice for ever: `2026-11-acme-EUR`."""
    return f"{statement.period}-{statement.tenant}-{statement.currency}"


def period_bounds(period: str) -> tuple[datetime, datetime]:
    """The first instant of `2026-11`, and that of the next month; UTC."""
    year, month = (int(part) for part in period.split("-"))
    start = datetime(year, month, 1, tzinfo=UTC)
    return start, datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)


def focus_rows(
    statements: Iterable[Statement],
    usage: Mapping[UsageKey, UsageSums],
    plans: Mapping[str, RatePlan],
    source: FocusSource,
) -> Iterator[Mapping[str, object]]:
    """Rows with every column of `NAMES`: text, `Decimal`, `datetime` in UTC, or None.

    `usage` must be what the statements were made of, by `key_of` or `tagged_key_of`; `plans` are by version.
    """
    parts: dict[tuple[str, str, str, str], list[UsageKey]] = {}
    for key in sorted(usage):
        parts.setdefault((key.tenant, key.plan_version, key.publisher, key.skill), []).append(key)
    for statement in statements:
        for line in statement.lines:
            if line.meter is None:
                yield _minimum_row(statement, line, source)
                continue
            keys = parts[statement.tenant, line.plan_version, line.publisher, line.skill]
            component = plans[line.plan_version].components[line.component]
            yield from _usage_rows(statement, line, component, {key: usage[key] for key in keys}, source)


def _usage_rows(
    statement: Statement,
    line: StatementLine,
    component: RateComponent,
    usage: Mapping[UsageKey, UsageSums],
    source: FocusSource,
) -> Iterator[Mapping[str, object]]:
    used = {key: of_key for key, sums in usage.items() if (of_key := quantity(component.meter, sums))}
    costs = apportioned(line.amount, list(used.values()), _COST_DIGITS) if used else ()
    average = quotient(line.unrounded, line.quantity, Kind.UNIT_PRICE.value) if line.quantity else ZERO
    unit_price = max(average, ZERO)  # a volume price that falls with a new version can make a line negative
    meter = component.meter.value.lower()
    for (key, of_key), billed in zip(used.items(), costs, strict=True):
        shown = rounded(of_key, Kind.QUANTITY.value)
        with exact():
            listed = unit_price * shown
        start = datetime.fromisoformat(key.day).replace(tzinfo=UTC)
        yield _row(statement, source) | {
            "BilledCost": billed,
            "ChargeCategory": "Usage",
            "ChargeClass": "Correction" if key.correction else None,
            "ChargeDescription": f"{_METER_NAMES[component.meter]} of {key.publisher}/{key.skill} {key.version}",
            "ChargeFrequency": "Usage-Based",
            "ChargePeriodEnd": start + timedelta(days=1),
            "ChargePeriodStart": start,
            "ConsumedQuantity": shown,
            "ConsumedUnit": line.unit,
            "ContractedCost": listed,
            "ContractedUnitPrice": unit_price,
            "EffectiveCost": billed,
            "ListCost": listed,
            "ListUnitPrice": unit_price,
            "PricingCategory": "Standard",
            "PricingCurrencyContractedUnitPrice": unit_price,
            "PricingCurrencyEffectiveCost": billed,
            "PricingCurrencyListUnitPrice": unit_price,
            "PricingQuantity": shown,
            "PricingUnit": line.unit,
            "PublisherName": key.publisher,
            "RegionId": source.region_id or None,
            "RegionName": source.region_name or None,
            "ResourceId": f"{key.publisher}/{key.skill}",
            "ResourceName": key.skill,
            "ResourceType": "Skill",
            "SkuId": meter,
            "SkuMeter": _METER_NAMES[component.meter],
            "SkuPriceDetails": _price_details(component),
            "SkuPriceId": f"{line.plan_version}/{line.component}",
            "Tags": key.tags or None,
            "x_Outcome": key.outcome,
            "x_PlanVersion": line.plan_version,
            "x_SkillVersion": key.version,
        }


def _minimum_row(statement: Statement, line: StatementLine, source: FocusSource) -> Mapping[str, object]:
    start, end = period_bounds(statement.period)
    return _row(statement, source) | {
        "BilledCost": line.amount,
        "ChargeCategory": "Adjustment",
        "ChargeDescription": f"Difference to the minimum charge of plan {line.plan_version}",
        "ChargeFrequency": "Recurring",
        "ChargePeriodEnd": end,
        "ChargePeriodStart": start,
        "ContractedCost": line.amount,
        "EffectiveCost": line.amount,
        "ListCost": line.amount,
        "PricingCurrencyEffectiveCost": line.amount,
        "PublisherName": source.provider,
        "x_PlanVersion": line.plan_version,
    }


def _row(statement: Statement, source: FocusSource) -> dict[str, object]:
    """What all rows of a statement share; the rest is null."""
    start, end = period_bounds(statement.period)
    return dict.fromkeys(NAMES) | {
        "BillingAccountId": statement.tenant,
        "BillingAccountName": source.account_names.get(statement.tenant, statement.tenant),
        "BillingAccountType": "Tenant",
        "BillingCurrency": statement.currency,
        "BillingPeriodEnd": end,
        "BillingPeriodStart": start,
        "InvoiceId": invoice_id(statement) if source.invoiced else None,
        "InvoiceIssuerName": source.provider,
        "PricingCurrency": statement.currency,
        "ProviderName": source.provider,
        "ServiceCategory": "Compute",
        "ServiceName": "Skillcell",
        "ServiceSubcategory": "Serverless Compute",
    }


def _price_details(component: RateComponent) -> str:
    """How the price comes about; keys that FOCUS doesn't define begin with `x_`, values are text."""
    details = {"x_Mode": component.mode.value.lower()}
    if component.free_allowance:
        details["x_FreeAllowance"] = decimal_text(component.free_allowance)
    if component.mode is TierMode.PACKAGE:
        details["x_PackageSize"] = decimal_text(component.package_size)
    if not component.tiers:
        details["x_UnitAmount"] = decimal_text(component.unit_amount)
    for place, tier in enumerate(component.tiers, 1):
        details[f"x_Tier{place}UpTo"] = "inf" if tier.up_to is None else decimal_text(tier.up_to)
        details[f"x_Tier{place}UnitAmount"] = decimal_text(tier.unit_amount)
        details[f"x_Tier{place}FlatAmount"] = decimal_text(tier.flat_amount)
    return json.dumps(details)


def billed_sum(rows: Iterable[Mapping[str, object]]) -> Decimal:
    """What the rows bill together, exactly."""
    with exact():
        return sum((cost for row in rows if isinstance(cost := row["BilledCost"], Decimal)), ZERO)
