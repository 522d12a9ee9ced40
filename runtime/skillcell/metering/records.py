"""What goes into the ledger's store and comes out of it, besides the usage record itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from skillcell.core.records import StoredExecution
from skillcell.core.types import ExecutionState, Outcome, UsageRecord
from skillcell.metering.reservations import Reserved


@dataclass(frozen=True, slots=True)
class AdmitResult:
    """`created` is False when the same request had been admitted before."""

    execution: StoredExecution
    created: bool


@dataclass(frozen=True, slots=True)
class Settlement:
    """The end of a call. `sequence` and hashes of the record are the ledger's to set."""

    record: UsageRecord
    last_event: Callable[[UsageRecord], bytes]
    """Gives the completed event as its caller will get it, from the record with sequence and hashes. Called within the
    transaction, on another thread: it must be pure and quick. What it raises undoes the settlement."""
    last_event_sequence: int
    """The completed event's number among the call's events."""
    signal: int | None = None
    sandbox_id: str = ""


@dataclass(frozen=True, slots=True)
class Head:
    """The end of the chain. Published elsewhere, it is the witness that shows a truncated ledger."""

    sequence: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class ExecutionFilter:
    """What to list; empty fields filter nothing. Times are of admission, `since` inclusive, `until` exclusive."""

    states: tuple[ExecutionState, ...] = ()
    """Any of them."""
    outcomes: tuple[Outcome, ...] = ()
    """Any of them."""
    publisher: str = ""
    skill: str = ""
    version: str = ""
    """As it was pinned at admission; so is `digest`."""
    digest: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    """All of them must be there."""
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class ExecutionPage:
    """`next_page_token` is empty at the end."""

    executions: tuple[StoredExecution, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class UsageFilter:
    """Which records to list or sum; empty fields filter nothing. Times are of the end, `since` inclusive."""

    tenant: str = ""
    publisher: str = ""
    skill: str = ""
    execution_id: str = ""
    outcomes: tuple[Outcome, ...] = ()
    """Any of them."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """All of them must be there."""
    since: datetime | None = None
    until: datetime | None = None


class Bucket(Enum):
    """A span of time in UTC by which usage is grouped; a call counts where it ended."""

    HOUR = "HOUR"
    DAY = "DAY"
    MONTH = "MONTH"


@dataclass(frozen=True, slots=True)
class Grouping:
    """By what usage is summed. Calls without a label count under an empty value."""

    by: tuple[str, ...] = ()
    """Of `tenant`, `publisher`, `skill`, `version`, `entrypoint`, `outcome`, `isolation`."""
    labels: tuple[str, ...] = ()
    """Keys of labels, in the order of the groups' keys."""
    bucket: Bucket | None = None
    since: datetime | None = None
    until: datetime | None = None
    where: UsageFilter = UsageFilter()
    as_of_sequence: int = 0
    """The last record that counts; 0 for all there are."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Usage added up, in integers."""

    calls: int = 0
    billed_ms: int = 0
    cpu_ns: int = 0
    memory_reserved_byte_ns: int = 0
    egress_bytes: int = 0
    output_bytes: int = 0


@dataclass(frozen=True, slots=True)
class UsageGroup:
    """One line of a summary, corrections counted in, though not as calls.

    `key` names what was grouped by, `start` the bucket's beginning.
    """

    key: Mapping[str, str]
    start: datetime | None
    sums: Sums
    billable_calls: int = 0
    """How many of `sums.calls` are billed."""
    run_ns: int = 0
    """Of billable calls."""
    egress_in_bytes: int = 0
    egress_out_bytes: int = 0
    input_bytes: int = 0
    artifact_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Series:
    """Totals under the names that Prometheus shows, which may be `_other`."""

    tenant: str
    publisher: str
    skill: str
    outcome: Outcome
    sums: Sums


@dataclass(frozen=True, slots=True)
class LedgerSnapshot:
    """The ledger at one moment: its series together add up to exactly the records up to `head`."""

    head: Head
    open: Reserved
    """Of calls that were admitted and have not ended."""
    series: tuple[Series, ...]
    """Of the records of calls: these never fall."""
    corrections: tuple[Series, ...] = ()
    """Of the corrections of records, of either sign."""
