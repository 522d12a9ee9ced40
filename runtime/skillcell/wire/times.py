"""Instants and spans: aware datetimes in UTC (microseconds), durations as integer nanoseconds."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

_SECOND_NS = 1_000_000_000


def instant_to_proto(when: datetime) -> Timestamp:
    """`when` must be aware; a naive one is a bug."""
    if when.tzinfo is None:
        raise ValueError(f"{when} has no time zone")
    stamp = Timestamp()
    stamp.FromDatetime(when)
    return stamp


def instant_from_proto(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)


def duration_to_proto(nanoseconds: int) -> Duration:
    seconds, nanos = divmod(nanoseconds, _SECOND_NS)
    return Duration(seconds=seconds, nanos=nanos)


def duration_from_proto(duration: Duration) -> int:
    return duration.seconds * _SECOND_NS + duration.nanos
