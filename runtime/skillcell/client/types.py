"""What the client hands out besides the domain's own types (`skillcell.core`): placed events, results, pages."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from os import PathLike
from typing import Any, Generic, TypedDict, TypeVar

from skillcell.core import events
from skillcell.core.rate_plans import RatePlan
from skillcell.core.sinks import SinkStatus
from skillcell.core.skills import Finding, SkillVersion, Visibility
from skillcell.core.statements import Cost
from skillcell.core.types import (
    ExecutionState,
    InputFile,
    Isolation,
    LimitRequest,
    Limits,
    Outcome,
    UsageRecord,
    WorkingDir,
)

Item = TypeVar("Item")


class CallOptions(TypedDict, total=False):
    """All that a call may be given besides its Skill."""

    entrypoint: str
    """A full or a short name; may be left out where the Skill has one, or a default."""
    input: Any
    """Any JSON value. A string is a JSON string: text that is JSON already goes into `input_json`."""
    input_json: bytes | PathLike[str] | AsyncIterable[bytes]
    """JSON text in UTF-8 that reaches the Skill byte for byte; or a local file, or a stream, of it."""
    input_upload: str
    """The digest of an upload that holds the JSON text."""
    args: Sequence[str]
    stdin: bytes | PathLike[str] | AsyncIterable[bytes]
    """Bytes, a local file, or a stream. Like input and files it may have any size: what is large is uploaded first."""
    stdin_upload: str
    """The digest of an upload that is standard input."""
    files: Mapping[str, bytes | PathLike[str]] | Sequence[InputFile]
    """For the workspace: relative name to content, or to a local file that is read now."""
    env: Mapping[str, str]
    secrets: Sequence[str]
    """Names of secrets to hand over; by default all that the Skill asks for."""
    limits: LimitRequest
    isolation: Isolation
    labels: Mapping[str, str]
    priority: int
    collect: Sequence[str]
    """Globs of files in the working directory that become artifacts when new or changed."""
    working_dir: WorkingDir


@dataclass(frozen=True, slots=True)
class Uploaded:
    """Bytes that the gateway keeps; calls name them by their digest until `expires_at`, which each use puts off."""

    digest: str
    size_bytes: int
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a call. `kind` is one of the dataclasses of `skillcell.core.events`."""

    sequence: int
    """From 1, without a gap; where to take up a broken watch."""
    time: datetime
    execution_id: str
    kind: events.Event


