"""Plans for tests: one valid call, with whatever should differ."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skillcell.core.plan import Plan
from skillcell.core.skills import Entrypoint, Interpreter, SkillSpec, SkillVersion
from skillcell.core.types import ExecutionRequest, Isolation, Limits, Principal, WorkingDir

ENTRYPOINT = Entrypoint(
    name="scripts/run.py",
    command=("python3", "scripts/run.py"),
    script="scripts/run.py",
    interpreter=Interpreter.PYTHON,
)


def version(**changes: Any) -> SkillVersion:
    """`acme/tool@1.0.0`; changes go to its spec where that has the field."""
    spec_fields = {
        key: changes.pop(key) for key in list(changes) if key in SkillSpec.__dataclass_fields__ and key != "version"
    }
    spec = replace(SkillSpec("tool", "A tool.", (ENTRYPOINT,)), **spec_fields)
    return replace(SkillVersion("acme", "tool", "1.0.0", "sha256:" + "a" * 64, spec, "b" * 64), **changes)


def plan(**changes: Any) -> Plan:
    base = Plan(
        principal=Principal("tenant"),
        request=ExecutionRequest("acme/tool"),
        version=version(),
        entrypoint=ENTRYPOINT,
        isolation=Isolation.STANDARD,
        limits=Limits(),
        lowered=frozenset(),
        working_dir=WorkingDir.WORKSPACE,
        arguments=(),
        stdin=b"",
    )
    return replace(base, **changes)
