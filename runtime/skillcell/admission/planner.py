"""From a request to a plan: every check that can refuse a call without a trace.

Nothing here touches a sandbox or the ledger, so a refusal is a status and never a record.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Protocol

from skillcell.admission.policy import Policy, grant
from skillcell.admission.uploads import NamedUploads
from skillcell.core.errors import Fault, FaultKind, FieldViolation, invalid, not_found, precondition
from skillcell.core.json_text import json_problem
from skillcell.core.paths import path_problem
from skillcell.core.plan import Plan
from skillcell.core.rate_plans import RatePlan
from skillcell.core.skills import Entrypoint, SkillVersion, VersionState
from skillcell.core.types import ExecutionRequest, InputFile, Isolation, Principal

_STRENGTH = (Isolation.STANDARD, Isolation.GVISOR, Isolation.VM)
_RESERVED_ENV = "SKILLCELL_"
_ARGUMENT_BYTES = 131_071
_COMMAND_BYTES = 1 << 20
_BOUND_STDIN_BYTES = 4 << 20
"""Standard input that is made of an uploaded input waits in memory with its call, unlike the input."""


class Catalog(Protocol):
    """Where Skills are found."""

    async def resolve(self, principal: Principal, reference: str) -> SkillVersion:
        """The version that a reference names, if the caller may see it; else Fault NOT_FOUND."""
        ...


class InputRules(Protocol):
    """What an entrypoint says of its input."""

    def entrypoint(self, version: SkillVersion, name: str) -> Entrypoint:
        """By full or short name, the default for an empty one; Fault NOT_FOUND or INVALID_ARGUMENT else."""
        ...

    def check_input(self, entrypoint: Entrypoint, input_json: bytes | None) -> Collection[FieldViolation]:
        """What of the declared schema the input breaks."""
        ...

    def bind(self, entrypoint: Entrypoint, input_json: bytes | None) -> tuple[tuple[str, ...], bytes | None]:
        """argv and stdin made of the input; stdin None where the entrypoint takes the caller's."""
        ...


class RatePlans(Protocol):
    """Who is rated by what."""

    async def plan_for(self, tenant: str) -> RatePlan | None:
        """What rates a call that the tenant makes now; None where nothing does. Asked by every call: quick."""
        ...


class Planner:
    """Checks requests against catalogue, schemas and policy."""

    def __init__(
        self,
        catalog: Catalog,
        rules: InputRules,
        policy: Policy,
        classes: Collection[Isolation],
        default: Isolation,
        *,
        uploads: NamedUploads,
        rate_plans: RatePlans,
    ) -> None:
        self._catalog = catalog
        self._rules = rules
        self._rate_plans = rate_plans
        self._policy = policy
        self._classes = classes
        self._default = default
        self._uploads = uploads

    async def plan(self, principal: Principal, request: ExecutionRequest) -> Plan:
        """Raises Fault: NOT_FOUND, INVALID_ARGUMENT, FAILED_PRECONDITION; the message names field, value and limit."""
        _check_files(request.files)
        _check_env(request)
        _check_arguments(request)
        _check_json(request.input_json, "input_json")
        version = await self._catalog.resolve(principal, request.skill)
        _check_state(version)
        entrypoint = self._rules.entrypoint(version, request.entrypoint)
        _check_needs(version, request)
        uploads = await self._uploads.sizes(principal, request)
        if request.input_upload:
            async with self._uploads.input_json(principal, request) as data:
                bound, stdin = await asyncio.to_thread(self._bound_upload, entrypoint, data)
        else:
            bound, stdin = self._bound(entrypoint, request.input_json)
        arguments = (*bound, *request.args)
        _check_command(arguments, {**version.spec.env, **request.env})
        granted = grant(self._policy, version.spec.limits, request.limits)
        return Plan(
            principal=principal,
            request=request,
            version=version,
            entrypoint=entrypoint,
            isolation=self._isolation(request.isolation),
            limits=granted.limits,
            lowered=granted.lowered,
            working_dir=request.working_dir or entrypoint.working_dir,
            arguments=arguments,
            stdin=request.stdin if stdin is None else stdin,
            stdin_upload=request.stdin_upload if stdin is None else "",
            uploads=uploads,
            rate_plan=await self._rate_plans.plan_for(principal.tenant),
        )

    def _bound_upload(self, entrypoint: Entrypoint, data: bytes) -> tuple[tuple[str, ...], bytes | None]:
        _check_json(data, "input_upload")
        bound, stdin = self._bound(entrypoint, data)
        if stdin is not None and len(stdin) > _BOUND_STDIN_BYTES:
            raise invalid(
                "input_upload",
                f"makes {len(stdin)} bytes of standard input; the limit is {_BOUND_STDIN_BYTES}",
                limit=str(_BOUND_STDIN_BYTES),
            )
        return bound, stdin

    def _bound(self, entrypoint: Entrypoint, data: bytes | None) -> tuple[tuple[str, ...], bytes | None]:
        """argv and stdin made of an input that keeps to its schema. Raises Fault."""
        violations = tuple(self._rules.check_input(entrypoint, data))
        if violations:
            text = "; ".join(f"{v.field}: {v.description}" for v in violations[:5])
            raise Fault(
                FaultKind.INVALID_ARGUMENT,
                "INPUT_INVALID",
                f"input breaks the schema of entrypoint {entrypoint.name!r}: {text}",
                violations=violations,
            )
        return self._rules.bind(entrypoint, data)

    def _isolation(self, asked: Isolation | None) -> Isolation:
        floor = self._policy.isolation_floor
        wanted = asked or max(self._default, floor, key=_STRENGTH.index)
        if _STRENGTH.index(wanted) < _STRENGTH.index(floor):
            raise precondition(
                "ISOLATION_NOT_PERMITTED", f"isolation: {wanted.value} is weaker than the policy's floor, {floor.value}"
            )
        if wanted not in self._classes:
            have = ", ".join(c.value for c in _STRENGTH if c in self._classes) or "none"
            raise precondition(
                "GUARANTEE_UNAVAILABLE",
                f"isolation class {wanted.value} is not available here; available: {have}",
                requested=wanted.value,
                available=have,
            )
        return wanted