@dataclass(frozen=True)
class CallResult:
    """A whole call, collected. `stdout` and `stderr` are complete, bounded by the call's output limit."""

    execution_id: str
    completed: events.Completed
    stdout: bytes
    stderr: bytes
    outputs_json: tuple[bytes, ...]
    logs: tuple[events.Log, ...]
    artifacts: tuple[events.Artifact, ...]
    refused_artifacts: tuple[events.ArtifactRefused, ...]
    started: events.Started | None

    @property
    def outcome(self) -> Outcome:
        return self.completed.outcome

    @property
    def exit_code(self) -> int | None:
        return self.completed.exit_code

    @property
    def usage(self) -> UsageRecord:
        return self.completed.usage

    @property
    def ok(self) -> bool:
        return self.completed.outcome is Outcome.SUCCEEDED

    @cached_property
    def outputs(self) -> tuple[Any, ...]:
        return tuple(json.loads(value) for value in self.outputs_json)

    @property
    def output(self) -> Any:
        """The last JSON value that the Skill gave, None where it gave none."""
        return self.outputs[-1] if self.outputs_json else None


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """One page of a listing; `next_page_token` is empty on the last."""

    items: tuple[Item, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """A sink whose hold was ended, and the records that were sent and not acknowledged; 0 where there were none."""

    sink: SinkStatus
    from_sequence: int
    to_sequence: int


@dataclass(frozen=True, slots=True)
class Execution:
    """One call as the gateway shows it. `completed` is None until it is settled; listings leave artifacts out."""

    id: str
    request_id: str
    tenant: str
    skill: str
    version: str
    digest: str
    entrypoint: str
    state: ExecutionState
    isolation: Isolation
    limits: Limits
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    expires_at: datetime | None
    last_sequence: int
    labels: Mapping[str, str]
    completed: events.Completed | None
    artifacts: tuple[events.Artifact, ...]


@dataclass(frozen=True, slots=True)
class Reservation:
    """What one call would hold of one quota, in the quota's unit."""

    quota: str
    amount: int
    available: bool


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a call would be given, and the most it can cost (decimal text, empty where no plan rates it)."""

    version: str
    digest: str
    entrypoint: str
    limits: Limits
    isolation: Isolation
    reservations: tuple[Reservation, ...]
    max_cost: Cost | None
    """The most it can cost; None where no plan rates it."""


@dataclass(frozen=True, slots=True)
class Skill:
    """A name under which versions are published."""

    publisher: str
    name: str
    description: str
    latest_version: str
    aliases: Mapping[str, str]
    visibility: Visibility | None
    callable: bool
    created_at: datetime
    updated_at: datetime

    @property
    def reference(self) -> str:
        return f"{self.publisher}/{self.name}"


@dataclass(frozen=True, slots=True)
class Published:
    """`created` is False where this very content was there already."""

    version: SkillVersion
    created: bool


@dataclass(frozen=True, slots=True)
class Validation:
    """Every finding at once; `version` is what would be published, None where it is not valid."""

    valid: bool
    findings: tuple[Finding, ...]
    version: SkillVersion | None


@dataclass(frozen=True, slots=True)
class UsageTotals:
    """Sums over usage records, corrections counted in."""

    calls: int
    billable_calls: int
    billed_ms: int
    run_ns: int
    cpu_total_ns: int
    memory_limit_byte_ns: int
    egress_in_bytes: int
    egress_out_bytes: int
    input_bytes: int
    output_bytes: int
    artifact_bytes: int


@dataclass(frozen=True, slots=True)
class UsageGroup:
    """One group: the keys that were grouped by, and its sums. Label keys are `label:NAME`."""

    keys: Mapping[str, str]
    totals: UsageTotals


@dataclass(frozen=True, slots=True)
class UsageSummary:
    groups: tuple[UsageGroup, ...]
    as_of_sequence: int
    """The last record that is counted."""


@dataclass(frozen=True, slots=True)
class LedgerDefect:
    """One thing that is wrong with the ledger; sequence 0 means the ledger as a whole."""

    kind: str
    sequence: int
    detail: str


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of a check of the hash chain. Keep head and hash as a witness for the next one."""

    intact: bool
    records_checked: int
    defects: tuple[LedgerDefect, ...]
    head_sequence: int
    head_hash: bytes


@dataclass(frozen=True, slots=True)
class StatementLine:
    """One component of one plan version for one Skill; `skill` is empty on a line for the tenant as a whole."""

    skill: str
    meter: str
    """The plan's component, as `cpu_seconds`; `minimum` for what is missing to the plan's minimum."""
    quantity: Decimal
    unit: str
    amount: Decimal
    plan_version: str


@dataclass(frozen=True, slots=True)
class Statement:
    """A tenant's charges of one month in one currency; the lines sum to `total`."""

    tenant: str
    period: str
    open: bool
    """It can still change."""
    currency: str
    lines: tuple[StatementLine, ...]
    total: Decimal
    as_of_sequence: int
    """The last record that is rated."""
    currencies: tuple[str, ...]
    """All that the tenant has a statement in for this month."""


@dataclass(frozen=True, slots=True)
class PayoutLine:
    """What one Skill brought in; share and fee sum to `charged`."""

    skill: str
    calls: int
    charged: Decimal
    publisher_share: Decimal
    platform_fee: Decimal


@dataclass(frozen=True, slots=True)
class Payout:
    """A publisher's part of one month's charges in one currency."""

    publisher: str
    period: str
    open: bool
    currency: str
    lines: tuple[PayoutLine, ...]
    total: Decimal
    currencies: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PlanVersion:
    """One version of a rate plan. `current`: its name's tenants are rated by it now."""

    plan: RatePlan
    current: bool


@dataclass(frozen=True, slots=True)
class ClosedPeriod:
    """A month that is closed, and the last record that belongs to it."""

    period: str
    last_sequence: int
    closed_at: datetime
