"""What a gateway refuses: the right status and reason, with field, value and limit; and nothing is kept of it."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from e2e.gateway import Gateway
from e2e.lab import FILES, SMALL
from one_machine import write_skill
from skillcell.client import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    SkillcellClient,
    SkillcellError,
    Unauthenticated,
)
from skillcell.client.errors import from_rpc
from skillcell.core.types import InputFile, Isolation, LimitRequest
from skillcell.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    execution_pb2,
    execution_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    usage_pb2,
    usage_pb2_grpc,
)

RUN = {"entrypoint": "run", "args": ("pass",)}
HUGE = LimitRequest(wall_ns=7200 * 10**9)
REFUSED: dict[str, tuple[str, Mapping[str, Any], type[SkillcellError], str, tuple[str, ...]]] = {
    "unknown skill": ("dev/lap", RUN, NotFound, "SKILL_NOT_FOUND", ("dev/lap", "dev/lab")),
    "unknown version": ("dev/lab@9.9.9", RUN, NotFound, "SKILL_VERSION_NOT_FOUND", ("9.9.9",)),
    "unknown alias": ("dev/lab@stabel", RUN, NotFound, "SKILL_VERSION_NOT_FOUND", ("stabel",)),
    "unknown digest": (f"dev/lab@sha256:{'0' * 64}", RUN, NotFound, "SKILL_VERSION_NOT_FOUND", ("sha256:0000",)),
    "no reference": ("Not A Reference", RUN, InvalidArgument, "INVALID_FIELD", ("spec.skill",)),
    "unknown entrypoint": ("dev/lab", {"entrypoint": "plane"}, NotFound, "ENTRYPOINT_NOT_FOUND", ("plane", "plain")),
    "bad JSON": ("dev/lab", {**RUN, "input_json": b"{"}, InvalidArgument, "INPUT_INVALID", ("input_json",)),
    "schema": (
        "dev/lab",
        {"entrypoint": "typed", "input": {"n": 12}},
        InvalidArgument,
        "INPUT_INVALID",
        ("n", "12", "9"),
    ),
    "missing input": ("dev/lab", {"entrypoint": "typed"}, InvalidArgument, "INPUT_INVALID", ("typed",)),
    "limit above policy": (
        "dev/lab",
        {**RUN, "limits": HUGE},
        InvalidArgument,
        "LIMIT_ABOVE_POLICY",
        ("limits.wall_ns", str(7200 * 10**9), str(3600 * 10**9)),
    ),
    "limit above machine": (
        "dev/lab",
        {**RUN, "limits": LimitRequest(memory_bytes=64 << 30)},
        InvalidArgument,
        "LIMIT_ABOVE_POLICY",
        ("limits.memory_bytes", str(64 << 30)),
    ),
    "disk above half of memory": (
        "dev/lab",
        {**RUN, "limits": replace(SMALL, disk_bytes=60 << 20)},
        InvalidArgument,
        "LIMIT_ABOVE_POLICY",
        ("limits.disk_bytes", str(60 << 20), str(32 << 20)),
    ),
    "reserved env": (
        "dev/lab",
        {**RUN, "env": {"SKILLCELL_INPUT": "x"}},
        InvalidArgument,
        "INVALID_FIELD",
        ("env", "SKILLCELL_"),
    ),
    "file above": (
        "dev/lab",
        {**RUN, "files": [InputFile("../x", b"")]},
        InvalidArgument,
        "INVALID_FIELD",
        ("files[0].name", "../x"),
    ),
    "file absolute": (
        "dev/lab",
        {**RUN, "files": [InputFile("/etc/x", b"")]},
        InvalidArgument,
        "INVALID_FIELD",
        ("files[0].name",),
    ),
    "file twice": (
        "dev/lab",
        {**RUN, "files": [InputFile("a", b""), InputFile("a", b"")]},
        InvalidArgument,
        "INVALID_FIELD",
        ("files[1].name", "twice"),
    ),
    "file and directory": (
        "dev/lab",
        {**RUN, "files": [InputFile("a", b""), InputFile("a/b", b"")]},
        InvalidArgument,
        "INVALID_FIELD",
        ("files", "a/b"),
    ),
    "unknown secret": ("dev/lab", {**RUN, "secrets": ["token"]}, NotFound, "SECRET_NOT_FOUND", ("token",)),
    "request id": ("dev/lab", {**RUN, "request_id": "seven"}, InvalidArgument, "INVALID_FIELD", ("request_id",)),
    "class not here": (
        "dev/lab",
        {**RUN, "isolation": Isolation.VM},
        FailedPrecondition,
        "GUARANTEE_UNAVAILABLE",
        ("VM", "STANDARD"),
    ),
    "label": ("dev/lab", {**RUN, "labels": {"Bad Key": "x"}}, InvalidArgument, "INVALID_FIELD", ("labels",)),
    "label with a NUL": ("dev/lab", {**RUN, "labels": {"a": "x\0"}}, InvalidArgument, "INVALID_FIELD", ("labels[a]",)),
}


@pytest.mark.parametrize("case", list(REFUSED))
async def test_a_bad_call_is_refused_by_its_field_and_leaves_nothing(oci_client: SkillcellClient, case: str) -> None:
    skill, options, error, reason, words = REFUSED[case]
    before = (await oci_client.list(page_size=1)).items[:1]
    with pytest.raises(error) as raised:
        await oci_client.call(skill, **options)
    said = raised.value
    assert said.reason == reason
    told = said.message + "".join(v.field + v.description for v in said.field_violations) + str(said.metadata)
    assert not [word for word in words if word not in told], told
    assert "Traceback" not in told
    assert (await oci_client.list(page_size=1)).items[:1] == before


async def test_an_oversized_message_is_refused_and_the_connection_goes_on(oci_client: SkillcellClient) -> None:
    with pytest.raises(ResourceExhausted):
        await oci_client.call("dev/lab", entrypoint="run", args=["x" * (40 << 20)])
    assert (await oci_client.call("dev/lab", entrypoint="run", args=["pass"])).ok


@pytest.mark.parametrize(("key", "reason"), [("", "CREDENTIALS_MISSING"), ("sk_wrong", "CREDENTIALS_INVALID")])
async def test_no_key_and_a_wrong_key_are_unauthenticated(oci: Gateway, key: str, reason: str) -> None:
    async with oci.client(key=key) as client:
        for attempt in (client.call("dev/lab"), client.registry.list(), client.usage.records()):
            with pytest.raises(Unauthenticated) as raised:
                await attempt
            assert raised.value.reason == reason


async def test_a_yanked_version_is_not_called_until_it_is_given_back(
    oci_client: SkillcellClient, tmp_path: Path
) -> None:
    write_skill(tmp_path / "old", {"SKILL.md": "---\nname: old\ndescription: Old.\n---\n", "run.sh": "echo old\n"})
    published = await oci_client.publish(tmp_path / "old", as_name="dev/old", version="1.0.0")
    version = published.version.version
    await oci_client.registry.yank("dev/old", version, reason="it was wrong")
    with pytest.raises((FailedPrecondition, NotFound)) as raised:
        await oci_client.call(f"dev/old@{version}")
    assert raised.value.reason == "VERSION_YANKED"
    assert "it was wrong" in raised.value.message
    await oci_client.registry.yank("dev/old", version, undo=True)


async def test_broken_frontmatter_is_told_by_file_and_line(oci_client: SkillcellClient, tmp_path: Path) -> None:
    write_skill(tmp_path / "broken", {"SKILL.md": "---\nname: broken\ndescription: [unclosed\n---\n", "a.sh": "\n"})
    with pytest.raises(InvalidArgument) as raised:
        await oci_client.publish(tmp_path / "broken", as_name="dev/broken")
    assert raised.value.reason == "SKILL_INVALID"
    assert any(violation.field.startswith("SKILL.md:") for violation in raised.value.field_violations)
    with pytest.raises(NotFound):
        await oci_client.registry.get("dev/broken")


async def test_a_version_never_changes(oci_client: SkillcellClient, tmp_path: Path) -> None:
    write_skill(tmp_path / "lab", {**FILES, "more.txt": "other content"})
    with pytest.raises(AlreadyExists) as raised:
        await oci_client.publish(tmp_path / "lab", as_name="dev/lab")
    assert raised.value.reason == "VERSION_EXISTS"


HEADER = b"---\nname: bad\ndescription: Bad.\n---\n"


def _tar(add: Callable[[tarfile.TarFile], None]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        _member(archive, "SKILL.md", HEADER)
        add(archive)
    return buffer.getvalue()


def _member(
    archive: tarfile.TarFile, name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, to: str = ""
) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(data), kind, to
    archive.addfile(member, io.BytesIO(data))


def _zip(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("SKILL.md", HEADER)
        archive.writestr(name, data)
    return buffer.getvalue()


ATTACKS = {
    "dot-dot": (_tar(lambda archive: _member(archive, "../evil", b"x")), "evil"),
    "absolute": (_tar(lambda archive: _member(archive, "/tmp/evil", b"x")), "evil"),
    "link out": (_tar(lambda archive: _member(archive, "evil", kind=tarfile.SYMTYPE, to="/etc/passwd")), "evil"),
    "hard link out": (_tar(lambda archive: _member(archive, "evil", kind=tarfile.LNKTYPE, to="../../x")), "evil"),
    "device": (_tar(lambda archive: _member(archive, "evil", kind=tarfile.CHRTYPE)), "evil"),
    "fifo": (_tar(lambda archive: _member(archive, "evil", kind=tarfile.FIFOTYPE)), "evil"),
    "case collision": (_tar(lambda archive: _member(archive, "skill.MD", b"x")), "skill.MD"),
    "duplicate": (_tar(lambda archive: _member(archive, "SKILL.md", b"x")), "SKILL.md"),
    "bomb": (_zip("evil", bytes(200 << 20)), "evil"),
    "zip dot-dot": (_zip("a/../../evil", b"x"), "evil"),
    "not an archive": (b"nonsense" * 100, ""),
    "torn": (_tar(lambda archive: _member(archive, "evil", bytes(range(256)) * 99))[:-200], ""),
}


@pytest.mark.parametrize("attack", list(ATTACKS))
async def test_a_hostile_archive_is_refused_by_its_entry_and_nothing_is_kept(
    oci: Gateway, oci_client: SkillcellClient, tmp_path: Path, attack: str
) -> None:
    data, entry = ATTACKS[attack]
    (tmp_path / "bad.tar.gz").write_bytes(data)
    kept = sorted(path.name for path in (oci.data / "packages").iterdir())
    with pytest.raises(InvalidArgument) as raised:
        await oci_client.publish(tmp_path / "bad.tar.gz", as_name="dev/bad")
    assert raised.value.reason == "ARCHIVE_INVALID"
    assert entry in raised.value.message + str(raised.value.metadata)
    with pytest.raises(NotFound):
        await oci_client.registry.get("dev/bad")
    assert sorted(path.name for path in (oci.data / "packages").iterdir()) == kept


async def test_health_and_reflection_tell_all_services(oci: Gateway) -> None:
    names = {f"skillcell.v1.{name}Service" for name in ("Execution", "Registry", "Session", "Usage", "Admin")}
    async with oci.channel() as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", *names):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        answers = [answer async for answer in stub.ServerReflectionInfo(iter([ask]))]
    assert names <= {service.name for service in answers[0].list_services_response.service}


async def test_what_is_not_served_says_so_with_its_reason(oci: Gateway) -> None:
    async with oci.channel() as channel:
        for call in (
            session_pb2_grpc.SessionServiceStub(channel).ListSessions(
                session_pb2.ListSessionsRequest(), metadata=oci.credentials
            ),
            admin_pb2_grpc.AdminServiceStub(channel).ListPools(admin_pb2.ListPoolsRequest(), metadata=oci.credentials),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call
            error = from_rpc(raised.value)
            assert (error.code, error.reason) == ("UNIMPLEMENTED", "NOT_SERVED")


async def test_a_time_that_is_none_and_a_place_past_the_end_are_refused(
    oci: Gateway, oci_client: SkillcellClient
) -> None:
    made = await oci_client.call("dev/lab", entrypoint="run", args=("open('/output/x', 'w').write('abc')",))
    listing = execution_pb2.ListExecutionsRequest()
    listing.filter.time.start.seconds = 2**62
    records = usage_pb2.ListUsageRecordsRequest()
    records.filter.time.end.seconds = -(2**62)
    artifact = execution_pb2.GetArtifactRequest(execution_id=made.execution_id, name="x", offset=4)
    async with oci.channel() as channel:
        stub = execution_pb2_grpc.ExecutionServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError, match=r"filter\.time\.start: .* years 1 to 9999") as refused:
            await stub.ListExecutions(listing, metadata=oci.credentials)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        usage = usage_pb2_grpc.UsageServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError, match=r"filter\.time\.end") as refused:
            await usage.ListUsageRecords(records, metadata=oci.credentials)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError, match="is 4; the artifact has 3 bytes") as refused:
            [chunk async for chunk in stub.GetArtifact(artifact, metadata=oci.credentials)]
        assert refused.value.code() is grpc.StatusCode.OUT_OF_RANGE
