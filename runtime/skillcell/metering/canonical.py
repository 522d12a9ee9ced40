"""The bytes of a usage record that the ledger chains, written down so that anyone can check them without our code.

Canonical form: one JSON object in UTF-8, without white space, its keys sorted by code point, characters outside ASCII
as `\\uXXXX` (surrogate pairs above U+FFFF). Its values are only
- integers in decimal, without a bound (a byte-nanosecond count can pass 2^64: parse exactly);
- strings, `true`, `false`, and `null` for what does not exist;
- times as RFC 3339 in UTC with six fractional digits: `2026-01-02T03:04:05.678901Z`;
- enum values by their words, as `SUCCEEDED`.
The keys are exactly those of `FIELDS[schema_version]`; the seven times of a call lie flat beside the others.

The chain: `hash = sha256(previous_hash || canonical)`, where `previous_hash` is the 32-byte hash of the record before,
and 32 zero bytes before the first. `sequence` counts from 1 without gaps and is inside the bytes.

Labels are never inside, so that they can be erased. A released field list never changes: a new field is a new version.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from skillcell.core.types import FaultParty, Isolation, Measurement, Outcome, StageTimes, UsageRecord

SCHEMA_VERSION = 1
GENESIS = bytes(32)

TIMES = tuple(field.name for field in fields(StageTimes))
UNCHAINED = frozenset({"labels", "previous_hash", "hash"})
"""Fields of UsageRecord that stay outside: the erasable one, and the chain's own."""

FIELDS: dict[int, tuple[str, ...]] = {
    1: (
        "admitted_at",
        "artifact_bytes",
        "billable",
        "billed_ms",
        "calls",
        "collect_ns",
        "correction_of",
        "cpu_system_ns",
        "cpu_total_ns",
        "cpu_user_ns",
        "deliver_ns",
        "digest",
        "disk_bytes",
        "driver",
        "egress_in_bytes",
        "egress_out_bytes",
        "ended_at",
        "entrypoint",
        "event_id",
        "execution_id",
        "exit_code",
        "fault",
        "input_bytes",
        "isolation",
        "measurement",
        "memory_baseline_bytes",
        "memory_limit_byte_ns",
        "memory_limit_bytes",
        "memory_peak_bytes",
        "memory_used_byte_ns",
        "milli_cpus",
        "outcome",
        "output_bytes",
        "parent_id",
        "pids_peak",
        "plan_version",
        "publisher",
        "queue_ns",
        "request_id",
        "root_id",
        "run_ns",
        "schema_version",
        "sequence",
        "session_id",
        "skill",
        "stalled_ns",
        "started_at",
        "startup_ns",
        "teardown_ns",
        "tenant",
        "version",
        "wall_ns",
        "warm",
    ),
}
_ENUMS: dict[str, type[Enum]] = {
    "fault": FaultParty,
    "isolation": Isolation,
    "measurement": Measurement,
    "outcome": Outcome,
}
_INSTANTS = ("admitted_at", "ended_at", "started_at")


def canonical(record: UsageRecord) -> bytes:
    """The chained bytes of a record whose `sequence` is set. ValueError for a schema version that is unknown."""
    if record.schema_version not in FIELDS:
        raise ValueError(f"schema_version {record.schema_version} is unknown; known are {sorted(FIELDS)}")
    document = {name: _plain(_value(record, name)) for name in FIELDS[record.schema_version]}
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def parse(body: bytes) -> UsageRecord:
    """The record of canonical bytes, without labels and hashes. ValueError when the bytes are not canonical."""
    document = json.loads(body)
    if not isinstance(document, dict) or document.get("schema_version") not in FIELDS:
        raise ValueError("not a usage record of a known schema version")
    if set(document) != set(FIELDS[document["schema_version"]]):
        raise ValueError("the fields are not those of its schema version")
    values: dict[str, Any] = {}
    for name, value in document.items():
        if name in _ENUMS:
            value = _ENUMS[name](value)
        elif name in _INSTANTS and value is not None:
            value = datetime.fromisoformat(value)
        values[name] = value
    times = StageTimes(**{name: values.pop(name) for name in TIMES})
    record = UsageRecord(times=times, **values)
    if canonical(record) != body:
        raise ValueError("the bytes are not in canonical form")
    return record


def chain_hash(previous: bytes, body: bytes) -> bytes:
    """sha256 over the 32 bytes of the previous hash and the canonical bytes."""
    return hashlib.sha256(previous + body).digest()


def _value(record: UsageRecord, name: str) -> Any:
    return getattr(record.times if name in TIMES else record, name)


def _plain(value: Any) -> int | str | bool | None:
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    if value is None or isinstance(value, int | str):
        return value
    raise TypeError(f"{type(value).__name__} has no canonical form")
