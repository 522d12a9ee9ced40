"""Skill versions, entrypoints and findings. The wire shows what a caller needs; how a script is started stays here."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from skillcell.core.skills import (
    Entrypoint,
    Finding,
    Interpreter,
    Layer,
    Network,
    PriceComponent,
    SecretRequest,
    SkillSpec,
    SkillVersion,
    StdoutMode,
)
from skillcell.core.types import WorkingDir
from skillcell.v1 import skill_pb2 as pb
from skillcell.wire.enums import SEVERITY, VERSION_STATE, WORKING_DIR
from skillcell.wire.limits import limits_from_proto, limits_to_proto
from skillcell.wire.times import instant_from_proto, instant_to_proto


def finding_to_proto(finding: Finding) -> pb.Finding:
    return pb.Finding(
        severity=SEVERITY.to_wire(finding.severity),
        code=finding.code,
        message=finding.message,
        path=finding.path,
        line=finding.line,
        column=finding.column,
    )


def finding_from_proto(message: pb.Finding) -> Finding:
    return Finding(
        severity=SEVERITY.from_wire(message.severity),
        code=message.code,
        message=message.message,
        path=message.path,
        line=message.line,
        column=message.column,
    )


def short_names(entrypoints: Sequence[Entrypoint]) -> dict[str, str]:
    """Full name to the short one that means it alone (`scripts/extract.py` to `extract`); others are left out."""
    stems = {entrypoint.name: PurePosixPath(entrypoint.name).stem for entrypoint in entrypoints}
    counts = Counter([*stems.values(), *(name for name, stem in stems.items() if name != stem)])
    return {name: stem for name, stem in stems.items() if stem != name and counts[stem] == 1}


def skill_version_to_proto(version: SkillVersion) -> pb.SkillVersion:
    spec = version.spec
    shorts = short_names(spec.entrypoints)
    message = pb.SkillVersion(
        publisher=version.publisher,
        name=version.name,
        version=version.version,
        digest=version.digest,
        state=VERSION_STATE.to_wire(version.state),
        state_reason=version.state_reason,
        description=spec.description,
        license=spec.license,
        compatibility=spec.compatibility,
        metadata=spec.metadata,
        entrypoints=[_entrypoint_to_proto(e, shorts.get(e.name, "")) for e in spec.entrypoints],
        default_entrypoint=spec.default_entrypoint,
        image=spec.image,
        requested_limits=limits_to_proto(spec.limits),
        allowed_domains=spec.network.allowed_domains,
        secrets=[_secret_to_proto(secret) for secret in spec.secrets],
        dependencies=[pb.DependencyLayer(kind=la.kind, digest=la.digest, lock=la.lock) for la in version.layers],
        price_hint=[
            pb.PriceComponent(meter=p.meter, unit=p.unit, unit_amount_decimal=p.unit_amount_decimal)
            for p in spec.pricing
        ],
        findings=[finding_to_proto(finding) for finding in version.findings],
        size_bytes=version.size_bytes,
        file_count=version.file_count,
        env_names=sorted(spec.env),
    )
    if version.created_at is not None:
        message.create_time.CopyFrom(instant_to_proto(version.created_at))
    return message


def skill_version_from_proto(message: pb.SkillVersion) -> SkillVersion:
    """What the wire shows. Not told, and therefore empty: commands, environment values, package digest, owner,
    visibility; a function's `handler` is its name.
    """
    spec = SkillSpec(
        name=message.name,
        description=message.description,
        entrypoints=tuple(_entrypoint_from_proto(entrypoint) for entrypoint in message.entrypoints),
        default_entrypoint=message.default_entrypoint,
        version=message.version,
        license=message.license,
        compatibility=message.compatibility,
        metadata=dict(message.metadata),
        image=message.image,
        limits=limits_from_proto(message.requested_limits),
        network=Network(tuple(message.allowed_domains)),
        secrets=tuple(
            SecretRequest(s.name, env=s.env, file=s.file, header=s.header, domains=tuple(s.domains))
            for s in message.secrets
        ),
        pricing=tuple(PriceComponent(p.meter, p.unit, p.unit_amount_decimal) for p in message.price_hint),
    )
    return SkillVersion(
        publisher=message.publisher,
        name=message.name,
        version=message.version,
        digest=message.digest,
        spec=spec,
        package_digest="",
        layers=tuple(Layer(layer.kind, layer.digest, tuple(layer.lock)) for layer in message.dependencies),
        findings=tuple(finding_from_proto(finding) for finding in message.findings),
        state=VERSION_STATE.from_wire(message.state),
        state_reason=message.state_reason,
        created_at=instant_from_proto(message.create_time) if message.HasField("create_time") else None,
        size_bytes=message.size_bytes,
        file_count=message.file_count,
    )


def _entrypoint_to_proto(entrypoint: Entrypoint, short_name: str) -> pb.Entrypoint:
    return pb.Entrypoint(
        name=entrypoint.name,
        short_name=short_name,
        description=entrypoint.description,
        kind=pb.Entrypoint.KIND_FUNCTION if entrypoint.handler else pb.Entrypoint.KIND_SCRIPT,
        input_schema_json=_object_to_json(entrypoint.input_schema),
        output_schema_json=_object_to_json(entrypoint.output_schema),
        working_dir=WORKING_DIR.to_wire(entrypoint.working_dir),
        success_codes=entrypoint.success_codes,
        outputs=entrypoint.outputs,
        annotations_json=_object_to_json(entrypoint.annotations or None),
        stdout=entrypoint.stdout.value.lower(),
        interpreter=entrypoint.interpreter.value.lower(),
    )


def _entrypoint_from_proto(message: pb.Entrypoint) -> Entrypoint:
    return Entrypoint(
        name=message.name,
        description=message.description,
        interpreter=Interpreter(message.interpreter.upper() or "EXECUTABLE"),
        handler=message.name if message.kind == pb.Entrypoint.KIND_FUNCTION else "",
        working_dir=WORKING_DIR.optional(message.working_dir) or WorkingDir.WORKSPACE,
        input_schema=_object_from_json(message.input_schema_json),
        output_schema=_object_from_json(message.output_schema_json),
        stdout=StdoutMode(message.stdout.upper() or "TEXT"),
        outputs=dict(message.outputs),
        success_codes=tuple(message.success_codes),
        annotations=_object_from_json(message.annotations_json) or {},
    )


def _secret_to_proto(secret: SecretRequest) -> pb.SecretRequirement:
    message = pb.SecretRequirement(name=secret.name, domains=secret.domains)
    if secret.header:
        message.header = secret.header
    elif secret.file:
        message.file = secret.file
    else:
        message.env = secret.env
    return message


def _object_to_json(value: Mapping[str, Any] | None) -> bytes:
    return b"" if value is None else json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _object_from_json(text: bytes) -> Mapping[str, Any] | None:
    value = json.loads(text) if text else None
    return value if isinstance(value, dict) else None
