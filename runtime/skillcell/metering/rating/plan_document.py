"""A plan as an operator writes it, in YAML or JSON, and back.

Every number is read from its text, so that no float ever stands between what was written and what is charged; text in
quotes is as good. Whatever is wrong is told at once, each with its place in the document. Several components may price
one meter, each with an allowance and tiers of its own: a fee per call beside a tiered one.
`plan.schema.json` beside this module says the same for editors, as far as a schema can.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.resources import files
from typing import Any

from skillcell.core.decimals import decimal_text
from skillcell.core.errors import Fault, FaultKind, FieldViolation
from skillcell.core.rate_plans import RateComponent, RatePlan, RateTier, TierMode
from skillcell.core.yaml_reader import Duplicate, YamlProblem, read_yaml
from skillcell.metering.rating.plan_reader import Problems, read_plan_fields

MAX_BYTES = 1 << 18


@cache
def plan_schema() -> dict[str, Any]:
    """The JSON Schema 2020-12 of a plan document, as published with the package."""
    text = files("skillcell.metering.rating").joinpath("plan.schema.json").read_text("utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def read_plan(data: bytes) -> RatePlan:
    """The plan in these bytes; its version is empty. Raises INVALID_ARGUMENT with every violation at once."""
    problems = Problems()
    if len(data) > MAX_BYTES:
        problems.add("", f"has {len(data)} bytes; the limit is {MAX_BYTES}")
        raise _refusal(problems)
    try:
        document = _parsed(data.decode("utf-8-sig"), problems)
    except UnicodeDecodeError as error:
        problems.add("", f"is not UTF-8 at byte {error.start}")
        raise _refusal(problems) from error
    except YamlProblem as error:
        at = f" (line {error.line}, column {error.column})" if error.line else ""
        problems.add("", f"can't be read as YAML or JSON: {error}{at}")
        raise _refusal(problems) from error
    return _plan(document, problems)


def plan_from_document(document: Mapping[str, Any]) -> RatePlan:
    """The plan in a parsed document, whose numbers are text, `Decimal` or integers. Raises as `read_plan` does."""
    return _plan(document, Problems())


def plan_document(plan: RatePlan) -> dict[str, Any]:
    """The document of a plan, with decimals as text and only what says something; reading it gives the plan back."""
    document: dict[str, Any] = {
        "name": plan.name,
        "currency": plan.currency,
        "minor_digits": plan.minor_digits,
        "components": [_component_document(component) for component in plan.components],
    }
    if plan.minimum_amount:
        document["minimum_amount"] = decimal_text(plan.minimum_amount)
    if plan.publisher_share:
        document["publisher_share"] = decimal_text(plan.publisher_share)
    return document


def _component_document(component: RateComponent) -> dict[str, Any]:
    document: dict[str, Any] = {"meter": component.meter.value.lower(), "mode": component.mode.value.lower()}
    if component.mode in (TierMode.FLAT, TierMode.PACKAGE):
        document["unit_amount"] = decimal_text(component.unit_amount)
    if component.mode is TierMode.PACKAGE:
        document["package_size"] = decimal_text(component.package_size)
    if component.free_allowance:
        document["free_allowance"] = decimal_text(component.free_allowance)
    if component.tiers:
        document["tiers"] = [_tier_document(tier) for tier in component.tiers]
    return document


def _tier_document(tier: RateTier) -> dict[str, Any]:
    document = {} if tier.up_to is None else {"up_to": decimal_text(tier.up_to)}
    document["unit_amount"] = decimal_text(tier.unit_amount)
    if tier.flat_amount:
        document["flat_amount"] = decimal_text(tier.flat_amount)
    return document


def _plan(document: Any, problems: Problems) -> RatePlan:
    plan = read_plan_fields(document, problems)
    if plan is None or problems.found:
        raise _refusal(problems)
    return plan


def _parsed(text: str, problems: Problems) -> Any:
    if text.lstrip().startswith("{"):
        try:
            document = json.loads(
                text,
                parse_int=str,
                parse_float=str,
                parse_constant=str,
                object_pairs_hook=lambda pairs: _mapping(pairs, problems),
            )
        except (json.JSONDecodeError, RecursionError):
            problems.found.clear()  # perhaps YAML, which may begin so too
        else:
            _with_lines(text, problems)
            return document
    read = read_yaml(text, text_only=True)
    _tell_duplicates(read.duplicates, problems)
    return read.value


def _with_lines(text: str, problems: Problems) -> None:
    """JSON's reader doesn't say where a key is given twice; YAML's does, and reads nearly all JSON."""
    if not problems.found:
        return
    with suppress(YamlProblem):
        duplicates = read_yaml(text, text_only=True).duplicates
        if duplicates:
            problems.found.clear()
            _tell_duplicates(duplicates, problems)


def _tell_duplicates(duplicates: Sequence[Duplicate], problems: Problems) -> None:
    for duplicate in duplicates:
        problems.add("", f"key {duplicate.key[:80]!r} is given twice (line {duplicate.line})")


def _mapping(pairs: list[tuple[str, Any]], problems: Problems) -> dict[str, Any]:
    value = dict(pairs)
    for key in value:
        if sum(name == key for name, _ in pairs) > 1:
            problems.add("", f"key {key[:80]!r} is given twice")
    return value


def _refusal(problems: Problems) -> Fault:
    first = problems.found[0]
    place = f"{first.field}: " if first.field else ""
    more = f" (and {len(problems.found) - 1} more)" if len(problems.found) > 1 else ""
    return Fault(
        FaultKind.INVALID_ARGUMENT,
        "INVALID_FIELD",
        f"the rate plan is not valid: {place}{first.description}{more}",
        violations=tuple(FieldViolation(found.field or "plan", found.description) for found in problems.found),
        metadata={"field": first.field or "plan"},
    )
