"""The domain model of one call: request, limits, outcome, evidence, usage.

Units are in the names. Enum values are the words of the wire (without the proto's prefix), the ledger and the CLI.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import Enum

MEBIBYTE = 1 << 20
SECOND_NS = 1_000_000_000


class Isolation(Enum):
    """How a sandbox is kept apart: shared kernel, user-space kernel, own kernel. Ordered weakest first."""

    STANDARD = "STANDARD"
    GVISOR = "GVISOR"
    VM = "VM"


class ExecutionState(Enum):
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"


class Outcome(Enum):
    """How an admitted call ended; exactly one of them."""

    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    SIGNALED = "SIGNALED"
    TIMED_OUT = "TIMED_OUT"
    CPU_LIMIT_EXCEEDED = "CPU_LIMIT_EXCEEDED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    OUTPUT_LIMIT_EXCEEDED = "OUTPUT_LIMIT_EXCEEDED"
    DISK_LIMIT_EXCEEDED = "DISK_LIMIT_EXCEEDED"
    INVALID_OUTPUT = "INVALID_OUTPUT"
    CANCELED = "CANCELED"
    PLATFORM_ERROR = "PLATFORM_ERROR"
    NEVER_RAN = "NEVER_RAN"


class FaultParty(Enum):
    """Who caused an outcome that is not success. NONE goes with SUCCEEDED alone."""

    NONE = "NONE"
    SKILL = "SKILL"
    CALLER = "CALLER"
    QUOTA = "QUOTA"
    PLATFORM = "PLATFORM"


class Measurement(Enum):
    """How CPU and memory figures were had; only EXACT ones are billed as such."""

    EXACT = "EXACT"
    SAMPLED = "SAMPLED"
    SELF_REPORTED = "SELF_REPORTED"
    LOWER_BOUND = "LOWER_BOUND"


class WorkingDir(Enum):
    """Where the entrypoint starts: the empty workspace, or a private writable copy of the package."""

    WORKSPACE = "WORKSPACE"
    SKILL = "SKILL"


class OnDisconnect(Enum):
    """What becomes of a call whose client goes away."""

    CANCEL = "CANCEL"
    DETACH = "DETACH"


class CancelReason(Enum):
    """Who ended a call early."""

    CLIENT = "CLIENT"
    DEADLINE = "DEADLINE"
    DISCONNECT = "DISCONNECT"
    DRAIN = "DRAIN"
    OPERATOR = "OPERATOR"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one sandbox may use, as totals of the whole sandbox. There is no "unlimited"; every figure is positive."""

    wall_ns: int = 60 * SECOND_NS
    """From the entrypoint's start to the death of its last process, nanoseconds."""
    cpu_ns: int = 60 * SECOND_NS
    """CPU time of all processes together, nanoseconds."""
    milli_cpus: int = 1000
    """CPU rate, thousandths of one core."""
    memory_bytes: int = 256 * MEBIBYTE
    """Memory with tmpfs and shm counted; swap is off."""
    pids: int = 128
    """Processes and threads alive at once."""
    disk_bytes: int = 128 * MEBIBYTE
    """Bytes in all writable directories together; at most half of `memory_bytes` where they live in memory."""
    disk_files: int = 16_384
    """Files and directories (inodes) in all writable directories together."""
    open_files: int = 1024
    """Open descriptors of one process."""
    output_bytes: int = 64 * MEBIBYTE
    """Bytes of stdout, stderr and events together."""
    artifact_bytes: int = 64 * MEBIBYTE
    """Bytes of all artifacts together."""
    artifact_count: int = 256
    """How many artifacts."""
    egress_bytes: int = 64 * MEBIBYTE
    """Bytes over the egress proxy, both ways together."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(f.name for f in fields(cls))


@dataclass(frozen=True, slots=True)
class Evidence:
    """Which limit or fact decided an outcome, as taken outside the sandbox before it was deleted."""

    limit: str
    """Name as in `Limits`, or `output_schema`, `exit_code`, `signal`."""
    limit_value: int
    observed: int
    unit: str
    """`ns`, `bytes`, `count`, `code`."""
    source: str
    """Where it was read, as `cgroup memory.events`, `gateway clock`, `statvfs`."""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file for the call's workspace. `name` is a relative POSIX path without `..`."""

    name: str
    content: bytes = b""
    executable: bool = False
    upload: str = ""
    """The digest of an upload that holds it, instead of `content`."""


