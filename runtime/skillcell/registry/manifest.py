"""`skill-runtime.yaml` and its overlay: read, checked against the published JSON Schema, merged, made into our types.

The merging rule: each top-level key comes whole from the overlay if it is there, else from the file, else from
inference. Nothing is mixed below the top level, so an overlay's `runtime` replaces all of the file's `runtime`. Unknown
keys and limits that can't be parsed are errors in both modes: nobody may believe in a limit that is not there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import jsonschema_rs
from packaging.requirements import InvalidRequirement, Requirement

from skillcell.core.skills import (
    Network,
    PackageRequest,
    PriceComponent,
    SecretRequest,
)
from skillcell.core.types import SECOND_NS, LimitRequest
from skillcell.core.yaml_reader import Document, Path, YamlProblem, read_yaml
from skillcell.registry import semver
from skillcell.registry.findings import Report, shown
from skillcell.registry.manifest_entrypoints import (
    EntrypointRequest,
    IoRequest,
    Placed,
    check_outputs,
    read_entrypoint,
    read_io,
    safe_path,
)
from skillcell.registry.quantities import milli_cpus, size_bytes

FILE_NAME = "skill-runtime.yaml"
OVERLAY_NAME = "overlay"
"""How findings name the overlay, which is no file of the package."""
MAX_BYTES = 1 << 20
IMAGES = ("python-3.11", "shell", "node-20")
"""Aliases, each a superset of the one before."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the manifest says, merged. None or empty: left to inference or policy."""

    version: str = ""
    image: str = ""
    pip: tuple[str, ...] | str | None = None
    """Requirements, or the path of a requirements file; None: inferred."""
    npm: tuple[str, ...] | str | None = None
    bins: tuple[str, ...] = ()
    entrypoints: tuple[EntrypointRequest, ...] | None = None
    default_entrypoint: str = ""
    io: IoRequest = IoRequest()
    """The keys given at the top, for each entrypoint that says nothing else."""
    limits: LimitRequest = LimitRequest()
    network: Network = Network()
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[SecretRequest, ...] = ()
    pricing: tuple[PriceComponent, ...] = ()
    places: Mapping[str, tuple[str, int, int]] = field(default_factory=dict)
    """Top-level key to (path, line, column), for findings that need the folder too."""

    def packages(self) -> PackageRequest:
        """The part of the dependencies that is listed in the manifest itself."""
        pip = self.pip if isinstance(self.pip, tuple) else ()
        npm = self.npm if isinstance(self.npm, tuple) else ()
        return PackageRequest(pip=pip, npm=npm, bins=self.bins)


