"""One JOB frame, checked: what is to run. A breach of form is a JobError that names the key."""

from __future__ import annotations

import json

TYPE_CHECKING = False  # importing typing would cost a waiting sandbox half a mebibyte
if TYPE_CHECKING:
    from typing import Any

KINDS = ("python-script", "python-function", "node-function", "exec")


class JobError(Exception):
    """The job can't be run as it was given; the message says why."""


class Job:
    """The fields are those of frames.JOB_KEYS. Raises JobError."""

    def __init__(self, payload: bytes) -> None:
        try:
            said = json.loads(payload.decode("utf-8", "surrogateescape"))
        except ValueError as error:
            raise JobError(f"JOB is not JSON: {error}") from error
        if not isinstance(said, dict):
            raise JobError("JOB is not a JSON object")
        self.kind = _text(said, "kind")
        self.argv = _texts(said, "argv")
        self.script = _text(said, "script")
        self.function = _text(said, "function")
        self.env = _table(said, "env", str)
        self.cwd = _text(said, "cwd")
        self.copy_skill = _flag(said, "copy_skill")
        self.stdin = _flag(said, "stdin")
        self.rlimits = _table(said, "rlimits", int)
        self.collect = _texts(said, "collect")
        self.artifact_bytes = _number(said, "artifact_bytes")
        self.artifact_count = _number(said, "artifact_count")
        self.deadline_ns = _number(said, "deadline_ns")
        if self.kind not in KINDS:
            raise JobError(f"kind: {self.kind!r} is not one of {', '.join(KINDS)}")
        if self.kind == "exec" and not self.argv:
            raise JobError("argv: exec needs at least one")
        if self.kind != "exec" and not self.script.startswith("/"):
            raise JobError(f"script: {self.script!r} is not an absolute path")
        if any("=" in name or not name for name in self.env):
            raise JobError("env: a name is empty or has '='")
        for text in (*self.argv, self.script, self.cwd, *self.env, *self.env.values()):
            if "\0" in text:
                raise JobError("argv, env, script and cwd can't have NUL in them")


def _value(said: dict[str, Any], key: str, kind: type) -> Any:
    if key not in said:
        raise JobError(f"{key}: missing from JOB")
    value = said[key]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise JobError(f"{key}: {type(value).__name__} where {kind.__name__} is due")
    return value


def _text(said: dict[str, Any], key: str) -> str:
    return str(_value(said, key, str))


def _flag(said: dict[str, Any], key: str) -> bool:
    return bool(_value(said, key, bool))


def _number(said: dict[str, Any], key: str) -> int:
    value = int(_value(said, key, int))
    if value < 0:
        raise JobError(f"{key}: {value} is negative")
    return value


def _texts(said: dict[str, Any], key: str) -> list[str]:
    values: list[str] = _value(said, key, list)
    if not all(isinstance(value, str) for value in values):
        raise JobError(f"{key}: not all are str")
    return values


def _table(said: dict[str, Any], key: str, kind: type) -> dict[str, Any]:
    values: dict[str, Any] = _value(said, key, dict)
    if not all(isinstance(value, kind) and not isinstance(value, bool) for value in values.values()):
        raise JobError(f"{key}: not all are {kind.__name__}")
    return values
