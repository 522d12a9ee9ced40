"""The rules of a plan document, field by field: each value checked, each violation told by its path.

Scalars may be text (as YAML's are read here), integers or `Decimal`. A `float` is refused: its digits are lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TypeVar

from skillcell.core.errors import FieldViolation
from skillcell.core.rate_plans import RateComponent, RateMeter, RatePlan, RateTier, TierMode
from skillcell.metering.rating.currencies import MINOR_DIGITS
from skillcell.metering.rating.money import ZERO

MAX_COMPONENTS = 64
MAX_TIERS = 32
MAX_MINOR_DIGITS = 9
MAX_INTEGER_DIGITS = 18
MAX_DECIMAL_PLACES = 18
MAX_VIOLATIONS = 100

_PLAN_KEYS = (
    *("name", "currency", "minor_digits", "components", "minimum_amount", "publisher_share", "accept_price_hints"),
)
_COMPONENT_KEYS = ("meter", "mode", "unit_amount", "free_allowance", "tiers", "package_size")
_TIER_KEYS = ("up_to", "unit_amount", "flat_amount")
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_NUMBER = re.compile(r"(?P<sign>[-+]?)([0-9]{1,40}([.][0-9]{0,40})?|[.][0-9]{1,40})([eE][-+]?[0-9]{1,3})?")
_TRUE = frozenset({"true", "True", "TRUE"})
_FALSE = frozenset({"false", "False", "FALSE"})
_METERS = {meter.value.lower(): meter for meter in RateMeter}
_MODES = {mode.value.lower(): mode for mode in TierMode}
T = TypeVar("T")


@dataclass(slots=True)
class Problems:
    """Violations in the order of the document, `components[1].tiers[0].up_to`; the first hundred of them."""

    found: list[FieldViolation] = field(default_factory=list)

    def add(self, path: str, description: str) -> None:
        if len(self.found) < MAX_VIOLATIONS:
            self.found.append(FieldViolation(path, description))


def read_plan_fields(document: Any, problems: Problems) -> RatePlan | None:
    """The plan, or None where too little of it can be read; to be used only if there are no problems."""
    if not isinstance(document, Mapping):
        problems.add("", f"is {_kind(document)}; a mapping is needed, with name, currency and components")
        return None
    for given in ("version", "create_time", "created_at"):
        if given in document:
            problems.add(given, "is given by the gateway; leave it out")
    _unknown_keys(document, (*_PLAN_KEYS, "version", "create_time", "created_at"), "", problems)
    name = _text(document, "name", problems)
    if name is not None and not _NAME.fullmatch(name):
        problems.add("name", f"is {_shown(name)}; 1 to 63 of a-z, 0-9 and '-' are allowed, no '-' at either end")
    currency = _text(document, "currency", problems)
    if currency is not None and currency not in MINOR_DIGITS:
        problems.add("currency", f"is {_shown(currency)}; an active ISO 4217 code is needed, as EUR, USD or JPY")
    digits = _minor_digits(document, currency, problems)
    components = tuple(_components(document, problems))
    minimum = _decimal(document, "minimum_amount", "", problems, default=ZERO)
    if minimum is not None and -int(minimum.as_tuple().exponent) > digits:
        problems.add("minimum_amount", f"is {minimum:f}; it can have {digits} decimal places, as invoices do")
    share = _decimal(document, "publisher_share", "", problems, default=ZERO)
    if share is not None and share > 1:
        problems.add("publisher_share", f"is {share:f}; a part of the charge is needed, from 0 to 1")
    if _boolean(document, "accept_price_hints", problems):
        problems.add(
            "accept_price_hints",
            "is true; not served by this version: a hint names no currency and has no bound. Price the Skill's "
            "meters here and give its publisher a publisher_share",
        )
    if name is None or currency is None or minimum is None or share is None:
        return None
    return RatePlan(name, "", currency, digits, components, minimum, share)


def _minor_digits(document: Mapping[str, Any], currency: str | None, problems: Problems) -> int:
    default = MINOR_DIGITS.get(currency or "", 2)
    value = document.get("minor_digits")
    if value is None:
        return default
    text = str(value) if not isinstance(value, bool | float) else ""
    if not re.fullmatch(r"[0-9]{1,3}", text) or int(text) > MAX_MINOR_DIGITS:
        problems.add("minor_digits", f"is {_shown(value)}; an integer from 0 to {MAX_MINOR_DIGITS} is allowed")
        return default
    return int(text)


def _components(document: Mapping[str, Any], problems: Problems) -> Iterator[RateComponent]:
    listed = document.get("components")
    if not isinstance(listed, list) or not listed:
        is_what = "is missing" if listed is None else "is empty" if listed == [] else f"is {_kind(listed)}"
        problems.add("components", f"{is_what}; a list of 1 to {MAX_COMPONENTS} components is needed")
        return
    if len(listed) > MAX_COMPONENTS:
        problems.add("components", f"has {len(listed)} components; at most {MAX_COMPONENTS} are allowed")
    for place, component in enumerate(listed[:MAX_COMPONENTS]):
        path = f"components[{place}]"
        if not isinstance(component, Mapping):
            problems.add(path, f"is {_kind(component)}; a mapping is needed, with meter and prices")
            continue
        read = _component(component, path, problems)
        if read is not None:
            yield read


def _component(document: Mapping[str, Any], path: str, problems: Problems) -> RateComponent | None:
    _unknown_keys(document, _COMPONENT_KEYS, path, problems)
    meter = _word(document, "meter", _METERS, path, problems)
    mode = _word(document, "mode", _MODES, path, problems, default=TierMode.FLAT)
    free = _decimal(document, "free_allowance", path, problems, default=ZERO)
    if mode is None:
        return None
    tiered = mode in (TierMode.GRADUATED, TierMode.VOLUME)
    unit = size = ZERO
    tiers: tuple[RateTier, ...] = ()
    if tiered:
        _absent(document, ("unit_amount",), f"mode {mode.value.lower()} has its prices in tiers", path, problems)
        tiers = tuple(_tiers(document, path, problems))
    else:
        word = mode.value.lower()
        _absent(document, ("tiers",), f"mode {word} has none; use mode graduated or volume", path, problems)
        unit = _decimal(document, "unit_amount", path, problems) or ZERO
    if mode is TierMode.PACKAGE:
        size = _decimal(document, "package_size", path, problems) or ZERO
        if not size and document.get("package_size") is not None:
            _more_than_nothing(f"{path}.package_size", problems)
    else:
        _absent(document, ("package_size",), "it goes with mode package alone", path, problems)
    if meter is None or free is None:
        return None
    return RateComponent(meter, mode, unit, free, tiers, size)


def _tiers(document: Mapping[str, Any], parent: str, problems: Problems) -> Iterator[RateTier]:
    listed = document.get("tiers")
    at = f"{parent}.tiers"
    if not isinstance(listed, list) or not listed:
        is_what = "is missing" if listed is None else "is empty" if listed == [] else f"is {_kind(listed)}"
        problems.add(at, f"{is_what}; a list of 1 to {MAX_TIERS} tiers is needed, ascending, the last without up_to")
        return
    if len(listed) > MAX_TIERS:
        problems.add(at, f"has {len(listed)} tiers; at most {MAX_TIERS} are allowed")
    below = ZERO
    for place, tier in enumerate(listed[:MAX_TIERS]):
        path = f"{at}[{place}]"
        if not isinstance(tier, Mapping):
            problems.add(path, f"is {_kind(tier)}; a mapping is needed, with unit_amount and, but in the last, up_to")
            continue
        _unknown_keys(tier, _TIER_KEYS, path, problems)
        last = place == len(listed) - 1
        up_to = None if last else _decimal(tier, "up_to", path, problems)
        if last and tier.get("up_to") not in (None, ""):
            problems.add(f"{path}.up_to", f"is {_shown(tier['up_to'])}; the last tier has no end, so leave it out")
        if up_to is not None and up_to <= below:
            before = f"the tier before ends at {below:f}" if place else "a tier holds something"
            problems.add(f"{path}.up_to", f"is {up_to:f}; more than {below:f} is needed, as {before}")
        below = up_to if up_to is not None else below
        unit = _decimal(tier, "unit_amount", path, problems)
        flat = _decimal(tier, "flat_amount", path, problems, default=ZERO)
        yield RateTier(up_to, unit or ZERO, flat or ZERO)


def _more_than_nothing(path: str, problems: Problems) -> None:
    if not any(found.field == path for found in problems.found):
        problems.add(path, "is 0; a number above 0 is needed")


def _unknown_keys(document: Mapping[str, Any], known: tuple[str, ...], path: str, problems: Problems) -> None:
    allowed = ", ".join(key for key in known if key not in ("version", "create_time", "created_at"))
    for key in document:
        if key not in known:
            name = key if isinstance(key, str) and re.fullmatch(r"\w{1,80}", key) else repr(key)[:82]
            problems.add(_at(path, name), f"is no key of a plan's {_level(path)}; these are: {allowed}")


def _level(path: str) -> str:
    return "tier" if ".tiers[" in path else "component" if path else "top level"


def _absent(document: Mapping[str, Any], keys: tuple[str, ...], why: str, path: str, problems: Problems) -> None:
    for key in keys:
        if document.get(key) not in (None, "", []):
            problems.add(f"{path}.{key}", f"is not allowed here: {why}")


def _text(document: Mapping[str, Any], key: str, problems: Problems) -> str | None:
    value = document.get(key)
    if value is None or value == "":
        problems.add(key, "is missing")
        return None
    if not isinstance(value, str):
        problems.add(key, f"is {_kind(value)}; text is needed")
        return None
    return value


def _word(
    document: Mapping[str, Any],
    key: str,
    words: Mapping[str, T],
    path: str,
    problems: Problems,
    *,
    default: T | None = None,
) -> T | None:
    value = document.get(key)
    if value is None or value == "":
        if default is None:
            problems.add(_at(path, key), f"is missing; one of {', '.join(words)} is needed")
        return default
    if not isinstance(value, str) or value.lower() not in words:
        problems.add(_at(path, key), f"is {_shown(value)}; one of {', '.join(words)} is needed")
        return None
    return words[value.lower()]


def _boolean(document: Mapping[str, Any], key: str, problems: Problems) -> bool:
    value = document.get(key)
    if value is None or value is False or (isinstance(value, str) and value in _FALSE):
        return False
    if value is True or (isinstance(value, str) and value in _TRUE):
        return True
    problems.add(key, f"is {_shown(value)}; true or false is needed")
    return False


def _decimal(
    document: Mapping[str, Any], key: str, parent: str, problems: Problems, default: Decimal | None = None
) -> Decimal | None:
    """The number at a key, normalised; None, and told, where it isn't one that a plan can have."""
    path, value = _at(parent, key), document.get(key)
    if value is None and default is not None and key not in document:
        return default
    if value is None or value == "":
        problems.add(path, "is missing; a decimal number is needed, as 0.20")
        return None
    text = str(value) if isinstance(value, str | int | Decimal) and not isinstance(value, bool) else ""
    match = _NUMBER.fullmatch(text)
    if match is None:
        problems.add(path, f"is {_shown(value)}; a decimal number is needed, as 0.20")
        return None
    number = Decimal(text)  # exact: construction never rounds, and the pattern bounds its digits
    if number.is_signed() and number:
        problems.add(path, f"is {text[:50]}; 0 or more is needed")
        return None
    return _bounded(number, text, path, problems)


def _bounded(number: Decimal, text: str, path: str, problems: Problems) -> Decimal | None:
    _, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)
    while digits and digits[-1] == 0 and exponent < 0:
        digits, exponent = digits[:-1], exponent + 1
    if number and number.adjusted() >= MAX_INTEGER_DIGITS:
        problems.add(path, f"is {text[:50]}; at most {MAX_INTEGER_DIGITS} digits before the point are allowed")
        return None
    if number and -exponent > MAX_DECIMAL_PLACES:
        problems.add(path, f"is {text[:50]}; at most {MAX_DECIMAL_PLACES} decimal places are allowed")
        return None
    return Decimal((0, digits, exponent)) if number else ZERO


def _at(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str | int | float | Decimal | bool) else _kind(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _kind(value: Any) -> str:
    if value is None or value == "":
        return "empty"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return "text" if isinstance(value, str) else f"the value {str(value)[:40]!r}"
