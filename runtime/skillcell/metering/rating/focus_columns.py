"""The columns of the FOCUS 1.2 dataset: all of them, by their names, then our own, which begin with `x_`.

Columns of what Skillcell has none of, as commitments, capacity reservations, availability zones and sub-accounts, are
there and null, so that the dataset keeps the presence rules of every applicability.
Source: https://focus.finops.org/focus-specification/v1-2/
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What a column holds. The number of a decimal is its places: 38 digits in all."""

    TEXT = -1
    TIME = -2
    QUANTITY = 6
    UNIT_PRICE = 18
    COST = 24
    """Enough for unit price × quantity to be exact."""


@dataclass(frozen=True, slots=True)
class Column:
    """`nullable`: whether a row may have none."""

    name: str
    kind: Kind = Kind.TEXT
    nullable: bool = False


COLUMNS = (
    Column("AvailabilityZone", nullable=True),
    Column("BilledCost", Kind.COST),
    Column("BillingAccountId"),
    Column("BillingAccountName"),
    Column("BillingAccountType"),
    Column("BillingCurrency"),
    Column("BillingPeriodEnd", Kind.TIME),
    Column("BillingPeriodStart", Kind.TIME),
    Column("CapacityReservationId", nullable=True),
    Column("CapacityReservationStatus", nullable=True),
    Column("ChargeCategory"),
    Column("ChargeClass", nullable=True),
    Column("ChargeDescription"),
    Column("ChargeFrequency"),
    Column("ChargePeriodEnd", Kind.TIME),
    Column("ChargePeriodStart", Kind.TIME),
    Column("CommitmentDiscountCategory", nullable=True),
    Column("CommitmentDiscountId", nullable=True),
    Column("CommitmentDiscountName", nullable=True),
    Column("CommitmentDiscountQuantity", Kind.QUANTITY, nullable=True),
    Column("CommitmentDiscountStatus", nullable=True),
    Column("CommitmentDiscountType", nullable=True),
    Column("CommitmentDiscountUnit", nullable=True),
    Column("ConsumedQuantity", Kind.QUANTITY, nullable=True),
    Column("ConsumedUnit", nullable=True),
    Column("ContractedCost", Kind.COST),
    Column("ContractedUnitPrice", Kind.UNIT_PRICE, nullable=True),
    Column("EffectiveCost", Kind.COST),
    Column("InvoiceId", nullable=True),
    Column("InvoiceIssuerName"),
    Column("ListCost", Kind.COST),
    Column("ListUnitPrice", Kind.UNIT_PRICE, nullable=True),
    Column("PricingCategory", nullable=True),
    Column("PricingCurrency"),
    Column("PricingCurrencyContractedUnitPrice", Kind.UNIT_PRICE, nullable=True),
    Column("PricingCurrencyEffectiveCost", Kind.COST),
    Column("PricingCurrencyListUnitPrice", Kind.UNIT_PRICE, nullable=True),
    Column("PricingQuantity", Kind.QUANTITY, nullable=True),
    Column("PricingUnit", nullable=True),
    Column("ProviderName"),
    Column("PublisherName"),
    Column("RegionId", nullable=True),
    Column("RegionName", nullable=True),
    Column("ResourceId", nullable=True),
    Column("ResourceName", nullable=True),
    Column("ResourceType", nullable=True),
    Column("ServiceCategory"),
    Column("ServiceName"),
    Column("ServiceSubcategory"),
    Column("SkuId", nullable=True),
    Column("SkuMeter", nullable=True),
    Column("SkuPriceDetails", nullable=True),
    Column("SkuPriceId", nullable=True),
    Column("SubAccountId", nullable=True),
    Column("SubAccountName", nullable=True),
    Column("SubAccountType", nullable=True),
    Column("Tags", nullable=True),
    Column("x_Outcome", nullable=True),
    Column("x_PlanVersion"),
    Column("x_SkillVersion", nullable=True),
)
NAMES = tuple(column.name for column in COLUMNS)
