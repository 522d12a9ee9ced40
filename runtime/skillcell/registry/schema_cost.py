"""Refuses JSON Schemas whose evaluation could explode, by counting before anything is run.

Work done on a value is at most its size times the *load*: how many subschemas can meet at one place of it. `anyOf` of
two references to the next definition doubles the load at each step, so 30 lines can mean a billion visits. The load is
computed over the graph of subschemas, where an edge leads either to the same place of the value (`$ref`, `allOf`, …) or
one step down (`properties`, `items`, …), under a label that tells which children it can meet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from skillcell.core.errors import FieldViolation

MAX_LOAD = 1000
MAX_SUBSCHEMAS = 2000
_MAX_WORK = 300_000
_DEPTH = 128  # of a value, as schemas.MAX_VALUE_DEPTH

_SAME_ONE = ("not", "if", "then", "else")
_SAME_LIST = ("allOf", "anyOf", "oneOf")
_SAME_MAP = ("dependentSchemas", "dependencies")
_DOWN_ONE = {
    "additionalProperties": ".rest",
    "unevaluatedProperties": ".rest",
    "propertyNames": ".any",
    "items": "[rest",
    "additionalItems": "[rest",
    "unevaluatedItems": "[rest",
    "contains": "[any",
}
_DOWN_LIST = ("prefixItems", "items")
_DOWN_MAP = {"properties": "", "patternProperties": ".any"}
_HELD = ("$defs", "definitions")
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


@dataclass(slots=True)
class _Node:
    pointer: str
    same: list[str] = field(default_factory=list)
    down: list[tuple[str, str]] = field(default_factory=list)
    """(label, target): `.=name` one property, `[=3` one index, `.any` and `[any` each child, `.rest` and `[rest` each
    child that no label of this node names."""
    references: list[str] = field(default_factory=list)


def cost_problems(schema: Mapping[str, Any]) -> tuple[FieldViolation, ...]:
    """Why the schema can't be trusted to end soon; empty when it can. References must stay inside the document."""
    nodes: dict[str, _Node] = {}
    anchors: dict[str, str] = {}
    problems = [FieldViolation(at[1:], what) for at, what in _collect(schema, nodes, anchors)]
    root_id = schema.get("$id", "")
    for node in nodes.values():
        for reference in node.references:
            base, hash_sign, fragment = reference.partition("#")
            target = fragment if fragment.startswith("/") or not fragment else anchors.get(fragment, "?")
            target = _unescaped(target)
            if base and base != root_id:
                problems.append(FieldViolation(node.pointer[1:], f"$ref {reference[:100]!r} leads out of the schema"))
            elif target not in nodes or not (hash_sign or base):
                problems.append(FieldViolation(node.pointer[1:], f"$ref {reference[:100]!r} names no subschema here"))
            else:
                node.same.append(target)
    return tuple(problems) or tuple(_too_costly(nodes))


def _unescaped(fragment: str) -> str:
    return fragment.replace("%25", "%").replace("%22", '"').replace("%20", " ").replace("%24", "$")


def _escaped(part: str) -> str:
    return part.replace("~", "~0").replace("/", "~1")


def _collect(schema: Mapping[str, Any], nodes: dict[str, _Node], anchors: dict[str, str]) -> Iterator[tuple[str, str]]:
    todo: list[tuple[str, Any]] = [("", schema)]
    while todo:
        at, current = todo.pop()
        node = nodes[at] = _Node(at)
        if len(nodes) > MAX_SUBSCHEMAS:
            yield "", f"has more than {MAX_SUBSCHEMAS} subschemas"
            return
        if not isinstance(current, dict):
            continue
        identifier = current.get("$id")
        if isinstance(identifier, str) and identifier.startswith("#"):
            anchors[identifier[1:]] = at
        elif identifier is not None and at:
            yield at, "a nested $id is not accepted; use $defs"
        for key in ("$anchor", "$dynamicAnchor"):
            if isinstance(current.get(key), str):
                anchors[current[key]] = at
        node.references = [current[key] for key in _REFERENCES if isinstance(current.get(key), str)]
        for kind, label, below, subschema in _subschemas(current):
            target = at + "/" + below
            todo.append((target, subschema))
            if kind == "same":
                node.same.append(target)
            elif kind == "down":
                node.down.append((label, target))


