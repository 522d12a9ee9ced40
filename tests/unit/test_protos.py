"""The protos keep their promises: lint, freshness, enforced rules, documented errors.

A rule is tested through generated classes and the protovalidate library, as the server uses them, because the generated
code deliberately leaves out the file that declares the rules (see `protos/generate.sh`).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import protovalidate
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_tools import protoc  # type: ignore[import-untyped]
from protovalidate._gen.buf.validate import validate_pb  # the only copy of the whole rule schema on PyPI

from skillcell.v1 import (
    admin_pb2,
    errors_pb2,
    execution_pb2,
    policy_pb2,
    registry_pb2,
    session_pb2,
    spec_pb2,
    types_pb2,
    usage_pb2,
)

PROTOS = Path(__file__).parents[2] / "protos"
BUF = shutil.which("buf", path=Path(sys.executable).parent) or "buf"
SHA256 = "sha256:" + "0" * 64

DESIGNED = {
    "ExecutionService": "Execute ExecuteInteractive StartExecution GetExecution ListExecutions WatchExecution "
    "CancelExecution GetArtifact EstimateExecution UploadInput",
    "RegistryService": "PublishSkill ValidateSkill GetSkill ListSkills SearchSkills ListSkillVersions SetAlias "
    "YankSkillVersion DownloadSkill",
    "UsageService": "ListUsageRecords StreamUsageRecords GetUsageSummary GetQuota VerifyLedger",
    "SessionService": "CreateSession GetSession ListSessions CloseSession",
    "AdminService": "CreateTenant CreateApiKey SetQuota SetPolicy CreateRatePlan SetSecret SetDrain ListPools Block",
}


class Rpc(NamedTuple):
    service: str
    name: str
    comment: str
    server_streaming: bool
    client_streaming: bool


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, descriptor_pb2.FileDescriptorProto]:
    """Every file by its import path, comments included, as plain protoc with this folder alone compiles them."""
    out = tmp_path_factory.mktemp("protos") / "all.binpb"
    sources = [str(p.relative_to(PROTOS)) for p in sorted(PROTOS.glob("skillcell/v1/*.proto"))]
    well_known = Path(protoc.__file__).parent / "_proto"
    args = ["protoc", f"-I{PROTOS}", f"-I{well_known}", "--include_imports", "--include_source_info", f"-o{out}"]
    assert protoc.main([*args, *sources]) == 0
    return {f.name: f for f in descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file}


@pytest.fixture(scope="module")
def rpcs(compiled: dict[str, descriptor_pb2.FileDescriptorProto]) -> list[Rpc]:
    return [rpc for file in compiled.values() for rpc in _rpcs(file)]


def _rpcs(file: descriptor_pb2.FileDescriptorProto) -> Iterator[Rpc]:
    comments = {tuple(loc.path): loc.leading_comments for loc in file.source_code_info.location}
    for s, service in enumerate(file.service):
        for m, method in enumerate(service.method):
            comment = comments.get((6, s, 2, m), "")
            yield Rpc(service.name, method.name, comment, method.server_streaming, method.client_streaming)


def _errors(comment: str) -> list[tuple[str, str, str]]:
    """(status, reason, what to do) of each line `- STATUS / REASON: text` in an RPC's comment."""
    joined = re.sub(r"\n {3,}", " ", comment)
    return re.findall(r"^ - ([A-Z_]+) / ([A-Z_]+): (.+)$", joined, re.MULTILINE)


def _violations(message: Message) -> dict[str, str]:
    """Path of each field that breaks a rule, and the rule's id."""
    found = protovalidate.collect_violations(message)
    return {_path(v): v.proto.rule_id for v in found}


def _path(violation: protovalidate.Violation) -> str:
    path = violation.proto.field
    return ".".join(element.field_name for element in path.elements) if path else ""


def _spec(**fields: Any) -> spec_pb2.ExecutionSpec:
    return spec_pb2.ExecutionSpec(**{"skill": "acme/pdf-tools", **fields})


