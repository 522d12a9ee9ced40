"""The client against a scripted gateway on a real socket: what breaks, what is retried, what reaches the caller."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import io
import os
import socket
import tarfile
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from scripted_gateway import ARTIFACT, EXECUTION, KEY, ScriptedGateway, completed, ordinary_call, scripted_gateway
from skillcell import client as public
from skillcell.client import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    RetryPolicy,
    SkillcellClient,
    SkillcellError,
    Unavailable,
)
from skillcell.client.errors import _CLASSES
from skillcell.client.packing import packed
from skillcell.core import events, types
from skillcell.core.errors import Fault, FaultKind, FieldViolation, QuotaViolation
from skillcell.v1 import execution_pb2 as ex
from skillcell.v1 import registry_pb2 as rg

FAST = RetryPolicy(first_pause_seconds=0.001, longest_pause_seconds=0.01, reattach_seconds=5)


@pytest.fixture
async def gateway() -> AsyncIterator[ScriptedGateway]:
    async with scripted_gateway() as script:
        yield script


@pytest.fixture
async def client(gateway: ScriptedGateway) -> AsyncIterator[SkillcellClient]:
    async with SkillcellClient(gateway.address, api_key=KEY, retry=FAST) as connected:
        yield connected


async def test_a_call_yields_every_event_as_a_domain_value(gateway: ScriptedGateway, client: SkillcellClient) -> None:
    got = [event async for event in client.execute("acme/tool")]
    assert [event.kind for event in got] == ordinary_call()
    assert [event.sequence for event in got] == list(range(1, 9))
    assert {event.execution_id for event in got} == {EXECUTION}
    assert gateway.metadata["authorization"] == f"Bearer {KEY}"


async def test_a_collected_call_holds_everything(client: SkillcellClient) -> None:
    result = await client.call("acme/tool")
    assert (result.ok, result.exit_code, result.stdout, result.stderr) == (True, 0, b"hello\n", b"\xffwarn\n")
    assert result.output == {"answer": 42}
    assert [artifact.name for artifact in result.artifacts] == ["out/report.txt"]
    assert result.usage.billed_ms == 41
    assert result.started is not None


async def test_an_outcome_is_never_raised(gateway: ScriptedGateway, client: SkillcellClient) -> None:
    gateway.events = [completed(types.Outcome.PLATFORM_ERROR, exit_code=None)]
    result = await client.call("acme/tool")
    assert result.outcome is types.Outcome.PLATFORM_ERROR
    assert result.exit_code is None


async def test_all_options_of_a_call_reach_the_gateway(
    gateway: ScriptedGateway, client: SkillcellClient, tmp_path: Path
) -> None:
    script = tmp_path / "x.sh"
    script.write_bytes(b"echo")
    script.chmod(0o755)
    await client.call(
        "acme/tool@1.0.0",
        entrypoint="run",
        input={"ü": [1, None]},
        args=["-a"],
        stdin=b"in",
        files={"a/b.txt": b"b", "x.sh": script},
        env={"A": "1"},
        limits=types.LimitRequest(wall_ns=1_500_000_000, memory_bytes=1 << 26),
        isolation=types.Isolation.GVISOR,
        labels={"team": "x"},
        collect=["*.md"],
        working_dir=types.WorkingDir.SKILL,
        priority=3,
        request_id="123e4567-e89b-12d3-a456-426614174000",
    )
    (request,) = gateway.requests(ex.ExecuteRequest)
    spec = request.spec
    assert request.request_id == "123e4567-e89b-12d3-a456-426614174000"
    assert spec.input_json == '{"ü": [1, null]}'.encode()
    assert [(file.name, file.content, file.executable) for file in spec.files] == [
        ("a/b.txt", b"b", False),
        ("x.sh", b"echo", True),
    ]
    assert (spec.limits.timeout.ToMilliseconds(), spec.limits.memory_bytes) == (1500, 1 << 26)
    assert (spec.entrypoint, list(spec.args), spec.stdin, dict(spec.env)) == ("run", ["-a"], b"in", {"A": "1"})
    assert (spec.isolation, dict(spec.labels), list(spec.collect)) == (2, {"team": "x"}, ["*.md"])
    assert (spec.working_dir, spec.priority) == (2, 3)


async def test_input_and_input_json_together_are_refused(client: SkillcellClient) -> None:
    with pytest.raises(ValueError, match="not both"):
        await client.call("acme/tool", input=1, input_json=b"1")


async def test_a_break_is_taken_up_after_the_last_event_seen(gateway: ScriptedGateway, client: SkillcellClient) -> None:
    gateway.break_after = [3, 5, 5]
    gateway.break_with = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED]
    got = [event.kind async for event in client.execute("acme/tool")]
    assert got == ordinary_call()
    assert [request.after_sequence for request in gateway.requests(ex.WatchExecutionRequest)] == [3, 5, 5]
    assert len(gateway.requests(ex.ExecuteRequest)) == 1


async def test_a_break_before_admission_sends_the_same_request_again(
    gateway: ScriptedGateway, client: SkillcellClient
) -> None:
    gateway.break_after = [0]
    assert (await client.call("acme/tool")).ok
    first, second = gateway.requests(ex.ExecuteRequest)
    assert first == second
    assert first.request_id


async def test_a_call_without_a_request_id_is_not_sent_twice(gateway: ScriptedGateway, client: SkillcellClient) -> None:
    gateway.break_after = [0]
    with pytest.raises(Unavailable):
        await client.call("acme/tool", request_id="")
    assert len(gateway.requests(ex.ExecuteRequest)) == 1


async def test_reattaching_ends_when_its_time_is_over(gateway: ScriptedGateway) -> None:
    gateway.break_after = [2] * 1000
    policy = RetryPolicy(first_pause_seconds=0.001, longest_pause_seconds=0.01, reattach_seconds=0.1)
    async with SkillcellClient(gateway.address, retry=policy) as client:
        with pytest.raises(Unavailable, match="scripted break"):
            await client.call("acme/tool")
    assert len(gateway.requests(ex.WatchExecutionRequest)) > 2


async def test_a_missing_event_is_data_loss_and_not_a_gap(gateway: ScriptedGateway, client: SkillcellClient) -> None:
    gateway.skip_sequence = 3
    with pytest.raises(DataLoss, match="event 3"):
        await client.call("acme/tool")


async def test_an_unknown_kind_of_event_is_passed_over(gateway: ScriptedGateway, client: SkillcellClient) -> None:
    gateway.extra_kind = True
    got = [event.sequence async for event in client.execute("acme/tool")]
    assert got == list(range(2, 9))


async def test_leaving_a_call_early_cancels_it(gateway: ScriptedGateway, client: SkillcellClient) -> None:
    gateway.hold_at = 4
    async with aclosing(client.execute("acme/tool")) as stream:
        async for event in stream:
            if isinstance(event.kind, events.Stdout):
                break
    assert gateway.canceled.is_set()


async def test_a_canceled_task_cancels_its_call(gateway: ScriptedGateway, client: SkillcellClient) -> None:
    gateway.hold_at = 4
    task = asyncio.create_task(client.call("acme/tool"))
    await gateway.reached_hold.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gateway.canceled.is_set()


async def test_leaving_a_detached_call_cancels_nothing(gateway: ScriptedGateway, client: SkillcellClient) -> None:
    gateway.hold_at = 4
    async with aclosing(client.execute("acme/tool", on_disconnect=types.OnDisconnect.DETACH)) as stream:
        await anext(stream)
    assert not gateway.canceled.is_set()


async def test_a_deadline_is_the_gateways_to_keep(gateway: ScriptedGateway, client: SkillcellClient) -> None:
    gateway.hold_at = 2
    with pytest.raises(public.DeadlineExceeded):
        await client.call("acme/tool", deadline_seconds=0.3)


async def test_a_refusal_carries_all_its_details(gateway: ScriptedGateway, client: SkillcellClient) -> None:
    gateway.fault = Fault(
        FaultKind.RESOURCE_EXHAUSTED,
        "QUOTA_EXCEEDED",
        "too many calls",
        violations=(FieldViolation("spec.args", "too long"),),
        quotas=(QuotaViolation("concurrent", 5, 5, "tenant:dev"),),
        retry_after=timedelta(seconds=1.5),
        resource=("skill", "acme/tool"),
        metadata={"limit": "5"},
    )
    with pytest.raises(ResourceExhausted, match="too many calls") as caught:
        await client.call("acme/tool")
    error = caught.value
    assert error.reason == "QUOTA_EXCEEDED"
    assert error.field_violations == (FieldViolation("spec.args", "too long"),)
    assert error.quota_violations[0].subject == "tenant:dev"
    assert "5 of 5" in error.quota_violations[0].description
    assert error.retry_after == timedelta(seconds=1.5)
    assert error.resource == ("skill", "acme/tool")
    assert error.metadata["limit"] == "5"
    assert len(gateway.requests(ex.ExecuteRequest)) == 1


@pytest.mark.parametrize("kind", list(FaultKind))
async def test_every_status_has_its_exception(
    kind: FaultKind, gateway: ScriptedGateway, client: SkillcellClient
) -> None:
    gateway.fault = Fault(kind, "INVALID_FIELD", "no")
    with pytest.raises(SkillcellError) as caught:
        await client.get(EXECUTION)
    assert type(caught.value) is _CLASSES[kind.value]
    assert type(caught.value) is not SkillcellError
    assert caught.value.reason == "INVALID_FIELD"
    assert type(caught.value).__name__ in public.__all__


async def test_no_gateway_is_unavailable_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        async with SkillcellClient(address, retry=FAST) as client:
            with pytest.raises(Unavailable) as caught:
                await client.call("acme/tool")
            assert caught.value.reason == ""


async def test_start_get_list_estimate_and_cancel(gateway: ScriptedGateway, client: SkillcellClient) -> None:
    assert (await client.start("acme/tool")).id == EXECUTION
    execution = await client.get(EXECUTION)
    assert execution.completed == completed()
    assert execution.limits == types.Limits()
    assert await client.get(request_id="123e4567-e89b-12d3-a456-426614174000") == execution
    page = await client.list(
        states=[types.ExecutionState.COMPLETED], outcomes=[types.Outcome.FAILED], labels={"a": "b"}, page_size=5
    )
    assert page.items == (execution,)
    (asked,) = gateway.requests(ex.ListExecutionsRequest)
    assert (list(asked.filter.states), list(asked.filter.outcomes)) == ([3], [2])
    assert (await client.estimate("acme/tool")).reservations[0].quota == "concurrent"
    await client.cancel(EXECUTION, reason="enough")
    assert gateway.requests(ex.CancelExecutionRequest)[0].reason == "enough"


async def test_a_watch_starts_where_it_is_told(client: SkillcellClient) -> None:
    got = [event.sequence async for event in client.watch(EXECUTION, after_sequence=6)]
    assert got == [7, 8]


async def test_an_artifact_resumes_where_it_broke_and_is_checked(
    gateway: ScriptedGateway, client: SkillcellClient, tmp_path: Path
) -> None:
    artifact = next(event for event in ordinary_call() if isinstance(event, events.Artifact))
    gateway.artifact_breaks = 2
    await client.save_artifact(EXECUTION, artifact, tmp_path / "a" / "report.txt")
    assert (tmp_path / "a" / "report.txt").read_bytes() == ARTIFACT
    assert [request.offset for request in gateway.requests(ex.GetArtifactRequest)] == [0, 2, 4]
    with pytest.raises(DataLoss, match="sha256"):
        await client.save_artifact(EXECUTION, dataclasses.replace(artifact, sha256="00" * 32), tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def skill_folder(root: Path) -> Path:
    (root / "scripts").mkdir(parents=True)
    (root / "SKILL.md").write_text("---\nname: tool\n---\n")
    (root / "scripts" / "run.py").write_text("print(1)\n")
    (root / "scripts" / "run.py").chmod(0o755)
    (root / "link").symlink_to("SKILL.md")
    (root / ".git").mkdir()
    (root / ".git" / "HEAD").write_text("ref")
    return root


async def test_a_folder_is_published_as_an_archive_with_its_hash(
    gateway: ScriptedGateway, client: SkillcellClient, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    published = await client.publish(
        skill_folder(tmp_path / "tool"),
        as_name="acme/tool",
        version="1.0.0",
        runtime=b"kind: SkillRuntime",
        lenient=True,
        on_progress=lambda sent, total: seen.append((sent, total)),
    )
    assert published.created
    assert published.version.spec.entrypoints[0].name == "scripts/run.py"
    (header,) = gateway.requests(rg.SkillHeader)
    assert (header.skill, header.version, header.lenient) == ("acme/tool", "1.0.0", True)
    assert header.manifest_overlay == b"kind: SkillRuntime"
    assert header.size_bytes == len(gateway.archive)
    assert seen[-1] == (len(gateway.archive), len(gateway.archive))
    with tarfile.open(fileobj=io.BytesIO(gateway.archive)) as archive:
        assert {(entry.name, oct(entry.mode)) for entry in archive if entry.isreg()} == {
            ("tool/SKILL.md", "0o644"),
            ("tool/scripts/run.py", "0o755"),
        }
        assert archive.getmember("tool/link").linkname == "SKILL.md"
        assert not [name for name in archive.getnames() if ".git" in name]


async def test_an_archive_goes_as_it_is(gateway: ScriptedGateway, client: SkillcellClient, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(os.urandom(3_000_000))
    await client.validate(tmp_path / "a.zip")
    assert gateway.archive == (tmp_path / "a.zip").read_bytes()


def test_packing_is_the_same_whoever_packs_when(tmp_path: Path) -> None:
    one, two = skill_folder(tmp_path / "one/tool"), skill_folder(tmp_path / "two/tool")
    os.utime(two / "SKILL.md", (1, 1))
    (two / "SKILL.md").chmod(0o600)
    with packed(one) as first, packed(two) as second:
        assert first.sha256 == second.sha256
        assert b"".join(first.chunks()) == b"".join(second.chunks())
        assert gzip.decompress(b"".join(first.chunks()))


def test_a_pipe_in_a_skill_is_refused_by_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe: a Skill holds files"), packed(tmp_path):
        pass


async def test_a_refused_publish_is_told_with_its_findings(
    gateway: ScriptedGateway, client: SkillcellClient, tmp_path: Path
) -> None:
    gateway.fault = Fault(
        FaultKind.INVALID_ARGUMENT, "SKILL_INVALID", "not valid", violations=(FieldViolation("SKILL.md:2", "no name"),)
    )
    with pytest.raises(InvalidArgument) as caught:
        await client.publish(skill_folder(tmp_path / "tool"))
    assert caught.value.field_violations[0].field == "SKILL.md:2"


async def test_the_registry_is_read_and_changed(
    gateway: ScriptedGateway, client: SkillcellClient, tmp_path: Path
) -> None:
    skill, version = await client.registry.get("acme/tool")
    assert (skill.reference, version.reference) == ("acme/tool", "acme/tool@1.0.0")
    assert (await client.registry.list(callable_only=True)).items == (skill,)
    assert (await client.registry.search("tool")).items == (skill,)
    assert (await client.registry.versions("acme/tool")).items == (version,)
    assert (await client.registry.set_alias("acme/tool", "stable", "1.0.0")).aliases == {"stable": "1.0.0"}
    assert (await client.registry.yank("acme/tool", "1.0.0", reason="bad")).state_reason == "bad"
    header = await client.registry.download("acme/tool", tmp_path / "tool.tar.gz")
    assert header.version == "1.0.0"
    assert (tmp_path / "tool.tar.gz").read_bytes() == ARTIFACT


async def test_usage_is_listed_streamed_summed_and_verified(client: SkillcellClient) -> None:
    page = await client.usage.records(skill="acme/tool")
    assert [record async for record in client.usage.stream()] == list(page.items)
    summary = await client.usage.summary(by=["skill", "outcome", "label:team"], bucket="day")
    assert [group.keys["label:team"] for group in summary.groups] == ["a", "b"]
    assert summary.groups[0].keys["outcome"] == "SUCCEEDED"
    assert summary.groups[0].totals.memory_limit_byte_ns == 1 << 70
    verification = await client.usage.verify()
    assert not verification.intact
    assert verification.defects[0].kind == "EDITED"
    with pytest.raises(ValueError, match="no dimension 'colour'"):
        await client.usage.summary(by=["colour"])


async def test_not_found_and_precondition_are_different_classes() -> None:
    assert not issubclass(NotFound, FailedPrecondition)
