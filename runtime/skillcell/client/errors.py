"""What a gateway refused or could not do, as typed exceptions made of gRPC statuses and their google.rpc details.

Decide on the class or on `reason` (stable, see `protos/skillcell/v1/errors.proto`), never on the message. How a call
that was admitted ended is no exception: it is the outcome in its last event.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import ClassVar

import grpc
import grpc.aio
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, QuotaFailure, ResourceInfo, RetryInfo
from google.rpc.status_pb2 import Status

from skillcell.core.errors import FieldViolation

_DETAILS_KEY = "grpc-status-details-bin"
_DOMAIN = "skillcell"


@dataclass(frozen=True, slots=True)
class QuotaRefusal:
    """A quota that refused: whose it is, and what of it is in use."""

    subject: str
    description: str


@dataclass(eq=False)
class SkillcellError(Exception):
    """A gRPC status that is not OK. `reason` is empty where the transport failed, not the gateway."""

    message: str
    reason: str = ""
    field_violations: tuple[FieldViolation, ...] = ()
    quota_violations: tuple[QuotaRefusal, ...] = ()
    retry_after: timedelta | None = None
    """How long to wait before the same is sent again; None where waiting alone does not help or is not known to."""
    resource: tuple[str, str] | None = None
    """Type and name of what is missing."""
    metadata: Mapping[str, str] = field(default_factory=dict)

    code: ClassVar[str] = "UNKNOWN"
    """The name of the gRPC status code."""

    def __post_init__(self) -> None:
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message


class InvalidArgument(SkillcellError):
    """Mend what `field_violations` names; the same again is refused again."""

    code = "INVALID_ARGUMENT"


class NotFound(SkillcellError):
    """It does not exist, or is not yours to see."""

    code = "NOT_FOUND"


class AlreadyExists(SkillcellError):
    """The name, version or request id is taken by something else."""

    code = "ALREADY_EXISTS"


class PermissionDenied(SkillcellError):
    """Good credentials without the role; `metadata["role"]` names it."""

    code = "PERMISSION_DENIED"


class Unauthenticated(SkillcellError):
    """No credentials, or ones that are not valid now."""

    code = "UNAUTHENTICATED"


class ResourceExhausted(SkillcellError):
    """A quota, a rate or a message size; `retry_after` where waiting helps."""

    code = "RESOURCE_EXHAUSTED"


class FailedPrecondition(SkillcellError):
    """The state of things forbids it: a yanked version, a class that is not permitted."""

    code = "FAILED_PRECONDITION"


class Aborted(SkillcellError):
    """Someone else changed it meanwhile: read again, decide again."""

    code = "ABORTED"


class OutOfRange(SkillcellError):
    """Before what is still kept, or past the end."""

    code = "OUT_OF_RANGE"


class Unimplemented(SkillcellError):
    """This gateway does not serve the call, or not with these fields."""

    code = "UNIMPLEMENTED"


class Internal(SkillcellError):
    """A defect of the gateway."""

    code = "INTERNAL"


class Unavailable(SkillcellError):
    """No gateway there, or it can't now: retry with back-off."""

    code = "UNAVAILABLE"


class DataLoss(SkillcellError):
    """What arrived is not what was sent; or, with reason LEDGER_BROKEN, the gateway's usage ledger was changed, and no
    new call is accepted until its operator has restored it."""

    code = "DATA_LOSS"


class DeadlineExceeded(SkillcellError):
    """Your own deadline passed."""

    code = "DEADLINE_EXCEEDED"


class Canceled(SkillcellError):
    """The call was canceled on its way."""

    code = "CANCELLED"


_CLASSES: dict[str, type[SkillcellError]] = {kind.code: kind for kind in SkillcellError.__subclasses__()}


def from_rpc(error: grpc.aio.AioRpcError) -> SkillcellError:
    """The exception for a failed RPC, with every detail that came along."""
    message = error.details() or error.code().name
    raised = _CLASSES.get(error.code().name, SkillcellError)(message)
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            _read_details(raised, Status.FromString(value))
    return raised


def _read_details(error: SkillcellError, status: Status) -> None:
    for packed in status.details:
        info, bad, quota, retry, resource = ErrorInfo(), BadRequest(), QuotaFailure(), RetryInfo(), ResourceInfo()
        if packed.Unpack(info) and info.domain == _DOMAIN:
            error.reason, error.metadata = info.reason, dict(info.metadata)
        elif packed.Unpack(bad):
            error.field_violations = tuple(FieldViolation(v.field, v.description) for v in bad.field_violations)
        elif packed.Unpack(quota):
            error.quota_violations = tuple(QuotaRefusal(v.subject, v.description) for v in quota.violations)
        elif packed.Unpack(retry):
            error.retry_after = retry.retry_delay.ToTimedelta()
        elif packed.Unpack(resource):
            error.resource = (resource.resource_type, resource.resource_name)
