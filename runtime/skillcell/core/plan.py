"""A call after its checks: everything pinned that later stages, and the bill, rest on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from skillcell.core.rate_plans import RatePlan
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
    """Standard input where it was sent along, or is made of the input."""
    stdin_upload: str = ""
    """The digest of the upload that is standard input; empty where `stdin` is."""
    uploads: Mapping[str, int] = field(default_factory=dict)
    """Sizes of the uploads that the request names, by digest."""
    rate_plan: RatePlan | None = None
    """What rates this call, as it was when the call was planned; None when nothing does."""

    @property
    def input_bytes(self) -> int:
        """Bytes that the caller gives the Skill: input, stdin, files, uploaded ones as often as they are named."""
        request = self.request
        files = sum(len(file.content) for file in request.files)
        uploaded = sum(self.uploads[digest] for digest in request.uploads)
        return len(request.input_json or b"") + len(self.request.stdin) + files + uploaded
