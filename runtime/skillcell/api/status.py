"""The one table from faults to gRPC statuses, with google.rpc details."""

from __future__ import annotations

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, QuotaFailure, ResourceInfo, RetryInfo
from google.rpc.status_pb2 import Status

from skillcell.api.reasons import stable_reason
from skillcell.core.errors import Fault, FaultKind

DOMAIN = "skillcell"
_CODES: dict[FaultKind, grpc.StatusCode] = {kind: getattr(grpc.StatusCode, kind.value) for kind in FaultKind}
_DETAILS_KEY = "grpc-status-details-bin"
_MESSAGE_BYTES = 768
_STATUS_BYTES = 3584
"""Message and details travel in trailers, of which clients take 8 KiB in all before they may drop the whole status;
in base64, and with the message percent-encoded beside it, this is 7 KiB at the most.
"""


def code_of(fault: Fault) -> grpc.StatusCode:
    """The status code of a fault."""
    return _CODES[fault.kind]


def message_of(fault: Fault) -> str:
    """The message as far as a trailer holds it."""
    return _clipped(fault.message, _MESSAGE_BYTES)


def trailers_of(fault: Fault) -> tuple[tuple[str, bytes], ...]:
    """Trailing metadata that carries ErrorInfo and whatever else the fault tells."""
    status = Status(code=code_of(fault).value[0], message=message_of(fault))
    for detail in _details(fault):
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    if fault.violations:
        packed = AnyMessage()
        packed.Pack(_bad_request(fault, _STATUS_BYTES - status.ByteSize()))
        status.details.append(packed)
    return ((_DETAILS_KEY, status.SerializeToString()),)


def _bad_request(fault: Fault, room: int) -> BadRequest:
    """The first violation, and as many more as there is room for; what is left out is counted in a last one."""
    shown = BadRequest()
    room -= 128  # the type's name around it, and the line that counts
    for violation in fault.violations:
        entry = BadRequest.FieldViolation(
            field=_clipped(violation.field, 256), description=_clipped(violation.description, 512)
        )
        room -= entry.ByteSize() + 4
        if room < 0 and shown.field_violations:
            left = len(fault.violations) - len(shown.field_violations)
            shown.field_violations.add(description=f"and {left} more")
            break
        shown.field_violations.append(entry)
    return shown


def _clipped(text: str, most_bytes: int) -> str:
    return text.encode("utf-8", "replace")[:most_bytes].decode("utf-8", "ignore")


def _details(fault: Fault) -> list[Message]:
    metadata = {key: _clipped(value, 256) for key, value in fault.metadata.items()}
    reason = stable_reason(fault)
    if reason != fault.reason:
        metadata["cause"] = fault.reason
    details: list[Message] = [ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)]
    if fault.quotas:
        details.append(
            QuotaFailure(
                violations=[
                    QuotaFailure.Violation(
                        subject=quota.subject, description=f"{quota.quota}: {quota.used} of {quota.limit} in use"
                    )
                    for quota in fault.quotas
                ]
            )
        )
    if fault.retry_after is not None:
        delay = Duration()
        delay.FromTimedelta(fault.retry_after)
        details.append(RetryInfo(retry_delay=delay))
    if fault.resource is not None:
        details.append(
            ResourceInfo(
                resource_type=fault.resource[0],
                resource_name=_clipped(fault.resource[1], 256),
                description=_clipped(fault.message, 256),
            )
        )
    return details
