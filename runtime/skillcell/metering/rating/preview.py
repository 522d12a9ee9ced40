"""What a plan would charge for given quantities: a statement of usage that nobody had, to try a plan by."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from decimal import Decimal

from skillcell.core.errors import invalid
from skillcell.core.rate_plans import RateMeter, RatePlan
from skillcell.core.statements import Statement
from skillcell.metering.rating.money import exact
from skillcell.metering.rating.quantities import UsageKey, UsageSums
from skillcell.metering.rating.rate import statements

_QUANTITY = re.compile(r"-?[0-9]{1,18}([.][0-9]{1,9})?")
_FIELDS: Mapping[RateMeter, tuple[str, Decimal]] = {
    RateMeter.CALLS: ("calls", Decimal(1)),
    RateMeter.BILLED_SECONDS: ("billed_ms", Decimal(1000)),
    RateMeter.CPU_SECONDS: ("cpu_milli_ns", Decimal(10**12)),
    RateMeter.MEMORY_RESERVED_GIB_SECONDS: ("memory_reserved_byte_ns", Decimal(2**30 * 10**9)),
    RateMeter.MEMORY_USED_GIB_SECONDS: ("memory_used_byte_ns", Decimal(2**30 * 10**9)),
    RateMeter.MEMORY_LARGER_GIB_SECONDS: ("memory_larger_byte_ns", Decimal(2**30 * 10**9)),
    RateMeter.EGRESS_BYTES: ("egress_bytes", Decimal(1)),
    RateMeter.OUTPUT_BYTES: ("output_bytes", Decimal(1)),
}
"""Where usage counts what a meter prices, and how much of it is one unit."""


def read_quantities(given: Iterable[str]) -> UsageSums:
    """Of texts as `cpu_seconds=1.5`. INVALID_ARGUMENT names the meter, and what is wrong with it."""
    words = {meter.value.lower(): meter for meter in RateMeter}
    found: dict[str, int] = {}
    for text in given:
        word, _, number = text.partition("=")
        if word not in words:
            raise invalid(word[:40] or "meter", f"is no meter; these are: {', '.join(words)}")
        name, of_one = _FIELDS[words[word]]
        if name in found:
            raise invalid(word, "is given twice")
        if not _QUANTITY.fullmatch(number):
            raise invalid(word, f"is {number[:40]!r}; a decimal number is needed, as {word}=1000")
        with exact():
            counted = Decimal(number) * of_one
        if counted != int(counted):
            raise invalid(word, f"is {number}; it is counted in steps of {1 / of_one}")
        found[name] = int(counted)
    return UsageSums(**found)


def preview(plan: RatePlan, usage: UsageSums) -> Statement:
    """What a tenant would pay that used this in a period by calls of one Skill, under this plan alone."""
    version = replace(plan, version=plan.version or f"{plan.name}/0")
    (made,) = statements("", "", {UsageKey("", version.version, "", ""): usage}, {version.version: version}, version)
    return made
