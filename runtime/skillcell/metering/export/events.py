"""A usage record as a CloudEvent, byte for byte the same whenever and wherever it is made.

The bytes are a pure function of the ledger's row (its canonical bytes and its two hashes) and of the envelope. Labels
are left out: they can be erased at any time, and an event that was sent with them could never be sent again alike. The
`data` is described by `usage.schema.json` beside this module. Integers that could pass 2^53, where readers in doubles
begin to round, are decimal text whatever their value: all nanoseconds and byte-nanoseconds.

What a reader could get wrong: the bytes of a released event never change. A new field of the record is a new
`schema_version` of the ledger, and a new `dataschema` here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

STRUCTURED_TYPE = "application/cloudevents+json"
BATCH_TYPE = "application/cloudevents-batch+json"
EVENT_TYPE = "skillcell.usage.v1"
DATA_SCHEMAS = {1: "urn:skillcell:schema:usage-record:v1"}
"""By the record's `schema_version`."""
_SEQUENCE_DIGITS = 20


@dataclass(frozen=True, slots=True)
class Envelope:
    """What names the ledger in its events. With `source` a sink de-duplicates, so it must not change."""

    source: str
    type: str = EVENT_TYPE


@dataclass(frozen=True, slots=True)
class UsageEvent:
    """One event, ready to send. `body` is the event in the JSON format, without the array of a batch."""

    sequence: int
    event_id: str
    body: bytes


def source_of(ledger_id: str) -> str:
    """The `source` of a ledger's events where the settings name none."""
    return f"/skillcell/ledgers/{ledger_id}"


def event_of(canonical: bytes, previous_hash: bytes, digest: bytes, envelope: Envelope) -> UsageEvent:
    """The event of a row. ValueError for a schema version that is unknown."""
    record = json.loads(canonical)
    version = record["schema_version"]
    if version not in DATA_SCHEMAS:
        raise ValueError(f"schema_version {version} has no event; known are {sorted(DATA_SCHEMAS)}")
    data = {name: _exact(name, value) for name, value in record.items()}
    data |= {"hash": digest.hex(), "previous_hash": previous_hash.hex()}
    event = {
        "data": data,
        "datacontenttype": "application/json",
        "dataschema": DATA_SCHEMAS[version],
        "id": record["event_id"],
        # An extension of CloudEvents: text that sorts as the numbers do. Its companion `sequencetype` knows 32-bit
        # integers alone, so it is left out.
        "sequence": f"{record['sequence']:0{_SEQUENCE_DIGITS}d}",
        "source": envelope.source,
        "specversion": "1.0",
        "subject": record["tenant"],
        "time": record["ended_at"],
        "type": envelope.type,
    }
    body = json.dumps(event, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return UsageEvent(record["sequence"], record["event_id"], body.encode())


def batch(events: Iterable[bytes]) -> bytes:
    """Bodies of events as one body of the batch format."""
    return b"[" + b",".join(events) + b"]"


def _exact(name: str, value: Any) -> Any:
    if name.endswith("_ns") and value is not None:
        return str(value)
    return value
