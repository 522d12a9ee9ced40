"""Every fault becomes the status of its class, with details that fit where they travel."""

from __future__ import annotations

from datetime import timedelta

import grpc
import pytest
from google.rpc import error_details_pb2 as details_pb
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st

from skillcell.api.roles import NOBODY, roles_for
from skillcell.api.status import code_of, message_of, trailers_of
from skillcell.core.errors import Fault, FaultKind, FieldViolation, QuotaViolation, invalid, not_found
from skillcell.v1 import admin_pb2, execution_pb2, registry_pb2, session_pb2, usage_pb2

TRAILERS_BYTES = 8 * 1024
"""What gRPC clients take by default before they may drop a status."""


def status_of(fault: Fault) -> Status:
    ((key, value),) = trailers_of(fault)
    assert key == "grpc-status-details-bin"
    return Status.FromString(value)


def detail(fault: Fault, kind: type) -> object:
    for packed in status_of(fault).details:
        found = kind()
        if packed.Unpack(found):
            return found
    raise AssertionError(f"no {kind.__name__}")


@pytest.mark.parametrize("kind", FaultKind)
def test_every_class_of_fault_has_the_status_of_its_name(kind: FaultKind) -> None:
    fault = Fault(kind, "REASON", "what")
    assert code_of(fault).name == kind.name
    status = status_of(fault)
    assert (grpc.StatusCode[kind.name].value[0], "what") == (status.code, status.message)


def test_a_status_carries_reason_domain_and_facts() -> None:
    info = detail(invalid("limits.pids", "is 9", limit="8"), details_pb.ErrorInfo)
    assert (info.reason, info.domain, dict(info.metadata)) == ("INVALID_FIELD", "skillcell", {"limit": "8"})


def test_a_status_carries_what_else_applies_and_nothing_that_does_not() -> None:
    quota = Fault(
        FaultKind.RESOURCE_EXHAUSTED,
        "QUEUE_FULL",
        "full",
        quotas=(QuotaViolation("queue_length", 5, 6, "tenant:a"),),
        retry_after=timedelta(seconds=1.5),
    )
    (violation,) = detail(quota, details_pb.QuotaFailure).violations
    assert (violation.subject, violation.description) == ("tenant:a", "queue_length: 6 of 5 in use")
    assert detail(quota, details_pb.RetryInfo).retry_delay.ToTimedelta() == timedelta(seconds=1.5)
    assert len(status_of(quota).details) == 3
    resource = detail(not_found("skill", "acme/x"), details_pb.ResourceInfo)
    assert (resource.resource_type, resource.resource_name) == ("skill", "acme/x")
    (field,) = detail(invalid("a", "is wrong"), details_pb.BadRequest).field_violations
    assert (field.field, field.description) == ("a", "is wrong")


def test_all_violations_are_told_while_they_fit_and_the_rest_is_counted() -> None:
    def told(count: int) -> list[str]:
        violations = tuple(FieldViolation(f"f{n}", "x" * 100) for n in range(count))
        fault = Fault(FaultKind.INVALID_ARGUMENT, "INVALID_FIELD", "bad", violations=violations)
        shown = detail(fault, details_pb.BadRequest).field_violations
        return [violation.field or violation.description for violation in shown]

    assert told(20) == [f"f{n}" for n in range(20)]
    many = told(1000)
    assert many[-1] == f"and {1000 - len(many) + 1} more"
    assert many[:-1] == [f"f{n}" for n in range(len(many) - 1)]


TEXT = (
    st.text(max_size=50) | st.text(st.characters(min_codepoint=0x1000), min_size=900, max_size=1200) | st.just("\ud800")
)


@given(
    st.builds(
        Fault,
        kind=st.sampled_from(FaultKind),
        reason=st.just("SOME_LONG_REASON"),
        message=TEXT,
        violations=st.lists(st.builds(FieldViolation, TEXT, TEXT), max_size=60).map(tuple),
        retry_after=st.none() | st.just(timedelta(seconds=1)),
        resource=st.none() | st.tuples(st.just("skill_version"), TEXT),
        metadata=st.dictionaries(st.sampled_from(["limit", "value", "field"]), TEXT),
    )
)
def test_any_status_fits_into_the_trailers_that_clients_take(fault: Fault) -> None:
    ((_, binary),) = trailers_of(fault)
    percent_encoded = sum(1 if 0x20 <= byte < 0x7F and byte != 0x25 else 3 for byte in message_of(fault).encode())
    assert percent_encoded + -(-len(binary) // 3) * 4 + 256 < TRAILERS_BYTES
    assert fault.message.encode("utf-8", "replace").startswith(message_of(fault).encode())


ALL_FILES = (admin_pb2, execution_pb2, registry_pb2, session_pb2, usage_pb2)


def test_every_method_of_every_service_has_a_role_and_no_other_has() -> None:
    known = {"caller", "publisher", "operator", "biller"}
    for file in ALL_FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                roles = roles_for(f"/{service.full_name}/{method.name}")
                assert roles
                assert set(roles) <= known
    assert roles_for("/skillcell.v1.RegistryService/Forgotten") == NOBODY
    assert roles_for("/skillcell.v1.Other/Execute") == NOBODY


BILLING = {
    "ListRatePlans": ("biller", "operator"),
    "CloseBillingPeriod": ("biller",),
    "RecordCorrection": ("biller",),
    "ListSinks": ("biller", "operator"),
    "ResumeSink": ("biller", "operator"),
    "ListDeadLetters": ("biller", "operator"),
    "RedriveDeadLetters": ("biller", "operator"),
    "DiscardDeadLetters": ("biller", "operator"),
}


def test_what_changes_the_gateway_takes_an_operator_bills_a_biller_and_skills_a_publisher() -> None:
    for method in admin_pb2.DESCRIPTOR.services_by_name["AdminService"].methods:
        assert roles_for(f"/skillcell.v1.AdminService/{method.name}") == BILLING.get(method.name, ("operator",))
    for name in ("PublishSkill", "SetAlias", "YankSkillVersion", "SetSkillVisibility"):
        assert roles_for(f"/skillcell.v1.RegistryService/{name}") == ("publisher",)