def _subschemas(schema: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Any]]:
    """(same | down | held, label, pointer below this one, subschema)"""
    for key, value in schema.items():
        if key in _SAME_ONE:
            yield "same", "", key, value
        elif key in _SAME_LIST and isinstance(value, list):
            for index, item in enumerate(value):
                yield "same", "", f"{key}/{index}", item
        elif key in _DOWN_LIST and isinstance(value, list):
            for index, item in enumerate(value):
                yield "down", f"[={index}", f"{key}/{index}", item
        elif key in _DOWN_ONE:
            yield "down", _DOWN_ONE[key], key, value
        elif isinstance(value, dict) and (key in _SAME_MAP or key in _DOWN_MAP or key in _HELD):
            for name, item in value.items():
                kind = "same" if key in _SAME_MAP else "down" if key in _DOWN_MAP else "held"
                label = _DOWN_MAP.get(key) or f".={name}"
                if not isinstance(item, list):  # `dependencies` also lists names
                    yield kind, label, f"{key}/{_escaped(name)}", item


def _too_costly(nodes: Mapping[str, _Node]) -> Iterator[FieldViolation]:
    order = _in_place_order(nodes)
    if isinstance(order, str):
        yield FieldViolation(order[1:], "applies itself to the same value without end")
        return
    meets: dict[str, Counter[str]] = {}
    for at in order:
        meets[at] = Counter({at: 1})
        for target in nodes[at].same:
            meets[at].update(meets[target])
        if meets[at].total() > MAX_LOAD:
            yield FieldViolation(at[1:], f"more than {MAX_LOAD} subschemas apply to one value")
            return
    steps: dict[str, dict[str, Counter[str]]] = {}
    work = 0
    for at in order:
        steps[at] = _steps(nodes, meets[at])
        work += sum(len(group) for group in steps[at].values())
        if work > _MAX_WORK:
            yield FieldViolation("", "is too entangled to be judged; use fewer combinations of subschemas")
            return
    component = _components({at: {t for group in labels.values() for t in group} for at, labels in steps.items()})
    load: Counter[int] = Counter()  # of a component; those it leads to have lower numbers
    for at in sorted(order, key=lambda at: component[at]):
        heaviest = meets[at].total()
        for group in steps[at].values():
            again = sum(count for target, count in group.items() if component[target] == component[at])
            onward = sum(n * load[component[t]] for t, n in group.items() if component[t] != component[at])
            if again > 1:
                yield FieldViolation(at[1:], "refers to itself twice for the same part of a value")
                return
            heaviest = max(heaviest, onward * _DEPTH if again and onward else onward)
        load[component[at]] = max(load[component[at]], heaviest)
        if heaviest > MAX_LOAD:
            yield FieldViolation(at[1:], f"more than {MAX_LOAD} subschemas can meet at one place of a value")
            return


def _in_place_order(nodes: Mapping[str, _Node]) -> list[str] | str:
    """Targets before what applies them; or the pointer of a subschema that applies itself."""
    order: list[str] = []
    state: dict[str, int] = {}
    for start in nodes:
        stack = [(start, iter(nodes[start].same))] if start not in state else []
        state.setdefault(start, 1)
        while stack:
            at, targets = stack[-1]
            for target in targets:
                if state.get(target) == 1:
                    return target
                if target not in state:
                    state[target] = 1
                    stack.append((target, iter(nodes[target].same)))
                    break
            else:
                state[at] = 2
                order.append(at)
                stack.pop()
    return order


def _steps(nodes: Mapping[str, _Node], meeting: Counter[str]) -> dict[str, Counter[str]]:
    """Label of a child → what meets in that child."""
    anywhere: dict[str, Counter[str]] = {".": Counter(), "[": Counter()}
    named: dict[str, Counter[str]] = {}
    for at, count in meeting.items():
        own = {label for label, _ in nodes[at].down if label[1] == "="}
        rest = [(label, target) for label, target in nodes[at].down if label[1:] == "rest"]
        for label, target in nodes[at].down:
            (named.setdefault(label, Counter()) if label in own else anywhere[label[0]])[target] += count
        for label in own:
            named[label].subtract({target: count for other, target in rest if other[0] == label[0]})
    for label, group in named.items():
        group.update(anywhere[label[0]])
    return {label: +group for label, group in {**named, **anywhere}.items()}


def _components(graph: Mapping[str, set[str]]) -> dict[str, int]:
    """Tarjan's strongly connected components, without recursion; a component's targets have lower numbers."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    component: dict[str, int] = {}
    path: list[str] = []
    number = 0
    for start in graph:
        if start in index:
            continue
        work = [(start, iter(graph[start]))]
        index[start] = low[start] = len(index)
        path.append(start)
        while work:
            at, targets = work[-1]
            for target in targets:
                if target not in index:
                    index[target] = low[target] = len(index)
                    path.append(target)
                    work.append((target, iter(graph[target])))
                    break
                if target not in component:
                    low[at] = min(low[at], index[target])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[at])
                if low[at] == index[at]:
                    while at not in component:
                        component[path.pop()] = number
                    number += 1
    return component
