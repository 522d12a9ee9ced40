"""What operators charge: versioned, immutable plans. Amounts are `Decimal`, exact as they were written.

The field's words: a component prices one meter; its free allowance comes off first; its tiers are `graduated` (each
tier's price for the part that falls in it) or `volume` (the price of the tier that the whole reaches, for all of it);
a package is charged when it is begun (Stripe, Lago, OpenMeter use the same terms).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import Enum


class RateMeter(Enum):
    """What a component counts; the unit of its quantity is in the comment."""

    CALLS = "CALLS"
    """Calls."""
    BILLED_SECONDS = "BILLED_SECONDS"
    """`billed_ms`, in seconds."""
    CPU_SECONDS = "CPU_SECONDS"
    """Seconds of one core: measured CPU time, or granted cores × run time where it was not measured exactly."""
    MEMORY_RESERVED_GIB_SECONDS = "MEMORY_RESERVED_GIB_SECONDS"
    """`memory_limit_byte_ns`, in GiB and seconds."""
    MEMORY_USED_GIB_SECONDS = "MEMORY_USED_GIB_SECONDS"
    """`memory_used_byte_ns`, in GiB and seconds."""
    MEMORY_LARGER_GIB_SECONDS = "MEMORY_LARGER_GIB_SECONDS"
    """The larger of the two, record by record."""
    EGRESS_BYTES = "EGRESS_BYTES"
    """Bytes through the egress proxy, both ways."""
    OUTPUT_BYTES = "OUTPUT_BYTES"
    """Bytes of stdout, stderr, events, outputs and artifacts."""


class TierMode(Enum):
    """How a quantity becomes an amount."""

    FLAT = "FLAT"
    GRADUATED = "GRADUATED"
    VOLUME = "VOLUME"
    PACKAGE = "PACKAGE"


@dataclass(frozen=True, slots=True)
class RateTier:
    """`up_to` is the last unit that belongs to it, None in the last tier."""

    up_to: Decimal | None
    unit_amount: Decimal
    flat_amount: Decimal = Decimal(0)
    """Charged once when the tier is reached."""


@dataclass(frozen=True, slots=True)
class RateComponent:
    """One thing that is charged for."""

    meter: RateMeter
    mode: TierMode = TierMode.FLAT
    unit_amount: Decimal = Decimal(0)
    """Price of one unit (FLAT) or one package (PACKAGE)."""
    free_allowance: Decimal = Decimal(0)
    """Units of a billing period that cost nothing."""
    tiers: tuple[RateTier, ...] = ()
    """GRADUATED and VOLUME: ascending, the last one open."""
    package_size: Decimal = Decimal(0)
    """PACKAGE: units in one."""


@dataclass(frozen=True, slots=True)
class RatePlan:
    """One version of a plan."""

    name: str
    version: str
    """`name/number`, as `standard/3`; what a call pins at admission."""
    currency: str
    """ISO 4217."""
    minor_digits: int
    """Decimal places of an invoice line."""
    components: tuple[RateComponent, ...]
    minimum_amount: Decimal = Decimal(0)
    """The least that a tenant pays for a billing period."""
    publisher_share: Decimal = Decimal(0)
    """Of each charge, 0 to 1; the platform keeps the rest."""
    accept_price_hints: bool = False
    created_at: datetime | None = None


def version_number(version: str) -> int:
    """3 of `standard/3`: versions of one plan follow each other by it. Raises ValueError for any other text."""
    return int(version.rpartition("/")[2])
