"""The domain model of a Skill: versions, entrypoints, and what a manifest may ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

from skillcell.core.types import LimitRequest, WorkingDir


class Interpreter(Enum):
    """What starts a script."""

    PYTHON = "PYTHON"
    SHELL = "SHELL"
    NODE = "NODE"
    EXECUTABLE = "EXECUTABLE"


class StdoutMode(Enum):
    """What a Skill's stdout is. JSON: one value, the output. NDJSON: each line an output. Both still stream as
    bytes.
    """

    TEXT = "TEXT"
    JSON = "JSON"
    NDJSON = "NDJSON"
    BINARY = "BINARY"


class VersionState(Enum):
    PUBLISHED = "PUBLISHED"
    YANKED = "YANKED"
    BLOCKED = "BLOCKED"


class Visibility(Enum):
    PRIVATE = "PRIVATE"
    GRANTED = "GRANTED"
    PUBLIC = "PUBLIC"


class Severity(Enum):
    ERROR = "ERROR"
    WARNING = "WARNING"
    NOTE = "NOTE"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing seen while reading a package. `path` is relative to the package; line and column from 1, 0 = whole."""

    severity: Severity
    code: str
    """Stable kebab-case, as `frontmatter-name-pattern`."""
    message: str
    path: str = ""
    line: int = 0
    column: int = 0


@dataclass(frozen=True, slots=True)
class ArgumentBinding:
    """How one property of the JSON input becomes part of argv (CWL's inputBinding)."""

    property: str
    prefix: str = ""
    position: int = 0


@dataclass(frozen=True, slots=True)
class Entrypoint:
    """One callable thing of a Skill version."""

    name: str
    """Relative path of a script (`scripts/extract.py`), or the manifest's name."""
    description: str = ""
    command: tuple[str, ...] = ()
    """argv before the caller's arguments; a relative first element lies in the package. Empty for a function."""
    script: str = ""
    """Package-relative path of the script that `command` runs, when there is one; else empty."""
    interpreter: Interpreter = Interpreter.EXECUTABLE
    handler: str = ""
    """`scripts/tool.py:handle` for a function, else empty."""
    working_dir: WorkingDir = WorkingDir.WORKSPACE
    input_schema: Mapping[str, Any] | None = None
    output_schema: Mapping[str, Any] | None = None
    bindings: tuple[ArgumentBinding, ...] = ()
    stdin: str = ""
    """Property of the input that becomes stdin, or `$` for the whole input; empty for the caller's own stdin."""
    stdout: StdoutMode = StdoutMode.TEXT
    outputs: Mapping[str, str] = field(default_factory=dict)
    """Output name to glob of files in the working directory that become artifacts."""
    success_codes: tuple[int, ...] = (0,)
    annotations: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SecretRequest:
    """A secret that a Skill wants, and how it is to be handed over: exactly one of env, file, header."""

    name: str
    env: str = ""
    file: str = ""
    header: str = ""
    domains: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Layer:
    """A read-only tree of resolved dependencies, mounted at `/layers/<kind>`."""

    kind: str
    """`pip` or `npm`."""
    digest: str
    """sha256 hex over lock, image digest and architecture; names its directory."""
    lock: tuple[str, ...]
    """What was resolved, one pinned requirement each, with hashes where the index gives them."""


@dataclass(frozen=True, slots=True)
class PackageRequest:
    """Dependencies as asked for, before they are resolved."""

    pip: tuple[str, ...] = ()
    """PEP 508 requirements, perhaps with `--hash=`."""
    npm: tuple[str, ...] = ()
    """`name@range`."""
    npm_lock: str = ""
    """Package-relative path of a package-lock.json, when there is one."""
    bins: tuple[str, ...] = ()
    """Programs that the image must have."""


@dataclass(frozen=True, slots=True)
class Network:
    """What a Skill may reach: nothing, or the listed `host:port` pairs."""

    allowed_domains: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PriceComponent:
    """A publisher's price hint; inert until an operator's plan accepts it."""

    meter: str
    unit: str
    unit_amount_decimal: str


@dataclass(frozen=True, slots=True)
class SkillSpec:
    """What a package says of itself: frontmatter and manifest, read and checked, before it is a version."""

    name: str
    description: str
    entrypoints: tuple[Entrypoint, ...]
    default_entrypoint: str = ""
    version: str = ""
    license: str = ""
    compatibility: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    image: str = "python-3.11"
    packages: PackageRequest = PackageRequest()
    limits: LimitRequest = LimitRequest()
    network: Network = Network()
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[SecretRequest, ...] = ()
    pricing: tuple[PriceComponent, ...] = ()


@dataclass(frozen=True, slots=True)
class SkillVersion:
    """One immutable publication."""

    publisher: str
    name: str
    version: str
    digest: str
    """`sha256:` + 64 hex digits over the package's canonical listing and its overlay."""
    spec: SkillSpec
    package_digest: str
    """sha256 hex of the package tree alone; names its directory in the package store."""
    layers: tuple[Layer, ...] = ()
    findings: tuple[Finding, ...] = ()
    state: VersionState = VersionState.PUBLISHED
    state_reason: str = ""
    visibility: Visibility = Visibility.PRIVATE
    owner_tenant: str = ""
    created_at: datetime | None = None
    size_bytes: int = 0
    file_count: int = 0

    @property
    def reference(self) -> str:
        return f"{self.publisher}/{self.name}@{self.version}"
