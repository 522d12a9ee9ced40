"""Instants and spans: aware datetimes in UTC (microseconds), durations as integer nanoseconds."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from skillcell.core.errors import invalid
from skillcell.v1.types_pb2 import TimeRange

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


def range_from_proto(span: TimeRange, field_path: str) -> tuple[datetime | None, datetime | None]:
    """Its ends, None where one is open. Raises Fault for what is no instant: a Timestamp's fields hold any number."""
    return _end(span, "start", field_path), _end(span, "end", field_path)


def _end(span: TimeRange, name: str, field_path: str) -> datetime | None:
    if not span.HasField(name):  # type: ignore[arg-type]
        return None
    stamp: Timestamp = getattr(span, name)
    try:
        return instant_from_proto(stamp)
    except (ValueError, OverflowError) as error:
        what = f"has {stamp.seconds} seconds and {stamp.nanos} nanos; it must lie in the years 1 to 9999"
        raise invalid(f"{field_path}.{name}", what) from error


def duration_to_proto(nanoseconds: int) -> Duration:
    seconds, nanos = divmod(nanoseconds, _SECOND_NS)
    return Duration(seconds=seconds, nanos=nanos)


def duration_from_proto(duration: Duration) -> int:
    return duration.seconds * _SECOND_NS + duration.nanos
