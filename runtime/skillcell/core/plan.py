"""A call after its checks: everything pinned that later stages, and the bill, rest on."""

from __future__ import annotations

from dataclasses import dataclass

from skillcell.core.skills import Entrypoint, SkillVersion
from skillcell.core.types import ExecutionRequest, Isolation, Limits, Principal, WorkingDir


@dataclass(frozen=True, slots=True)
class Plan:
    """What will run, for whom, within which limits. Made once, at first admission, and never changed."""

    principal: Principal
    request: ExecutionRequest
    version: SkillVersion
    entrypoint: Entrypoint
    isolation: Isolation
    limits: Limits
    lowered: frozenset[str]
    """Names of limits that the caller set below what the Skill would have had."""
    working_dir: WorkingDir
    arguments: tuple[str, ...]
    """argv behind the entrypoint's command: bound from the input, then the caller's own."""
    stdin: bytes
    rate_plan: str = ""
    """Version of the plan that rates this call; empty when none does."""

    @property
    def input_bytes(self) -> int:
        """Bytes that the caller sent for the Skill: input, stdin, files."""
        request = self.request
        files = sum(len(file.content) for file in request.files)
        return len(request.input_json or b"") + len(self.request.stdin) + files