def _check_state(version: SkillVersion) -> None:
    if version.state is VersionState.PUBLISHED:
        return
    why = f": {version.state_reason}" if version.state_reason else ""
    raise precondition(f"VERSION_{version.state.value}", f"{version.reference} is {version.state.value.lower()}{why}")


def _check_needs(version: SkillVersion, request: ExecutionRequest) -> None:
    """What this gateway can't give is refused by name, rather than run without."""
    if version.spec.network.allowed_domains:
        hosts = ", ".join(version.spec.network.allowed_domains[:5])
        raise precondition(
            "NOT_PERMITTED_BY_POLICY", f"{version.reference} needs egress to {hosts}; this gateway permits none"
        )
    for name in (*(secret.name for secret in version.spec.secrets), *request.secrets):
        raise not_found("secret", name, "this gateway holds no secrets")


def _check_json(input_json: bytes | None, name: str) -> None:
    if input_json is not None and (problem := json_problem(input_json)):
        raise invalid(name, f"is not JSON: {problem}", reason="INPUT_INVALID")


def _check_files(files: Collection[InputFile]) -> None:
    seen: set[str] = set()
    for index, file in enumerate(files):
        problem = path_problem(file.name)
        if problem:
            raise invalid(f"files[{index}].name", f"{file.name[:200]!r} {problem}")
        if file.name in seen:
            raise invalid(f"files[{index}].name", f"{file.name!r} is given twice")
        seen.add(file.name)
    for name in sorted(seen):
        parts = name.split("/")
        for depth in range(1, len(parts)):
            if (parent := "/".join(parts[:depth])) in seen:
                raise invalid("files", f"{parent!r} is both a file and the directory of {name!r}")


def _check_arguments(request: ExecutionRequest) -> None:
    for index, argument in enumerate(request.args):
        if "\0" in argument:
            raise invalid(f"args[{index}]", "has a NUL byte, which no argument can carry")


def _check_command(arguments: Collection[str], env: Mapping[str, str]) -> None:
    """What a process can be started with: the kernel refuses one string over 128 KiB, and about 2 MiB together."""
    total = 0
    for index, argument in enumerate(arguments):
        size = len(argument.encode("utf-8", "surrogatepass"))
        total += size
        if size > _ARGUMENT_BYTES:
            raise invalid(
                f"args[{index}]", f"has {size} bytes; the limit is {_ARGUMENT_BYTES}; send it as stdin or a file"
            )
    for name, value in env.items():
        size = len(f"{name}={value}".encode("utf-8", "surrogatepass"))
        total += size
        if size > _ARGUMENT_BYTES:
            raise invalid(f"env[{name}]", f"has {size} bytes; the limit is {_ARGUMENT_BYTES}")
    if total > _COMMAND_BYTES:
        raise invalid("args", f"arguments and environment have {total} bytes together; the limit is {_COMMAND_BYTES}")


def _check_env(request: ExecutionRequest) -> None:
    for name, value in request.env.items():
        if not name or "=" in name or "\0" in name or not name.isprintable():
            raise invalid("env", f"{name[:100]!r} is no name of an environment variable")
        if name.startswith(_RESERVED_ENV):
            raise invalid(f"env[{name}]", f"names that start with {_RESERVED_ENV} are the runtime's own")
        if "\0" in value:
            raise invalid(f"env[{name}]", "has a NUL byte")
