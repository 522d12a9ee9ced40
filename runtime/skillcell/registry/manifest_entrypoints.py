"""The `entrypoints` of a manifest: each item read, its schemas, bindings, patterns and paths checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from skillcell.core.skills import ArgumentBinding, StdoutMode
from skillcell.core.types import WorkingDir
from skillcell.core.yaml_reader import Document
from skillcell.registry.findings import Report, shown
from skillcell.registry.schemas import check_schema

MAX_POSITION = 10_000


@dataclass(frozen=True, slots=True)
class IoRequest:
    """The keys that may stand in an entrypoint or, for all of them, at the top. None: not said."""

    working_dir: WorkingDir | None = None
    stdin: str | None = None
    stdout: StdoutMode | None = None
    outputs: Mapping[str, str] | None = None
    success_codes: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class EntrypointRequest:
    """One item of `entrypoints`, before the folder's scripts are known."""

    name: str
    description: str = ""
    command: tuple[str, ...] = ()
    handler: str = ""
    io: IoRequest = IoRequest()
    input_schema: Mapping[str, Any] | None = None
    output_schema: Mapping[str, Any] | None = None
    bindings: tuple[ArgumentBinding, ...] = ()
    annotations: Mapping[str, Any] = field(default_factory=dict)
    path: str = ""
    line: int = 0
    column: int = 0


@dataclass(frozen=True, slots=True)
class Placed:
    """One top-level key in the document that won."""

    document: Document
    path: str
    key: str
    report: Report

    @property
    def value(self) -> Any:
        return self.document.value[self.key]

    def at(self, *below: str | int) -> tuple[str, int, int]:
        line, column = self.document.position((self.key, *below))
        return self.path, line, column

    def error(self, code: str, message: str, *below: str | int) -> None:
        where = ".".join(str(part) for part in (self.key, *below))
        self.report.error(code, f"{where}: {message}", *self.at(*below))


def read_entrypoint(placed: Placed, item: Mapping[str, Any], below: tuple[int, ...]) -> EntrypointRequest:
    check_outputs(placed, item.get("outputs", {}), (*below, "outputs"))
    if item.get("handler") and not safe_path(item["handler"].rpartition(":")[0]):
        placed.error("manifest-path", "must be a path inside the folder", *below, "handler")
    schemas: dict[str, Mapping[str, Any] | None] = {}
    for key in ("inputSchema", "outputSchema"):
        schemas[key] = schema = as_schema(item.get(key))
        if schema is not None:
            for problem in check_schema(schema):
                where = tuple(int(p) if p.isascii() and p.isdigit() else p for p in problem.field.split("/") if p)
                placed.error("manifest-json-schema", problem.description, *below, key, *where)
    path, line, column = placed.at(*below)
    return EntrypointRequest(
        name=item["name"],
        description=item.get("description", ""),
        command=tuple(item.get("command", ())),
        handler=item.get("handler", ""),
        input_schema=schemas["inputSchema"],
        output_schema=schemas["outputSchema"],
        bindings=_bindings(placed, schemas["inputSchema"], item, below),
        io=read_io(item),
        annotations=item.get("annotations", {}),
        path=path,
        line=line,
        column=column,
    )


def read_io(item: Mapping[str, Any]) -> IoRequest:
    """From an entrypoint, or from the manifest's top level."""
    return IoRequest(
        working_dir=WorkingDir[item["workingDir"].upper()] if "workingDir" in item else None,
        stdin=item.get("stdin"),
        stdout=StdoutMode[item["stdout"].upper()] if "stdout" in item else None,
        outputs={name: o["glob"] for name, o in item["outputs"].items()} if "outputs" in item else None,
        success_codes=tuple(item["successCodes"]) if "successCodes" in item else None,
    )


def check_outputs(placed: Placed, outputs: Mapping[str, Any], below: tuple[str | int, ...]) -> None:
    for name, output in outputs.items():
        if not safe_path(output["glob"]):
            placed.error("manifest-glob", "must be a relative pattern without ..", *below, name)


def as_schema(value: Any) -> Mapping[str, Any] | None:
    """JSON Schema allows `true` and `false`; our types keep objects, which say the same."""
    if isinstance(value, bool):
        return {} if value else {"not": {}}
    return value if isinstance(value, dict) else None


def _bindings(
    placed: Placed, schema: Mapping[str, Any] | None, item: Mapping[str, Any], below: tuple[int, ...]
) -> tuple[ArgumentBinding, ...]:
    properties = (schema or {}).get("properties", {})
    if not isinstance(properties, dict):
        return ()
    stdin = item.get("stdin")
    if schema is not None and stdin not in (None, "$") and stdin not in properties:
        placed.error("manifest-stdin", f"inputSchema has no property {shown(str(stdin))!r}", *below, "stdin")
    bindings: list[ArgumentBinding] = []
    for name, property_schema in properties.items():
        binding = property_schema.get("x-binding") if isinstance(property_schema, dict) else None
        if binding is None:
            continue
        place = (*below, "inputSchema", "properties", name, "x-binding")
        if not isinstance(binding, dict) or set(binding) - {"prefix", "position"}:
            placed.error("manifest-binding", "must be {prefix, position}", *place)
            continue
        prefix, position = binding.get("prefix", ""), binding.get("position", 0)
        if not isinstance(prefix, str) or "\0" in prefix or len(prefix) > 256:
            placed.error("manifest-binding", "prefix must be a text of at most 256 characters", *place, "prefix")
        elif not isinstance(position, int) or isinstance(position, bool) or abs(position) > MAX_POSITION:
            placed.error("manifest-binding", "position must be an integer from -10000 to 10000", *place, "position")
        elif item.get("handler"):
            placed.error("manifest-binding", "a handler gets its input as a value; x-binding is for commands", *place)
        else:
            bindings.append(ArgumentBinding(name, prefix, position))
    return tuple(bindings)


def safe_path(path: str) -> bool:
    """Whether a path or pattern is relative and stays where it begins."""
    parts = path.split("/")
    return bool(path) and not path.startswith("/") and ".." not in parts and "\\" not in path and "\0" not in path
