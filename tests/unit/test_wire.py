"""What one side writes the other reads back as the same value; nothing falls silently between domain and wire."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any

import pytest
from google.protobuf.message import Message

from skillcell import wire
from skillcell.core import events, records, skills, types
from skillcell.core.errors import Fault, FaultKind
from skillcell.core.rate_plans import RateMeter
from skillcell.core.statements import Cost, CostLine
from skillcell.v1 import event_pb2, execution_pb2, skill_pb2, spec_pb2, types_pb2
from skillcell.wire import enums

NOW = datetime(2026, 11, 22, 10, 20, 30, 123456, UTC)
MAPS = {name: value for name, value in vars(enums).items() if isinstance(value, enums.EnumMap)}


def usage_record() -> types.UsageRecord:
    """Every number another one, so that two fields can't be mixed up unseen."""
    counted = iter(range(1, 1000))
    values: dict[str, Any] = {}
    for field in dataclasses.fields(types.UsageRecord):
        if field.type in {"int", "int | None"}:
            values[field.name] = next(counted)
        elif field.type == "str":
            values[field.name] = f"{field.name}-{next(counted)}"
        elif field.type == "bool":
            values[field.name] = True
        elif field.type == "bytes":
            values[field.name] = bytes([next(counted)]) * 32
    values |= {
        "isolation": types.Isolation.GVISOR,
        "outcome": types.Outcome.FAILED,
        "fault": types.FaultParty.SKILL,
        "measurement": types.Measurement.SAMPLED,
        "labels": {"team": "a"},
        "times": types.StageTimes(1, 2, 3, 4, 5, 6, 7),
        "memory_used_byte_ns": 1 << 79,
        "session_id": "ses_1",
        "memory_limit_byte_ns": 1 << 80,
        "admitted_at": NOW,
        "started_at": NOW,
        "ended_at": NOW,
    }
    return types.UsageRecord(**values)


def limits() -> types.Limits:
    return types.Limits(**{name: 1_000_000_001 + index for index, name in enumerate(types.Limits.names())})


def cost() -> Cost:
    line = CostLine(RateMeter.CPU_SECONDS, Decimal("0.052"), "Core-Seconds", Decimal("0.000123"))
    return Cost("EUR", Decimal("0.000123"), "standard/3", (line,))


def completed() -> events.Completed:
    return events.Completed(
        outcome=types.Outcome.TIMED_OUT,
        fault=types.FaultParty.SKILL,
        billable=True,
        retryable=True,
        usage=usage_record(),
        exit_code=0,
        signal=9,
        message="over its time",
        evidence=types.Evidence("wall_ns", 1, 2, "ns", "gateway clock", "more"),
        cost=cost(),
        canceled_by=types.CancelReason.DRAIN,
    )


EVENTS: list[events.Event] = [
    events.Queued(3),
    events.Started("sbx_1", True, "oci", types.Isolation.STANDARD, limits(), types.StageTimes(1, 2, 3)),
    events.Stdout(b"\xff\x00out"),
    events.Stderr(b"err"),
    events.Log("warning", "careful", {"n": 1, "nested": {"ü": [1, None]}}),
    events.Progress(0.0, "begun"),
    events.Progress(None, "somewhere"),
    events.Output(b'{"a": 12345678901234567890}'),
    events.Artifact("a/b.txt", 4, "ab" * 32, "text/plain"),
    events.ArtifactRefused("../x", "must be relative"),
    completed(),
    dataclasses.replace(completed(), exit_code=None, signal=None, evidence=None, cost=None, canceled_by=None),
]


@pytest.mark.parametrize("name", sorted(MAPS))
def test_every_member_maps_and_comes_back(name: str) -> None:
    mapping = MAPS[name]
    for member in mapping._numbers:
        assert mapping.from_wire(mapping.to_wire(member)) is member
        assert mapping.to_wire(member) != 0


