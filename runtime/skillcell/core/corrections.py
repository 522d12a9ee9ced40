"""What a biller may put right of a usage record: differences, never the record itself."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class UsageDelta:
    """Differences to a usage record, named and measured as its fields are; of either sign."""

    billed_ms: int = 0
    cpu_total_ns: int = 0
    memory_limit_byte_ns: int = 0
    memory_used_byte_ns: int = 0
    egress_in_bytes: int = 0
    egress_out_bytes: int = 0
    output_bytes: int = 0
    artifact_bytes: int = 0
    calls: int = 0
    """-1 takes the charge for the call itself back, +1 gives one back that was taken."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))


@dataclass(frozen=True, slots=True)
class Correction:
    """One act of correcting. The same `request_id` makes the same act, whatever is sent how often."""

    event_id: str
    """Of the record of the call."""
    delta: UsageDelta
    reason: str
    request_id: str = ""