@cache
def manifest_schema() -> dict[str, Any]:
    """The JSON Schema 2020-12 of the manifest, as published with the package."""
    text = files("skillcell.registry").joinpath("manifest.schema.json").read_text("utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


@cache
def _validator() -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(manifest_schema(), offline=True)


def read_manifest(file: bytes | None, overlay: bytes | None, report: Report) -> Manifest:
    """Overlay over file. Never raises: what is wrong goes to `report`, and an unreadable document counts as absent."""
    merged: dict[str, Placed] = {}
    for data, path in ((file, FILE_NAME), (overlay, OVERLAY_NAME)):
        document = _read(data, path, report) if data is not None else None
        if document is not None:
            merged |= {key: Placed(document, path, key, report) for key in document.value}
    return _Reader(merged).manifest()


def _read(data: bytes, path: str, report: Report) -> Document | None:
    if len(data) > MAX_BYTES:
        report.error("manifest-too-large", f"{len(data)} bytes; the limit is {MAX_BYTES}", path)
        return None
    try:
        document = read_yaml(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        report.error("manifest-encoding", "not UTF-8", path)
        return None
    except YamlProblem as problem:
        report.error("manifest-yaml", f"not valid YAML: {problem}", path, problem.line, problem.column)
        return None
    for duplicate in document.duplicates:
        message = f"{shown(duplicate.key)!r} is given twice"
        report.error("manifest-duplicate-key", message, path, duplicate.line, duplicate.column)
    if not isinstance(document.value, dict):
        report.error("manifest-not-a-mapping", "must be a mapping with apiVersion and kind", path, 1, 1)
        return None
    good = True
    for violation in _validator().iter_errors(document.value):
        good = False
        _schema_error(violation, document, tuple(violation.instance_path), path, report)
    return document if good else None


def _schema_error(
    problem: jsonschema_rs.ValidationError, document: Document, place: Path, path: str, report: Report
) -> None:
    where = ".".join(str(part) for part in place)
    code, message = "manifest-schema", problem.message
    kind = problem.kind
    if isinstance(kind, jsonschema_rs.ValidationErrorKind.AdditionalProperties):
        code = "manifest-unknown-key"
        message = f"unknown key {', '.join(repr(shown(key)) for key in kind.unexpected)}"
        place = (*place, kind.unexpected[0])
    elif place[-1:] and place[0] == "secrets" and kind.name == "oneOf":
        message = "needs exactly one of env, file, or header with domains"
    elif kind.name == "not":
        message = "has both command and handler; give one"
    line, column = document.position(place)
    report.error(code, f"{where}: {shown(message, 300)}" if where else shown(message, 300), path, line, column)


class _Reader:
    """Turns checked documents into a Manifest; the schema has settled types, so only meaning is left to check."""

    def __init__(self, keys: Mapping[str, Placed]) -> None:
        self._keys = keys

    def manifest(self) -> Manifest:
        runtime = self._value("runtime", {})
        packages = runtime.get("packages", {})
        entrypoints = self._keys.get("entrypoints")
        if "outputs" in self._keys:
            check_outputs(self._keys["outputs"], self._keys["outputs"].value, ())
        network = self._value("network", {})
        components = self._value("pricing", {}).get("components", [])
        return Manifest(
            version=self._version(),
            image=self._image(runtime.get("image", "")),
            pip=self._pip(packages.get("pip")),
            npm=self._paths_or_list("npm", packages.get("npm")),
            bins=tuple(runtime.get("bins", ())),
            entrypoints=self._entrypoints(entrypoints) if entrypoints else None,
            default_entrypoint=self._value("defaultEntrypoint", ""),
            io=read_io({key: placed.value for key, placed in self._keys.items()}),
            limits=self._limits(),
            network=Network(self._domains("network", network.get("allowed_domains", ()), "allowed_domains")),
            env=self._env(),
            secrets=self._secrets(),
            pricing=tuple(PriceComponent(c["meter"], c["unit"], c["unitAmountDecimal"]) for c in components),
            places={key: placed.at() for key, placed in self._keys.items()},
        )

    def _value(self, key: str, default: Any) -> Any:
        return self._keys[key].value if key in self._keys else default

    def _version(self) -> str:
        version: str = self._value("version", "")
        if version and not semver.valid(version):
            self._keys["version"].error("manifest-version", f"{shown(version)!r} is not SemVer such as 1.2.0")
        return version

    def _image(self, image: str) -> str:
        if image and "@" not in image and image not in IMAGES:
            message = f"{shown(image)!r} is neither one of {', '.join(IMAGES)} nor a reference with @sha256: digest"
            self._keys["runtime"].error("manifest-image", message, "image")
        return image

    def _pip(self, value: Any) -> tuple[str, ...] | str | None:
        for index, item in enumerate(value if isinstance(value, list) else ()):
            try:
                Requirement(re.split(r"\s--hash=", item, maxsplit=1)[0])
            except InvalidRequirement:
                message = f"{shown(item)!r} is not a PEP 508 requirement"
                self._keys["runtime"].error("manifest-requirement", message, "packages", "pip", index)
        return self._paths_or_list("pip", value)

    def _paths_or_list(self, kind: str, value: Any) -> tuple[str, ...] | str | None:
        if isinstance(value, str) and not safe_path(value):
            message = f"{shown(value)!r} must be a path inside the folder"
            self._keys["runtime"].error("manifest-path", message, "packages", kind)
        return tuple(value) if isinstance(value, list) else value

    def _entrypoints(self, placed: Placed) -> tuple[EntrypointRequest, ...]:
        seen: set[str] = set()
        requests: list[EntrypointRequest] = []
        for index, item in enumerate(placed.value):
            if item["name"] in seen:
                placed.error("manifest-entrypoint-twice", f"{item['name']!r} is given twice", index, "name")
            seen.add(item["name"])
            requests.append(read_entrypoint(placed, item, (index,)))
        return tuple(requests)

    def _limits(self) -> LimitRequest:
        placed = self._keys.get("resources")
        limits: Mapping[str, Any] = placed.value.get("limits", {}) if placed else {}

        def parsed(key: str, parse: Callable[[str], int]) -> int | None:
            if key not in limits or placed is None:
                return None
            try:
                return parse(str(limits[key]))
            except ValueError as problem:
                placed.error("manifest-quantity", f"{shown(str(limits[key]))!r} {problem}", "limits", key)
                return None

        timeout = self._once("timeoutSeconds", limits)
        return LimitRequest(
            wall_ns=None if timeout is None else max(1, round(timeout * SECOND_NS)),
            milli_cpus=parsed("cpu", milli_cpus),
            memory_bytes=parsed("memory", size_bytes),
            disk_bytes=parsed("ephemeral-storage", size_bytes),
            pids=self._once("pids", limits),
        )

    def _once(self, key: str, limits: Mapping[str, Any]) -> Any:
        """`pids` and `timeoutSeconds` may stand at the top or among the limits, but must not contradict."""
        if key in self._keys and key in limits and self._keys[key].value != limits[key]:
            self._keys[key].error("manifest-twice", f"resources.limits.{key} says {limits[key]}, this says otherwise")
        return self._value(key, limits.get(key))

    def _env(self) -> dict[str, str]:
        env: dict[str, str] = {}
        for index, item in enumerate(self._value("env", ())):
            placed = self._keys["env"]
            if item["name"] in env:
                placed.error("manifest-env-twice", f"{item['name']} is given twice", index, "name")
            if item["name"].startswith("SKILLCELL_"):
                placed.error(
                    "manifest-env-reserved", f"{item['name']}: SKILLCELL_* is set by the runtime", index, "name"
                )
            if "\0" in item["value"]:
                placed.error("manifest-env-value", f"{item['name']} has a NUL character", index, "value")
            env[item["name"]] = item["value"]
        return env

    def _secrets(self) -> tuple[SecretRequest, ...]:
        return tuple(
            SecretRequest(
                name=item["name"],
                env=item.get("env", ""),
                file=item.get("file", ""),
                header=item.get("header", ""),
                domains=self._domains("secrets", item.get("domains", ()), index, "domains"),
            )
            for index, item in enumerate(self._value("secrets", ()))
        )

    def _domains(self, key: str, listed: Sequence[str], *below: str | int) -> tuple[str, ...]:
        """`host:port`, lower case; without a port 443 is meant."""
        found: list[str] = []
        for index, domain in enumerate(listed):
            host, _, port = domain.lower().partition(":")
            if port and not 1 <= int(port) <= 65535:
                self._keys[key].error("manifest-port", f"{domain!r}: a port is 1 to 65535", *below, index)
            found.append(f"{host}:{int(port or 443)}")
        return tuple(found)
