"""A call as its caller asked for it.

The fingerprint that makes `request_id` safe is taken from the message as sent, never from what was made of it.
"""

from __future__ import annotations

import hashlib

from skillcell.core.errors import Fault, FaultKind
from skillcell.core.types import ExecutionRequest, InputFile, OnDisconnect
from skillcell.v1 import spec_pb2 as pb
from skillcell.wire.enums import ISOLATION, ON_DISCONNECT, WORKING_DIR
from skillcell.wire.limits import limits_from_proto, limits_to_proto


def fingerprint(spec: pb.ExecutionSpec) -> bytes:
    """sha256 over every field as sent, those that this version does not know included."""
    return hashlib.sha256(spec.SerializeToString(deterministic=True)).digest()


def spec_from_proto(spec: pb.ExecutionSpec, request_id: str = "", on_disconnect: int = 0) -> ExecutionRequest:
    """For a message that passed validation. Raises Fault NOT_SERVED for fields that the domain's request can't hold."""
    _refuse_what_is_not_served(spec)
    return ExecutionRequest(
        skill=spec.skill,
        entrypoint=spec.entrypoint,
        input_json=spec.input_json if spec.WhichOneof("input") == "input_json" else None,
        input_upload=spec.input_upload,
        args=tuple(spec.args),
        stdin=spec.stdin,
        stdin_upload=spec.stdin_upload,
        files=tuple(InputFile(file.name, file.content, file.executable, file.upload) for file in spec.files),
        env=dict(spec.env),
        secrets=tuple(spec.secrets),
        limits=limits_from_proto(spec.limits),
        isolation=ISOLATION.optional(spec.isolation),
        labels=dict(spec.labels),
        priority=spec.priority,
        working_dir=WORKING_DIR.optional(spec.working_dir),
        collect=tuple(spec.collect),
        on_disconnect=ON_DISCONNECT.optional(on_disconnect) or OnDisconnect.CANCEL,
        request_id=request_id_from_proto(request_id),
        fingerprint=fingerprint(spec),
    )


def request_id_from_proto(request_id: str) -> str:
    """One UUID, however its hex digits are written: a retry through other software must not be another call."""
    return request_id.lower()


def spec_to_proto(request: ExecutionRequest) -> pb.ExecutionSpec:
    """All but request_id and on_disconnect, which lie beside the spec."""
    spec = pb.ExecutionSpec(
        skill=request.skill,
        entrypoint=request.entrypoint,
        args=request.args,
        files=[_file(file) for file in request.files],
        env=request.env,
        secrets=request.secrets,
        labels=request.labels,
        priority=request.priority,
        collect=request.collect,
    )
    if request.input_json is not None:
        spec.input_json = request.input_json
    if request.stdin:
        spec.stdin = request.stdin
    if request.input_upload:
        spec.input_upload = request.input_upload
    if request.stdin_upload:
        spec.stdin_upload = request.stdin_upload
    limits = limits_to_proto(request.limits)
    if limits.ByteSize():
        spec.limits.CopyFrom(limits)
    if request.isolation is not None:
        spec.isolation = ISOLATION.to_wire(request.isolation)
    if request.working_dir is not None:
        spec.working_dir = WORKING_DIR.to_wire(request.working_dir)
    return spec


def _file(file: InputFile) -> pb.InputFile:
    message = pb.InputFile(name=file.name, executable=file.executable)
    if file.upload:
        message.upload = file.upload
    else:
        message.content = file.content
    return message


def _refuse_what_is_not_served(spec: pb.ExecutionSpec) -> None:
    """Fail closed: a field that would be passed over changes what the caller thinks it gets."""
    asked = {
        "spec.session_id": bool(spec.session_id),
        "spec.reuse": spec.reuse == pb.REUSE_SAME_VERSION,
        "spec.required_guarantees": bool(spec.required_guarantees),
    }
    for name, present in asked.items():
        if present:
            raise Fault(
                FaultKind.UNIMPLEMENTED,
                "NOT_SERVED",
                f"{name}: this gateway does not serve it; send the call without",
                metadata={"field": name},
            )
