"""One build of dependencies: a sandbox call like any other, with our builder as the program and the index as its world.

No third party's code runs in it by intent (wheels only, no npm scripts), and none that would run could reach more than
the index. The builder is nevertheless believed in nothing: what it sends is bounded, parsed and unpacked as a
stranger's.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import structlog

import skillcell.registry
from skillcell.agent.frames import FrameError
from skillcell.core import events
from skillcell.core.clock import Clock
from skillcell.core.completion import to_completion
from skillcell.core.errors import Fault, unavailable
from skillcell.core.ids import sandbox_id
from skillcell.core.types import Isolation, Limits, StageTimes
from skillcell.registry.package_mux import GO, REPORT, TREE, FrameParser, MuxError
from skillcell.registry.packages_dial import Dial
from skillcell.registry.packages_tunnel import IndexTunnel
from skillcell.sandbox.agent_package import agent_command
from skillcell.sandbox.cancel import Canceled
from skillcell.sandbox.claims import json_object
from skillcell.sandbox.driver import Driver, PackageMount, SandboxSpec
from skillcell.sandbox.framing import FrameReader
from skillcell.sandbox.images import Image
from skillcell.sandbox.job import ArtifactWriter, Delivery, Job, RunReport
from skillcell.sandbox.supervisor import Outlets, Run, await_hello

log = structlog.get_logger("skillcell.packages")

WORK = "/workspace"
TREE_DIR = f"{WORK}/tree"
_SOURCES = Path(next(iter(skillcell.registry.__path__)))
_BUILDER = ("package_mux.py", "package_builder.py")
_START = (
    f"import sys; sys.path.insert(0, {WORK + '/lib'!r}); from skillcell.registry.package_builder import main; main()"
)
_HELLO_SECONDS = 30.0
_DESTROY_TRIES = 3
_WRITE_BYTES = 1 << 20
_SAID_BYTES = 16 << 10


class Room(Protocol):
    """What this machine can hold at once."""

    def held(self, limits: Limits, on_queued: Callable[[int], Awaitable[None]]) -> AbstractAsyncContextManager[None]:
        """Waits for room for `limits`, holds it, and gives it back."""
        ...


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to run in a build."""

    task: Mapping[str, Any]
    """As `package_builder.TASK_KEYS`."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Name below WORK → content."""
    tool: PackageMount | None = None
    hosts: frozenset[tuple[str, int]] = frozenset()


@dataclass(slots=True)
class Built:
    """What came of a build."""

    run: RunReport
    said: Mapping[str, Any] | None
    """The builder's report, None where there is none."""
    whole: bool
    """Whether a tree came to its end."""
    refused: tuple[str, ...]
    unreachable: Mapping[str, str]
    exhausted: bool
    stderr: str


Wanted = Callable[[Mapping[str, Any]], Awaitable[bool]]
"""Whether the tree of this report is wanted."""


class BuildSandboxes:
    """Runs builds; one sandbox each, destroyed on every way out."""

    def __init__(
        self,
        driver: Driver,
        agent: PackageMount,
        room: Room,
        clock: Clock,
        *,
        limits: Limits,
        dial: Dial,
        isolation: Isolation = Isolation.STANDARD,
    ) -> None:
        self._driver = driver
        self._agent = agent
        self._room = room
        self._clock = clock
        self._isolation = isolation
        self._dial = dial
        self._live: set[str] = set()
        self.limits = limits

    @property
    def live(self) -> frozenset[str]:
        """Ids of sandboxes that a build owns now: what the reaper must leave alone."""
        return frozenset(self._live)

    async def build(self, image: Image, recipe: Recipe, archive: Path, wanted: Wanted) -> Built:
        """Runs a recipe; its tree, if wanted, is in `archive`. Raises Fault when there is no sandbox to be had."""
        async with self._room.held(self.limits, _nobody):
            name = sandbox_id()
            self._live.add(name)
            try:
                return await self._build(name, image, recipe, archive, wanted)
            finally:
                await to_completion(self._destroy(name))

    async def _build(self, name: str, image: Image, recipe: Recipe, archive: Path, wanted: Wanted) -> Built:
        mounts = (self._agent,) if recipe.tool is None else (self._agent, recipe.tool)
        spec = SandboxSpec(name, image, self._isolation, self.limits, mounts, agent_command(image.python))
        sandbox = await self._driver.create(spec)
        reader = FrameReader(sandbox.channel)
        try:
            await await_hello(reader, _HELLO_SECONDS)
        except (FrameError, ConnectionError) as error:
            raise unavailable("DRIVER_UNAVAILABLE", f"the sandbox did not become ready: {error}") from error
        async with IndexTunnel(recipe.hosts, self._dial, self.limits.egress_bytes) as tunnel:
            sink = _Sink(tunnel, archive, wanted, self.limits.output_bytes)
            try:
                report = await Run(
                    sandbox,
                    reader,
                    _job(image, recipe, tunnel, self.limits),
                    outlets=Outlets(sink, _NoArtifacts()),
                    canceled=Canceled(),
                    clock=self._clock,
                    started_event=events.Started(
                        name, False, self._driver.name, self._isolation, self.limits, StageTimes()
                    ),
                ).execute()
            finally:
                sink.close()
            if sink.stderr:
                log.warning("package_build_stderr", sandbox_id=name, text=sink.stderr.decode("utf-8", "replace"))
            return Built(
                run=report,
                said=sink.said,
                whole=sink.whole,
                refused=tuple(tunnel.refused),
                unreachable=dict(tunnel.unreachable),
                exhausted=tunnel.exhausted,
                stderr=sink.stderr.decode("utf-8", "replace"),
            )

    async def _destroy(self, name: str) -> None:
        """What is left after some tries is the reaper's, because the id is no longer live."""
        try:
            for attempt in range(_DESTROY_TRIES):
                try:
                    await self._driver.destroy(name)
                    return
                except Fault as fault:
                    log.warning("sandbox_destroy_failed", sandbox_id=name, attempt=attempt, reason=fault.reason)
                    await asyncio.sleep(0.1 * 2**attempt)
        finally:
            self._live.discard(name)


