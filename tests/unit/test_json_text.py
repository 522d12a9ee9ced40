"""JSON from strangers is taken or refused in a time that its length bounds, whatever it is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillcell.core.json_text import MAX_DEPTH, MAX_VALUES, NotJson, json_problem, parse_json, too_many_values


@pytest.mark.parametrize(
    "value",
    [
        b"[" + b"[]," * MAX_VALUES + b"1]",
        b"[" + b'"",' * MAX_VALUES + b"1]",
        b"[" + b"1," * MAX_VALUES + b"1]",
        b"[" + b'{"a":"b"},' * MAX_VALUES + b"1]",
        b'["\\\\","\\"",' + b"{}," * MAX_VALUES + b"1]",
    ],
    ids=["arrays", "texts", "numbers", "objects", "after texts with escapes"],
)
def test_more_values_than_the_limit_are_refused_before_they_are_built(value: bytes) -> None:
    with pytest.raises(NotJson, match=f"more than {MAX_VALUES} values"):
        parse_json(value)


@pytest.mark.parametrize("text", [",[{" * MAX_VALUES, '",\\"' * MAX_VALUES, "\\," * (MAX_VALUES + 1)])
def test_a_long_text_full_of_commas_and_brackets_is_one_value(text: str) -> None:
    assert parse_json(json.dumps({"text": text, "n": [1, 2]}).encode()) == {"text": text, "n": [1, 2]}


def test_as_many_values_as_the_limit_are_taken_with_their_names() -> None:
    value = {f"name {number}, [of it]": "text, {too}" for number in range(MAX_VALUES - 2)}
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize("tail", [b'"' + b'\\"' * 500_000, b'"' * 1_000_000, b'"' + b"\\" * 1_000_000])
def test_a_text_without_an_end_is_looked_at_once(tail: bytes) -> None:
    """By a pattern that tries each beginning it would be hours: half of the length, squared."""
    assert json_problem(b"," * (MAX_VALUES + 1) + tail)


VALUES = st.recursive(
    st.none() | st.text(',[{"\\') | st.integers(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(',"\\'), inner),
)
PADDING = b"[" + b"0," * (MAX_VALUES - 20)


@given(VALUES)
@settings(deadline=None, max_examples=60)
def test_what_is_in_texts_is_never_counted(value: object) -> None:
    assert too_many_values(PADDING + json.dumps(value).encode() + b"]") == (_count(value) > 19)


def _count(value: object) -> int:
    """Commas and opening brackets."""
    if isinstance(value, list):
        inner = value
    elif isinstance(value, dict):
        inner = list(value.values())
    else:
        return 0
    return 1 + max(0, len(inner) - 1) + sum(_count(item) for item in inner if isinstance(item, list | dict))


def test_depth_is_bounded() -> None:
    assert parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    assert "nested deeper" in json_problem(b"[" * 200 + b"]" * 200)
    assert "nested deeper" in json_problem(b"[" * 200_000 + b"]" * 200_000)
