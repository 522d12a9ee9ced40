"""JSON Schemas of inputs and outputs: judged once at publish, compiled once, applied to every call.

A schema comes from a stranger and runs in the gateway, so it is refused unless it is bounded: patterns run on a
linear-time engine (no look-around, no back-references), nothing is ever fetched, and `schema_cost` caps how many
subschemas can meet at one place of a value. Draft 2020-12, or draft-07 where `$schema` says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NoReturn

import jsonschema_rs

from skillcell.core.errors import FieldViolation
from skillcell.registry.findings import shown
from skillcell.registry.schema_cost import cost_problems

MAX_SCHEMA_BYTES = 256 << 10
MAX_SCHEMA_DEPTH = 40
MAX_VALUE_DEPTH = 128
MAX_VIOLATIONS = 20
_DRAFT_2020 = "https://json-schema.org/draft/2020-12/schema"
_DRAFT_7 = "http://json-schema.org/draft-07/schema"


class JsonProblem(ValueError):
    """Bytes that are not JSON as RFC 8259 has it, or deeper than we take; the message is fit to show."""


def check_schema(schema: Mapping[str, Any]) -> tuple[FieldViolation, ...]:
    """What forbids this schema, by JSON pointer without its first slash; empty when it can be used."""
    try:
        text = json.dumps(schema, allow_nan=False)
    except (ValueError, RecursionError, TypeError):
        return (FieldViolation("", "is not JSON"),)
    if len(text) > MAX_SCHEMA_BYTES:
        return (FieldViolation("", f"has {len(text)} bytes; the limit is {MAX_SCHEMA_BYTES}"),)
    if (depth := depth_of(schema)) > MAX_SCHEMA_DEPTH:
        return (FieldViolation("", f"is nested {depth} deep; the limit is {MAX_SCHEMA_DEPTH}"),)
    draft = schema.get("$schema", _DRAFT_2020)
    if not isinstance(draft, str) or draft.rstrip("#") not in {_DRAFT_2020, _DRAFT_7}:
        return (FieldViolation("$schema", f"{shown(str(draft))} is neither draft 2020-12 nor draft-07"),)
    if problems := cost_problems(schema):
        return problems
    try:
        _compile(text, None)
    except jsonschema_rs.ValidationError as problem:
        return (FieldViolation(pointer(problem.instance_path), shown(_first_line(problem.message), 300)),)
    except (jsonschema_rs.ReferencingError, ValueError) as problem:
        return (FieldViolation("", shown(_first_line(str(problem)), 300)),)
    return ()


def validate(schema: Mapping[str, Any], data: bytes, root: str = "input") -> tuple[FieldViolation, ...]:
    """What of the JSON value `data` breaks the schema: fields as `input/items/3/name`, at most 20, in document order.

    The schema must have passed `check_schema`. Bytes that are not JSON are one violation of `root`.
    """
    try:
        value = parse_json(data)
    except JsonProblem as problem:
        return (FieldViolation(root, str(problem)),)
    violations: list[FieldViolation] = []
    for error in _compiled(json.dumps(schema)).iter_errors(value):
        at = pointer(error.instance_path)
        message = _named(_first_line(error.message), value, error)
        violations.append(FieldViolation(f"{root}/{at}" if at else root, shown(message, 400)))
        if len(violations) >= MAX_VIOLATIONS:
            break
    return tuple(violations)


def parse_json(data: bytes) -> Any:
    """A JSON value, integers exact at any size up to 4,300 digits. Raises JsonProblem and nothing else."""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_no_constant, parse_float=_finite)
    except JsonProblem:
        raise
    except UnicodeDecodeError as problem:
        raise JsonProblem(f"not UTF-8 at byte {problem.start}") from problem
    except json.JSONDecodeError as problem:
        raise JsonProblem(f"not JSON: {problem.msg} at line {problem.lineno} column {problem.colno}") from problem
    except RecursionError as problem:
        raise JsonProblem(f"nested deeper than {MAX_VALUE_DEPTH}") from problem
    except ValueError as problem:
        raise JsonProblem("a number has more than 4300 digits") from problem
    if depth_of(value) > MAX_VALUE_DEPTH:
        raise JsonProblem(f"nested deeper than {MAX_VALUE_DEPTH}")
    if b"\\ud" in data.lower() and _has_surrogate(value):
        raise JsonProblem("a text has half of a surrogate pair (\\uD800 to \\uDFFF)")
    return value


def pointer(path: Sequence[str | int]) -> str:
    """RFC 6901 without the first slash."""
    return "/".join(str(part).replace("~", "~0").replace("/", "~1") for part in path)


def depth_of(value: Any) -> int:
    """How deep lists and mappings nest; 0 for a scalar. Never recurses."""
    depth, level = 0, [value]
    while True:
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list | tuple):
                below.extend(item)
        containers = any(isinstance(item, dict | list | tuple) for item in level)
        if not containers:
            return depth
        depth, level = depth + 1, below


@lru_cache(maxsize=1024)
def _compiled(text: str) -> jsonschema_rs.Validator:
    return _compile(text, "value")


def _compile(text: str, mask: str | None) -> jsonschema_rs.Validator:
    """`mask` stands in messages for the offending value."""
    return jsonschema_rs.validator_for(
        json.loads(text),
        offline=True,
        mask=mask,
        validate_formats=True,
        pattern_options=jsonschema_rs.RegexOptions(size_limit=1 << 20, dfa_size_limit=1 << 20),
    )


def _named(message: str, value: Any, problem: jsonschema_rs.ValidationError) -> str:
    """The message with the offending value in it, when that is short: whole values must not travel in errors."""
    for part in problem.instance_path:
        value = value[part]
    if isinstance(value, dict | list):
        return message
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) or len(value) < 200 else '"…"'
    return message.replace("value", text[:60] + "…" if len(text) > 60 else text, 1)


def _first_line(message: str) -> str:
    return message.split("\n", 1)[0]


def _no_constant(name: str) -> NoReturn:
    raise JsonProblem(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise JsonProblem(f"the number {shown(text, 40)} is too large")
    return number


def _has_surrogate(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
