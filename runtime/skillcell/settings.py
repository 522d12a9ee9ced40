"""What an operator may set, for one gateway. Environment variables are `SKILLCELL_` + the field's name in capitals.

Every field has a default that works on one machine, a unit and a sentence. Unknown keys are errors.
"""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints
from pydantic_settings import BaseSettings, SettingsConfigDict

from skillcell.core.types import Isolation

Address = Annotated[str, StringConstraints(pattern=r"^(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}$")]


class DriverChoice(Enum):
    """Which engine runs sandboxes; AUTO takes Docker where an engine answers, else the OCI runtime."""

    AUTO = "auto"
    DOCKER = "docker"
    OCI = "oci"


def default_data() -> Path:
    """`/var/lib/skillcell` for root, else `$XDG_DATA_HOME/skillcell`."""
    if os.geteuid() == 0:
        return Path("/var/lib/skillcell")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "skillcell"


class Settings(BaseSettings):
    """One gateway."""

    model_config = SettingsConfigDict(env_prefix="SKILLCELL_", extra="forbid", frozen=True)

    data: Path = Field(default_factory=default_data)
    """Directory of everything that lasts: database, packages, images, events, artifacts, uploads."""
    database: str = Field(default="", repr=False)
    """URL of PostgreSQL, postgresql://USER:PASSWORD@HOST/NAME; empty: SQLite in the data directory."""
    listen: Address = "127.0.0.1:7433"
    """HOST:PORT of the gRPC API."""
    metrics: Address = "127.0.0.1:7434"
    """HOST:PORT of /metrics, /healthz and /readyz."""
    driver: DriverChoice = DriverChoice.AUTO
    isolation: Isolation = Isolation.STANDARD
    """Class of calls that ask for none."""
    oci_runtime: str = ""
    """Path of the OCI runtime for STANDARD; empty: crun, else runc, from PATH."""
    docker_host: str = ""
    """URL of the Docker Engine; empty: DOCKER_HOST, else the local socket."""
    memory_reserve: float = Field(default=0.15, ge=0, lt=1)
    """Fraction of this machine's memory that is never granted to sandboxes."""
    cpu_overcommit: float = Field(default=8.0, gt=0, le=64)
    """How many times each core may be granted."""
    queue_length: int = Field(default=1000, ge=0)
    """How many calls may wait for room; one more is refused."""
    pool_size: int = Field(default=8, ge=0, le=1024)
    """Warm sandboxes that may wait for calls, all kinds together; 0: every call starts cold."""
    pool_size_of_kind: int = Field(default=4, ge=1, le=1024)
    """Warm sandboxes of one kind: a Skill version under the same limits."""
    pool_keep_seconds: float = Field(default=120.0, gt=0)
    """How long after its last call a kind is kept warm."""
    pool_age_seconds: float = Field(default=600.0, gt=0)
    """How long a warm sandbox may wait before it is replaced."""
    reconnect_seconds: float = Field(default=30.0, ge=0)
    """How long a call with a request id waits for a client that went away."""
    drain_seconds: float = Field(default=30.0, ge=0)
    """How long calls may go on after SIGTERM before they are canceled."""
    spool_bytes: int = Field(default=64 << 20, ge=1 << 20)
    """How much of one call's events is kept for replay, bytes."""
    events_kept_seconds: float = Field(default=3600.0, ge=0)
    """How long events and artifacts are kept after a call's end."""
    reap_seconds: float = Field(default=10.0, gt=0)
    """How often leftovers are looked for."""
    verify_seconds: float = Field(default=60.0, gt=0)
    """How often the ledger's new records are verified and its head is published."""
    verify_full_seconds: float = Field(default=86_400.0, gt=0)
    """How often all of the ledger is verified."""
    head_file: str = ""
    """File, best on another machine's disk, that the ledger's head is appended to as a witness; empty: the log."""
    sinks: str = Field(default="", repr=False)
    """HTTP sinks of usage events: a JSON list, or the path of a file that holds one; see "Exporting usage"."""
    max_message_bytes: int = Field(default=32 << 20, ge=1 << 20)
    """The largest gRPC message taken, bytes."""
    publish_bytes: int = Field(default=64 << 20, ge=1 << 20)
    """The largest packed Skill taken, bytes."""
    upload_bytes: int = Field(default=4 << 30, ge=0)
    """The largest input that may be sent ahead, bytes."""
    uploads_tenant_bytes: int = Field(default=16 << 30, ge=0)
    """How much of one tenant's uploads is kept, bytes."""
    uploads_tenant_count: int = Field(default=10_000, ge=0)
    """How many of one tenant's uploads are kept."""
    uploads_kept_seconds: float = Field(default=86_400.0, gt=0)
    """How long an upload is kept after its last use."""
    uploads_reserve_bytes: int = Field(default=256 << 20, ge=0)
    """How much of the disk uploads leave free, bytes."""
    input_json_bytes: int = Field(default=16 << 20, ge=1)
    """The largest JSON input that may be sent ahead, bytes."""
    rate_plan: str = Field(default="", pattern=r"^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)?$")
    """Name of the plan that rates tenants without one of their own; empty: none does."""
    package_index: str = ""
    """URL of the Python package index for publish; empty: pip's own configuration, else PyPI."""
    unsafe_crash_at: str = ""
    """For tests of crashes alone: the label of a step (`core/steps.py`) at which this process kills itself."""
    npm_registry: str = ""
    """URL of the npm registry for publish; empty: npm's own configuration, else the public one."""


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
