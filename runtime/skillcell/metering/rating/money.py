"""Arithmetic with money: exact, or it fails; rounded in one place; split without a remainder.

Nothing here uses the thread's default decimal context, which rounds to 28 digits in silence. Prices and bounds have at
most 36 digits (`plan_document`), quantities are integers over powers of 2 and 10, so a product of any of them has far
fewer digits than `EXACT` holds; should one not, Inexact is raised rather than a digit lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from decimal import (
    ROUND_HALF_UP,
    Context,
    Decimal,
    DivisionByZero,
    FloatOperation,
    Inexact,
    InvalidOperation,
    Overflow,
    localcontext,
)

ZERO = Decimal(0)
EXACT = Context(
    prec=1000,
    rounding=ROUND_HALF_UP,
    traps=[Inexact, InvalidOperation, DivisionByZero, Overflow, FloatOperation],
)
_ROUNDING = Context(prec=1000, rounding=ROUND_HALF_UP, traps=[InvalidOperation, DivisionByZero, Overflow])


def exact() -> AbstractContextManager[Context]:
    """Within it operators on decimals are exact; a result that can't be raises `decimal.Inexact`."""
    return localcontext(EXACT)


def rounded(amount: Decimal, digits: int) -> Decimal:
    """To `digits` decimal places, halves away from zero: an invoice line, so that a credit mirrors its charge."""
    return amount.quantize(Decimal((0, (1,), -digits)), context=_ROUNDING)


def quotient(numerator: Decimal, denominator: Decimal, digits: int = 18) -> Decimal:
    """Division, to be shown and not to be summed: rounded to `digits` decimal places."""
    return rounded(_ROUNDING.divide(numerator, denominator), digits)


def apportioned(total: Decimal, weights: Sequence[Decimal], digits: int) -> tuple[Decimal, ...]:
    """`total` split in proportion to `weights`, in units of 10^-digits, by largest remainder: the parts sum to it.

    Each part is within one unit of its exact share. Equal remainders go to the earlier place, so callers give weights
    in an order of their own (by name), not in the order of records. A negative total is split as its mirror image.
    Weights may be of either sign. Raises ValueError where they sum to 0 and the total doesn't.
    """
    with exact():
        units = int(total.scaleb(digits).to_integral_exact())
        scale = min((int(weight.as_tuple().exponent) for weight in weights), default=0)
        whole = [int(weight.scaleb(-scale)) for weight in weights]
    everything = sum(whole)
    if not everything:
        if units:
            raise ValueError("weights that sum to 0 can't split an amount")
        return tuple(Decimal((0, (0,), -digits)) for _ in weights)
    if everything < 0:
        everything, whole = -everything, [-weight for weight in whole]
    parts = _largest_remainder(abs(units), whole, everything)
    sign = -1 if units < 0 else 1
    with exact():
        return tuple(Decimal(sign * part).scaleb(-digits) for part in parts)


def _largest_remainder(units: int, weights: Sequence[int], everything: int) -> list[int]:
    shares = [divmod(units * weight, everything) for weight in weights]
    parts = [whole for whole, _ in shares]
    missing = units - sum(parts)
    by_remainder = sorted(range(len(shares)), key=lambda place: (-shares[place][1], place))
    for place in by_remainder[:missing]:
        parts[place] += 1
    return parts