def _job(image: Image, recipe: Recipe, tunnel: IndexTunnel, limits: Limits) -> Job:
    lib = f"{WORK}/lib/skillcell".removeprefix(f"{WORK}/")
    files = {
        f"{lib}/__init__.py": b"",
        f"{lib}/registry/__init__.py": b"",
        **{f"{lib}/registry/{name}": (_SOURCES / name).read_bytes() for name in _BUILDER},
        "build.json": json.dumps(dict(recipe.task)).encode(),
        **recipe.files,
    }
    return Job(
        kind="exec",
        argv=(image.python, "-I", "-B", "-c", _START, f"{WORK}/build.json"),
        env={"LANG": "C.UTF-8", **image.env},
        cwd=WORK,
        limits=limits,
        live_stdin=tunnel.outgoing(),
        files=tuple(Delivery("workspace", name, content) for name, content in files.items()),
    )


async def _nobody(_position: int) -> None:
    """A publisher waits without being told its place."""


class _NoArtifacts:
    async def open(self, name: str) -> ArtifactWriter:
        raise ValueError("a build has no artifacts")


class _Sink:
    """The builder's stdout as frames: connections to the tunnel, the report kept, the tree into a file."""

    def __init__(self, tunnel: IndexTunnel, archive: Path, wanted: Wanted, limit_bytes: int) -> None:
        self._tunnel = tunnel
        self._archive = archive
        self._wanted = wanted
        self._left = limit_bytes
        self._parser = FrameParser()
        self._file: BinaryIO | None = None
        self._pending = bytearray()
        self._accepted = False
        self.said: Mapping[str, Any] | None = None
        self.whole = False
        self.stderr = bytearray()

    async def emit(self, event: events.Event) -> None:
        """Raises FrameError, which ends the run."""
        if isinstance(event, events.Stderr):
            self.stderr += event.data
            del self.stderr[:-_SAID_BYTES]
        elif isinstance(event, events.Stdout):
            try:
                for kind, stream, payload in self._parser.feed(event.data):
                    await self._take(kind, stream, payload)
            except MuxError as error:
                raise FrameError(f"the build broke its protocol: {error}") from error

    def close(self) -> None:
        """Idempotent."""
        if self._file is not None:
            self._file.close()
            self._file = None

    async def _take(self, kind: int, stream: int, payload: bytes) -> None:
        if kind == REPORT:
            await self._take_report(payload)
        elif kind == TREE:
            await self._take_tree(payload)
        else:
            self._tunnel.take(kind, stream, payload)

    async def _take_report(self, payload: bytes) -> None:
        if self.said is not None:
            raise MuxError("a second report")
        self.said = json_object(payload)
        if "resolved" in self.said:
            self._accepted = await self._wanted(self.said)
            await self._tunnel.send(GO, 0, b"tree" if self._accepted else b"done")

    async def _take_tree(self, payload: bytes) -> None:
        self._left -= len(payload)
        if not self._accepted or self.whole or self._left < 0:
            raise MuxError("a tree that was not asked for, or is too large")
        self._pending += payload
        if self._pending and (not payload or len(self._pending) >= _WRITE_BYTES):
            pieces, self._pending = bytes(self._pending), bytearray()
            await asyncio.to_thread(self._append, pieces)
        if not payload:
            self.whole = True
            self.close()

    def _append(self, data: bytes) -> None:
        try:
            if self._file is None:
                self._file = self._archive.open("wb")
            self._file.write(data)
        except OSError as problem:
            raise unavailable("PACKAGE_STORE_UNAVAILABLE", "packages can't be stored now") from problem
