"""Every reason in the source is one that callers may rely on, or leads to one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import skillcell
from skillcell.api.reasons import STABLE, STABLE_BY_CAUSE, stable_reason
from skillcell.api.status import trailers_of
from skillcell.core.errors import Fault, FaultKind, unavailable
from skillcell.core.skills import VersionState

_REASON_AT = {"Fault": 1, "unavailable": 0, "precondition": 0, "not_found": 0}
_MADE_UP = {"reason", "told['reason']", "f'{resource_type.upper()}_NOT_FOUND'"}
"""Passed on from elsewhere, or made by `not_found`, whose callers are looked at."""


def _reasons() -> Iterator[tuple[str, str]]:
    """(reason, file) of each place that makes a fault."""
    for path in sorted(Path(skillcell.__file__).parent.rglob("*.py")):
        if "client" in path.parts or path.parent.name == "v1":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            given = [keyword.value for keyword in node.keywords if keyword.arg == "reason" and name in _MAKERS]
            if name in _REASON_AT and len(node.args) > _REASON_AT[name]:
                given.append(node.args[_REASON_AT[name]])
            for value in given:
                for reason in _values(value):
                    yield (f"{reason.upper()}_NOT_FOUND" if name == "not_found" else reason), path.name


_MAKERS = (*_REASON_AT, "invalid")


def _values(value: ast.expr) -> list[str]:
    if isinstance(value, ast.Constant):
        return [str(value.value)]
    if isinstance(value, ast.IfExp):
        return _values(value.body) + _values(value.orelse)
    text = ast.unparse(value)
    if text == "f'VERSION_{version.state.value}'":
        return [f"VERSION_{state.value}" for state in VersionState if state is not VersionState.PUBLISHED]
    assert text in _MADE_UP, f"{text} hides the reason"
    return []


def test_every_reason_in_the_source_is_stable_or_leads_to_one() -> None:
    found = list(_reasons())
    assert len(found) > 100
    assert not [(reason, file) for reason, file in found if reason not in STABLE and reason not in STABLE_BY_CAUSE]


def test_the_table_holds_no_reason_that_is_gone_and_leads_nowhere_else() -> None:
    used = {reason for reason, _ in _reasons()}
    assert set(STABLE_BY_CAUSE) <= used
    assert set(STABLE_BY_CAUSE.values()) <= STABLE
    assert not STABLE & set(STABLE_BY_CAUSE)


def test_a_caller_gets_the_stable_reason_and_the_cause() -> None:
    fault = unavailable("ENGINE_UNAVAILABLE", "no engine")
    assert stable_reason(fault) == "DRIVER_UNAVAILABLE"
    ((_, encoded),) = trailers_of(fault)
    assert b"DRIVER_UNAVAILABLE" in encoded
    assert b"ENGINE_UNAVAILABLE" in encoded
    assert stable_reason(Fault(FaultKind.INTERNAL, "UNHEARD_OF", "")) == "INTERNAL"
