"""The price of a quantity under one component: the only place where modes, tiers and packages are applied.

The free allowance comes off first; tiers and packages count what is left. Nothing used costs nothing: the flat amount
of a tier falls due with the first unit in it, that of the first tier too (Stripe charges that one at zero usage).
Less than nothing, which only corrections make, is credited as its mirror image is charged: what would have been free
is not paid out. Callers stand within `money.exact()`.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from skillcell.core.rate_plans import RateComponent, RateTier, TierMode
from skillcell.metering.rating.money import ZERO, quotient


def amount_of(component: RateComponent, quantity: Decimal, *, begun: bool = False) -> Decimal:
    """For a billing period's whole quantity, exactly. `begun`: an instant later, with the next unit just begun."""
    if quantity < 0:
        return -amount_of(component, -quantity)
    counted = quantity - component.free_allowance
    if counted < 0 or (not begun and not counted):
        return ZERO
    match component.mode:
        case TierMode.FLAT:
            return counted * component.unit_amount
        case TierMode.PACKAGE:
            full, rest = divmod(counted, component.package_size)
            return (full + (1 if rest or begun else 0)) * component.unit_amount
        case TierMode.VOLUME:
            tier = next(tier for tier in component.tiers if _reaches(tier, counted, begun))
            return counted * tier.unit_amount + tier.flat_amount
        case TierMode.GRADUATED:
            return _graduated(component.tiers, counted, begun)


def _graduated(tiers: tuple[RateTier, ...], counted: Decimal, begun: bool) -> Decimal:
    total = lower = ZERO
    for tier in tiers:
        total += tier.flat_amount
        if tier.up_to is None or _reaches(tier, counted, begun):
            return total + (counted - lower) * tier.unit_amount
        total += (tier.up_to - lower) * tier.unit_amount
        lower = tier.up_to
    raise ValueError("the last tier has an end")


def _reaches(tier: RateTier, counted: Decimal, begun: bool) -> bool:
    """Whether a quantity ends in this tier or before it; its last unit, `up_to`, belongs to it."""
    return tier.up_to is None or counted < tier.up_to or (counted == tier.up_to and not begun)


def marginal(component: RateComponent, prior: Decimal, quantity: Decimal) -> Decimal:
    """What `quantity` adds after `prior`: allowance, tiers and begun packages go on where that stopped."""
    return amount_of(component, prior + quantity) - amount_of(component, prior)


def listed(component: RateComponent) -> RateComponent:
    """The component as one unit alone knows it: no allowance, no flat amounts, a package's price spread over its units.

    A package size that doesn't divide evenly is rounded to 18 places.
    """
    if component.mode is TierMode.PACKAGE:
        unit_amount = quotient(component.unit_amount, component.package_size)
        return RateComponent(component.meter, unit_amount=unit_amount)
    tiers = tuple(replace(tier, flat_amount=ZERO) for tier in component.tiers)
    return replace(component, free_allowance=ZERO, tiers=tiers)


def most_of(component: RateComponent, quantity: Decimal) -> Decimal:
    """The most that `quantity` can add to a period, whatever came before it, without the allowance.

    What it adds is piecewise linear in what came before, so the most is found where either end of it lies on the end
    of a tier, or an instant behind.
    """
    whole = replace(component, free_allowance=ZERO)
    ends = [tier.up_to for tier in component.tiers if tier.up_to is not None]
    starts = {ZERO, *ends, *(end - quantity for end in ends if end > quantity)}
    if not quantity:
        return ZERO
    return max(
        amount_of(whole, start + quantity, begun=later) - amount_of(whole, start, begun=later)
        for start in starts
        for later in (False, True)
    )
