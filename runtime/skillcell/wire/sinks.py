"""Sinks and dead letters, in both directions."""

from __future__ import annotations

from skillcell.core.sinks import DeadLetter, SinkStatus
from skillcell.v1 import sink_pb2 as pb
from skillcell.wire.enums import HOLD_CAUSE, SINK_MODE, SINK_STATE
from skillcell.wire.times import instant_from_proto, instant_to_proto


def sink_to_proto(status: SinkStatus) -> pb.Sink:
    message = pb.Sink(
        name=status.name,
        url=status.url,
        mode=SINK_MODE.to_wire(status.mode) if status.mode else pb.SINK_MODE_UNSPECIFIED,
        state=SINK_STATE.to_wire(status.state),
        hold_cause=HOLD_CAUSE.to_wire(status.hold_cause) if status.hold_cause else pb.SINK_HOLD_CAUSE_UNSPECIFIED,
        hold_reason=status.hold_reason,
        last_sequence=status.last_sequence,
        sent_sequence=status.sent_sequence,
        lag_records=status.lag_records,
        dead_letters=status.dead_letters,
        attempts=status.attempts,
        last_result=status.last_result,
        source=status.source,
        event_type=status.event_type,
    )
    if status.unacknowledged_since is not None:
        message.unacknowledged_since.CopyFrom(instant_to_proto(status.unacknowledged_since))
    if status.last_attempt_at is not None:
        message.last_attempt_time.CopyFrom(instant_to_proto(status.last_attempt_at))
    return message


def sink_from_proto(message: pb.Sink) -> SinkStatus:
    """Raises UnknownValue."""
    return SinkStatus(
        name=message.name,
        url=message.url,
        mode=SINK_MODE.optional(message.mode),
        state=SINK_STATE.from_wire(message.state),
        hold_cause=HOLD_CAUSE.optional(message.hold_cause),
        hold_reason=message.hold_reason,
        last_sequence=message.last_sequence,
        sent_sequence=message.sent_sequence,
        unacknowledged_since=(
            instant_from_proto(message.unacknowledged_since) if message.HasField("unacknowledged_since") else None
        ),
        lag_records=message.lag_records,
        dead_letters=message.dead_letters,
        attempts=message.attempts,
        last_attempt_at=(
            instant_from_proto(message.last_attempt_time) if message.HasField("last_attempt_time") else None
        ),
        last_result=message.last_result,
        source=message.source,
        event_type=message.event_type,
    )


def dead_letter_to_proto(letter: DeadLetter) -> pb.DeadLetter:
    return pb.DeadLetter(
        sequence=letter.sequence,
        event_id=letter.event_id,
        status=letter.status,
        reason=letter.reason,
        attempts=letter.attempts,
        first_time=instant_to_proto(letter.first_at),
        last_time=instant_to_proto(letter.last_at),
        redrive=letter.redrive,
        event_json=letter.body,
    )


def dead_letter_from_proto(message: pb.DeadLetter, sink: str) -> DeadLetter:
    """The message does not repeat the sink's name, which was asked for."""
    return DeadLetter(
        sink=sink,
        sequence=message.sequence,
        event_id=message.event_id,
        body=message.event_json,
        status=message.status,
        reason=message.reason,
        attempts=message.attempts,
        first_at=instant_from_proto(message.first_time),
        last_at=instant_from_proto(message.last_time),
        redrive=message.redrive,
    )