def _of(kind: type[Message], **fields: Any) -> Message:
    """A message from plain dicts and numbers, as a caller in an untyped language would send it."""
    return kind(**fields)


def test_buf_standard_lint_and_format_are_clean() -> None:
    for command in (["lint"], ["format", "--diff", "--exit-code", "--path", "skillcell"]):
        done = subprocess.run([BUF, *command], cwd=PROTOS, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_committed_code_is_what_the_protos_give() -> None:
    done = subprocess.run(
        [PROTOS / "generate.sh", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable},
    )
    assert done.returncode == 0, done.stderr


def test_a_stale_generated_file_is_noticed(tmp_path: Path) -> None:
    shutil.copytree(PROTOS, tmp_path / "protos")
    generated = tmp_path / "runtime/skillcell/v1"
    shutil.copytree(PROTOS.parent / "runtime/skillcell/v1", generated)
    (generated / "gone_pb2.py").write_text("")
    done = subprocess.run(
        [tmp_path / "protos/generate.sh", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable},
    )
    assert done.returncode == 1
    assert "gone_pb2.py" in done.stderr


def test_the_rule_schema_declared_here_is_a_part_of_protovalidates(
    compiled: dict[str, descriptor_pb2.FileDescriptorProto],
) -> None:
    whole = descriptor_pb2.FileDescriptorProto.FromString(validate_pb.desc().proto.to_binary())
    ours = compiled["buf/validate/validate.proto"]
    assert ours.package == whole.package
    assert _facts(ours) <= _facts(whole)


def _facts(file: descriptor_pb2.FileDescriptorProto) -> set[tuple[object, ...]]:
    """Everything of a schema that decides how bytes are written and read."""
    facts: set[tuple[object, ...]] = set()
    for holder, fields in [("", file.extension), *((m.name, m.field) for m in file.message_type)]:
        for f in fields:
            facts.add((holder, f.name, f.number, f.type, f.label, f.type_name, f.extendee))
    for enum in file.enum_type:
        facts |= {(enum.name, v.name, v.number) for v in enum.value}
    return facts


def test_generated_code_needs_no_rule_schema_at_run_time() -> None:
    listed = "import skillcell.v1.admin_pb2, skillcell.v1.execution_pb2, skillcell.v1.registry_pb2, sys; " + (
        "sys.exit(any(m == 'buf' or m.startswith('buf.') for m in sys.modules))"
    )
    code = f"import sys; sys.path.insert(0, {str(PROTOS.parent / 'runtime')!r}); {listed}"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_reflection_gives_a_client_every_service_whole(rpcs: list[Rpc]) -> None:
    names = [f"skillcell.v1.{service}" for service in DESIGNED]
    server = grpc.server(ThreadPoolExecutor(2))
    reflection.enable_server_reflection(names, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
            found = {(name, m.name) for name in names for m in pool.FindServiceByName(name).methods}
            spec = pool.FindMessageTypeByName("skillcell.v1.ExecutionSpec")
    finally:
        server.stop(None).wait()
    assert found == {(f"skillcell.v1.{r.service}", r.name) for r in rpcs}
    assert {f.name for f in spec.fields} == {f.name for f in spec_pb2.ExecutionSpec.DESCRIPTOR.fields}


def test_a_good_request_passes_every_rule() -> None:
    spec = _spec(
        skill=f"acme/pdf-tools@{SHA256}",
        entrypoint="scripts/extract.py",
        input_json=b'{"n": 9007199254740993}',
        args=["--fast", ""],
        files=[spec_pb2.InputFile(name="in/a file.txt", content=b""), spec_pb2.InputFile(name="..b", upload=SHA256)],
        env={"LANG": "C.UTF-8"},
        labels={"team": "search", "cost.center": "42"},
        collect=["**/*.csv"],
        limits=types_pb2.Limits(memory_bytes=256 << 20),
    )
    spec.limits.timeout.FromSeconds(30)
    request = execution_pb2.ExecuteRequest(request_id="4b0de5b2-0d5c-4a2f-8c7e-3a6d2c9f1e77", spec=spec)
    assert _violations(request) == {}
    assert _violations(execution_pb2.ExecuteRequest(spec=_spec(skill="acme/pdf-tools@1.2.0-rc.1+b"))) == {}
    assert _violations(execution_pb2.ExecuteRequest(spec=spec_pb2.ExecutionSpec(session_id="ses_1"))) == {}


REFUSED: list[tuple[str, Message, str, str]] = [
    ("no spec", execution_pb2.ExecuteRequest(), "spec", "required"),
    ("neither Skill nor session", _of(execution_pb2.ExecuteRequest, spec={}), "spec", "spec.skill_or_session"),
    ("request_id is no UUID", execution_pb2.ExecuteRequest(request_id="x", spec=_spec()), "request_id", "string.uuid"),
    ("Skill without publisher", _spec(skill="pdf-tools"), "skill", "string.pattern"),
    ("Skill with capitals", _spec(skill="Acme/pdf"), "skill", "string.pattern"),
    ("short digest", _spec(skill="acme/pdf@sha256:abc"), "skill", "string.pattern"),
    ("file that climbs", _spec(files=[{"name": "a/../../etc", "content": b""}]), "files.name", "file.relative"),
    ("absolute file", _spec(files=[{"name": "/etc/passwd", "content": b""}]), "files.name", "file.relative"),
    ("file with a NUL", _spec(files=[{"name": "a\0b", "content": b""}]), "files.name", "file.relative"),
    ("file without content", _spec(files=[{"name": "a"}]), "files.source", "required"),
    ("argument with a NUL", _spec(args=["a\0"]), "args", "string.pattern"),
    ("reserved variable", _spec(env={"SKILLCELL_INPUT": "x"}), "env", "env.reserved"),
    ("variable with =", _spec(env={"A=B": "x"}), "env", "string.pattern"),
    ("label with capitals", _spec(labels={"Team": "x"}), "labels", "string.pattern"),
    ("too many labels", _spec(labels={f"k{i}": "" for i in range(33)}), "labels", "map.max_pairs"),
    ("limit of 0", _spec(limits={"pids": 0}), "limits.pids", "uint32.gte_lte"),
    ("timeout of 0", _spec(limits={"timeout": {}}), "limits.timeout", "duration.gt_lte"),
    ("unknown isolation", _spec(isolation=77), "isolation", "enum.defined_only"),
    ("reuse in a session", _spec(session_id="ses_1", reuse=spec_pb2.REUSE_NEVER), "", "spec.reuse_in_session"),
    ("oversized page", execution_pb2.ListExecutionsRequest(page_size=1001), "page_size", "uint32.lte"),
    ("empty part of a stream", execution_pb2.ExecuteInteractiveRequest(), "part", "required"),
    ("no key", execution_pb2.GetExecutionRequest(), "key", "required"),
    (
        "time that runs backwards",
        _of(usage_pb2.UsageFilter, time={"start": {"seconds": 2}, "end": {"seconds": 1}}),
        "time",
        "time_range.order",
    ),
    ("publishing under a path", registry_pb2.SkillHeader(skill="a/b/c"), "skill", "string.pattern"),
    ("version that is not SemVer", registry_pb2.SkillHeader(version="1.2"), "version", "string.pattern"),
    (
        "grants of a public Skill",
        _of(registry_pb2.SetSkillVisibilityRequest, skill="a/b", visibility=3, granted_tenants=["t"]),
        "",
        "visibility.granted_tenants",
    ),
    ("session without a Skill", session_pb2.CreateSessionRequest(), "skill", "string.pattern"),
    ("quota without its period", _of(policy_pb2.Quota, scope={"gateway": True}, meter=5, limit=1), "", "quota.period"),
    ("egress by URL", policy_pb2.EgressPolicy(allowed=["https://a.example"]), "allowed", "string.pattern"),
    ("key without a role", admin_pb2.CreateApiKeyRequest(tenant="acme"), "roles", "repeated.min_items"),
    ("pool upside down", _of(admin_pb2.Pool, key={"image": "shell"}, min_ready=2, max_ready=1), "", "pool.bounds"),
]


@pytest.mark.parametrize(("message", "field", "rule"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_a_bad_field_is_refused_by_name(message: Message, field: str, rule: str) -> None:
    assert _violations(message).get(field) == rule


def test_every_rule_of_every_message_compiles(compiled: dict[str, descriptor_pb2.FileDescriptorProto]) -> None:
    pool = descriptor_pool.Default()
    names = [f"skillcell.v1.{m.name}" for f in compiled.values() if f.package == "skillcell.v1" for m in f.message_type]
    assert len(names) > 100
    for name in names:
        protovalidate.collect_violations(message_factory.GetMessageClass(pool.FindMessageTypeByName(name))())


def test_every_service_of_the_design_has_its_rpcs(rpcs: list[Rpc]) -> None:
    served = {s: {r.name for r in rpcs if r.service == s} for s in DESIGNED}
    missing = {s: set(names.split()) - served[s] for s, names in DESIGNED.items()}
    assert not any(missing.values()), missing
    assert {r.service for r in rpcs} == set(DESIGNED)


def test_streams_run_in_the_direction_of_the_design(rpcs: list[Rpc]) -> None:
    from_server = {r.name for r in rpcs if r.server_streaming}
    from_client = {r.name for r in rpcs if r.client_streaming}
    assert from_server == {
        "Execute", "ExecuteInteractive", "WatchExecution", "GetArtifact", "DownloadSkill", "StreamUsageRecords",
        "StreamCharges",
    }  # fmt: skip
    assert from_client == {"ExecuteInteractive", "UploadInput", "PublishSkill", "ValidateSkill"}


def test_every_rpc_lists_its_errors_and_what_to_do(rpcs: list[Rpc]) -> None:
    reasons = set(errors_pb2.ErrorReason.keys())
    for rpc in rpcs:
        errors = _errors(rpc.comment)
        assert rpc.comment.count("\n - ") == len(errors) > 0, rpc.name
        assert "besides those of every call" in rpc.comment, rpc.name
        for status, reason, advice in errors:
            assert status in grpc.StatusCode.__members__, (rpc.name, status)
            assert f"ERROR_REASON_{reason}" in reasons, (rpc.name, reason)
            assert advice.endswith("."), (rpc.name, reason)


def test_a_reason_goes_with_one_status_everywhere(
    rpcs: list[Rpc], compiled: dict[str, descriptor_pb2.FileDescriptorProto]
) -> None:
    file = compiled["skillcell/v1/errors.proto"]
    comments = {tuple(loc.path): loc.leading_comments for loc in file.source_code_info.location}
    declared: dict[str, str] = {}
    for i, value in enumerate(file.enum_type[0].value[1:], start=1):
        status = comments[(5, 0, 2, i)].split(".")[0].strip()
        assert status in grpc.StatusCode.__members__, value.name
        declared[value.name.removeprefix("ERROR_REASON_")] = status
    for rpc in rpcs:
        for status, reason, _ in _errors(rpc.comment):
            assert declared[reason] == status, (rpc.name, reason)


def test_every_field_and_message_of_ours_is_explained_or_speaks_for_itself(
    compiled: dict[str, descriptor_pb2.FileDescriptorProto],
) -> None:
    bare = [
        f"{file.name}: {message.name}.{field.name}"
        for file in compiled.values()
        if file.package == "skillcell.v1"
        for m, message in enumerate(file.message_type)
        for f, field in enumerate(message.field)
        if not any(tuple(loc.path) == (4, m, 2, f) and loc.leading_comments for loc in file.source_code_info.location)
    ]
    assert bare == []
