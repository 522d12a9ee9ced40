"""The Python client: publish Skills, call them, follow calls, read usage.

    async with SkillcellClient("127.0.0.1:7433", api_key=key) as client:
        async for event in client.execute("acme/report", input={"month": "2026-11"}):
            ...

Needs grpcio and the generated protos, and nothing of the server.
"""

from skillcell.client.channel import Tls
from skillcell.client.client import SkillcellClient
from skillcell.client.errors import (
    Aborted,
    AlreadyExists,
    Canceled,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    QuotaRefusal,
    ResourceExhausted,
    SkillcellError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from skillcell.client.reattach import RetryPolicy
from skillcell.client.types import (
    CallOptions,
    CallResult,
    ClosedPeriod,
    Estimate,
    Event,
    Execution,
    Page,
    Payout,
    PayoutLine,
    PlanVersion,
    Published,
    Resumed,
    Skill,
    Statement,
    StatementLine,
    Uploaded,
    UsageGroup,
    UsageSummary,
    Validation,
    Verification,
)

__all__ = [
    "Aborted",
    "AlreadyExists",
    "CallOptions",
    "CallResult",
    "Canceled",
    "ClosedPeriod",
    "DataLoss",
    "DeadlineExceeded",
    "Estimate",
    "Event",
    "Execution",
    "FailedPrecondition",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "OutOfRange",
    "Page",
    "Payout",
    "PayoutLine",
    "PermissionDenied",
    "PlanVersion",
    "Published",
    "QuotaRefusal",
    "ResourceExhausted",
    "Resumed",
    "RetryPolicy",
    "Skill",
    "SkillcellClient",
    "SkillcellError",
    "Statement",
    "StatementLine",
    "Tls",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Uploaded",
    "UsageGroup",
    "UsageSummary",
    "Validation",
    "Verification",
]