@dataclass(frozen=True, slots=True)
class LimitRequest:
    """What a caller asks of `Limits`; None means the policy's default. Same names, same units."""

    wall_ns: int | None = None
    cpu_ns: int | None = None
    milli_cpus: int | None = None
    memory_bytes: int | None = None
    pids: int | None = None
    disk_bytes: int | None = None
    disk_files: int | None = None
    open_files: int | None = None
    output_bytes: int | None = None
    artifact_bytes: int | None = None
    artifact_count: int | None = None
    egress_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls: the tenant that pays, the publisher names it owns, and what it may do."""

    tenant: str
    publishers: frozenset[str] = frozenset()
    roles: frozenset[str] = frozenset()
    """Of `caller`, `publisher`, `operator`, `biller`."""
    key_id: str = ""


@dataclass(frozen=True, slots=True)
class ExecutionRequest:
    """One call as its caller asked for it."""

    skill: str
    """`publisher/name`, with `@version`, `@alias` or `@sha256:digest` behind it if wanted."""
    entrypoint: str = ""
    """A full or short entrypoint name; empty where the Skill has one, or a default one."""
    input_json: bytes | None = None
    """The JSON input as sent; None when there is none, or it was uploaded."""
    input_upload: str = ""
    """The digest of an upload that holds the JSON input."""
    args: tuple[str, ...] = ()
    stdin: bytes = b""
    stdin_upload: str = ""
    """The digest of an upload that holds standard input."""
    files: tuple[InputFile, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    limits: LimitRequest = LimitRequest()
    isolation: Isolation | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    priority: int = 0
    working_dir: WorkingDir | None = None
    collect: tuple[str, ...] = ()
    """Globs of files in the working directory that become artifacts when new or changed."""
    on_disconnect: OnDisconnect = OnDisconnect.CANCEL
    request_id: str = ""
    """A UUID of the caller's choice that makes the call idempotent; empty when it gave none."""
    fingerprint: bytes = b""
    """sha256 over the request as it was sent; the same `request_id` must come with the same one."""

    @property
    def uploads(self) -> tuple[str, ...]:
        """Digests of the uploads it names, as often as it names them."""
        named = (self.input_upload, self.stdin_upload, *(file.upload for file in self.files))
        return tuple(digest for digest in named if digest)


@dataclass(frozen=True, slots=True)
class Counters:
    """What the kernel counted for a whole sandbox, since it was made."""

    cpu_user_ns: int = 0
    cpu_system_ns: int = 0
    cpu_total_ns: int = 0
    """The exact total; user and system are its split as far as the kernel tells."""
    memory_peak_bytes: int = 0
    pids_peak: int = 0
    oom_kills: int = 0
    measurement: Measurement = Measurement.EXACT


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Where a call's time went, nanoseconds on one monotonic clock."""

    queue_ns: int = 0
    startup_ns: int = 0
    """Lease of a sandbox: near nothing from a warm pool, its creation otherwise."""
    deliver_ns: int = 0
    run_ns: int = 0
    """Entrypoint's start to the death of the Skill's last process, and never beyond the time limit: what is billed."""
    collect_ns: int = 0
    teardown_ns: int = 0
    """Stopping a call that is over its time."""
    stalled_ns: int = 0
    """Part of run_ns in which a slow caller held back the sandbox."""


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """The one record of what a call used. `sequence` and hashes are the ledger's; the rest is fixed at settlement."""

    event_id: str
    execution_id: str
    tenant: str
    publisher: str
    skill: str
    version: str
    digest: str
    entrypoint: str
    isolation: Isolation
    driver: str
    warm: bool
    outcome: Outcome
    fault: FaultParty
    billable: bool
    started_at: datetime | None
    """When the entrypoint started; None when it never did."""
    ended_at: datetime
    admitted_at: datetime
    request_id: str = ""
    parent_id: str = ""
    root_id: str = ""
    correction_of: str = ""
    """The event that this record corrects; its amounts are then differences, of either sign."""
    session_id: str = ""
    calls: int = 1
    """Calls that it counts: 1, and in a correction 0, or -1 where the charge for the call is taken back."""
    exit_code: int | None = None
    times: StageTimes = StageTimes()
    wall_ns: int = 0
    """Admission to settlement."""
    billed_ms: int = 0
    """`run_ns` less nothing, rounded up to a millisecond; 0 when not billable."""
    cpu_user_ns: int = 0
    cpu_system_ns: int = 0
    cpu_total_ns: int = 0
    milli_cpus: int = 0
    """Granted cores, in thousandths: what CPU is billed by where it was not measured exactly."""
    memory_limit_bytes: int = 0
    memory_peak_bytes: int = 0
    memory_baseline_bytes: int = 0
    """The peak that the kernel showed at the lease, where it can't be reset: below it the peak proves nothing."""
    memory_limit_byte_ns: int = 0
    """`memory_limit_bytes` × `run_ns`."""
    memory_used_byte_ns: int = 0
    """`memory_peak_bytes` × `run_ns` where the peak was measured exactly, else `memory_limit_byte_ns`."""
    pids_peak: int = 0
    disk_bytes: int = 0
    egress_in_bytes: int = 0
    egress_out_bytes: int = 0
    input_bytes: int = 0
    output_bytes: int = 0
    artifact_bytes: int = 0
    measurement: Measurement = Measurement.EXACT
    plan_version: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Erasable: never part of the chained bytes."""
    schema_version: int = 1
    sequence: int = 0
    previous_hash: bytes = b""
    hash: bytes = b""
