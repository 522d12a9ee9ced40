"""Decimals as text, the one form in which amounts and quantities travel."""

from __future__ import annotations

from decimal import Decimal


def decimal_text(value: Decimal) -> str:
    """Without an exponent, and without zeros that say nothing: `0.000123`, `1200`, `0`."""
    text = format(value, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in {"", "-0"} else text
