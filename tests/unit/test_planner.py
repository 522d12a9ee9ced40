"""Everything that is wrong with a call is told before there is a record of it, with field, value and limit."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from plans import ENTRYPOINT, version
from skillcell.admission.planner import Planner
from skillcell.admission.policy import Policy
from skillcell.admission.uploads import NamedUploads
from skillcell.core.errors import Fault, FaultKind, FieldViolation, not_found
from skillcell.core.rate_plans import RatePlan
from skillcell.core.skills import Entrypoint, Network, SecretRequest, SkillVersion, VersionState
from skillcell.core.types import (
    ExecutionRequest,
    InputFile,
    Isolation,
    LimitRequest,
    Principal,
    WorkingDir,
)

CALLER = Principal("tenant", roles=frozenset({"caller"}))
REQUEST = ExecutionRequest("acme/tool")
JSON_BYTES = 5 << 20


class OneSkill:
    """A catalogue of one version, and rules that bind the input as they are told to."""

    def __init__(self, held: SkillVersion, violations: Collection[FieldViolation] = ()) -> None:
        self.held = held
        self.violations = violations
        self.bound: tuple[tuple[str, ...], bytes | None] = ((), None)

    async def resolve(self, principal: Principal, reference: str) -> SkillVersion:
        if not reference.startswith("acme/tool"):
            raise not_found("skill", reference)
        return self.held

    def entrypoint(self, version: SkillVersion, name: str) -> Entrypoint:
        return version.spec.entrypoints[0]

    def check_input(self, entrypoint: Entrypoint, input_json: bytes | None) -> Collection[FieldViolation]:
        return self.violations

    def bind(self, entrypoint: Entrypoint, input_json: bytes | None) -> tuple[tuple[str, ...], bytes | None]:
        return self.bound


class Sent:
    """Uploads of one tenant, by digest."""

    def __init__(self, held: dict[str, bytes]) -> None:
        self.held = held
        self.read_whole: list[str] = []

    async def sizes(self, tenant: str, digests: Iterable[str]) -> Mapping[str, int]:
        for digest in digests:
            if tenant != CALLER.tenant or digest not in self.held:
                raise not_found("upload", digest)
        return {digest: len(self.held[digest]) for digest in digests}

    async def read(self, tenant: str, digest: str) -> bytes:
        self.read_whole.append(digest)
        return self.held[digest]


class RatedBy:
    """One plan for every tenant, or none."""

    def __init__(self, plan: RatePlan | None) -> None:
        self.plan = plan

    async def plan_for(self, tenant: str) -> RatePlan | None:
        return self.plan


def planner(
    skill: OneSkill | None = None,
    *,
    floor: Isolation = Isolation.STANDARD,
    classes: Collection[Isolation] = (Isolation.STANDARD, Isolation.GVISOR),
    default: Isolation = Isolation.STANDARD,
    uploads: Sent | None = None,
    rate_plan: RatePlan | None = None,
) -> Planner:
    skill = skill or OneSkill(version())
    named, rates = NamedUploads(uploads or Sent({}), JSON_BYTES), RatedBy(rate_plan)
    return Planner(skill, skill, Policy(isolation_floor=floor), classes, default, uploads=named, rate_plans=rates)


async def refusal(request: ExecutionRequest, within: Planner | None = None) -> Fault:
    with pytest.raises(Fault) as fault:
        await (within or planner()).plan(CALLER, request)
    return fault.value


async def test_a_plan_pins_all_that_the_call_rests_on() -> None:
    skill = OneSkill(version())
    skill.bound = (("--n", "1"), None)
    request = replace(REQUEST, args=("x",), stdin=b"in", limits=LimitRequest(pids=64))
    plan = await planner(skill).plan(CALLER, request)
    assert plan.arguments == ("--n", "1", "x")
    assert (plan.stdin, plan.limits.pids, plan.lowered) == (b"in", 64, {"pids"})
    assert (plan.isolation, plan.working_dir) == (Isolation.STANDARD, WorkingDir.WORKSPACE)
    assert (plan.version, plan.entrypoint, plan.principal) == (skill.held, ENTRYPOINT, CALLER)


async def test_stdin_made_of_the_input_stands_before_the_callers() -> None:
    skill = OneSkill(version())
    skill.bound = ((), b"")
    assert (await planner(skill).plan(CALLER, replace(REQUEST, stdin=b"caller's"))).stdin == b""


async def test_the_callers_working_directory_stands_before_the_manifests() -> None:
    skill = OneSkill(version(entrypoints=(replace(ENTRYPOINT, working_dir=WorkingDir.SKILL),)))
    assert (await planner(skill).plan(CALLER, REQUEST)).working_dir is WorkingDir.SKILL
    request = replace(REQUEST, working_dir=WorkingDir.WORKSPACE)
    assert (await planner(skill).plan(CALLER, request)).working_dir is WorkingDir.WORKSPACE


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"nope",
        b"NaN",
        b"[Infinity]",
        b"1e999",
        b'{"a": 1} {"b": 2}',
        b"\xff\xfe1\x00",
        "{}".encode("utf-16"),
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b"[" * 200 + b"]" * 200,
        b"1" * 5000,
        b'"\\ud800"',
    ],
)
async def test_input_that_is_not_json_is_refused(text: bytes) -> None:
    fault = await refusal(replace(REQUEST, input_json=text))
    assert (fault.kind, fault.reason) == (FaultKind.INVALID_ARGUMENT, "INPUT_INVALID")
    assert fault.violations[0].field == "input_json"
    assert len(fault.message) < 300


@pytest.mark.parametrize(
    "text", [b"null", b'"\\ud83d\\ude00"', b"[" * 100 + b"]" * 100, b"9" * 4000, '"é"'.encode(), b"-1e-999"]
)
async def test_input_that_is_json_passes(text: bytes) -> None:
    await planner().plan(CALLER, replace(REQUEST, input_json=text))


async def test_input_that_breaks_the_schema_tells_every_place() -> None:
    violations = tuple(FieldViolation(f"input/{n}", "is wrong") for n in range(9))
    fault = await refusal(REQUEST, planner(OneSkill(version(), violations)))
    assert (fault.reason, fault.violations) == ("INPUT_INVALID", violations)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "../x",
        "a/../b",
        "a//b",
        "./a",
        "a/",
        ".",
        "a\\b",
        "a\0b",
        "a\nb",
        "x" * 256,
        "d/" * 600 + "f",
        "\udcff",
    ],
)
async def test_a_file_name_that_leads_anywhere_else_is_refused(name: str) -> None:
    fault = await refusal(replace(REQUEST, files=(InputFile("ok", b""), InputFile(name, b""))))
    assert fault.kind is FaultKind.INVALID_ARGUMENT
    assert fault.violations[0].field == "files[1].name"


@pytest.mark.parametrize(
    ("names", "field"), [(["a", "a"], "files[1].name"), (["a/b/c", "a/b"], "files"), (["a", "a/b"], "files")]
)
async def test_files_that_can_t_lie_side_by_side_are_refused(names: list[str], field: str) -> None:
    fault = await refusal(replace(REQUEST, files=tuple(InputFile(name, b"") for name in names)))
    assert fault.violations[0].field == field


async def test_files_with_like_beginnings_lie_side_by_side() -> None:
    names = ("a", "ab", "ab.c", "b/c", "b/cd", "é/…")
    plan = await planner().plan(CALLER, replace(REQUEST, files=tuple(InputFile(name, b"12") for name in names)))
    assert plan.input_bytes == 2 * len(names)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"env": {"": "x"}}, "env"),
        ({"env": {"A=B": "x"}}, "env"),
        ({"env": {"A\0": "x"}}, "env"),
        ({"env": {"A\n": "x"}}, "env"),
        ({"env": {"SKILLCELL_OUTPUT_DIR": "x"}}, "env[SKILLCELL_OUTPUT_DIR]"),
        ({"env": {"A": "x\0y"}}, "env[A]"),
        ({"args": ("fine", "x\0y")}, "args[1]"),
    ],
)
async def test_what_no_process_can_be_given_is_refused(changes: dict[str, Any], field: str) -> None:
    fault = await refusal(replace(REQUEST, **changes))
    assert fault.kind is FaultKind.INVALID_ARGUMENT
    assert fault.violations[0].field == field


@pytest.mark.parametrize("state", [VersionState.YANKED, VersionState.BLOCKED])
async def test_a_version_that_is_no_longer_offered_is_refused_with_the_reason(state: VersionState) -> None:
    fault = await refusal(REQUEST, planner(OneSkill(version(state=state, state_reason="it leaks"))))
    assert (fault.kind, fault.reason) == (FaultKind.FAILED_PRECONDITION, f"VERSION_{state.value}")
    assert "it leaks" in fault.message


async def test_a_skill_that_needs_the_network_is_refused_rather_than_run_without() -> None:
    fault = await refusal(REQUEST, planner(OneSkill(version(network=Network(("api.example.com:443",))))))
    assert fault.kind is FaultKind.FAILED_PRECONDITION
    assert "api.example.com:443" in fault.message


@pytest.mark.parametrize("by", ["manifest", "caller"])
async def test_a_secret_that_is_not_there_is_refused(by: str) -> None:
    held = version(secrets=(SecretRequest("token", env="T"),)) if by == "manifest" else version()
    request = replace(REQUEST, secrets=("token",)) if by == "caller" else REQUEST
    fault = await refusal(request, planner(OneSkill(held)))
    assert (fault.kind, fault.resource) == (FaultKind.NOT_FOUND, ("secret", "token"))


async def test_an_unknown_skill_is_not_found_but_bad_input_is_told_first() -> None:
    assert (await refusal(ExecutionRequest("acme/other"))).kind is FaultKind.NOT_FOUND
    assert (await refusal(ExecutionRequest("acme/other", input_json=b"{"))).kind is FaultKind.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("asked", "floor", "default", "granted"),
    [
        (None, Isolation.STANDARD, Isolation.STANDARD, Isolation.STANDARD),
        (None, Isolation.STANDARD, Isolation.GVISOR, Isolation.GVISOR),
        (None, Isolation.GVISOR, Isolation.STANDARD, Isolation.GVISOR),
        (Isolation.GVISOR, Isolation.STANDARD, Isolation.STANDARD, Isolation.GVISOR),
        (Isolation.STANDARD, Isolation.STANDARD, Isolation.GVISOR, Isolation.STANDARD),
        (Isolation.STANDARD, Isolation.GVISOR, Isolation.STANDARD, "ISOLATION_NOT_PERMITTED"),
        (Isolation.VM, Isolation.STANDARD, Isolation.STANDARD, "GUARANTEE_UNAVAILABLE"),
        (None, Isolation.VM, Isolation.STANDARD, "GUARANTEE_UNAVAILABLE"),
    ],
)
async def test_isolation_is_never_weaker_than_the_floor_nor_silently_another(
    asked: Isolation | None, floor: Isolation, default: Isolation, granted: Isolation | str
) -> None:
    within = planner(floor=floor, default=default)
    request = replace(REQUEST, isolation=asked)
    if isinstance(granted, str):
        fault = await refusal(request, within)
        assert (fault.kind, fault.reason) == (FaultKind.FAILED_PRECONDITION, granted)
    else:
        assert (await within.plan(CALLER, request)).isolation is granted


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (replace(REQUEST, args=("x" * 131_072,)), "args[0]"),
        (replace(REQUEST, env={"BIG": "x" * 131_072}), "env[BIG]"),
        (replace(REQUEST, args=("x" * 100_000,) * 11), "args"),
    ],
)
async def test_what_no_process_can_be_started_with_is_refused_by_name(request_: ExecutionRequest, named: str) -> None:
    fault = await refusal(request_)
    assert fault.kind is FaultKind.INVALID_ARGUMENT
    assert [violation.field for violation in fault.violations] == [named]
    assert "limit is" in fault.message


async def test_uploads_are_found_and_counted_and_only_the_json_is_read() -> None:
    sent = Sent({"sha256:json": b'{"n": 1}', "sha256:in": b"x" * 100, "sha256:file": b"y" * 10})
    files = (InputFile("a", upload="sha256:file"), InputFile("b", upload="sha256:file"), InputFile("c", b"inline"))
    request = replace(REQUEST, input_upload="sha256:json", stdin_upload="sha256:in", files=files)
    plan = await planner(uploads=sent).plan(CALLER, request)
    assert plan.uploads == {"sha256:json": 8, "sha256:in": 100, "sha256:file": 10}
    assert (plan.stdin, plan.stdin_upload, plan.input_bytes) == (b"", "sha256:in", 8 + 100 + 2 * 10 + 6)
    assert sent.read_whole == ["sha256:json"]


@pytest.mark.parametrize("field", ["input_upload", "stdin_upload", "file"])
async def test_an_upload_that_is_not_there_refuses_the_call(field: str) -> None:
    asked = {"files": (InputFile("a", upload="sha256:no"),)} if field == "file" else {field: "sha256:no"}
    fault = await refusal(replace(REQUEST, **asked))
    assert (fault.kind, fault.reason, fault.resource) == (
        FaultKind.NOT_FOUND,
        "UPLOAD_NOT_FOUND",
        ("upload", "sha256:no"),
    )


async def test_an_uploaded_input_is_checked_like_one_that_is_sent_along() -> None:
    sent = Sent({"sha256:broken": b"{", "sha256:large": b" " * (JSON_BYTES + 1), "sha256:json": b"[]"})
    within = planner(uploads=sent)
    fault = await refusal(replace(REQUEST, input_upload="sha256:broken"), within)
    assert (fault.reason, fault.violations[0].field) == ("INPUT_INVALID", "input_upload")
    fault = await refusal(replace(REQUEST, input_upload="sha256:large"), within)
    assert (fault.reason, fault.metadata["limit"]) == ("INVALID_FIELD", str(JSON_BYTES))
    assert sent.read_whole == ["sha256:broken"]
    picky = OneSkill(version(), [FieldViolation("input/n", "is required")])
    fault = await refusal(replace(REQUEST, input_upload="sha256:json"), planner(picky, uploads=sent))
    assert (fault.reason, fault.violations[0].field) == ("INPUT_INVALID", "input/n")


async def test_standard_input_made_of_an_uploaded_input_stands_before_the_callers_and_is_bounded() -> None:
    skill = OneSkill(version())
    sent = Sent({"sha256:json": b"{}", "sha256:in": b"caller's"})
    request = replace(REQUEST, input_upload="sha256:json", stdin_upload="sha256:in")
    skill.bound = ((), b"bound")
    plan = await planner(skill, uploads=sent).plan(CALLER, request)
    assert (plan.stdin, plan.stdin_upload) == (b"bound", "")
    skill.bound = ((), bytes((4 << 20) + 1))
    fault = await refusal(request, planner(skill, uploads=sent))
    assert (fault.violations[0].field, fault.metadata["limit"]) == ("input_upload", str(4 << 20))


async def test_the_plan_that_rates_the_call_is_pinned() -> None:
    rates = RatePlan("standard", "standard/3", "EUR", 2, ())
    assert (await planner(rate_plan=rates).plan(CALLER, ExecutionRequest("acme/tool"))).rate_plan == rates
    assert (await planner().plan(CALLER, ExecutionRequest("acme/tool"))).rate_plan is None
