"""What a driver owes: sandboxes made under a chosen id, a byte channel, counters, an end that always comes.

A reader could get two things wrong. `Sandbox.kill` ends processes and leaves the counters readable; `Driver.destroy`
removes every trace and may be called at any time, twice, or for an id that never came to be. And a driver raises only
`Fault`s: the engine's own exceptions are translated where the engine is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol

from skillcell.core.types import Counters, Isolation, Limits
from skillcell.sandbox.images import Image


class Guarantee(Enum):
    """What section 5 of the design promises; each driver and class declares which it gives (`hardening.GUARANTEES`)."""

    NO_NETWORK = "no network interface but loopback"
    NO_CAPABILITIES = "no capability, bounding set empty"
    NO_NEW_PRIVILEGES = "no_new_privs set"
    SECCOMP = "seccomp positive list at least as strict as Docker's default"
    NON_ROOT_INSIDE = "non-root user inside"
    NON_ROOT_OUTSIDE = "not root outside"
    OWN_UID = "a host uid that no other live sandbox has"
    USER_NAMESPACE = "private user namespace"
    READ_ONLY_ROOT = "read-only root file system"
    MASKED_PATHS = "masked /proc and /sys"
    PRIVATE_NAMESPACES = "private pid, ipc, uts, mount and cgroup namespaces"
    NO_HOST_PATHS = "no path of the host shows, not even in the table of mounts"
    MEMORY_LIMIT = "memory limit with tmpfs and shm counted, swap off"
    CPU_RATE_LIMIT = "CPU quota"
    CPU_TIME_LIMIT = "limit on total CPU time"
    PIDS_LIMIT = "limit on processes and threads"
    DISK_BYTES_LIMIT = "limit on writable bytes"
    DISK_FILES_LIMIT = "limit on writable files"
    SHARED_DISK_LIMIT = "one limit over all writable directories together, not split among them"
    OPEN_FILES_LIMIT = "limit on open files"
    EXACT_USAGE = "CPU, peak memory and pids from the kernel's counters of a cgroup of its own"
    KILL_FROM_OUTSIDE = "ended from outside; nothing inside delays or survives it"


@dataclass(frozen=True, slots=True)
class PackageMount:
    """A read-only, content-addressed tree for the sandbox: the Skill at /skill, layers at /layers/*, the agent."""

    digest: str
    """sha256 hex that names the content for ever; a driver may cache by it."""
    path: Path
    """Directory on the gateway's machine."""
    target: str
    """Absolute path inside the sandbox; a directory that exists in the image."""


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """Everything a driver needs to make one sandbox. Env, secrets and input are not here: they come by the channel."""

    sandbox_id: str
    image: Image
    isolation: Isolation
    limits: Limits
    mounts: tuple[PackageMount, ...]
    command: tuple[str, ...]
    """argv of the agent."""
    hostname: str = "sandbox"


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """Writable space of a sandbox as its file system counts it, seen from outside."""

    bytes_used: int
    bytes_limit: int
    files_used: int
    files_limit: int
    parts: Mapping[str, DiskUsage] = field(default_factory=dict)
    """By directory, where each has a file system of its own: one of them is full long before the sum is."""


@dataclass(frozen=True, slots=True)
class Found:
    """A sandbox, or the remains of one, that exists now: what the reaper and recovery look at."""

    sandbox_id: str
    counters: Counters | None
    """What its cgroup still tells, None when nothing does."""
    alive: bool = False
    """Whether `end` found processes of it."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a driver needs, for `doctor`: whether it is there, and the exact fix when not."""

    name: str
    ok: bool
    detail: str
    fix: str = ""


class ByteChannel(Protocol):
    """Two-way bytes to the agent. Back-pressure: not reading stops the agent; `write` waits until the bytes are
    taken.
    """

    async def read(self, limit: int) -> bytes:
        """1..limit bytes, or b"" when the agent's side is gone."""
        ...

    async def write(self, data: bytes) -> None:
        """Raises ConnectionError when the agent's side is gone."""
        ...

    async def close(self) -> None:
        """Never raises."""
        ...


class Sandbox(Protocol):
    """One live sandbox."""

    @property
    def sandbox_id(self) -> str: ...

    @property
    def channel(self) -> ByteChannel: ...

    async def counters(self) -> Counters:
        """What the kernel counted so far; exact after `kill`. Works while running and until `destroy`."""
        ...

    async def begin(self) -> Counters:
        """What was counted before a call: its peaks start anew where the kernel can, else their baseline is in this."""
        ...

    async def disk(self) -> DiskUsage | None:
        """Writable space as seen from outside, None where the driver can't look in. Call before `kill`."""
        ...

    async def kill(self) -> None:
        """Returns when every process of the sandbox is dead. Idempotent."""
        ...


class Driver(Protocol):
    """One engine. All methods raise Fault (UNAVAILABLE when the engine is gone) and nothing else."""

    @property
    def name(self) -> str: ...

    def guarantees(self, isolation: Isolation) -> frozenset[Guarantee]:
        """What this engine gives for a class; empty when it can't run that class at all."""
        ...

    async def ready(self) -> None:
        """Returns when a create can be expected to work now, cheaply (milliseconds); raises Fault UNAVAILABLE
        when not.
        """
        ...

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """Make and start it; returns once the agent's process was started. On any error nothing is left."""
        ...

    async def destroy(self, sandbox_id: str) -> None:
        """Remove every trace: processes, container, cgroups, mounts, directories. Idempotent."""
        ...

    async def end(self, sandbox_id: str) -> Found | None:
        """Kill what still runs of a sandbox that an earlier process made, then read its counters; None when nothing
        of it is there. Leaves the cgroup to be read again, until `destroy`. Idempotent.
        """
        ...

    async def list(self) -> Sequence[Found]:
        """All that exists of this driver's sandboxes, live or half-made, also those of an earlier process."""
        ...


class Diagnosed(Protocol):
    """What a driver offers besides, for people."""

    async def check(self) -> Sequence[Check]:
        """What `doctor` shows, with the exact fix for each thing that is amiss; never raises."""
        ...