@pytest.mark.parametrize(
    ("members", "wire_enum"),
    [
        (types.Isolation, types_pb2.Isolation),
        (types.Outcome, types_pb2.Outcome),
        (types.FaultParty, types_pb2.FaultParty),
        (types.Measurement, types_pb2.Measurement),
        (types.WorkingDir, spec_pb2.WorkingDir),
        (types.OnDisconnect, spec_pb2.OnDisconnect),
        (types.CancelReason, event_pb2.CancelSource),
        (types.ExecutionState, execution_pb2.ExecutionState),
        (skills.VersionState, skill_pb2.VersionState),
        (skills.Visibility, skill_pb2.Visibility),
        (skills.Severity, skill_pb2.Severity),
    ],
)
def test_the_wire_has_no_value_that_the_domain_lacks(members: type[Enum], wire_enum: Any) -> None:
    assert len(wire_enum.values()) == len(members) + 1


def test_an_unknown_enum_value_is_an_error_with_its_number() -> None:
    with pytest.raises(wire.UnknownValue, match="Outcome has no value 99"):
        enums.OUTCOME.from_wire(99)
    assert enums.ISOLATION.optional(0) is None


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_comes_back_as_it_went(event: events.Event) -> None:
    message = wire.event_to_proto(event, 7, NOW, "exe_1", offsets=wire.Offsets())
    arrived = event_pb2.ExecutionEvent.FromString(message.SerializeToString())
    assert wire.event_from_proto(arrived) == event
    assert (arrived.sequence, arrived.execution_id) == (7, "exe_1")
    assert arrived.time.ToDatetime(tzinfo=UTC) == NOW


def test_every_kind_of_event_is_covered() -> None:
    assert {type(event) for event in EVENTS} == set(events.Event.__args__)
    kinds = event_pb2.ExecutionEvent.DESCRIPTOR.oneofs_by_name["kind"].fields
    assert len(kinds) == len(events.Event.__args__)


def test_an_unknown_kind_of_event_is_passed_over() -> None:
    assert wire.event_from_proto(event_pb2.ExecutionEvent(sequence=1)) is None


def test_offsets_count_each_stream_on_its_own() -> None:
    encoder = wire.EventEncoder("exe_1", wire.Pinned("1.2.0", "sha256:ab", "run"))
    stream: list[events.Event] = [
        events.Stdout(b"abc"),
        events.Stderr(b"x"),
        events.Stdout(b"d"),
        events.Output(b"1"),
        events.Output(b"2"),
        EVENTS[1],
    ]
    sent = [
        event_pb2.ExecutionEvent.FromString(encoder.encode(number, NOW, event))
        for number, event in enumerate(stream, start=1)
    ]
    assert [sent[0].stdout.offset, sent[1].stderr.offset, sent[2].stdout.offset] == [0, 0, 3]
    assert [sent[3].output.index, sent[4].output.index] == [0, 1]
    assert (sent[5].started.version, sent[5].started.digest, sent[5].started.entrypoint) == (
        "1.2.0",
        "sha256:ab",
        "run",
    )


def test_a_usage_record_fills_every_field_of_the_wire() -> None:
    message = wire.usage_to_proto(usage_record(), b"canonical")
    assert wire.usage_from_proto(message) == usage_record()
    unset = {field.name for field in message.DESCRIPTOR.fields} - {field.name for field, _ in message.ListFields()}
    assert unset == set()


def test_limits_that_nobody_asked_for_stay_unset() -> None:
    asked = types.LimitRequest(wall_ns=1_500_000_000, pids=3)
    message = wire.limits_to_proto(asked)
    assert {field.name for field, _ in message.ListFields()} == {"timeout", "pids"}
    assert wire.limits_from_proto(message) == asked
    assert wire.granted_from_proto(wire.limits_to_proto(limits())) == limits()


