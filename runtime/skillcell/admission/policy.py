"""What a call may use: the operator's policy, and the one place where limits are merged.

Three voices, in this order: the caller may ask for anything up to the policy's maximum and is told when it asks for
more; the manifest's wish is capped to the maximum without complaint (it was written by someone who doesn't know this
operator); the policy's default stands where neither speaks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from skillcell.core.errors import Fault, FaultKind, FieldViolation
from skillcell.core.types import MEBIBYTE, SECOND_NS, Isolation, LimitRequest, Limits

UNITS = {
    "wall_ns": "ns",
    "cpu_ns": "ns",
    "milli_cpus": "thousandths of a core",
    "memory_bytes": "bytes",
    "pids": "processes",
    "disk_bytes": "bytes",
    "disk_files": "files",
    "open_files": "descriptors",
    "output_bytes": "bytes",
    "artifact_bytes": "bytes",
    "artifact_count": "files",
    "egress_bytes": "bytes",
}
GIBIBYTE = 1024 * MEBIBYTE


@dataclass(frozen=True, slots=True)
class Policy:
    """Bounds for every call of a tenant. Every limit has a least, a default and a most; there is no "unlimited"."""

    least: Limits = Limits(
        wall_ns=1_000_000,
        cpu_ns=1_000_000,
        milli_cpus=10,
        memory_bytes=32 * MEBIBYTE,
        pids=8,
        disk_bytes=MEBIBYTE,
        disk_files=64,
        open_files=32,
        output_bytes=1,
        artifact_bytes=1,
        artifact_count=1,
        egress_bytes=1,
    )
    default: Limits = field(default_factory=Limits)
    most: Limits = Limits(
        wall_ns=3600 * SECOND_NS,
        cpu_ns=4 * 3600 * SECOND_NS,
        milli_cpus=64_000,
        memory_bytes=64 * GIBIBYTE,
        pids=4096,
        disk_bytes=32 * GIBIBYTE,
        disk_files=1 << 20,
        open_files=65_536,
        output_bytes=16 * GIBIBYTE,
        artifact_bytes=4 * GIBIBYTE,
        artifact_count=10_000,
        egress_bytes=16 * GIBIBYTE,
    )
    isolation_floor: Isolation = Isolation.STANDARD
    """The weakest class a call may run under."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Limits as granted, and which of them the caller lowered."""

    limits: Limits
    lowered: frozenset[str]


def grant(policy: Policy, manifest: LimitRequest, caller: LimitRequest) -> Grant:
    """Merge the three voices. Raises Fault INVALID_ARGUMENT naming every limit of the caller that is out of bounds."""
    violations = tuple(_violations(policy, caller))
    if violations:
        text = "; ".join(f"{v.field} {v.description}" for v in violations)
        raise Fault(FaultKind.INVALID_ARGUMENT, "LIMIT_ABOVE_POLICY", text, violations=violations)
    wishes = {name: _wish(policy, manifest, name) for name in Limits.names()}
    if manifest.disk_bytes is not None and caller.memory_bytes is None:
        wishes["memory_bytes"] = _with_room_for_disk(policy, wishes)
    wishes["disk_bytes"] = min(wishes["disk_bytes"], wishes["memory_bytes"] // 2)
    granted = dict(wishes)
    for name in Limits.names():
        asked = getattr(caller, name)
        if asked is not None:
            granted[name] = asked
    if caller.disk_bytes is None:
        granted["disk_bytes"] = min(granted["disk_bytes"], granted["memory_bytes"] // 2)
    elif caller.disk_bytes > granted["memory_bytes"] // 2:
        half = granted["memory_bytes"] // 2
        raise Fault(
            FaultKind.INVALID_ARGUMENT,
            "LIMIT_ABOVE_POLICY",
            f"limits.disk_bytes: {caller.disk_bytes} is over {half}, half of the memory limit that it lives in",
            violations=(FieldViolation("limits.disk_bytes", f"must be at most half of the memory limit, {half}"),),
        )
    lowered = frozenset(name for name in Limits.names() if granted[name] < wishes[name])
    return Grant(Limits(**granted), lowered)


def _wish(policy: Policy, manifest: LimitRequest, name: str) -> int:
    asked = getattr(manifest, name)
    if asked is None:
        asked = getattr(policy.default, name)
    return int(max(getattr(policy.least, name), min(asked, getattr(policy.most, name))))


def _with_room_for_disk(policy: Policy, wishes: dict[str, int]) -> int:
    """Memory for a manifest that wishes for more disk than half of it."""
    return min(max(wishes["memory_bytes"], 2 * wishes["disk_bytes"]), policy.most.memory_bytes)


def _violations(policy: Policy, caller: LimitRequest) -> list[FieldViolation]:
    found = []
    for name in Limits.names():
        asked = getattr(caller, name)
        if asked is None:
            continue
        least, most = getattr(policy.least, name), getattr(policy.most, name)
        if not least <= asked <= most:
            found.append(
                FieldViolation(f"limits.{name}", f"is {asked}; it must lie within {least} and {most} {UNITS[name]}")
            )
    return found
