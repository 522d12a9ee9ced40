"""JSON from strangers: RFC 8259, and a little stricter where readers of other languages would disagree.

`json.loads` alone takes NaN, UTF-16, numbers that overflow to infinity, half surrogate pairs that no UTF-8 can carry,
and nesting at which an encoder that stands deeper on the stack gives up. Each of these would fail somewhere later, as
an error of ours instead of an error of whoever wrote it.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

MAX_DEPTH = 128
"""How deep objects and arrays may nest."""
MAX_VALUES = 250_000
"""How many values, names not counted, one text may hold: 8 MB of `[],[],…` would hold up everybody for seconds."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class NotJson(ValueError):
    """The message says why, in words that are fit to show."""


def parse_json(data: bytes, *, half_pairs: bool = False) -> Any:
    """The value. With `half_pairs` its texts may hold what UTF-8 can't. Raises NotJson and nothing else."""
    try:
        if too_many_values(data):
            raise NotJson(f"it has more than {MAX_VALUES} values")
        value = json.loads(data.decode("utf-8"), parse_constant=_no_constant, parse_float=_finite)
        if _too_deep(value):
            raise NotJson(f"nested deeper than {MAX_DEPTH}")
        if not half_pairs and _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except NotJson:
        raise
    except json.JSONDecodeError as error:
        raise NotJson(f"{error.msg} at line {error.lineno}, column {error.colno}") from error
    except UnicodeDecodeError as error:
        raise NotJson(f"not UTF-8 at byte {error.start}") from error
    except UnicodeEncodeError as error:
        raise NotJson("a text has half of a surrogate pair (\\uD800 to \\uDFFF)") from error
    except RecursionError as error:
        raise NotJson(f"nested deeper than {MAX_DEPTH}") from error
    except ValueError as error:
        raise NotJson("a number has more than 4300 digits") from error
    return value


def too_many_values(data: bytes) -> bool:
    """Whether JSON text holds more values than MAX_VALUES, from its commas and brackets, before anything is built.

    Every step is one pass whatever the bytes are: a pattern for texts takes minutes for one that has no end.
    """
    if _separators(data) <= MAX_VALUES:
        return False
    bare = data.replace(b"\\\\", b"").replace(b'\\"', b"")  # the quotes that stay begin or end a text
    if bare.count(b'"') > 4 * MAX_VALUES + 4:  # each value has one text at most, and one as its name
        return True
    outside = bare.split(b'"')[::2]  # a long text may be full of commas
    return sum(map(_separators, outside)) > MAX_VALUES


def _separators(data: bytes) -> int:
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def json_problem(data: bytes) -> str:
    """Why these bytes are not one JSON value; empty when they are."""
    try:
        parse_json(data)
    except NotJson as problem:
        return str(problem)
    return ""


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [inner for outer in level for inner in _inside(outer) if isinstance(inner, dict | list)]
        if not level:
            return False
    return True


def _inside(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _no_constant(name: str) -> NoReturn:
    raise NotJson(f"{name} is not a JSON value")


def _finite(literal: str) -> float:
    number = float(literal)
    if not math.isfinite(number):
        raise NotJson(f"the number {literal[:40]} is too large")
    return number
