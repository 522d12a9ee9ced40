"""Schemas from strangers: judged before they can cost anything, exact when they are applied."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillcell.core.errors import Fault
from skillcell.core.skills import ArgumentBinding, Entrypoint
from skillcell.registry.arguments import bind_arguments, command_line
from skillcell.registry.schemas import JsonProblem, check_schema, parse_json, validate

ORDERS: dict[str, Any] = {
    "type": "object",
    "required": ["items"],
    "properties": {
        "items": {
            "type": "array",
            "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}},
        },
        "n": {"type": "integer", "maximum": 2**63},
        "when": {"type": "string", "format": "date"},
    },
    "additionalProperties": False,
}


def test_violations_carry_json_pointers_values_and_limits() -> None:
    value = {"items": [{"name": "a"}, {"name": 5}], "n": 2**63 + 1, "x/y": 1}
    found = {v.field: v.description for v in validate(ORDERS, json.dumps(value).encode())}
    assert found["input/items/1/name"] == '5 is not of type "string"'
    assert found["input/n"] == f"{2**63 + 1} is greater than the maximum of {2**63}"
    assert "'x/y'" in found["input"]


def test_big_integers_are_exact() -> None:
    assert validate(ORDERS, json.dumps({"items": [], "n": 2**63}).encode()) == ()
    assert parse_json(b"123456789012345678901234567890") == 123456789012345678901234567890


def test_formats_are_checked() -> None:
    assert validate(ORDERS, b'{"items": [], "when": "2024-13-01"}')[0].field == "input/when"


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff", b"NaN", b"1e999", b'"\\udc00"', b"[" * 9999, b"[" * 200 + b"]" * 200, b"9" * 5000]
)
def test_what_is_not_json_is_one_violation(data: bytes) -> None:
    assert [v.field for v in validate(ORDERS, data)] == ["input"]
    with pytest.raises(JsonProblem):
        parse_json(data)


def chain(depth: int, step: Any) -> dict[str, Any]:
    definitions = {f"n{i}": {"anyOf": [step({"$ref": f"#/$defs/n{i + 1}"})] * 2} for i in range(depth)}
    return {"$ref": "#/$defs/n0", "$defs": {**definitions, f"n{depth}": {}}}


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"$ref": "#"}, "without end"),
        ({"allOf": [{"$ref": "#/allOf/0"}]}, "without end"),
        ({"$ref": "https://example.com/x"}, "leads out"),
        ({"$ref": "other.json#/a"}, "leads out"),
        ({"$ref": "#/$defs/missing"}, "names no subschema"),
        ({"pattern": "(?=a)b"}, "regex"),
        ({"type": "strnig"}, "strnig"),
        ({"properties": {"a": {"minLength": -1}}}, "-1"),
        ({"$schema": "http://json-schema.org/draft-04/schema#"}, "neither"),
        (chain(60, lambda ref: ref), "more than 1000"),
        (chain(60, lambda ref: {"properties": {"a": ref}}), "more than 1000"),
        ({"anyOf": [{"properties": {"a": {"$ref": "#"}}}, {"properties": {"a": {"$ref": "#"}}}]}, "twice"),
        ({"patternProperties": {"a": {"$ref": "#"}, "b": {"$ref": "#"}}}, "twice"),
        ({"properties": {"a": {"$id": "https://x.example/"}}}, "nested $id"),
        ({"enum": ["x" * 300_000]}, "limit"),
        ({"const": float("nan")}, "JSON"),
    ],
)
def test_a_schema_that_could_cost_or_fetch_is_refused(schema: dict[str, Any], why: str) -> None:
    started = time.monotonic()
    problems = check_schema(schema)
    assert problems
    assert why in problems[0].description
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "schema",
    [
        {},
        ORDERS,
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "definitions": {"a": {}},
            "items": [{"$ref": "#/definitions/a"}],
        },
        {"properties": {"children": {"items": {"$ref": "#"}}}, "additionalProperties": {"$ref": "#"}},
        {"oneOf": [{"type": "string"}, {"items": {"$ref": "#"}}, {"additionalProperties": {"$ref": "#"}}]},
        {
            "anyOf": [
                {"properties": {"and": {"items": {"$ref": "#"}}}},
                {"properties": {"or": {"items": {"$ref": "#"}}}},
            ]
        },
        {"$defs": {"t": {"$anchor": "tree", "items": {"$ref": "#tree"}}}, "$ref": "#tree"},
        {"properties": {"$ref": {"type": "string"}}, "enum": [{"$ref": "https://example.com"}]},
    ],
)
def test_ordinary_and_recursive_schemas_are_accepted(schema: dict[str, Any]) -> None:
    assert check_schema(schema) == ()


def test_a_hostile_pattern_does_not_hang() -> None:
    schema = {"type": "string", "pattern": "^(a+)+$"}
    assert check_schema(schema) == ()
    started = time.monotonic()
    assert validate(schema, json.dumps("a" * 100_000 + "b").encode())
    assert time.monotonic() - started < 2


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
keywords = st.sampled_from(
    ["$ref", "$id", "$anchor", "$schema", "type", "items", "prefixItems", "properties", "anyOf", "not", "pattern",
     "additionalProperties", "$defs", "dependencies", "enum", "minimum", "required", "format", "if", "contains"]
)  # fmt: skip
schemas = st.recursive(
    st.dictionaries(keywords, json_values | st.just("#") | st.just("#/$defs/a") | st.just("#/items"), max_size=4),
    lambda inner: st.dictionaries(
        keywords,
        inner | st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab/~"), inner, max_size=2),
        max_size=4,
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=2000)
@given(schemas, json_values)
def test_no_schema_makes_the_judge_or_an_accepted_one_the_validator_raise(schema: dict[str, Any], value: Any) -> None:
    if not check_schema(schema):
        validate(schema, json.dumps(value).encode())


def test_arguments_are_bound_as_cwl_binds_them() -> None:
    entrypoint = Entrypoint(
        "x",
        bindings=(
            ArgumentBinding("file", "", 10),
            ArgumentBinding("verbose", "--verbose", 1),
            ArgumentBinding("quiet", "--quiet", 1),
            ArgumentBinding("tag", "-t", 2),
            ArgumentBinding("level", "--level=", 2),
            ArgumentBinding("extra", "--extra", 3),
            ArgumentBinding("missing", "--missing", 0),
        ),
        stdin="body",
    )
    value = {
        "file": "in.txt", "verbose": True, "quiet": False, "tag": ["a", "b"], "level": 12345678901234567890,
        "extra": {"k": 1}, "body": "hällo",
    }  # fmt: skip
    arguments, stdin = bind_arguments(entrypoint, value)
    assert arguments == (
        "--verbose", "--level=12345678901234567890", "-t", "a", "-t", "b", "--extra", '{"k":1}', "in.txt",
    )  # fmt: skip
    assert stdin == "hällo".encode()


def test_stdin_can_be_the_whole_input_or_the_callers_own() -> None:
    assert bind_arguments(Entrypoint("x", stdin="$"), {"a": 1}) == ((), b'{"a":1}')
    assert bind_arguments(Entrypoint("x"), {"a": 1}) == ((), None)


def test_an_argument_that_no_kernel_takes_is_refused() -> None:
    entrypoint = Entrypoint("x", bindings=(ArgumentBinding("a"),))
    for value in ("x\0y", "x" * 200_000, ["x"] * 20_000):
        with pytest.raises(Fault, match="input/a"):
            bind_arguments(entrypoint, {"a": value})


def test_the_script_of_a_command_is_placed_below_the_package() -> None:
    entrypoint = Entrypoint("x", command=("python3", "-O", "scripts/a.py"), script="scripts/a.py")
    assert command_line(entrypoint, "/skill") == ("python3", "-O", "/skill/scripts/a.py")
