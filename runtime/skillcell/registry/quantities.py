"""Kubernetes quantities (`500m`, `256Mi`, `1.5Gi`, `1e3`), parsed exactly.

Source: Kubernetes' resource.Quantity. Sizes round up to whole bytes and CPU up to a thousandth of a core, as there; the
result is always positive. There is no value that means "unlimited".
"""

from __future__ import annotations

import re
from fractions import Fraction

_QUANTITY = re.compile(
    r"([0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][-+]?[0-9]{1,2})?"
)
_DECIMAL = {"": 0, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_MAXIMUM = (1 << 63) - 1


def quantity(text: str) -> Fraction:
    """The exact value. Raises ValueError, with a message fit to show, for anything but a positive quantity."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError("is not a quantity such as 500m, 256Mi or 1.5Gi")
    number, suffix = Fraction(match[1]), match[2] or ""
    if suffix in _BINARY:
        value = number * (1 << _BINARY[suffix])
    elif suffix in _DECIMAL:
        value = number * Fraction(10) ** _DECIMAL[suffix]
    else:
        value = number * Fraction(10) ** int(suffix[1:])
    if value <= 0:
        raise ValueError("must be more than zero")
    return value


def milli_cpus(text: str) -> int:
    """Thousandths of one core: `0.5` and `500m` are 500."""
    return _ceil(quantity(text) * 1000)


def size_bytes(text: str) -> int:
    """Bytes: `1Ki` is 1024, `1k` is 1000."""
    return _ceil(quantity(text))


def _ceil(value: Fraction) -> int:
    whole = -(-value.numerator // value.denominator)
    if whole > _MAXIMUM:
        raise ValueError("is larger than 2^63-1")
    return whole
