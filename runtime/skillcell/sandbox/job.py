"""What is to run in a sandbox, and what came of it: the supervisor's input and output."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from skillcell.agent import frames
from skillcell.core.content import Content, size_of
from skillcell.core.events import Artifact, Event
from skillcell.core.types import CancelReason, Counters, Limits
from skillcell.sandbox.driver import DiskUsage


@dataclass(frozen=True, slots=True)
class Delivery:
    """A file for the sandbox. `root` is `workspace`, `input`, `skill` or `home`; `name` is relative to it."""

    root: str
    name: str
    content: Content
    mode: int = 0o644

    def announcement(self) -> bytes:
        """The frame before its bytes."""
        said = {"root": self.root, "name": self.name, "mode": self.mode, "size": size_of(self.content)}
        return frames.encode_json(frames.FILE, said)


@dataclass(frozen=True, slots=True)
class Job:
    """One call as the agent gets it; the fields are those of `frames.JOB_KEYS`."""

    kind: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    limits: Limits
    script: str = ""
    function: str = ""
    copy_skill: bool = False
    stdin: Content = b""
    live_stdin: AsyncIterator[bytes | int | None] | None = None
    """What arrives while the Skill runs, after `stdin`: bytes, None where they end, numbers of signals. Its own end is
    the end of the bytes too."""
    files: tuple[Delivery, ...] = ()
    collect: tuple[str, ...] = ()

    @property
    def delivered_bytes(self) -> int:
        """How much has to arrive before it starts."""
        return sum(size_of(delivery.content) for delivery in self.files)

    @property
    def has_stdin(self) -> bool:
        """Whether there is any, or may be."""
        return size_of(self.stdin) > 0 or self.live_stdin is not None

    def announcement(self) -> bytes:
        """The JOB frame."""
        return frames.encode_json(
            frames.JOB,
            {
                "kind": self.kind,
                "argv": list(self.argv),
                "script": self.script,
                "function": self.function,
                "env": dict(self.env),
                "cwd": self.cwd,
                "copy_skill": self.copy_skill,
                "stdin": self.has_stdin,
                "rlimits": {
                    "nofile": self.limits.open_files,
                    "fsize": self.limits.disk_bytes,
                    "core": 0,
                },
                "collect": list(self.collect),
                "artifact_bytes": self.limits.artifact_bytes,
                "artifact_count": self.limits.artifact_count,
                "deadline_ns": self.limits.wall_ns,
            },
        )


@dataclass(frozen=True, slots=True)
class Stop:
    """Why the gateway ended a call: a limit of `Limits` by name, or a cancel."""

    limit: str = ""
    observed: int = 0
    cancel: CancelReason | None = None
    detail: str = ""
    """What the one who canceled said of it."""
    bound: int | None = None
    """The value that was passed where it is not the limit's own: the room for events of a call that nobody reads."""


@dataclass(slots=True)
class RunReport:
    """What the supervisor saw from outside; `exit_code`, `signal` and `agent_disk` alone are the sandbox's own
    claims.
    """

    started: bool = False
    exited: bool = False
    exit_code: int | None = None
    signal: int | None = None
    stop: Stop | None = None
    failed: str = ""
    """The agent's word on why the job could not be set up."""
    lost: str = ""
    """Set when the sandbox went away, or broke the protocol, without our doing and before the Skill exited."""
    cut_short: str = ""
    """Why artifacts after the exit are incomplete; the verdict stays the exit's."""
    disk: DiskUsage | None = None
    agent_disk: Mapping[str, DiskUsage] = field(default_factory=dict)
    before: Counters = Counters()
    latest: Counters = Counters()
    """While it runs: read by the watch on CPU time, at least twice a second."""
    latest_ns: int = 0
    """When, on the gateway's monotonic clock; 0 before the first time."""
    after: Counters = Counters()
    began_ns: int = 0
    """When the entrypoint started, on the gateway's monotonic clock; 0 before."""
    deliver_ns: int = 0
    run_ns: int = 0
    collect_ns: int = 0
    stalled_ns: int = 0
    output_bytes: int = 0
    artifact_bytes: int = 0
    result_json: bytes | None = None
    """Bytes of /output/result.json; not yet known to be JSON."""


class SinkFull(Exception):
    """Nobody reads the events, and the room to keep them is used up; `bound` is that room in bytes."""

    def __init__(self, bound: int) -> None:
        super().__init__(f"{bound} bytes of events are kept, and nobody reads them")
        self.bound = bound


class EventSink(Protocol):
    """Takes events in order. Waiting in `emit` is how a slow reader holds back the sandbox. Raises SinkFull."""

    async def emit(self, event: Event) -> None: ...


class ArtifactWriter(Protocol):
    """One artifact that is being received. Raises Fault when it can't be kept."""

    async def write(self, data: bytes) -> None: ...

    async def finish(self) -> Artifact:
        """Readable by its name once this returns."""
        ...

    async def discard(self) -> None:
        """Leaves nothing of an artifact that was not finished; idempotent, also after `finish` failed."""
        ...


class ArtifactSink(Protocol):
    """Where artifacts go. `open` raises ValueError, with a reason fit for the caller, for a name it can't take."""

    async def open(self, name: str) -> ArtifactWriter: ...
