"""The one table from faults to gRPC statuses, with google.rpc details."""

from __future__ import annotations

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, QuotaFailure, ResourceInfo, RetryInfo
from google.rpc.status_pb2 import Status

from skillcell.core.errors import Fault, FaultKind

DOMAIN = "skillcell"
_CODES: dict[FaultKind, grpc.StatusCode] = {kind: getattr(grpc.StatusCode, kind.value) for kind in FaultKind}
_DETAILS_KEY = "grpc-status-details-bin"
_MAX_VIOLATIONS = 100
"""Details travel in a header, whose size clients bound; what is left out is counted in the last violation."""


def code_of(fault: Fault) -> grpc.StatusCode:
    """The status code of a fault."""
    return _CODES[fault.kind]


def trailers_of(fault: Fault) -> tuple[tuple[str, bytes], ...]:
    """Trailing metadata that carries ErrorInfo and whatever else the fault tells."""
    status = Status(code=code_of(fault).value[0], message=fault.message[:2048])
    for detail in _details(fault):
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return ((_DETAILS_KEY, status.SerializeToString()),)


def _details(fault: Fault) -> list[Message]:
    metadata = {key: value[:256] for key, value in fault.metadata.items()}
    details: list[Message] = [ErrorInfo(reason=fault.reason, domain=DOMAIN, metadata=metadata)]
    if fault.violations:
        shown = [
            BadRequest.FieldViolation(field=v.field[:256], description=v.description[:512])
            for v in fault.violations[:_MAX_VIOLATIONS]
        ]
        left = len(fault.violations) - len(shown)
        if left:
            shown.append(BadRequest.FieldViolation(field="", description=f"and {left} more"))
        details.append(BadRequest(field_violations=shown))
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
                resource_type=fault.resource[0], resource_name=fault.resource[1][:256], description=fault.message[:512]
            )
        )
    return details