def request() -> types.ExecutionRequest:
    return types.ExecutionRequest(
        skill="acme/tool@1.0.0",
        entrypoint="scripts/run.py",
        input_json=b'{"a": 1}',
        args=("-v", "é"),
        stdin=b"in",
        files=(types.InputFile("a/b", b"\x00", True),),
        env={"A": "b"},
        secrets=("TOKEN",),
        limits=types.LimitRequest(memory_bytes=1 << 26),
        isolation=types.Isolation.GVISOR,
        labels={"team": "x"},
        priority=-3,
        working_dir=types.WorkingDir.SKILL,
        collect=("*.txt",),
    )


def uploaded() -> types.ExecutionRequest:
    """The same with everything sent ahead."""
    digests = ["sha256:" + letter * 64 for letter in "abc"]
    return dataclasses.replace(
        request(),
        input_json=None,
        input_upload=digests[0],
        stdin=b"",
        stdin_upload=digests[1],
        files=(types.InputFile("a/b", executable=True, upload=digests[2]), types.InputFile("empty")),
    )


def test_a_request_that_names_uploads_comes_back_and_its_fingerprint_covers_them() -> None:
    spec = wire.spec_to_proto(uploaded())
    assert spec.files[1].WhichOneof("source") == "content"
    got = wire.spec_from_proto(spec)
    assert got == dataclasses.replace(uploaded(), fingerprint=wire.fingerprint(spec))
    assert got.uploads == tuple("sha256:" + letter * 64 for letter in "abc")
    other = dataclasses.replace(uploaded(), stdin_upload="sha256:" + "d" * 64)
    assert wire.fingerprint(wire.spec_to_proto(other)) != got.fingerprint


def test_a_request_comes_back_with_the_fingerprint_of_what_was_sent() -> None:
    spec = wire.spec_to_proto(request())
    identity = "123e4567-e89b-12d3-a456-426614174000"
    got = wire.spec_from_proto(spec, identity, spec_pb2.ON_DISCONNECT_DETACH)
    assert got == dataclasses.replace(
        request(),
        request_id=identity,
        on_disconnect=types.OnDisconnect.DETACH,
        fingerprint=wire.fingerprint(spec),
    )
    spec.priority += 1
    assert wire.fingerprint(spec) != got.fingerprint


def test_an_empty_request_asks_for_nothing() -> None:
    got = wire.spec_from_proto(spec_pb2.ExecutionSpec(skill="a/b"))
    assert dataclasses.replace(got, fingerprint=b"") == types.ExecutionRequest(skill="a/b")
    assert {field.name for field, _ in wire.spec_to_proto(types.ExecutionRequest(skill="a/b")).ListFields()} == {
        "skill"
    }


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (spec_pb2.ExecutionSpec(session_id="s"), "spec.session_id"),
        (spec_pb2.ExecutionSpec(skill="a/b", reuse=spec_pb2.REUSE_SAME_VERSION), "spec.reuse"),
        (spec_pb2.ExecutionSpec(skill="a/b", required_guarantees=["seccomp"]), "spec.required_guarantees"),
    ],
)
def test_a_field_that_is_not_served_refuses_the_call(spec: spec_pb2.ExecutionSpec, field: str) -> None:
    with pytest.raises(Fault) as caught:
        wire.spec_from_proto(spec)
    assert caught.value.kind is FaultKind.UNIMPLEMENTED
    assert caught.value.metadata == {"field": field}


def test_every_field_of_a_spec_is_read_or_refused() -> None:
    """A field that is added to the proto must not be passed over: it changes what the caller thinks it gets."""
    read = {field.name for asked in (request(), uploaded()) for field, _ in wire.spec_to_proto(asked).ListFields()}
    refused = {"session_id", "reuse", "required_guarantees"}
    assert {field.name for field in spec_pb2.ExecutionSpec.DESCRIPTOR.fields} == read | refused


