"""YAML as plain data with the place of every value, bounded so that no document can exhaust memory or time.

Only JSON's data model comes out: mappings with text keys, lists, text, integers, floats, booleans, null. No aliases,
anchors or tags, so a document is never larger in memory than on paper. Plain scalars follow the YAML 1.2 core schema:
`no` and `12:30` stay text, where YAML 1.1 makes a boolean and a base-60 number of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

Path = tuple[str | int, ...]
MAX_DEPTH = 40
MAX_VALUES = 20_000

_SURROGATE = re.compile("[\ud800-\udfff]")
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE"})
_FALSE = frozenset({"false", "False", "FALSE"})
_INTEGER = re.compile(r"[-+]?[0-9]{1,1000}")
_BASED = re.compile(r"0o[0-7]{1,1000}|0x[0-9a-fA-F]{1,1000}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A key given twice in one mapping; the later value stands."""

    key: str
    line: int
    column: int


@dataclass(slots=True)
class Document:
    """A value, and where each part of it begins (line and column from 1)."""

    value: Any = None
    positions: dict[Path, tuple[int, int]] = field(default_factory=dict)
    duplicates: list[Duplicate] = field(default_factory=list)
    flow: list[tuple[int, int]] = field(default_factory=list)
    """Where `[…]` and `{…}` collections begin."""

    def position(self, path: Path) -> tuple[int, int]:
        """Of the value at `path`, else of the nearest parent that has one."""
        while path and path not in self.positions:
            path = path[:-1]
        return self.positions.get(path, (1, 1))


class YamlProblem(Exception):
    """The document can't be read; `line` and `column` count from 1."""

    def __init__(self, message: str, line: int = 0, column: int = 0) -> None:
        super().__init__(message)
        self.line = line
        self.column = column


@dataclass(slots=True)
class _Open:
    """A collection that is being filled."""

    container: dict[str, Any] | list[Any]
    path: Path
    key: str | None = None


def read_yaml(text: str, *, text_only: bool = False) -> Document:
    """One document. `text_only`: every scalar stays the text that was written. Raises YamlProblem and nothing else."""
    document = Document()
    try:
        _build(document, yaml.parse(text, Loader=yaml.SafeLoader), text_only)
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        what = problem.problem or problem.context or "not YAML"
        raise YamlProblem(what, mark.line + 1 if mark else 0, mark.column + 1 if mark else 0) from problem
    except yaml.reader.ReaderError as problem:
        line = text.count("\n", 0, problem.position) + 1
        raise YamlProblem(f"character {problem.character!r} is not allowed in YAML", line) from problem
    except (yaml.YAMLError, ValueError, RecursionError, IndexError) as problem:
        raise YamlProblem("not YAML") from problem
    return document


def _build(document: Document, events: Iterator[yaml.Event], text_only: bool) -> None:
    stack: list[_Open] = []
    count = 0
    documents = 0
    for event in events:
        mark = event.start_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise YamlProblem("a second document begins here; one is expected", line, column)
        if isinstance(event, yaml.AliasEvent):
            raise YamlProblem("aliases (*name) are not accepted", line, column)
        if isinstance(event, yaml.CollectionEndEvent):
            stack.pop()
        if not isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            continue
        count += 1
        if count > MAX_VALUES:
            raise YamlProblem(f"more than {MAX_VALUES} values", line, column)
        if event.anchor is not None:
            raise YamlProblem("anchors (&name) are not accepted", line, column)
        if event.tag is not None:
            raise YamlProblem("tags (!name) are not accepted", line, column)
        if isinstance(event, yaml.ScalarEvent) and _SURROGATE.search(event.value):
            raise YamlProblem("half of a surrogate pair (\\uD800 to \\uDFFF) is no text", line, column)
        top = stack[-1] if stack else None
        if top is not None and isinstance(top.container, dict) and top.key is None:
            if not isinstance(event, yaml.ScalarEvent):
                raise YamlProblem("a key must be a plain word or text", line, column)
            _open_key(document, top, event.value, line, column)
            continue
        path = _child_path(top)
        document.positions.setdefault(path, (line, column))
        if isinstance(event, yaml.ScalarEvent):
            plain = event.implicit[0] and not text_only
            _put(document, top, scalar(event.value) if plain else event.value)
            continue
        if len(stack) >= MAX_DEPTH:
            raise YamlProblem(f"nested deeper than {MAX_DEPTH} levels", line, column)
        if event.flow_style:
            document.flow.append((line, column))
        container: dict[str, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
        _put(document, top, container)
        stack.append(_Open(container, path))


def _open_key(document: Document, top: _Open, key: str, line: int, column: int) -> None:
    if key in top.container:
        document.duplicates.append(Duplicate(key, line, column))
    top.key = key
    document.positions[(*top.path, key)] = (line, column)


def _child_path(top: _Open | None) -> Path:
    if top is None:
        return ()
    return (*top.path, len(top.container) if isinstance(top.container, list) else (top.key or ""))


def _put(document: Document, top: _Open | None, value: Any) -> None:
    if top is None:
        document.value = value
    elif isinstance(top.container, list):
        top.container.append(value)
    else:
        top.container[top.key or ""] = value
        top.key = None


def scalar(text: str) -> Any:
    """A plain scalar by the YAML 1.2 core schema; infinities and not-a-number stay text, as JSON has none."""
    if text in _NULL:
        return None
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    if _INTEGER.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    if len(text) <= 400 and _FLOAT.fullmatch(text):
        number = float(text)
        return number if math.isfinite(number) else text
    return text
