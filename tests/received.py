"""What a sink holds, de-duplicated and summed as the ledger sums: for a reconciliation with the ledger's totals.

A sink is anything that kept events, at least once each: files of event lines, a table of an OpenMeter. Duplicates count
once; two events of one id that differ in a byte are no duplicates, and an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from skillcell.metering.records import Sums
from skillcell.metering.totals import plus

Key = tuple[str, str, str, str]
"""Tenant, publisher, Skill, outcome: the rows of the ledger's totals."""


@dataclass(frozen=True, slots=True)
class Received:
    """Everything that a sink has taken."""

    events: int = 0
    """Different ones."""
    duplicates: int = 0
    last_sequence: int = 0
    missing: tuple[int, ...] = ()
    """Sequences below the last one that are not there; the first hundred."""
    sums: Mapping[Key, Sums] = field(default_factory=dict)
    """Of calls."""
    corrections: Mapping[Key, Sums] = field(default_factory=dict)
    """Of corrections, which the ledger's totals keep apart."""


class DifferentDuplicate(Exception):
    """One `source` and `id` came with different bytes; the message names it."""


def received(events: Iterable[bytes]) -> Received:
    """Of events in the JSON format, in whatever order. Raises DifferentDuplicate, ValueError, KeyError."""
    seen: dict[tuple[str, str], bytes] = {}
    sequences: set[int] = set()
    sums: tuple[dict[Key, Sums], dict[Key, Sums]] = {}, {}
    duplicates = 0
    for body in events:
        event = json.loads(body)
        identity = (str(event["source"]), str(event["id"]))
        if identity in seen:
            if seen[identity] != hashlib.sha256(body).digest():
                raise DifferentDuplicate(f"event {identity[1]} of {identity[0]} came with different bytes")
            duplicates += 1
            continue
        seen[identity] = hashlib.sha256(body).digest()
        data = event["data"]
        sequences.add(int(data["sequence"]))
        key = (data["tenant"], data["publisher"], data["skill"], data["outcome"])
        kind = sums[bool(data["correction_of"])]
        kind[key] = plus(kind.get(key, Sums()), _sums(data))
    last = max(sequences, default=0)
    missing = [sequence for sequence in range(1, last) if sequence not in sequences][:100]
    return Received(len(seen), duplicates, last, tuple(missing), *sums)


def _sums(data: Mapping[str, Any]) -> Sums:
    return Sums(
        calls=int(data["calls"]),
        billed_ms=int(data["billed_ms"]),
        cpu_ns=int(data["cpu_total_ns"]),
        memory_reserved_byte_ns=int(data["memory_limit_byte_ns"]),
        egress_bytes=int(data["egress_in_bytes"]) + int(data["egress_out_bytes"]),
        output_bytes=int(data["output_bytes"]),
    )