def skill_version() -> skills.SkillVersion:
    entrypoints = (
        skills.Entrypoint("scripts/extract.py", "Extracts", interpreter=skills.Interpreter.PYTHON),
        skills.Entrypoint("a/run.sh", interpreter=skills.Interpreter.SHELL, success_codes=(0, 3)),
        skills.Entrypoint("b/run.sh", working_dir=types.WorkingDir.SKILL, stdout=skills.StdoutMode.NDJSON),
        skills.Entrypoint(
            "tool",
            handler="tool",
            interpreter=skills.Interpreter.NODE,
            input_schema={"type": "object"},
            output_schema={},
            outputs={"report": "*.md"},
            annotations={"readOnlyHint": True},
        ),
    )
    spec = skills.SkillSpec(
        name="tool",
        description="Does it",
        entrypoints=entrypoints,
        default_entrypoint="tool",
        version="1.2.0",
        license="MIT",
        compatibility="any",
        metadata={"author": "x"},
        limits=types.LimitRequest(pids=3),
        network=skills.Network(("example.org:443",)),
        secrets=(
            skills.SecretRequest("A", env="A"),
            skills.SecretRequest("B", file="/b"),
            skills.SecretRequest("C", header="X-C", domains=("example.org",)),
        ),
        pricing=(skills.PriceComponent("calls", "Requests", "0.01"),),
    )
    return skills.SkillVersion(
        publisher="acme",
        name="tool",
        version="1.2.0",
        digest="sha256:" + "ab" * 32,
        spec=spec,
        package_digest="",
        layers=(skills.Layer("pip", "cd" * 32, ("six==1.17.0",)),),
        findings=(skills.Finding(skills.Severity.WARNING, "name-differs", "differs", "SKILL.md", 2, 7),),
        state=skills.VersionState.YANKED,
        state_reason="broken",
        created_at=NOW,
        size_bytes=10,
        file_count=2,
    )


def test_a_skill_version_shows_the_same_on_both_sides() -> None:
    assert wire.skill_version_from_proto(wire.skill_version_to_proto(skill_version())) == skill_version()


def test_a_short_name_is_given_only_where_it_means_one_entrypoint() -> None:
    assert wire.short_names(skill_version().spec.entrypoints) == {"scripts/extract.py": "extract"}


def test_environment_values_and_commands_of_a_skill_are_not_shown() -> None:
    spec = dataclasses.replace(skill_version().spec, env={"B": "hidden-value", "A": ""})
    message = wire.skill_version_to_proto(dataclasses.replace(skill_version(), spec=spec))
    assert list(message.env_names) == ["A", "B"]
    assert b"hidden-value" not in message.SerializeToString()


def test_an_execution_carries_its_end_and_what_was_pinned() -> None:
    admission = records.Admission(
        execution_id="exe_1",
        tenant="acme",
        request_hash=b"h",
        publisher="pub",
        skill="tool",
        version="1.0.0",
        digest="sha256:00",
        entrypoint="run",
        isolation=types.Isolation.STANDARD,
        driver="oci",
        limits=limits(),
        admitted_at=NOW,
        instance_id="i",
        boot_id="b",
        request_id="r",
        parent_id="p",
        labels={"a": "b"},
    )
    ended = wire.EventEncoder("exe_1").encode(4, NOW, completed())
    stored = records.StoredExecution(
        admission,
        types.ExecutionState.COMPLETED,
        started_at=NOW,
        ended_at=NOW,
        completed_event=ended,
        last_event_sequence=4,
    )
    message = wire.execution_to_proto(
        stored, artifacts=[events.Artifact("a", 1, "00" * 32, "text/plain")], expires_at=NOW
    )
    assert wire.completed_from_proto(message.completed) == completed()
    assert _unset(message) == {"session_id", "on_disconnect"}
    queued = wire.execution_to_proto(records.StoredExecution(admission, types.ExecutionState.QUEUED))
    assert _unset(queued) >= {"completed", "start_time", "end_time", "artifacts"}


def _unset(message: Message) -> set[str]:
    return {field.name for field in message.DESCRIPTOR.fields} - {field.name for field, _ in message.ListFields()}


def test_a_naive_time_is_a_bug_and_not_a_guess() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        wire.event_to_proto(events.Queued(1), 1, datetime(2026, 1, 1), "e", offsets=wire.Offsets())
